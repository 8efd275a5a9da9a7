"""The VMM processes of a node, judged: whom to read, whom not to read again. Reads through sources.

Owns what is remembered of processes between two looks, and when /proc has to be asked anew. Must
not know names, VMIs, or how anything is shown.

A process whose verdict is settled is left alone as long as its record in the ledger stands
unmarked: the kernel ends the record when the process executes a program, marks it when its main
thread ends, and removes it with the process. One that has no record (it sleeps in a KVM_RUN that
began before the hooks; it emulates and began before them) is given one.

An event can be lost all the same: the kernel runs no tracepoint program on a CPU whose process is
in a system call on a BPF map, anybody's. So some processes are looked up in /proc at each look, in
turn, and a record that outlives its process is removed.
"""

import contextlib
import os
import sys
import time

from ebpf.errors import LedgerReadError
from ebpf.hooks import Backend, Question
from ebpf.ledger import KernelSnapshot, LedgerEntry
from probes.assemble import JudgedProcess
from probes.cgroup import pod_of
from probes.evidence import Evidence, gather, ledger_entry
from probes.sources import Ledger, Processes
from probes.verdict import Reason, judge
from probes.vmm import HypervisorType, VmmProcess

_FOLLOWING = (Question.BECOMES_VMM, Question.ENDS, Question.IS_FREED)
"""With hooks for all of these a process can neither end nor become another unnoticed."""

IN_TURN = 16
"""Of so many settled processes one is looked up at each look, whatever its record says."""
FREED_WITHIN_NS = 10_000_000_000
"""After its main thread's end; the kernel frees a process within a fraction of a second."""


class Roster:
    """The VMM processes known. Not for use by two threads at once."""

    def __init__(self, processes: Processes, ledger: Ledger | None) -> None:
        self._host = processes
        self._ledger = ledger
        self._known: dict[int, JudgedProcess] = {}
        """By tgid."""
        self._in_order: tuple[JudgedProcess, ...] = ()
        self._unmarked: set[int] = set()
        """Tgids whose record the kernel will not remove: it began after the main thread's end."""
        self._departed_total: int | None = None
        self._turn = 0

    def judged(self, kernel: KernelSnapshot) -> tuple[JudgedProcess, ...]:
        """All VMM processes of now, by tgid; the same object for as long as nothing changes.

        Read and judged is what is new or may have changed.
        """
        followed = _follows_lives(kernel)
        entries = kernel.entries
        if not kernel.error:
            self._unmarked &= entries.keys()
        changeable = {
            tgid
            for tgid, process in self._known.items()
            if not (followed and _stands(process, entries.get(tgid)))
            or tgid % IN_TURN == self._turn
        }
        self._turn = (self._turn + 1) % IN_TURN
        new = (entries.keys() | self._swept(kernel)) - self._known.keys()
        known = dict(self._known)
        for tgid in sorted((changeable | new) - {os.getpid()}):
            process = self._judged(tgid, kernel, followed=followed)
            if process is None:
                known.pop(tgid, None)
            elif process != known.get(tgid):
                known[tgid] = process
        if known != self._known:
            self._known = known
            self._in_order = tuple(known[tgid] for tgid in sorted(known))
        return self._in_order

    def _swept(self, kernel: KernelSnapshot) -> set[int]:
        """What the ledger may not tell of.

        /proc is swept whole once, for what ran before the hooks; by name each time no hook tells
        of new programs; and by name after a QEMU ended, for one that daemonized itself lives on
        as a child that executed nothing.
        """
        found: set[int] = set()
        if self._departed_total != kernel.departed_total or not _attached(
            kernel, Question.BECOMES_VMM
        ):
            found = self._host.sweep(every_fd=self._departed_total is None)
        self._departed_total = kernel.departed_total
        return found

    def _judged(self, tgid: int, kernel: KernelSnapshot, *, followed: bool) -> JudgedProcess | None:
        """The process with its verdict; a settled one is not read again but for a new record."""
        vmm = self._host.identify(tgid)
        if vmm is None:
            self._forget_ended(tgid, kernel)
            return None
        start_ns = self._host.start_monotonic_ns(vmm)
        entry = ledger_entry(vmm, kernel, start_monotonic_ns=start_ns)
        known = self._known.get(tgid)
        if known is not None and known.vmm != vmm:
            self._unmarked.discard(tgid)
            known = None
        settled = known if known and _still_settled(known, entry, kernel) else None
        adopted_ns = self._adopt(tgid) if followed and tgid not in kernel.entries else None
        if settled and adopted_ns is None and (kernel.error or _nothing_new(settled, entry)):
            return settled
        process = self._host.inspect(vmm)
        if process and process.main_thread_ended:
            self._unmarked.add(tgid)
        evidence = process and gather(process, kernel, start_monotonic_ns=start_ns)
        if not process or not evidence or not _is_vmm(process, evidence):
            if adopted_ns is not None:
                # Made too late for the kernel to remove it, or for something that is no VMM (any
                # more). Should that use KVM after all, the kernel makes a record of its own.
                self._forget(tgid)
            return None
        verdict = settled.verdict if settled else judge(evidence)
        now_unix_s = time.time() - (time.monotonic_ns() - start_ns) / 1e9
        return JudgedProcess(
            vmm=vmm,
            comm=sys.intern(process.comm),
            program=process.program and sys.intern(process.program),
            guest_name=process.command_line.guest_name,
            pod=pod_of(process.cgroup) if process.cgroup else None,
            named_like_qemu=process.named_like_qemu,
            capability_probe=verdict.reasons[0] is Reason.CAPABILITY_PROBE,
            vcpus=max(evidence.kvm_vcpus, evidence.mshv_vps, evidence.tcg_threads) or None,
            started_unix_s=known.started_unix_s if known else now_unix_s,
            verdict=verdict,
            record_ns=entry.first_ns if entry else None,
            adopted_ns=adopted_ns,
            vcpus_created=entry.vcpus_created if entry else 0,
            main_thread_ended=process.main_thread_ended,
            ledger_lost_events=evidence.ledger_lost_events,
        )

    def _adopt(self, tgid: int) -> int | None:
        """Have the kernel follow a process that it has no record of; when that was done, at most.

        Comes before the inspection: what is read then is of the program that the record is of.
        """
        adopted = False
        if self._ledger is not None:
            with contextlib.suppress(LedgerReadError):
                adopted = self._ledger.adopt(tgid)
        return time.monotonic_ns() if adopted else None

    def _forget_ended(self, tgid: int, kernel: KernelSnapshot) -> None:
        """Do what the kernel's own hook does, where it could not be attached or found no mark."""
        entry = kernel.entries.get(tgid)
        if entry is None:
            return
        marked_ns = entry.leader_exit_ns
        overdue = marked_ns is not None and kernel.taken_ns - marked_ns > FREED_WITHIN_NS
        # Known and never marked: it ended before the record began, or the event was lost.
        unmarked = marked_ns is None and (tgid in self._unmarked or tgid in self._known)
        if unmarked or overdue or not _attached(kernel, Question.IS_FREED):
            self._forget(tgid)

    def _forget(self, tgid: int) -> None:
        if self._ledger is not None:
            with contextlib.suppress(LedgerReadError):
                self._ledger.forget(tgid)


def _follows_lives(kernel: KernelSnapshot) -> bool:
    """Whether the kernel tells of every end and every executed program, without exception.

    Classic tracepoints do; of raw ones events can be lost (hooks.py).
    """
    backends = {it.hook.question: it.backend for it in kernel.hooks}
    return all(backends.get(question) is Backend.TRACEPOINT for question in _FOLLOWING)


def _attached(kernel: KernelSnapshot, question: Question) -> bool:
    return any(it.attached for it in kernel.hooks if it.hook.question is question)


def _stands(process: JudgedProcess, entry: LedgerEntry | None) -> bool:
    """Whether a followed process lives and has not changed in any way that matters.

    The record that it was read with stands, and its main thread, whose end is marked there, lived
    when it was read.
    """
    return (
        entry is not None
        and process.verdict.verified
        and not process.main_thread_ended
        and process.owns(entry)
        and entry.leader_exit_ns is None
        and entry.vcpus_created == process.vcpus_created
        and not _contradicts(process, entry)
    )


def _still_settled(known: JudgedProcess, entry: LedgerEntry | None, kernel: KernelSnapshot) -> bool:
    """Whether the verdict stands: the process executed nothing new and the kernel agrees.

    Executing a program ends a record and, if it is a VMM, begins another. A ledger that could not
    be read says nothing of it.
    """
    if kernel.error or not known.verdict.settled:
        return known.verdict.settled
    recorded = known.record_ns is not None or known.adopted_ns is not None
    if entry is None:
        return not recorded
    same_program = known.owns(entry) or (not recorded and entry.exec_ns is None)
    return same_program and not _contradicts(known, entry)


def _nothing_new(settled: JudgedProcess, entry: LedgerEntry | None) -> bool:
    """Whether its record is the one known, or still missing; if vCPUs were added it is read again.

    Its verdict stands all the same.
    """
    return entry is None or (settled.owns(entry) and entry.vcpus_created == settled.vcpus_created)


def _contradicts(process: JudgedProcess, entry: LedgerEntry) -> bool:
    """Whether the kernel saw it use another accelerator than it was judged to use."""
    ran = _recorded_type(entry)
    return ran is not None and ran is not process.verdict.type


def _is_vmm(process: VmmProcess, evidence: Evidence) -> bool:
    """Whether it is named like a VMM or uses an accelerator."""
    recorded = evidence.ledger is not None and _recorded_type(evidence.ledger) is not None
    return process.named_like_qemu or evidence.kvm_fds or evidence.mshv_fds or recorded


def _recorded_type(entry: LedgerEntry) -> HypervisorType | None:
    """The accelerator the kernel saw a process use; None: none."""
    if entry.ran_kvm:
        return HypervisorType.KVM
    return HypervisorType.MSHV if entry.mshv_runs else None
