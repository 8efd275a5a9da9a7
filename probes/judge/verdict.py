# SPDX-License-Identifier: Apache-2.0
"""Judges evidence and returns a verdict. Pure; the rules and nothing else.

What the kernel was observed to do decides. What a process says about itself (thread names, command
line) only narrows or contradicts a verdict, and a contradiction is reported, never believed.
Absence of evidence is not evidence of absence: where nothing is proven, the type is unknown or not
verified.
"""

from dataclasses import dataclass, replace

from probes.host.process import HypervisorType, Unread
from probes.judge.evidence import Evidence
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


def judge(evidence: Evidence) -> Verdict:
    """Apply the rules in order; the first match decides."""
    verdict = _kvm(evidence) or _mshv(evidence) or _without_accelerator(evidence)
    contradicted = tuple(
        reason
        for reason, holds in (
            (Reason.CONTRADICTS_THREAD_NAMES, _contradicts_thread_names(verdict, evidence)),
            (Reason.CONTRADICTS_COMMAND_LINE, _contradicts_command_line(verdict, evidence)),
        )
        if holds
    )
    return replace(verdict, reasons=(*verdict.reasons, *contradicted))


def _kvm(evidence: Evidence) -> Verdict | None:
    ledger = evidence.ledger
    proofs = tuple(
        reason
        for reason, holds in (
            (Reason.VM_EXITS_RECORDED, ledger and ledger.exits),
            (Reason.USERSPACE_EXITS_RECORDED, ledger and ledger.completed_runs),
            (Reason.INSIDE_KVM_RUN, evidence.kvm_vcpus_in_run),
            (Reason.VCPU_STATISTICS, _vcpus_count(evidence) and evidence.stats_exits),
            (Reason.KVM_RUN_WORKER, _worker_proves(evidence)),
            (Reason.GUEST_TIME, _vcpus_count(evidence) and evidence.guest_ticks),
        )
        if holds
    )
    if proofs:
        return Verdict(type=HypervisorType.KVM, verified=True, reasons=proofs)
    tried: tuple[Reason, ...] = ()
    if ledger is not None and ledger.ran_kvm:
        refused = evidence.hooks_read_results
        tried = (Reason.KVM_RUN_REFUSED if refused else Reason.KVM_RUN_RESULT_UNREAD,)
    held = (Reason.HOLDS_VCPUS,) if evidence.kvm_vcpus else ()
    if not held and not tried:
        return None
    computes_otherwise = evidence.tcg_cpu_ticks > 0
    unproven = Reason.KVM_RUN_REFUSED in tried and not held
    if computes_otherwise or unproven:
        against = (Reason.CONTRADICTS_THREAD_NAMES,) if computes_otherwise else ()
        return _inferred(HypervisorType.UNKNOWN, *held, *tried, *against)
    return _inferred(HypervisorType.KVM, *held, *tried)


def _worker_proves(evidence: Evidence) -> bool:
    """Whether KVM's worker thread proves that a guest ran.

    KVM starts the thread at the first KVM_RUN of a VM, before it may refuse that call. So the
    thread proves nothing if other threads emulate, nor if the hooks read the results of all calls
    since the process started, or of any call, and none was a guest's.
    """
    ledger = evidence.ledger
    returned = ledger is not None and ledger.userspace_exits > 0
    recorded = ledger is not None and evidence.hooks_since_start
    seen_refused = evidence.hooks_read_results and (returned or recorded)
    return evidence.kvm_run_worker and not evidence.tcg_threads and not seen_refused


def _vcpus_count(evidence: Evidence) -> bool:
    """Whether its vCPUs and its guest time describe the process as it is now.

    A process that executes another program keeps its guest time and may keep the descriptors, which
    a forked child has as well; KVM lets neither run these vCPUs. So none of that proves anything if
    threads emulate.
    """
    return evidence.kvm_vcpus > 0 and not evidence.tcg_threads


def _mshv(evidence: Evidence) -> Verdict | None:
    proofs = tuple(
        reason
        for reason, holds in (
            (Reason.MSHV_RUN_RECORDED, evidence.ledger and evidence.ledger.mshv_runs),
            (Reason.INSIDE_MSHV_RUN, evidence.mshv_vps_in_run),
            (Reason.GUEST_TIME, evidence.mshv_vps and evidence.guest_ticks),
        )
        if holds
    )
    if proofs:
        return Verdict(type=HypervisorType.MSHV, verified=True, reasons=proofs)
    if evidence.mshv_vps:
        return _inferred(HypervisorType.MSHV, Reason.HOLDS_MSHV_VPS)
    return None


def _without_accelerator(evidence: Evidence) -> Verdict:
    """Judge a process that holds no vCPU and was never observed running one."""
    accelerated = frozenset({HypervisorType.KVM, HypervisorType.MSHV})
    if evidence.capability_probe:
        return _inferred(HypervisorType.UNKNOWN, Reason.CAPABILITY_PROBE)
    if evidence.kvm_runs_unheld:
        return _inferred(HypervisorType.UNKNOWN, Reason.KVM_RUN_UNHELD)
    if not evidence.fds_complete:
        return _inferred(HypervisorType.UNKNOWN, _why_incomplete(evidence.unread))
    if evidence.guest_ticks:
        return _inferred(HypervisorType.UNKNOWN, Reason.GUEST_TIME_WITHOUT_FDS)
    if evidence.kvm_fds or evidence.mshv_fds:
        return _inferred(HypervisorType.UNKNOWN, Reason.NO_VCPU_YET)
    if evidence.claimed & accelerated:
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
        case None:
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
