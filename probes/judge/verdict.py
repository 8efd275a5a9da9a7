# SPDX-License-Identifier: Apache-2.0
"""Judges evidence and returns a verdict. Pure; the rules and nothing else.

What the kernel was observed to do decides. What a process says about itself (thread names, command
line) only narrows or contradicts a verdict, and a contradiction is reported, never believed.
Absence of evidence is not evidence of absence: where nothing is proven, the type is unknown or not
verified.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from ebpf.counters import COMPLETED_RUNS, EXITS, MSHV_RUNS, USERSPACE_EXITS
from probes.host.hypervisors import HYPERVISORS, Hypervisor, HypervisorType
from probes.host.process import Unread
from probes.judge.evidence import Evidence, HypervisorEvidence
from probes.judge.reasons import Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What executes a VM's instructions, and how certain that is."""

    type: HypervisorType
    verified: bool
    """Whether it is proven by the kernel, not inferred."""
    reasons: tuple[Reason, ...]
    """The reasons, never empty, the deciding one first."""

    @property
    def final(self) -> bool:
        """Whether it can no longer change: a running process never exchanges its accelerator."""
        return self.verified


@dataclass(frozen=True, slots=True, kw_only=True)
class HypervisorReasons:
    """The reasons that name one hypervisor; the defaults suit every hypervisor."""

    recorded: Mapping[str, Reason] = field(default_factory=dict)
    """Reason by the name of the counter that proves a run; absent: RUN_RECORDED."""
    inside_run: Reason = Reason.INSIDE_RUN
    holds_vcpus: Reason = Reason.HOLDS_VCPUS
    run_unheld: Reason = Reason.RUN_UNHELD


_OF_ANY_HYPERVISOR = HypervisorReasons()
OF_HYPERVISOR: Mapping[HypervisorType, HypervisorReasons] = {
    HypervisorType.KVM: HypervisorReasons(
        recorded={
            EXITS.name: Reason.VM_EXITS_RECORDED,
            COMPLETED_RUNS.name: Reason.USERSPACE_EXITS_RECORDED,
        },
        inside_run=Reason.INSIDE_KVM_RUN,
        run_unheld=Reason.KVM_RUN_UNHELD,
    ),
    HypervisorType.MSHV: HypervisorReasons(
        recorded={MSHV_RUNS.name: Reason.MSHV_RUN_RECORDED},
        inside_run=Reason.INSIDE_MSHV_RUN,
        holds_vcpus=Reason.HOLDS_MSHV_VPS,
    ),
}
"""Hypervisors whose reasons have words of their own. Other hypervisors need no row."""


def judge(evidence: Evidence) -> Verdict:
    """Apply the rules in order and return the verdict of the first one that fits."""
    accelerated = (_accelerated(hypervisor, evidence) for hypervisor in HYPERVISORS)
    verdict = next(filter(None, accelerated), None) or _without_accelerator(evidence)
    contradicted = tuple(
        reason
        for reason, holds in (
            (Reason.CONTRADICTS_THREAD_NAMES, _contradicts_thread_names(verdict, evidence)),
            (Reason.CONTRADICTS_COMMAND_LINE, _contradicts_command_line(verdict, evidence)),
        )
        if holds
    )
    return replace(verdict, reasons=(*verdict.reasons, *contradicted))


def _accelerated(hypervisor: Hypervisor, evidence: Evidence) -> Verdict | None:
    """Return the verdict of a process that uses a vCPU of a hypervisor; None: it does not."""
    proofs = tuple(_proofs(hypervisor, evidence))
    if proofs:
        return Verdict(type=hypervisor.type, verified=True, reasons=proofs)
    ledger, reasons = evidence.ledger, _reasons_of(hypervisor)
    tried: tuple[Reason, ...] = ()
    if ledger is not None and any(map(ledger.count, hypervisor.run_counters)):
        refused = evidence.hooks_read_results
        tried = (Reason.KVM_RUN_REFUSED if refused else Reason.KVM_RUN_RESULT_UNREAD,)
    held = (reasons.holds_vcpus,) if evidence.of(hypervisor.type).vcpus else ()
    if not held and not tried:
        return None
    computes_otherwise = evidence.tcg_cpu_ticks > 0
    unproven = Reason.KVM_RUN_REFUSED in tried and not held
    if computes_otherwise or unproven:
        against = (Reason.CONTRADICTS_THREAD_NAMES,) if computes_otherwise else ()
        return _inferred(HypervisorType.UNKNOWN, *held, *tried, *against)
    return _inferred(hypervisor.type, *held, *tried)


def _proofs(hypervisor: Hypervisor, evidence: Evidence) -> Iterator[Reason]:
    """Yield the reasons that prove that a guest ran on a hypervisor, the strongest first."""
    ledger, reasons = evidence.ledger, _reasons_of(hypervisor)
    seen = evidence.of(hypervisor.type)
    for counter in hypervisor.proofs:
        if ledger and ledger.count(counter):
            yield reasons.recorded.get(counter.name, Reason.RUN_RECORDED)
    if seen.vcpus_in_run:
        yield reasons.inside_run
    if _vcpus_prove(seen, evidence) and seen.stats_exits:
        yield Reason.VCPU_STATISTICS
    if _worker_proves(seen, evidence):
        yield Reason.KVM_RUN_WORKER
    if _vcpus_prove(seen, evidence) and evidence.guest_ticks:
        yield Reason.GUEST_TIME


def _reasons_of(hypervisor: Hypervisor) -> HypervisorReasons:
    return OF_HYPERVISOR.get(hypervisor.type, _OF_ANY_HYPERVISOR)


def _worker_proves(seen: HypervisorEvidence, evidence: Evidence) -> bool:
    """Return whether KVM's worker thread proves that a guest ran.

    KVM starts the thread at the first KVM_RUN of a VM, before it may refuse that call. So the
    thread proves nothing if other threads emulate, nor if the hooks read the results of all calls
    since the process started, or of any call, and none was a guest's.
    """
    ledger = evidence.ledger
    returned = ledger is not None and ledger.count(USERSPACE_EXITS) > 0
    recorded = ledger is not None and evidence.hooks_since_start
    seen_refused = evidence.hooks_read_results and (returned or recorded)
    return seen.run_worker and not evidence.tcg_threads and not seen_refused


def _vcpus_prove(seen: HypervisorEvidence, evidence: Evidence) -> bool:
    """Return whether guest time and the vCPUs' statistics prove something about this process.

    They may belong to the past: a process that executes another program keeps its guest time and
    may keep the descriptors, and a forked child inherits the descriptors. The kernel lets neither
    process run these vCPUs. So they prove nothing if other threads emulate, nor if hooks that
    observe every use of a vCPU since before the process started have recorded none. A process that
    executes another program loses its record.
    """
    unused = (
        evidence.hooks_since_start and evidence.ledger is None and not evidence.ledger_lost_events
    )
    return seen.vcpus > 0 and not evidence.tcg_threads and not unused


def _without_accelerator(evidence: Evidence) -> Verdict:
    """Return the verdict of a process that neither holds nor is known to have run a vCPU."""
    if evidence.capability_probe:
        return _inferred(HypervisorType.UNKNOWN, Reason.CAPABILITY_PROBE)
    for hypervisor in HYPERVISORS:
        if evidence.of(hypervisor.type).runs_unheld:
            return _inferred(HypervisorType.UNKNOWN, _reasons_of(hypervisor).run_unheld)
    if not evidence.fds_complete:
        return _inferred(HypervisorType.UNKNOWN, _why_incomplete(evidence.unread))
    if evidence.guest_ticks:
        return _inferred(HypervisorType.UNKNOWN, Reason.GUEST_TIME_WITHOUT_FDS)
    if any(seen.held for seen in evidence.seen.values()):
        return _inferred(HypervisorType.UNKNOWN, Reason.NO_VCPU_YET)
    if any(claimed.accelerated for claimed in evidence.claimed):
        return _inferred(HypervisorType.UNKNOWN, Reason.CLAIMS_WITHOUT_FDS)
    if not evidence.named_like_qemu:
        return _inferred(HypervisorType.UNKNOWN, Reason.NO_VCPU_THREADS)
    return _tcg(evidence)


def _why_incomplete(unread: Unread | None) -> Reason:
    match unread:
        case Unread.BLOCKED:
            return Reason.READ_BLOCKED
        case Unread.TOO_MANY:
            return Reason.TOO_MUCH_TO_READ
        case Unread.NO_TIME:
            return Reason.NOT_READ_YET
        case Unread.DENIED | None:
            return Reason.FDS_UNREADABLE


def _tcg(evidence: Evidence) -> Verdict:
    """Judge a QEMU whose descriptor tables show no accelerator."""
    if not evidence.tcg_threads:
        if evidence.asked_for and set(evidence.asked_for) == {HypervisorType.TCG.value}:
            return _inferred(HypervisorType.TCG, Reason.ASKED_FOR_TCG)
        return _inferred(HypervisorType.UNKNOWN, Reason.NO_VCPU_THREADS)
    if not evidence.tcg_cpu_ticks:
        return _inferred(HypervisorType.TCG, Reason.TCG_IDLE)
    if not evidence.hooks_prove_running:
        return _inferred(HypervisorType.TCG, Reason.TCG_COMPUTES, Reason.HOOKS_MISSING)
    if evidence.ledger_lost_events:
        return _inferred(HypervisorType.TCG, Reason.TCG_COMPUTES, Reason.LEDGER_INCOMPLETE)
    if not evidence.threads_seen and not evidence.entries_since_start:
        return _inferred(HypervisorType.TCG, Reason.TCG_COMPUTES, Reason.THREADS_UNSEEN)
    if evidence.hooks_since_start:
        return _proven_tcg()
    return _proven_tcg(Reason.HOOKS_LATE)


def _proven_tcg(*more: Reason) -> Verdict:
    return Verdict(type=HypervisorType.TCG, verified=True, reasons=(Reason.TCG_COMPUTES, *more))


def _inferred(kind: HypervisorType, *reasons: Reason) -> Verdict:
    return Verdict(type=kind, verified=False, reasons=reasons)


def _contradicts_command_line(verdict: Verdict, evidence: Evidence) -> bool:
    """Whether the command line names accelerators, but not the one in use."""
    return (
        verdict.type is not HypervisorType.UNKNOWN
        and bool(evidence.asked_for)
        and verdict.type.value not in evidence.asked_for
    )


def _contradicts_thread_names(verdict: Verdict, evidence: Evidence) -> bool:
    """Whether threads are named after another accelerator than the one in use."""
    return verdict.type is not HypervisorType.UNKNOWN and bool(evidence.claimed - {verdict.type})
