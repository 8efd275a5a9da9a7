# SPDX-License-Identifier: Apache-2.0
"""Turns the facts and the ledger entry of a process into evidence. Pure.

Owns the question "what may be concluded from what": which vCPU threads really are inside KVM_RUN,
and whether the ledger can vouch for a process. Must not know the rules that turn evidence into a
verdict.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from ebpf.hook_status import HookStatus
from ebpf.hooks import KVM_USERSPACE_EXIT, Backend
from ebpf.ledger import KernelSnapshot, LedgerEntry
from probes.host.hypervisors import (
    HYPERVISORS,
    FdKind,
    Hypervisor,
    HypervisorType,
    all_are_watched,
    entries_are_seen,
)
from probes.host.process import (
    Unread,
    VmmId,
    VmmProcess,
    VmmThread,
)
from probes.host.procfs import is_qemu_name

_CLAIMS: Mapping[str, HypervisorType] = {
    "TCG": HypervisorType.TCG,
    **{hypervisor.thread_suffix: hypervisor.type for hypervisor in HYPERVISORS},
}
_THREAD_NAME = re.compile(rf"(?:CPU \d+|ALL CPUs)/({'|'.join(_CLAIMS)})")
"""Names that QEMU gives to vCPU threads with debug-threads=on (accel/*/*-accel-ops*.c)."""
_WORKERS = tuple(
    hypervisor.worker_thread for hypervisor in HYPERVISORS if hypervisor.worker_thread is not None
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HypervisorEvidence:
    """Evidence from /proc that one process uses one hypervisor."""

    held: bool = False
    """Whether the process holds any descriptor of the hypervisor."""
    vcpus: int = 0
    """Number of vCPU descriptors that the process holds."""
    vcpus_in_run: int = 0
    """Number of vCPU descriptors on which a thread is inside the run call now."""
    runs_unheld: int = 0
    """Number of descriptors on which a thread is inside the run call, but that no table holds."""
    run_worker: bool = False
    """Whether the process has a thread that the hypervisor itself started in a run call.

    kvm-nx-lpage-recovery (arch/x86/kvm/mmu/mmu.c) is a thread of the process since Linux
    d96c77bd4eeb ("KVM: x86: switch hugepage recovery thread to vhost_task") (v6.13), and starts at
    a VM's first KVM_RUN since 931656b9e2ff ("kvm: defer huge page recovery vhost task to later")
    (v6.14). As a copy of the thread that made the call, it shows that call, with its descriptor,
    for the rest of its life.
    """
    statistics: int = 0
    """Number of descriptors of its vCPUs' statistics that the process holds."""
    stats_exits: int | None = None
    """VM exits in the hypervisor's statistics of the vCPUs; None: the process holds none open."""


_UNUSED = HypervisorEvidence()


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Everything that counts for or against an accelerator in one process."""

    named_like_qemu: bool
    capability_probe: bool
    """Whether it was started with ``-machine none``: libvirt asks QEMU for its capabilities,
    without a guest."""
    asked_for: tuple[str, ...]
    """Accelerators that its command line names; a hint."""
    claimed: frozenset[HypervisorType]
    """Accelerators that its threads are named after; a hint."""
    unread: Unread | None
    """Why it was not read completely; None: it was."""
    fds_complete: bool
    """Whether the descriptor tables of all its threads were read to the end."""
    threads_seen: bool
    """Whether every thread is known to be outside KVM_RUN, except those with TCG's thread name."""
    seen: Mapping[HypervisorType, HypervisorEvidence]
    """Evidence from /proc for each hypervisor."""
    guest_ticks: int
    """CPU time that the kernel accounted to its threads as guest time, in clock ticks."""
    tcg_threads: int
    """Threads that are named like TCG vCPUs."""
    tcg_cpu_ticks: int
    """CPU time that those threads consumed, in clock ticks."""
    ledger: LedgerEntry | None
    """What the hooks recorded about it; None: nothing."""
    hooks_prove_running: bool
    """Whether the attached hooks observe every use of a vCPU, of any accelerator."""
    hooks_read_results: bool
    """Whether the hooks read the result of every KVM_RUN that returns, so that a refused call is
    known."""
    hooks_since_start: bool
    """Whether hooks that observe every use of a vCPU have been attached since before it started."""
    entries_since_start: bool
    """Whether every KVM_RUN that it ever entered would be in the ledger, even an endless one."""
    ledger_lost_events: bool
    """Whether the ledger dropped events and has no entry for it, so that its silence means
    nothing."""

    def of(self, kind: HypervisorType) -> HypervisorEvidence:
        """Return the evidence from /proc that the process uses one hypervisor."""
        return self.seen.get(kind, _UNUSED)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Threads:
    """The threads of a process, each in one of three groups."""

    workers: tuple[VmmThread, ...]
    """Threads that a hypervisor started; each shows the system call of the thread that made it."""
    emulating: tuple[VmmThread, ...]
    """Threads that are named like TCG vCPUs."""
    others: tuple[VmmThread, ...]

    @classmethod
    def of(cls, threads: Iterable[VmmThread]) -> "_Threads":
        """Put each thread in its group."""
        workers: list[VmmThread] = []
        emulating: list[VmmThread] = []
        others: list[VmmThread] = []
        for thread in threads:
            if thread.comm.startswith(_WORKERS):
                workers.append(thread)
            elif _claim(thread) is HypervisorType.TCG:
                emulating.append(thread)
            else:
                others.append(thread)
        return cls(workers=tuple(workers), emulating=tuple(emulating), others=tuple(others))

    @property
    def own(self) -> tuple[VmmThread, ...]:
        """The threads that the process itself started."""
        return (*self.emulating, *self.others)

    @property
    def claimed(self) -> frozenset[HypervisorType]:
        """The accelerators that these threads are named after."""
        claims = (_claim(thread) for thread in self.own)
        return frozenset(claim for claim in claims if claim is not None)


def gather(process: VmmProcess, kernel: KernelSnapshot, *, start_monotonic_ns: int) -> Evidence:
    """Weigh a process's facts against the ledger.

    start_monotonic_ns is the earliest CLOCK_MONOTONIC time at which the process can have started.
    """
    threads = _Threads.of(process.threads)
    entry = ledger_entry(process.vmm, kernel, start_monotonic_ns=start_monotonic_ns)
    before = _attached_before(start_monotonic_ns, kernel.hooks)
    return Evidence(
        named_like_qemu=process.named_like_qemu,
        capability_probe=process.named_like_qemu and process.command_line.machine == "none",
        asked_for=process.command_line.accelerators,
        claimed=threads.claimed,
        unread=process.unread,
        fds_complete=process.fds.complete,
        threads_seen=process.threads_complete
        and not any(thread.running for thread in threads.others),
        seen={hypervisor.type: _use_of(hypervisor, process, threads) for hypervisor in HYPERVISORS},
        guest_ticks=process.guest_ticks,
        tcg_threads=len(threads.emulating),
        tcg_cpu_ticks=sum(thread.cpu_ticks for thread in threads.emulating),
        ledger=entry,
        hooks_prove_running=all_are_watched(kernel.hooks),
        hooks_read_results=any(
            status.reads_result for status in kernel.hooks if status.is_of(KVM_USERSPACE_EXIT)
        ),
        hooks_since_start=all_are_watched(before),
        entries_since_start=entries_are_seen(before),
        ledger_lost_events=entry is None and kernel.dropped_total > 0,
    )


def ledger_entry(
    vmm: VmmId, kernel: KernelSnapshot, *, start_monotonic_ns: int
) -> LedgerEntry | None:
    """Return the ledger's entry of exactly this process, not of a previous owner of its tgid."""
    entry = kernel.entries.get(vmm.tgid)
    if entry is None or entry.first_ns < start_monotonic_ns:
        return None
    return entry


def _use_of(hypervisor: Hypervisor, process: VmmProcess, threads: _Threads) -> HypervisorEvidence:
    """Gather the evidence that descriptors and threads give for one hypervisor."""
    fds = process.fds.of(hypervisor.type)
    in_run = _fds_inside(threads.own, hypervisor.run_request)
    workers = [
        thread
        for thread in threads.workers
        if hypervisor.worker_thread is not None and thread.comm.startswith(hypervisor.worker_thread)
    ]
    has_statistics = FdKind.STATISTICS in hypervisor.descriptors.values()
    return HypervisorEvidence(
        held=fds.any,
        vcpus=len(fds.vcpus),
        vcpus_in_run=len(in_run & fds.vcpus),
        runs_unheld=len(in_run - fds.vcpus),
        run_worker=bool(_fds_inside(workers, hypervisor.run_request) & fds.vcpus),
        statistics=len(fds.statistics),
        stats_exits=process.stats_exits if has_statistics else None,
    )


def _attached_before(start_monotonic_ns: int, hooks: Iterable[HookStatus]) -> list[HookStatus]:
    """Return the hooks as they were at a time, when those attached later were not attached yet.

    A hook without its driver counts: while the driver has no device, no process holds what the hook
    would observe. A hook that is detached because nothing needs it does not count.
    """
    return [
        hook
        if hook.nothing_to_observe
        or (hook.attached_ns is not None and hook.attached_ns <= start_monotonic_ns)
        else replace(hook, backend=Backend.NONE, attached_ns=None)
        for hook in hooks
    ]


def _fds_inside(threads: Iterable[VmmThread], request: int) -> set[int | None]:
    """Return the descriptors on which threads are inside an ioctl(2) with this request."""
    return {thread.ioctl_fd for thread in threads if thread.ioctl_request == request}


def _claim(thread: VmmThread) -> HypervisorType | None:
    """Return the accelerator that a thread is named after; None: it is named after none."""
    if is_qemu_name(thread.comm):
        return None
    match = _THREAD_NAME.fullmatch(thread.comm)
    return _CLAIMS[match[1]] if match else None
