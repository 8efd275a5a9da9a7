# SPDX-License-Identifier: Apache-2.0
"""Lists the hypervisors in the kernel that QEMU can use, and what hooks observe of each. Pure.

A row names everything by which the use of a hypervisor is recognized (device, driver, descriptors,
run call, thread names, counters) and the trial of its availability. Reading, evidence, verdict,
report and outputs iterate over ``HYPERVISORS``. Must not know the rules of judgement.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum

from ebpf.counters import COMPLETED_RUNS, EXITS, MSHV_RUNS, RUNS, USERSPACE_EXITS, Counter
from ebpf.hook_status import HookStatus
from ebpf.hooks import KVM, KVM_USERSPACE_EXIT, KVM_VCPU_IOCTL, MSHV, MSHV_VP_IOCTL, Driver, Hook
from ebpf.ledger import PLACES, LedgerEntry
from ebpf.uapi import KVM_CREATE_VM, KVM_RUN, MSHV_RUN_VP


class HypervisorType(StrEnum):
    """How a VM's instructions are executed; QEMU's accelerator names (label hypervisor_type)."""

    KVM = "kvm"
    TCG = "tcg"
    MSHV = "mshv"
    UNKNOWN = "unknown"

    @property
    def accelerated(self) -> bool:
        """Whether a hypervisor in the kernel executes the instructions."""
        return self in BY_TYPE


class FdKind(StrEnum):
    """Kind of a hypervisor's descriptor; the value is the field of ``HeldFds``."""

    DEVICE = "devices"
    VM = "vms"
    VCPU = "vcpus"
    STATISTICS = "statistics"
    """Statistics of a vCPU, as KVM_GET_STATS_FD returns them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """The ioctl(2) on the device that creates an empty VM and returns its descriptor."""

    request: int
    argument_bytes: int = 0
    """Size of the zeroed structure that is the argument; 0: the argument is the number 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hypervisor:
    """A hypervisor in the kernel, and how its use is recognized."""

    type: HypervisorType
    label: str
    """Its name in texts for people."""
    driver: Driver
    """The driver that provides the hypervisor and its device."""
    expected: bool
    """Whether hvprobe reports its absence. A rare hypervisor, for which this is False, is reported
    only on nodes that have its device or driver."""
    descriptors: Mapping[str, FdKind]
    """Kind of a descriptor by the target of its link, without the number at the end."""
    run_request: int
    """Request number of the ioctl(2) on a vCPU's descriptor that runs the vCPU."""
    thread_suffix: str
    """End of the names that QEMU gives to vCPU threads (accel/*/*-accel-ops*.c)."""
    worker_thread: str | None = None
    """Beginning of the name of a thread that a run starts; None: runs start no thread."""
    watched_by: tuple[Hook, ...]
    """Hooks each of which fires on every use of a vCPU."""
    entry_seen_by: Hook
    """The hook that fires when a run begins, so that a run that never ends is recorded as well."""
    run_counters: tuple[Counter, ...]
    """Counters of every use of a vCPU, including calls that the hypervisor refuses."""
    proofs: tuple[Counter, ...]
    """Counters that grow only if a guest ran, the strongest proof first."""
    trial: Trial
    vendor_modules: Mapping[str, str] | None = None
    """Vendor modules, by the CPU flag that each one needs. Other modules whose names begin with the
    driver's may provide the hypervisor as well. None: only the driver's own module does."""
    no_vendor_modules: frozenset[str] = frozenset()
    """Modules whose names begin with the driver's, but that never provide the hypervisor."""
    remedy_if_absent: str
    """Remedy for a node on which its device is absent."""


HYPERVISORS: tuple[Hypervisor, ...] = (
    Hypervisor(
        type=HypervisorType.KVM,
        label="KVM",
        driver=KVM,
        expected=True,
        descriptors={
            "/dev/kvm": FdKind.DEVICE,
            "anon_inode:kvm-vm": FdKind.VM,
            "anon_inode:kvm-vcpu": FdKind.VCPU,
            "anon_inode:kvm-vcpu-stats": FdKind.STATISTICS,
        },
        run_request=KVM_RUN,
        thread_suffix="KVM",
        worker_thread="kvm-nx-lpage",
        watched_by=(KVM_VCPU_IOCTL, KVM_USERSPACE_EXIT),
        entry_seen_by=KVM_VCPU_IOCTL,
        run_counters=(RUNS, USERSPACE_EXITS, EXITS),
        proofs=(EXITS, COMPLETED_RUNS),
        trial=Trial(request=KVM_CREATE_VM),
        vendor_modules={"vmx": "kvm_intel", "svm": "kvm_amd"},
        no_vendor_modules=frozenset({"kvm", "kvm_guest"}),
        remedy_if_absent="load kvm_intel or kvm_amd, enable virtualization in firmware",
    ),
    # drivers/hv/mshv_root_main.c; include/uapi/linux/mshv.h.
    Hypervisor(
        type=HypervisorType.MSHV,
        label="mshv",
        driver=MSHV,
        expected=False,
        descriptors={
            "/dev/mshv": FdKind.DEVICE,
            "anon_inode:mshv_partition": FdKind.VM,
            "anon_inode:mshv_vp": FdKind.VCPU,
        },
        run_request=MSHV_RUN_VP,
        thread_suffix="MSHV",
        watched_by=(MSHV_VP_IOCTL,),
        entry_seen_by=MSHV_VP_IOCTL,
        run_counters=(MSHV_RUNS,),
        proofs=(MSHV_RUNS,),
        # MSHV_CREATE_PARTITION: _IOW(MSHV_IOCTL, 0x00, struct mshv_create_partition), 16 bytes.
        trial=Trial(request=0x4010B800, argument_bytes=16),
        remedy_if_absent="boot the node as the root partition and load mshv_root",
    ),
)

BY_TYPE: Mapping[HypervisorType, Hypervisor] = {
    hypervisor.type: hypervisor for hypervisor in HYPERVISORS
}

_RUN_PLACES = tuple(
    (hypervisor.type, tuple(PLACES[counter.name] for counter in hypervisor.run_counters))
    for hypervisor in HYPERVISORS
)
"""Indexes of the run counters in ``LedgerEntry.counts``, by hypervisor."""


def all_are_watched(hooks: Collection[HookStatus]) -> bool:
    """Return whether the attached hooks observe every use of a vCPU of every hypervisor.

    If the hooks of a rare hypervisor are not wanted, the node does not have its device. The hooks
    of an expected hypervisor are always wanted.
    """
    return all(_is_watched(hypervisor, hooks) for hypervisor in HYPERVISORS)


def entries_are_seen(hooks: Collection[HookStatus]) -> bool:
    """Return whether the hooks observe the beginning of every run, or there is none to observe."""
    for hypervisor in HYPERVISORS:
        found = [status for status in hooks if status.is_of(hypervisor.entry_seen_by)]
        if not all(status.attached or status.nothing_to_observe for status in found):
            return False
        if hypervisor.expected and not found:
            return False
    return True


def recorded_type(entry: LedgerEntry) -> HypervisorType | None:
    """Return the first hypervisor of which any use of a vCPU was counted; None: there is none.

    Every refresh calls this for each record, so it looks up no more than it has to.
    """
    counts = entry.counts
    for kind, places in _RUN_PLACES:
        for place in places:
            if counts[place]:
                return kind
    return None


def _is_watched(hypervisor: Hypervisor, hooks: Collection[HookStatus]) -> bool:
    """Return whether the hooks observe every use of a hypervisor, or its driver is gone.

    A hook that is detached because nothing needs it observes nothing, so its silence means nothing.
    """
    wanted = [[status for status in hooks if status.is_of(hook)] for hook in hypervisor.watched_by]
    if not any(wanted):
        return not hypervisor.expected
    if all(status.nothing_to_observe for forms in wanted for status in forms):
        return True
    return any(
        any(status.attached for status in forms)
        and all(status.attached or status.nothing_to_observe for status in forms)
        for forms in wanted
    )
