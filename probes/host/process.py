# SPDX-License-Identifier: Apache-2.0
"""Holds what is known about one process that may be a virtual machine monitor (VMM). Pure types.

Owns the identity of a process from /proc to the outputs, and the facts that /proc gives about it.
Must not know how they were read, what the ledger says, or which VMI the process belongs to.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from probes.host.hypervisors import HypervisorType


class VmmId(NamedTuple):
    """The permanent identity of a process: a PID is reused, a PID with its start time is not.

    This is a tuple because each refresh looks every process up by it several times.
    """

    tgid: int
    """Thread group id, as /proc numbers it."""
    start_ticks: int
    """Start time in clock ticks since boot (field 22 of /proc/TGID/stat)."""


class Unread(StrEnum):
    """Why some part of a process could not be read completely."""

    BLOCKED = "blocked"
    """A read of its /proc files does not return: a page of its memory or an open file hangs."""
    TOO_MANY = "too many"
    """It has more threads or descriptors than hvprobe reads."""
    NO_TIME = "no time"
    """The refresh ran out of time before it reached the process."""
    DENIED = "denied"
    """The kernel denies even its ``stat`` file, as a security module does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldFds:
    """Numbers of a process's descriptors of one hypervisor, with a field for each ``FdKind``."""

    devices: frozenset[int] = frozenset()
    vms: frozenset[int] = frozenset()
    vcpus: frozenset[int] = frozenset()
    statistics: frozenset[int] = frozenset()

    @property
    def any(self) -> bool:
        """Whether the process holds any descriptor of the hypervisor."""
        return bool(self.devices or self.vms or self.vcpus or self.statistics)


_NO_FDS = HeldFds()


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceleratorFds:
    """Descriptors of hypervisors in the tables of all threads of a process."""

    held: Mapping[HypervisorType, HeldFds] = field(default_factory=dict)
    """Descriptors by hypervisor; absent: the process holds none of that hypervisor."""
    complete: bool
    """Whether the fd tables were read to the end. Only then is a missing descriptor a fact."""

    def of(self, kind: HypervisorType) -> HeldFds:
        """Return the descriptors of one hypervisor."""
        return self.held.get(kind, _NO_FDS)

    @property
    def any(self) -> bool:
        """Whether the process holds a descriptor of any hypervisor."""
        return any(held.any for held in self.held.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class VmmThread:
    """A relevant thread of a process: one named like a vCPU, or one inside an ioctl."""

    tid: int
    comm: str
    """The thread's name, which the process chooses: a hint and no proof."""
    cpu_ticks: int
    """User and system time consumed, in clock ticks."""
    ioctl_fd: int | None = None
    """Descriptor of the ioctl(2) in which it sleeps; None: it is on a CPU, or in no ioctl."""
    ioctl_request: int | None = None
    """Request number of that ioctl(2)."""
    running: bool = False
    """Whether it was on a CPU or about to be, so that its system call is unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QemuCommandLine:
    """What QEMU's command line asks for, which never proves what QEMU does."""

    guest_name: str | None = None
    """``-name guest=…``, commas undoubled."""
    accelerators: tuple[str, ...] = ()
    """Accelerators named, in order of preference; empty: QEMU's default (tcg)."""
    machine: str | None = None
    """``-machine`` type; with ``none`` libvirt asks QEMU for its capabilities."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VmmProcess:
    """A process that uses an accelerator or is named like QEMU, at one moment."""

    vmm: VmmId
    comm: str
    """Name of the main thread, which the process chooses."""
    program: str | None
    """Base name of the executable file; None: it is unreadable."""
    named_like_qemu: bool
    """Whether it is named or started like a QEMU system emulator."""
    command_line: QemuCommandLine
    cgroup: str | None
    """Text of /proc/TGID/cgroup; None: it is unreadable."""
    fds: AcceleratorFds
    threads: tuple[VmmThread, ...]
    stats_exits: int | None
    """VM exits in KVM's own statistics, which newer QEMU keeps open; None: unavailable."""
    guest_ticks: int
    """Time that its threads spent running guest code (field 43 of /proc/TGID/stat), in clock
    ticks."""
    parent_tgid: int = 0
    """Thread group id of its parent; 0: /proc shows no parent."""
    threads_complete: bool = True
    """Whether every thread was read, its system call included."""
    unread: Unread | None = None
    """Why it was not read completely; None: it was."""
    main_thread_ended: bool = False
    """Whether its main thread has ended while other threads are still alive."""

    @property
    def blocked(self) -> bool:
        """Whether a read of it hangs, so that most facts are unknown."""
        return self.unread is Unread.BLOCKED


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """The result of a first, quick scan of processes.

    A process that is in none of the three mappings has ended.
    """

    found: Mapping[int, VmmId] = field(default_factory=dict)
    """Processes by tgid that may be VMMs.

    They are named or started like one or, if the caller asked for descriptors, hold one of an
    accelerator.
    """
    others: Mapping[int, VmmId] = field(default_factory=dict)
    """Processes by tgid that are no VMMs, as far as a scan can tell."""
    pending: Mapping[int, Unread] = field(default_factory=dict)
    """Processes by tgid that could not be classified yet, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspections:
    """What /proc says about several processes.

    A process that is in neither mapping has ended.
    """

    processes: Mapping[VmmId, VmmProcess] = field(default_factory=dict)
    """Processes that were read. For one that blocks its readers, only the facts that do not
    block."""
    pending: Mapping[VmmId, Unread] = field(default_factory=dict)
    """Processes of which nothing could be read in time, and why."""
