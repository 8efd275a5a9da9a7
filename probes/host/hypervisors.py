# SPDX-License-Identifier: Apache-2.0
"""The hypervisors in the kernel that QEMU can use, one row each. Pure data.

A row says how its use shows: device, driver, descriptors, run call, thread names and counters; and
how its availability is tried. Reading, evidence, verdict, report and outputs iterate over
``HYPERVISORS``. Must not know which rules make a verdict of it.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from ebpf.counters import COMPLETED_RUNS, EXITS, MSHV_RUNS, RUNS, USERSPACE_EXITS, Counter
from ebpf.hooks import KVM, MSHV, Driver, HookStatus, Question
from ebpf.ledger import LedgerEntry
from ebpf.uapi import KVM_CREATE_VM, KVM_RUN, MSHV_RUN_VP


class HypervisorType(StrEnum):
    """How a VM's instructions are executed; QEMU's accelerator names (label hypervisor_type)."""

    KVM = "kvm"
    TCG = "tcg"
    MSHV = "mshv"
    UNKNOWN = "unknown"

    @property
    def accelerated(self) -> bool:
        """Whether a hypervisor in the kernel executes them."""
        return self in BY_TYPE


class FdKind(StrEnum):
    """What a descriptor of a hypervisor is; the value is its field in ``HeldFds``."""

    DEVICE = "devices"
    VM = "vms"
    VCPU = "vcpus"
    STATISTICS = "statistics"
    """Of a vCPU, in the form of KVM_GET_STATS_FD."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """The ioctl(2) on the device that creates an empty VM and returns its descriptor."""

    request: int
    argument_bytes: int = 0
    """Size of the structure, all zero, that it takes; 0: it takes the number 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hypervisor:
    """One hypervisor."""

    type: HypervisorType
    label: str
    """Name in texts for people."""
    driver: Driver
    """Whose module and device it is."""
    expected: bool
    """Whether hvprobe reports its absence. A rare hypervisor, for which this is False, is reported
    only where its device or driver is present."""
    descriptors: Mapping[str, FdKind]
    """By the target of their links, without a number at the end."""
    run_request: int
    """Request number of the ioctl(2) on a vCPU's descriptor that runs the vCPU."""
    thread_suffix: str
    """What QEMU's names of vCPU threads end in (accel/*/*-accel-ops*.c)."""
    worker_thread: str | None = None
    """Beginning of the name of a thread that it starts from within a run; None: it starts none."""
    watched_by: frozenset[Question]
    """Hooks each of which no use of a vCPU passes unseen."""
    entry_seen_by: Question
    """The hook that sees a run when it begins, so that an endless one is recorded, too."""
    run_counters: tuple[Counter, ...]
    """Those that count any use of a vCPU, a refused one as well."""
    proofs: tuple[Counter, ...]
    """Those that only a run counts, the strongest first."""
    trial: Trial
    vendor_modules: Mapping[str, str] | None = None
    """The modules that may provide it besides the driver's, by the CPU flag that each needs; other
    modules with the driver's name at their beginning may, too. None: only the driver's does."""
    no_vendor_modules: frozenset[str] = frozenset()
    """Modules of that name that never do."""
    remedy_if_absent: str
    """What a person can do about a node without its device."""


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
        watched_by=frozenset({Question.RUNS_VCPU, Question.USERSPACE_EXITS}),
        entry_seen_by=Question.RUNS_VCPU,
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
        watched_by=frozenset({Question.RUNS_MSHV_VP}),
        entry_seen_by=Question.RUNS_MSHV_VP,
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


def all_are_watched(hooks: Collection[HookStatus]) -> bool:
    """Whether hooks are attached that no use of a vCPU, of whichever hypervisor, passes unseen.

    One whose hooks are not wanted has no device on this node; an expected one's always are.
    """
    return all(_is_watched(hypervisor, hooks) for hypervisor in HYPERVISORS)


def entries_are_seen(hooks: Collection[HookStatus]) -> bool:
    """Whether each run of a vCPU is seen when it begins, by attached or inactive hooks."""
    for hypervisor in HYPERVISORS:
        found = [it for it in hooks if it.hook.question is hypervisor.entry_seen_by]
        if not all(it.attached or it.inactive for it in found):
            return False
        if hypervisor.expected and not found:
            return False
    return True


def recorded_types(entry: LedgerEntry) -> Iterator[HypervisorType]:
    """The hypervisors of which any use of a vCPU was counted."""
    for hypervisor in HYPERVISORS:
        if any(entry.count(counter) for counter in hypervisor.run_counters):
            yield hypervisor.type


def _is_watched(hypervisor: Hypervisor, hooks: Collection[HookStatus]) -> bool:
    """Whether one of its hooks is attached in every form, or its driver is gone."""
    wanted = [it for it in hooks if it.hook.question in hypervisor.watched_by]
    if not wanted:
        return not hypervisor.expected
    if all(it.inactive for it in wanted):
        return True
    for question in hypervisor.watched_by:
        found = [it for it in wanted if it.hook.question is question]
        if any(it.attached for it in found) and all(it.attached or it.inactive for it in found):
            return True
    return False
