"""What makes a process worth reading again, and when its verdict stands. Pure.

Owns the comparison of what is known of a process with what the ledger says now. Must not read
anything, and must not judge.
"""

from ebpf.hooks import Question
from ebpf.ledger import KernelSnapshot, LedgerEntry
from probes.assemble import TrackedProcess
from probes.evidence import Evidence
from probes.vmm import HypervisorType, VmmProcess


def needs_reading(
    process: TrackedProcess, entry: LedgerEntry | None, kernel: KernelSnapshot
) -> bool:
    """Whether /proc has to be read again although no life began or ended at its number.

    entry: the record of its number now, which may be a former owner's.
    """
    if not process.verdict.final or process.main_thread_ended:
        return True
    if kernel.error:
        return False
    if entry is None:
        return process.record_ns is not None
    return (
        process.record_ns is None
        or not process.owns(entry)
        or entry.leader_exit_ns is not None
        or entry.vcpus_created != process.vcpus_created
        or contradicts(process, entry)
    )


def verdict_stands(
    process: TrackedProcess, entry: LedgerEntry | None, kernel: KernelSnapshot
) -> bool:
    """Whether a final verdict holds for the process as it was read again.

    entry: its own record. A ledger that could not be read says nothing against it.
    """
    if not process.verdict.final or kernel.error:
        return process.verdict.final
    if entry is None:
        return process.record_ns is None
    return process.record_ns in {None, entry.first_ns} and not contradicts(process, entry)


def contradicts(process: TrackedProcess, entry: LedgerEntry) -> bool:
    """Whether the kernel saw it use another accelerator than it was judged to use."""
    used = _recorded_type(entry)
    return used is not None and used is not process.verdict.type


def is_vmm(process: VmmProcess, evidence: Evidence) -> bool:
    """Whether it is named or started like a VMM, or uses an accelerator."""
    recorded = evidence.ledger is not None and _recorded_type(evidence.ledger) is not None
    used = evidence.kvm_fds or evidence.mshv_fds or evidence.kvm_runs_unheld > 0
    return process.named_like_qemu or used or recorded


def removes_records(kernel: KernelSnapshot) -> bool:
    """Whether the kernel removes the records of processes that have ended."""
    return any(hook.attached for hook in kernel.hooks if hook.hook.question is Question.IS_FREED)


def _recorded_type(entry: LedgerEntry) -> HypervisorType | None:
    """The accelerator that the kernel saw a process use; None: none."""
    if entry.ran_kvm:
        return HypervisorType.KVM
    return HypervisorType.MSHV if entry.mshv_runs else None
