# SPDX-License-Identifier: Apache-2.0
"""Lists what was seen of a process, whatever its verdict says, each with the place. Pure.

Owns the words for what no reason of a verdict says. Must not compare it with the verdict, except to
name the reason that it is.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from ebpf.counters import COMPLETED_RUNS, EXITS, USERSPACE_EXITS, Counter
from probes.host.hypervisors import HYPERVISORS, Hypervisor, HypervisorType
from probes.judge.evidence import Evidence, HypervisorEvidence
from probes.judge.exit_counts import ExitSource
from probes.judge.reasons import Reason
from probes.judge.verdict import OF_HYPERVISOR, HypervisorReasons
from probes.report.model import ProcessReport
from probes.report.why_places import Place
from probes.vmi.foreign_text import one_line

MAX_FOREIGN = 80
"""The most characters of a text that a process chose."""
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_TRIED = (Reason.KVM_RUN_REFUSED, Reason.KVM_RUN_RESULT_UNREAD)
"""Reasons for which runs were counted that prove nothing."""
_ACCELERATED = tuple(hypervisor.type for hypervisor in HYPERVISORS)
_ANY_HYPERVISOR = HypervisorReasons()


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Something that was seen of a process, before it is compared with the verdict."""

    words: str
    place: Place
    points_to: tuple[HypervisorType, ...]
    reason: Reason | None = None
    """The reason that it is, if the verdict has it."""
    detail: str = ""
    """What follows the words, or the reason's sentence."""
    counter: Counter | None = None
    """The counter that counted it; None: it was not counted by a hook."""
    contradicts: bool = True
    """Whether it speaks against all other types: not if an idle guest would show the same."""


def seen_of(process: ProcessReport) -> Iterator[Seen]:
    """Yield everything that was seen of a process, what the kernel shows before what it claims."""
    evidence = process.tracked.evidence if process.tracked else None
    counted = [
        each for hypervisor in HYPERVISORS for each in _counted(hypervisor, process, evidence)
    ]
    yield from counted
    if evidence is None:
        return
    for hypervisor in HYPERVISORS:
        yield from _of_hypervisor(hypervisor, evidence.of(hypervisor.type), process)
    if evidence.guest_ticks:
        without = Reason.GUEST_TIME_WITHOUT_FDS
        yield Seen(
            words=Reason.GUEST_TIME.sentence,
            place=Place.STAT,
            points_to=_ACCELERATED,
            reason=without if without in process.verdict.reasons else Reason.GUEST_TIME,
            detail=_seconds(evidence.guest_ticks),
        )
    yield from _of_emulation(evidence, is_counted=bool(counted))
    yield from _claims(evidence)


def _counted(
    hypervisor: Hypervisor, process: ProcessReport, evidence: Evidence | None
) -> Iterator[Seen]:
    """Yield what hooks counted of the use of a hypervisor."""
    reasons = OF_HYPERVISOR.get(hypervisor.type, _ANY_HYPERVISOR)
    for counter in dict.fromkeys((*hypervisor.proofs, *hypervisor.run_counters)):
        count = _count(counter, process, evidence)
        proves = counter in hypervisor.proofs
        if count == 0 or (counter is USERSPACE_EXITS and _count(COMPLETED_RUNS, process, evidence)):
            continue
        # The counter of all returns is the one that outputs show.
        shown = USERSPACE_EXITS if counter is COMPLETED_RUNS else counter
        total = max(count, _count(shown, process, evidence))
        reason: Reason | None = None
        if proves:
            reason = reasons.recorded.get(counter.name, Reason.RUN_RECORDED)
        elif counter is hypervisor.run_counters[0]:
            reason = next((each for each in _TRIED if each in process.verdict.reasons), None)
        yield Seen(
            words=reason.sentence if proves and reason else f"{_events(counter)} recorded",
            place=Place.HOOK,
            points_to=(hypervisor.type,),
            reason=reason,
            detail=f"{total:,}",
            counter=counter,
        )


def _count(counter: Counter, process: ProcessReport, evidence: Evidence | None) -> int:
    """Return how much a hook counted: at the last reading, or until now if that is more."""
    read = evidence.ledger.count(counter) if evidence and evidence.ledger else 0
    if counter is EXITS and process.exits_source is not ExitSource.TRACEPOINT:
        return read
    return max(read, process.counters.get(counter.name, 0))


def _events(counter: Counter) -> str:
    """Return what a counter counts, in a few words."""
    return counter.counts.partition(",")[0].partition(":")[0]


def _of_hypervisor(
    hypervisor: Hypervisor, seen: HypervisorEvidence, process: ProcessReport
) -> Iterator[Seen]:
    """Yield what /proc shows of the use of a hypervisor."""
    reasons, verdict = OF_HYPERVISOR.get(hypervisor.type, _ANY_HYPERVISOR), process.verdict
    points_to = (hypervisor.type,)
    if seen.vcpus_in_run:
        yield Seen(
            words=reasons.inside_run.sentence,
            place=Place.SYSCALLS,
            points_to=points_to,
            reason=reasons.inside_run,
            detail=f"{seen.vcpus_in_run} of {seen.vcpus} vCPUs",
        )
    if seen.stats_exits:
        is_source = process.exits_source is ExitSource.KVM_STATISTICS
        total = max(seen.stats_exits, process.counters.get(EXITS.name, 0) if is_source else 0)
        yield Seen(
            words=Reason.VCPU_STATISTICS.sentence,
            place=Place.STATISTICS,
            points_to=points_to,
            reason=Reason.VCPU_STATISTICS,
            detail=f"{total:,}",
        )
    if seen.run_worker:
        yield Seen(
            words=Reason.KVM_RUN_WORKER.sentence,
            place=Place.SYSCALLS,
            points_to=points_to,
            reason=Reason.KVM_RUN_WORKER,
        )
    if seen.vcpus:
        is_reason = reasons.holds_vcpus in verdict.reasons
        yield Seen(
            words=f"it holds vCPUs of {hypervisor.label}",
            place=Place.DESCRIPTORS,
            points_to=points_to,
            reason=reasons.holds_vcpus if is_reason else None,
            detail=str(seen.vcpus),
        )
    elif seen.held:
        yield Seen(
            words=f"it holds /dev/{hypervisor.driver.device} or a VM of it, but no vCPU",
            place=Place.DESCRIPTORS,
            points_to=points_to,
            reason=Reason.NO_VCPU_YET,
        )
    if seen.runs_unheld:
        yield Seen(
            words=reasons.run_unheld.sentence,
            place=Place.SYSCALLS,
            points_to=points_to,
            reason=reasons.run_unheld,
        )


def _of_emulation(evidence: Evidence, *, is_counted: bool) -> Iterator[Seen]:
    """Yield what speaks for software emulation: its threads, and no trace of an accelerator.

    is_counted says whether a hook has counted anything of the process by now.
    """
    tcg = (HypervisorType.TCG,)
    if evidence.tcg_cpu_ticks:
        yield Seen(
            words="threads that are named like TCG's compute",
            place=Place.THREAD_TIMES,
            points_to=tcg,
            reason=Reason.TCG_COMPUTES,
            detail=f"{_seconds(evidence.tcg_cpu_ticks)} of CPU time",
        )
    elif evidence.tcg_threads:
        yield Seen(
            words="threads are named like TCG's",
            place=Place.THREAD_TIMES,
            points_to=tcg,
            reason=Reason.TCG_IDLE,
            detail=str(evidence.tcg_threads),
        )
    held = any(seen.held for seen in evidence.seen.values())
    if evidence.fds_complete and not held:
        yield Seen(
            words="it holds no descriptor of an accelerator",
            place=Place.DESCRIPTORS,
            points_to=tcg,
        )
    silent = evidence.ledger is None and not is_counted
    if silent and evidence.hooks_prove_running and not evidence.ledger_lost_events:
        since = "it started" if evidence.hooks_since_start else "they were attached"
        yield Seen(
            words=f"the hooks recorded no use of an accelerator since {since}",
            place=Place.LEDGER,
            points_to=tcg,
            contradicts=evidence.hooks_since_start,
        )


def _claims(evidence: Evidence) -> Iterator[Seen]:
    """Yield what the process says about itself, which proves nothing."""
    accelerated = sorted(kind for kind in evidence.claimed if kind.accelerated)
    if accelerated:
        without = not any(seen.held for seen in evidence.seen.values())
        yield Seen(
            words="its threads call themselves vCPUs",
            place=Place.THREAD_NAMES,
            points_to=tuple(accelerated),
            reason=Reason.CLAIMS_WITHOUT_FDS if without else Reason.CONTRADICTS_THREAD_NAMES,
            detail=", ".join(accelerated),
        )
    if evidence.asked_for:
        asked_for = one_line(", ".join(evidence.asked_for[:8]), longest=MAX_FOREIGN)
        yield Seen(
            words="the command line asks for",
            place=Place.COMMAND_LINE,
            points_to=tuple(kind for kind in HypervisorType if kind.value in evidence.asked_for),
            reason=Reason.CONTRADICTS_COMMAND_LINE,
            detail=asked_for,
        )


def _seconds(ticks: int) -> str:
    return f"{ticks / _TICKS_PER_S:,.2f} s"
