# SPDX-License-Identifier: Apache-2.0
"""What is known of one process that may be a virtual machine monitor (VMM). Pure types.

Owns the identity of a process along the whole path and the facts /proc gives of it. Must not know
how they were read, what the ledger says, or which VMI the process belongs to.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class HypervisorType(StrEnum):
    """How a VM's instructions are executed; QEMU's accelerator names (label hypervisor_type)."""

    KVM = "kvm"
    TCG = "tcg"
    MSHV = "mshv"
    UNKNOWN = "unknown"

    @property
    def accelerated(self) -> bool:
        """Whether a hypervisor in the kernel executes them."""
        return self is HypervisorType.KVM or self is HypervisorType.MSHV


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class VmmId:
    """A process, for good: PIDs are used again, a PID with its start time is not."""

    tgid: int
    """Thread group id, as /proc numbers it."""
    start_ticks: int
    """Start time in clock ticks since boot (field 22 of /proc/TGID/stat)."""


class Unread(StrEnum):
    """Why something of a process could not be read completely."""

    BLOCKED = "blocked"
    """A read of its /proc files does not return: a page of its memory, or an open file, hangs."""
    TOO_MANY = "too many"
    """It has more threads or descriptors than are read."""
    NO_TIME = "no time"
    """The time of this refresh ran out before its turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceleratorFds:
    """Accelerator descriptors of a process, by number: of all its threads' tables together."""

    kvm_devices: frozenset[int] = frozenset()
    """/dev/kvm."""
    kvm_vms: frozenset[int] = frozenset()
    """anon_inode:kvm-vm."""
    kvm_vcpus: frozenset[int] = frozenset()
    """anon_inode:kvm-vcpu, with or without ``:N``."""
    kvm_vcpu_stats: frozenset[int] = frozenset()
    """anon_inode:kvm-vcpu-stats:N."""
    mshv_devices: frozenset[int] = frozenset()
    """/dev/mshv."""
    mshv_partitions: frozenset[int] = frozenset()
    """anon_inode:mshv_partition."""
    mshv_vps: frozenset[int] = frozenset()
    """anon_inode:mshv_vp."""
    whole: bool
    """Whether the fd table was read to its end: only then does an absence mean anything."""

    @property
    def kvm(self) -> bool:
        """Whether any descriptor is KVM's."""
        return bool(self.kvm_devices or self.kvm_vms or self.kvm_vcpus or self.kvm_vcpu_stats)

    @property
    def mshv(self) -> bool:
        """Whether any descriptor is the Microsoft hypervisor's."""
        return bool(self.mshv_devices or self.mshv_partitions or self.mshv_vps)


@dataclass(frozen=True, slots=True, kw_only=True)
class VmmThread:
    """One thread of the process that matters: a vCPU by its own word, or one inside an ioctl."""

    tid: int
    comm: str
    """The thread's name: its own word, a hint and no proof."""
    cpu_ticks: int
    """User and system time consumed, clock ticks."""
    ioctl_fd: int | None = None
    """Descriptor of the ioctl(2) it sleeps in; None: on a CPU, or in no ioctl."""
    ioctl_request: int | None = None
    """Request number of that ioctl(2)."""
    running: bool = False
    """Whether it was on a CPU, or about to be, so that its system call cannot be seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QemuCommandLine:
    """What QEMU was asked for. Never proof of what it does."""

    guest_name: str | None = None
    """``-name guest=…``, commas undoubled."""
    accelerators: tuple[str, ...] = ()
    """Accelerators named, in order of preference; empty: QEMU's default (tcg)."""
    machine: str | None = None
    """``-machine`` type; ``none`` is how libvirt asks QEMU for its capabilities."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VmmProcess:
    """A process that uses an accelerator or is named like QEMU, at one moment."""

    vmm: VmmId
    comm: str
    """Name of the main thread: the process's own word."""
    program: str | None
    """Base name of the executable file; None where it cannot be read."""
    named_like_qemu: bool
    """Whether program or comm is that of a QEMU system emulator."""
    command_line: QemuCommandLine
    cgroup: str | None
    """Text of /proc/TGID/cgroup; None where it cannot be read."""
    fds: AcceleratorFds
    threads: tuple[VmmThread, ...]
    stats_exits: int | None
    """VM exits by KVM's own statistics, which newer QEMU holds open; None: unavailable."""
    guest_ticks: int
    """Time its threads spent running guest code (field 43 of /proc/TGID/stat), clock ticks."""
    parent_tgid: int = 0
    """Thread group id of its parent; 0: of none that /proc shows."""
    threads_whole: bool = True
    """Whether every thread was read, its system call included."""
    unread: Unread | None = None
    """Why not everything was read; None: everything was."""
    main_thread_ended: bool = False
    """Whether its main thread has ended while other threads live on."""

    @property
    def blocked(self) -> bool:
        """Whether a read of it hangs, so that most of it is unknown."""
        return self.unread is Unread.BLOCKED


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What a first, short look at processes found."""

    found: Mapping[int, VmmId] = field(default_factory=dict)
    """By tgid: those that may be VMMs: named like one, started with the arguments of one, or (where
    that was asked) holding an accelerator's descriptor."""
    others: Mapping[int, VmmId] = field(default_factory=dict)
    """By tgid: those that are none, as far as this look tells."""
    pending: Mapping[int, Unread] = field(default_factory=dict)
    """By tgid: those of which that is not known yet. Those that are in none of the three have
    ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspections:
    """What /proc says of several processes."""

    processes: Mapping[VmmId, VmmProcess] = field(default_factory=dict)
    """Those that were read; of one that blocks its readers only what does not block."""
    pending: Mapping[VmmId, Unread] = field(default_factory=dict)
    """Those of which nothing could be read in time. Those that are in neither have ended."""
