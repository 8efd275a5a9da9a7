"""The rules of judgement: evidence → verdict. Pure; the rules and nothing else.

What the kernel was seen to do decides. What a process says of itself (thread names, command line)
only ever narrows or contradicts, and a contradiction is reported, never believed. Absence of
evidence is not evidence of absence: where nothing is proven the type is unknown or not verified.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

from probes.evidence import Evidence
from probes.vmm import HypervisorType


class Reason(StrEnum):
    """Why a verdict is what it is; the value is the short form that outputs show."""

    VM_EXITS_RECORDED = "VM exits recorded"
    USERSPACE_EXITS_RECORDED = "KVM_RUN returns recorded"
    KVM_RUN_RECORDED = "KVM_RUN recorded"
    KVM_RUN_REFUSED = "KVM_RUN entered, but no guest seen to run"
    INSIDE_KVM_RUN = "vCPU thread inside KVM_RUN"
    VCPU_STATISTICS = "KVM's own statistics count VM exits"
    KVM_RUN_WORKER = "KVM's worker thread was started by a KVM_RUN"
    GUEST_TIME = "guest CPU time accounted"
    HOLDS_VCPUS = "holds vCPUs, not seen running"
    MSHV_RUN_RECORDED = "MSHV_RUN_VP recorded"
    INSIDE_MSHV_RUN = "vCPU thread inside MSHV_RUN_VP"
    HOLDS_MSHV_VPS = "holds mshv vCPUs, not seen running"
    TCG_COMPUTES = "TCG threads compute, no accelerator in use"
    TCG_IDLE = "TCG threads have not computed yet"
    HOOKS_MISSING = "no hook attached that would see KVM_RUN"
    HOOKS_LATE = "started before the hooks: descriptors stand in for the ledger"
    LEDGER_INCOMPLETE = "the ledger dropped events"
    ASKED_FOR_TCG = "no accelerator in use, command line asks for tcg"
    NO_VCPU_YET = "no vCPU made"
    NO_VCPU_THREADS = "no vCPU thread found"
    FDS_UNREADABLE = "descriptors cannot be read whole"
    CAPABILITY_PROBE = "capability probe without a guest"
    NO_PROCESS = "no process found for this VM"
    NO_POD = "the API server names no pod of this VM on this node"
    POD_CONTESTED = "another VM claims the same pod"
    SEVERAL_PROCESSES = "several processes of its pod could be this VM"
    CLAIMS_WITHOUT_FDS = "a thread claims an accelerator of which no descriptor is held"
    GUEST_TIME_WITHOUT_FDS = "guest CPU time without any vCPU descriptor"
    CONTRADICTS_THREAD_NAMES = "not what its threads call themselves"
    CONTRADICTS_COMMAND_LINE = "not what the command line asks for"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What executes a VM's instructions, and how sure that is."""

    type: HypervisorType
    verified: bool
    """Proven by the kernel, not inferred."""
    reasons: tuple[Reason, ...]
    """Never empty; the deciding one first."""

    @property
    def settled(self) -> bool:
        """Whether it will not change any more: an accelerator is not exchanged in flight."""
        return self.verified


def judge(evidence: Evidence) -> Verdict:
    """Apply the rules in order; the first that fits decides."""
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
    proofs = tuple(
        reason
        for reason, holds in (
            (Reason.VM_EXITS_RECORDED, evidence.ledger and evidence.ledger.exits),
            (Reason.USERSPACE_EXITS_RECORDED, evidence.ledger and evidence.ledger.userspace_exits),
            (Reason.KVM_RUN_RECORDED, _entered_kvm_run(evidence) and _run_counts(evidence)),
            (Reason.INSIDE_KVM_RUN, evidence.kvm_vcpus_in_run),
            (Reason.VCPU_STATISTICS, evidence.kvm_vcpus and evidence.stats_exits),
            (Reason.KVM_RUN_WORKER, evidence.kvm_run_worker),
            (Reason.GUEST_TIME, evidence.kvm_vcpus and evidence.guest_ticks),
        )
        if holds
    )
    if proofs:
        return Verdict(type=HypervisorType.KVM, verified=True, reasons=proofs)
    if evidence.kvm_vcpus:
        return _inferred(HypervisorType.KVM, Reason.HOLDS_VCPUS)
    if _entered_kvm_run(evidence):
        return _inferred(HypervisorType.UNKNOWN, Reason.KVM_RUN_REFUSED)
    return None


def _entered_kvm_run(evidence: Evidence) -> bool:
    return evidence.ledger is not None and evidence.ledger.runs > 0


def _run_counts(evidence: Evidence) -> bool:
    """Whether an entered KVM_RUN proves a running guest.

    KVM refuses the call to a process that inherited the descriptor (-EIO: another address space),
    before any tracepoint. So where returns are seen, an entry alone proves nothing: one that was
    not refused shows as a return, a VM exit, or a thread inside KVM_RUN.
    """
    ledger = evidence.ledger
    returned = ledger is not None and bool(ledger.userspace_exits or ledger.exits)
    return returned or not evidence.hooks_see_returns


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
    """No vCPU of an accelerator is held, and none was ever seen to run."""
    accelerated = frozenset({HypervisorType.KVM, HypervisorType.MSHV})
    if evidence.capability_probe:
        return _inferred(HypervisorType.UNKNOWN, Reason.CAPABILITY_PROBE)
    if not evidence.fds_whole:
        return _inferred(HypervisorType.UNKNOWN, Reason.FDS_UNREADABLE)
    if evidence.guest_ticks:
        return _inferred(HypervisorType.UNKNOWN, Reason.GUEST_TIME_WITHOUT_FDS)
    if evidence.kvm_fds or evidence.mshv_fds:
        return _inferred(HypervisorType.UNKNOWN, Reason.NO_VCPU_YET)
    if evidence.claimed & accelerated:
        return _inferred(HypervisorType.UNKNOWN, Reason.CLAIMS_WITHOUT_FDS)
    if not evidence.named_like_qemu:
        return _inferred(HypervisorType.UNKNOWN, Reason.NO_VCPU_THREADS)
    return _tcg(evidence)


def _tcg(evidence: Evidence) -> Verdict:
    """A QEMU whose whole descriptor table shows no accelerator."""
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
    if evidence.hooks_since_start:
        return _proven_tcg()
    return _proven_tcg(Reason.HOOKS_LATE)


def _proven_tcg(*more: Reason) -> Verdict:
    return Verdict(type=HypervisorType.TCG, verified=True, reasons=(Reason.TCG_COMPUTES, *more))


def _inferred(kind: HypervisorType, *reasons: Reason) -> Verdict:
    return Verdict(type=kind, verified=False, reasons=reasons)


def _contradicts_command_line(verdict: Verdict, evidence: Evidence) -> bool:
    """Whether a named list of accelerators does not contain the one that is in use."""
    return (
        verdict.type is not HypervisorType.UNKNOWN
        and bool(evidence.asked_for)
        and verdict.type.value not in evidence.asked_for
    )


def _contradicts_thread_names(verdict: Verdict, evidence: Evidence) -> bool:
    """Whether threads name themselves after another accelerator than the one in use."""
    return verdict.type is not HypervisorType.UNKNOWN and bool(evidence.claimed - {verdict.type})
