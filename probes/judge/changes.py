# SPDX-License-Identifier: Apache-2.0
"""Decides what to do next with a tracked process after an event. Pure.

Owns the rules by which a process passes from state to state. Must not read anything, and must not
judge: the tracker executes the steps.
"""

import sys

from ebpf.hooks import SCHED_PROCESS_FREE
from ebpf.ledger import KernelSnapshot, LedgerEntry
from probes.host.cgroup import pod_of
from probes.host.hypervisors import HypervisorType, recorded_type
from probes.host.process import VmmProcess
from probes.judge.evidence import Evidence
from probes.judge.tracked import Action, Event, State, Step, TrackedProcess
from probes.judge.verdict import Verdict

FREED_WITHIN_NS = 10_000_000_000
"""How long the kernel may take to free a process after its main thread has ended.

It needs a fraction of a second.
"""

_LEAVE = Step(action=Action.LEAVE, state=State.FOLLOWED)
_KEEP = Step(action=Action.KEEP, state=None)
_JUDGE = Step(action=Action.JUDGE, state=None)


def next_step(
    tracked: TrackedProcess | None,
    event: Event,
    entry: LedgerEntry | None,
    *,
    ledger_read: bool = True,
) -> Step:
    """Return what to do with a process after an event.

    tracked is what is known about it; None: it is NEW, or an OTHER that has to be scanned. entry is
    the record of its number, which may be a previous owner's; once the process has been read, it is
    its own. ledger_read says whether the ledger could be read: if not, a missing record means
    nothing.
    """
    match event:
        case Event.LISTED | Event.DUE | Event.UNFOLLOWED | Event.MARKED:
            has_news = ledger_read and tracked is not None and record_has_news(tracked, entry)
            return _step_when_listed(tracked, event, has_news=has_news)
        case Event.FOUND | Event.PLAIN:
            return _step_when_seen(tracked, event, entry)
        case Event.UNREAD:
            return Step(action=Action.WAIT, state=tracked.state if tracked else State.NEW)
        case Event.ENDED:
            return Step(action=Action.DROP, state=State.ENDED)
        case Event.NO_VMM:
            return Step(action=Action.SET_ASIDE, state=State.OTHER)
        case Event.REPLACED:
            return _JUDGE
        case Event.VMM:
            if tracked is None or tracked.state is State.DOUBTED:
                return _JUDGE
            return _KEEP if _verdict_stands(tracked, entry, ledger_read=ledger_read) else _JUDGE


def _step_when_listed(tracked: TrackedProcess | None, event: Event, *, has_news: bool) -> Step:
    """Decide whether to scan a process, and whether to read it afterwards."""
    if tracked is None:
        return Step(action=Action.SCAN, state=State.NEW)
    if event is Event.MARKED:
        return Step(action=Action.SCAN, state=State.DOUBTED)
    if tracked.state is not State.FOLLOWED:
        return Step(action=Action.SCAN, state=tracked.state)
    if event is Event.UNFOLLOWED or has_news:
        return Step(action=Action.SCAN, state=State.RECHECK)
    return Step(action=Action.SCAN, state=State.FOLLOWED) if event is Event.DUE else _LEAVE


def _step_when_seen(
    tracked: TrackedProcess | None, event: Event, entry: LedgerEntry | None
) -> Step:
    """Decide whether to read a process that was identified.

    A process with a record uses an accelerator, even if nothing else shows it. A process that is no
    longer named like QEMU may be running another program.
    """
    plain = event is Event.PLAIN
    if tracked is None:
        if plain and entry is None:
            return Step(action=Action.SET_ASIDE, state=State.OTHER)
        return Step(action=Action.READ, state=State.NEW)
    if tracked.state is not State.FOLLOWED:
        return Step(action=Action.READ, state=tracked.state)
    if plain and tracked.named_like_qemu:
        return Step(action=Action.READ, state=State.RECHECK)
    return _LEAVE


def record_has_news(tracked: TrackedProcess, entry: LedgerEntry | None) -> bool:
    """Whether the record of its number differs from what its verdict was based on."""
    if entry is None:
        return tracked.record_ns is not None
    return (
        not tracked.owns(entry)
        or entry.leader_exit_ns is not None
        or entry.vcpus_created != tracked.vcpus_created
        or _contradicts(tracked, entry)
    )


def _verdict_stands(
    tracked: TrackedProcess, entry: LedgerEntry | None, *, ledger_read: bool
) -> bool:
    """Whether its verdict is final and not contradicted by its own record."""
    if not tracked.verdict.final or not ledger_read:
        return tracked.verdict.final
    if entry is None:
        return tracked.record_ns is None
    return tracked.record_ns in {None, entry.first_ns} and not _contradicts(tracked, entry)


def _contradicts(tracked: TrackedProcess, entry: LedgerEntry) -> bool:
    """Whether the kernel observed it using another accelerator than the verdict says."""
    used = recorded_type(entry)
    return used is not None and used is not tracked.verdict.type


def event_of_reading(
    tracked: TrackedProcess | None, process: VmmProcess, evidence: Evidence
) -> Event:
    """Return what a complete reading of a process shows.

    A VMM is named or started like one, or uses an accelerator.
    """
    recorded = evidence.ledger is not None and recorded_type(evidence.ledger) is not None
    used = any(seen.held or seen.runs_unheld for seen in evidence.seen.values())
    if not (process.named_like_qemu or used or recorded):
        return Event.NO_VMM
    if tracked is not None and tracked.program != process.program:
        return Event.REPLACED
    return Event.VMM


def tracked_process(
    process: VmmProcess, evidence: Evidence, verdict: Verdict, *, started_unix_s: float
) -> TrackedProcess:
    """Make a tracked process from its facts and its verdict.

    If its main thread has ended and other threads are still alive, only /proc shows when they end,
    so the process is read again at each refresh.
    """
    record = evidence.ledger
    final = verdict.final and not process.main_thread_ended
    return TrackedProcess(
        vmm=process.vmm,
        state=State.FOLLOWED if final else State.RECHECK,
        comm=sys.intern(process.comm),
        program=process.program and sys.intern(process.program),
        guest_name=process.command_line.guest_name,
        command_line_unread=process.blocked,
        parent_tgid=process.parent_tgid,
        pod=pod_of(process.cgroup) if process.cgroup else None,
        named_like_qemu=process.named_like_qemu,
        vcpus=max(evidence.tcg_threads, *(seen.vcpus for seen in evidence.seen.values())) or None,
        started_unix_s=started_unix_s,
        verdict=verdict,
        record_ns=record.first_ns if record else None,
        vcpus_created=record.vcpus_created if record else 0,
        statistics=evidence.of(HypervisorType.KVM).statistics,
        evidence=evidence,
    )


def record_is_stale(
    entry: LedgerEntry, state: State, kernel: KernelSnapshot, *, started_ns: int | None
) -> bool:
    """Whether the agent has to remove a record that belongs to no tracked process.

    The kernel removes the records of processes that have ended, unless the hook for that is
    missing, was skipped, or fires late. state and started_ns describe the process that has the
    number now; started_ns is its earliest possible start, None: unknown. A record that began
    earlier is a previous owner's. The record of a process that has ended is removed even if its
    parent has not collected it yet, because such processes would fill the ledger.
    """
    match state:
        case State.NEW:
            return False
        case State.OTHER:
            return True
        case State.ENDED:
            return entry.leader_exit_ns is not None
        case State.GONE:
            marked_ns = entry.leader_exit_ns
            overdue = marked_ns is None or kernel.taken_ns - marked_ns > FREED_WITHIN_NS
            return overdue or not _kernel_removes_records(kernel)
        case State.FOLLOWED | State.RECHECK | State.DOUBTED:
            return started_ns is not None and entry.first_ns < started_ns


def _kernel_removes_records(kernel: KernelSnapshot) -> bool:
    return any(status.attached for status in kernel.hooks if status.is_of(SCHED_PROCESS_FREE))
