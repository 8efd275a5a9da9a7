"""Facts of a process and its ledger entry → evidence. Pure.

Owns the question "what may be concluded from what": which vCPU threads really are inside KVM_RUN,
whether the ledger can vouch for a process. Must not know the rules that make a verdict of it.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ebpf.hooks import HookStatus, Question
from ebpf.ledger import KernelSnapshot, LedgerEntry
from probes.procfs import is_qemu_name
from probes.vmm import HypervisorType, VmmId, VmmProcess, VmmThread

KVM_RUN = 0xAE80
"""ioctl request of a vCPU descriptor (include/uapi/linux/kvm.h)."""
MSHV_RUN_VP = 0x8100B800
"""ioctl request of an mshv_vp descriptor (include/uapi/linux/mshv.h)."""

_KVM_RUN_PROVING = frozenset({Question.RUNS_VCPU, Question.USERSPACE_EXITS})
"""Any use of a vCPU passes these, whereas a VM exit alone may go unseen on some vendor modules."""

_KVM_WORKER = "kvm-nx-lpage"

_THREAD_NAME = re.compile(r"(?:CPU \d+|ALL CPUs)/(KVM|TCG|MSHV)")
"""Thread names QEMU gives with debug-threads=on (accel/*/*-accel-ops*.c)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that counts for or against an accelerator in one process."""

    vmm: VmmId
    named_like_qemu: bool
    capability_probe: bool
    """Started with ``-machine none``: libvirt asks QEMU what it can do; there is no guest."""
    asked_for: tuple[str, ...]
    """Accelerators of the command line; a hint."""
    claimed: frozenset[HypervisorType]
    """Accelerators its threads name themselves after; a hint."""
    fds_whole: bool
    """Whether its descriptor table was read to the end."""
    kvm_fds: bool
    """It holds any KVM descriptor."""
    kvm_vcpus: int
    """KVM vCPU descriptors it holds."""
    kvm_vcpus_in_run: int
    """Distinct KVM vCPU descriptors on which a thread is inside KVM_RUN now."""
    kvm_run_worker: bool
    """It has a thread that KVM itself started from within its KVM_RUN.

    kvm-nx-lpage-recovery, started at a VM's first KVM_RUN (arch/x86/kvm/mmu/mmu.c), is a thread
    of the process since Linux 6.14; being a copy of the thread that made the call, it shows that
    call, with its descriptor, for the rest of its life.
    """
    mshv_fds: bool
    """It holds any descriptor of the Microsoft hypervisor."""
    mshv_vps: int
    """Virtual processor descriptors of the Microsoft hypervisor it holds."""
    mshv_vps_in_run: int
    """Distinct ones on which a thread is inside MSHV_RUN_VP now."""
    stats_exits: int | None
    """VM exits by KVM's own statistics of its vCPUs; None: it holds none open."""
    guest_ticks: int
    """CPU time the kernel accounted to its threads as guest time, clock ticks."""
    tcg_threads: int
    """Threads that call themselves TCG vCPUs."""
    tcg_cpu_ticks: int
    """CPU time those threads consumed, clock ticks."""
    ledger: LedgerEntry | None
    """What the hooks recorded of it; None: nothing."""
    hooks_prove_running: bool
    """Whether hooks are attached that no use of a vCPU, of whichever accelerator, passes unseen."""
    hooks_see_returns: bool
    """Whether a hook is attached that every KVM_RUN passes on its way back, unless refused."""
    hooks_since_start: bool
    """Whether such hooks were attached since before it started."""
    ledger_lost_events: bool
    """Whether the ledger dropped events and has no entry of it: its silence means nothing then."""


def gather(process: VmmProcess, kernel: KernelSnapshot, *, start_monotonic_ns: int) -> Evidence:
    """Weigh a process's facts against the ledger.

    start_monotonic_ns: earliest CLOCK_MONOTONIC time at which the process can have started.
    """
    workers = [thread for thread in process.threads if thread.comm.startswith(_KVM_WORKER)]
    in_run = _ioctls(thread for thread in process.threads if thread not in workers)
    tcg = [thread for thread in process.threads if _claim(thread) is HypervisorType.TCG]
    entry = ledger_entry(process.vmm, kernel, start_monotonic_ns=start_monotonic_ns)
    if entry is not None and not _recorded_anything(entry):
        entry = None
    proving = _hooks_prove_running(kernel.hooks)
    covered = kernel.attached_ns is not None and start_monotonic_ns >= kernel.attached_ns
    fds = process.fds
    return Evidence(
        vmm=process.vmm,
        named_like_qemu=process.named_like_qemu,
        capability_probe=process.named_like_qemu and process.command_line.machine == "none",
        asked_for=process.command_line.accelerators,
        claimed=frozenset(claim for claim in map(_claim, process.threads) if claim),
        fds_whole=fds.whole,
        kvm_fds=fds.kvm,
        kvm_vcpus=len(fds.kvm_vcpus),
        kvm_vcpus_in_run=sum((fd, KVM_RUN) in in_run for fd in fds.kvm_vcpus),
        kvm_run_worker=any((fd, KVM_RUN) in _ioctls(workers) for fd in fds.kvm_vcpus),
        mshv_fds=fds.mshv,
        mshv_vps=len(fds.mshv_vps),
        mshv_vps_in_run=sum((fd, MSHV_RUN_VP) in in_run for fd in fds.mshv_vps),
        stats_exits=process.stats_exits,
        guest_ticks=process.guest_ticks,
        tcg_threads=len(tcg),
        tcg_cpu_ticks=sum(thread.cpu_ticks for thread in tcg),
        ledger=entry,
        hooks_prove_running=proving,
        hooks_see_returns=any(
            it.attached for it in kernel.hooks if it.hook.question is Question.USERSPACE_EXITS
        ),
        hooks_since_start=proving and covered,
        ledger_lost_events=entry is None and kernel.dropped_total > 0,
    )


def ledger_entry(
    vmm: VmmId, kernel: KernelSnapshot, *, start_monotonic_ns: int
) -> LedgerEntry | None:
    """The ledger's entry of exactly this process, not of one that had its tgid before."""
    entry = kernel.entries.get(vmm.tgid)
    if entry is None or entry.first_ns < start_monotonic_ns:
        return None
    return entry


def _recorded_anything(entry: LedgerEntry) -> bool:
    """Whether a hook wrote this record; if not, it was adopted, and says what no record says."""
    return bool(
        entry.exec_ns
        or entry.vms_created
        or entry.vcpus_created
        or entry.runs
        or entry.userspace_exits
        or entry.exits
        or entry.mshv_runs
    )


def _hooks_prove_running(hooks: Iterable[HookStatus]) -> bool:
    """Whether every accelerator that can be used on this node is watched."""
    kvm = [it for it in hooks if it.hook.question in _KVM_RUN_PROVING]
    mshv = [it for it in hooks if it.hook.question is Question.RUNS_MSHV_VP]
    kvm_watched = any(it.attached for it in kvm) or (kvm and all(it.needless for it in kvm))
    return bool(kvm_watched) and all(it.attached or it.needless for it in mshv)


def _ioctls(threads: Iterable[VmmThread]) -> set[tuple[int | None, int | None]]:
    return {(thread.ioctl_fd, thread.ioctl_request) for thread in threads}


def _claim(thread: VmmThread) -> HypervisorType | None:
    """The accelerator a thread names itself after; None: its name says nothing."""
    if is_qemu_name(thread.comm):
        return None
    match = _THREAD_NAME.fullmatch(thread.comm)
    return HypervisorType(match[1].lower()) if match else None
