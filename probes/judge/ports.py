# SPDX-License-Identifier: Apache-2.0
"""Declares the edges that judging needs, as protocols. Pure types.

The edges themselves are ebpf.session, probes.host.reader, emulation_facts.py and device_age.py;
tests use other implementations.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Protocol

from ebpf.hooks import Hook
from ebpf.ledger import KernelSnapshot
from probes.host.emulation import EmulationFacts, RegisteredBetween
from probes.host.kvm_stats import StatisticsReading
from probes.host.process import Inspections, Scan, VmmId


class Ledger(Protocol):
    """The kernel's ledger (ebpf.session.Session)."""

    def need(self, hooks: Collection[Hook]) -> None:
        """Attach the on-demand hooks among these at once, and detach the other on-demand hooks."""
        ...

    def read(self) -> KernelSnapshot:
        """Read the ledger now. Raises LedgerReadError when the kernel refuses."""
        ...

    def new_lives(self) -> frozenset[int] | None:
        """Return the numbers at which lives began or ended since the last call.

        Numbers of threads are included, and any of these processes may have ended. None: some lives
        may have been missed.
        """
        ...

    def forget(self, tgid: int, first_ns: int) -> None:
        """Remove the record of tgid that began at first_ns, and no other.

        Raises LedgerReadError when the kernel refuses.
        """
        ...

    @property
    def bcc_version(self) -> str:
        """The version of the bcc library."""
        ...


class Processes(Protocol):
    """The processes of this node (probes.host.reader.Host)."""

    machine: str
    kernel: str

    def start_monotonic_ns(self, vmm: VmmId) -> int:
        """Return the earliest CLOCK_MONOTONIC time at which the process can have started."""
        ...

    def tgids(self) -> frozenset[int]:
        """Return the tgids of all processes; empty where /proc cannot be listed."""
        ...

    def scan(self, tgids: Collection[int], *, every_fd: bool) -> Scan:
        """Find out which of these processes may be VMMs; every_fd also reads their descriptors."""
        ...

    def identify(self, tgid: int) -> VmmId | None:
        """Return the process that has this tgid now; None: there is none, or it cannot be read."""
        ...

    def inspect(self, vmms: Collection[VmmId]) -> Inspections:
        """Read everything that /proc says about these processes."""
        ...

    def read_statistics(
        self, wanted: Sequence[tuple[VmmId, int]], *, new_threads: Collection[int] | None
    ) -> Mapping[int, StatisticsReading]:
        """Read KVM's statistics of these processes' vCPUs now; return readings by tgid.

        wanted holds each process with the vCPUs that the ledger saw it create. new_threads are the
        numbers at which a thread may have begun since the last reading, any of which may run a new
        vCPU; None: they are unknown. It is empty where the ledger sees new vCPUs. A process that
        has ended is left out.
        """
        ...

    def read_guest_times(self, vmms: Iterable[VmmId]) -> Mapping[int, float]:
        """Return the CPU time that these processes spent in guest code, in seconds by tgid.

        A process that cannot be read now is left out. Empty if nothing needs the times.
        """
        ...


class Emulation(Protocol):
    """Why processes emulate (probes.host.emulation_facts.EmulationReader)."""

    def read(self, vmms: Collection[VmmId]) -> Mapping[VmmId, EmulationFacts]:
        """Read these processes. What could not be read says why; one that has ended is left out."""
        ...


class Device(Protocol):
    """The device of the node's accelerator (probes.host.device_age.DeviceAge)."""

    def observe(self) -> RegisteredBetween | None:
        """Look at the device. Returns when it was registered; None: it is not registered."""
        ...
