"""What the observer needs of the world, as protocols. Pure types.

Owns the shape of each edge; the edges themselves are in ebpf.session, host, accelerators and
vmiwatch, and tests put others in their place.
"""

from typing import Protocol

from ebpf.ledger import KernelSnapshot
from probes.node import Accelerator, NodeVirtualization
from probes.vmi import VmiIndex, WatchStatus
from probes.vmm import VmmId, VmmProcess


class Ledger(Protocol):
    """The kernel's books (ebpf.session.Session)."""

    def read(self) -> KernelSnapshot:
        """Read it now; LedgerReadError."""
        ...

    def adopt(self, tgid: int) -> bool:
        """Make a record for a process that has none, that the kernel tells of its end from now on.

        Whether there is one now: False where there is no room; LedgerReadError.
        """
        ...

    def forget(self, tgid: int) -> None:
        """Remove the record of a process that is gone, the one read or made last.

        LedgerReadError.
        """
        ...

    @property
    def bcc_version(self) -> str:
        """Version of the bcc library."""
        ...


class Processes(Protocol):
    """This node's processes (probes.host.Host)."""

    machine: str
    kernel: str

    def start_monotonic_ns(self, vmm: VmmId) -> int:
        """Earliest CLOCK_MONOTONIC time of its start."""
        ...

    def sweep(self, *, every_fd: bool) -> set[int]:
        """Tgids named like QEMU, or of all that hold an accelerator."""
        ...

    def identify(self, tgid: int) -> VmmId | None:
        """The process that has this tgid now."""
        ...

    def inspect(self, vmm: VmmId) -> VmmProcess | None:
        """Everything /proc says of it."""
        ...


class Virtualization(Protocol):
    """This node's accelerators (probes.accelerators.Accelerators)."""

    def try_kvm(self) -> Accelerator:
        """Create an empty VM."""
        ...

    def virtualization(self) -> NodeVirtualization:
        """Vendor module and nesting."""
        ...


class VmiSource(Protocol):
    """Who knows this node's VMIs (probes.kube.watch.VmiWatch); neither call waits."""

    def index(self) -> VmiIndex:
        """The VMIs known now."""
        ...

    def status(self) -> WatchStatus:
        """How current they are kept."""
        ...
