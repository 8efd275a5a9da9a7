# SPDX-License-Identifier: Apache-2.0
"""The edges that judging needs, as protocols. Pure types.

The edges themselves are ebpf.session and probes.host.reader; tests put others in
their place.
"""

from collections.abc import Collection
from typing import Protocol

from ebpf.ledger import KernelSnapshot
from probes.host.process import Inspections, Scan, VmmId


class Ledger(Protocol):
    """The kernel's books (ebpf.session.Session)."""

    def read(self) -> KernelSnapshot:
        """Read it now; LedgerReadError."""
        ...

    def new_lives(self) -> frozenset[int] | None:
        """Numbers of processes and threads that were forked or executed a program since last asked.

        None: that cannot be known now. Any of them may have ended.
        """
        ...

    def forget(self, tgid: int, first_ns: int) -> None:
        """Remove the record of tgid that began at first_ns, and no other; LedgerReadError."""
        ...

    @property
    def bcc_version(self) -> str:
        """Version of the bcc library."""
        ...


class Processes(Protocol):
    """This node's processes (probes.host.reader.Host)."""

    machine: str
    kernel: str

    def start_monotonic_ns(self, vmm: VmmId) -> int:
        """Earliest CLOCK_MONOTONIC time of its start."""
        ...

    def tgids(self) -> frozenset[int]:
        """All processes of now; empty where /proc cannot be listed."""
        ...

    def scan(self, tgids: Collection[int], *, every_fd: bool) -> Scan:
        """Which of these processes may be VMMs; with every_fd, their descriptors are read, too."""
        ...

    def identify(self, tgid: int) -> VmmId | None:
        """The process that has this tgid now; None: none, or it cannot be read."""
        ...

    def inspect(self, vmms: Collection[VmmId]) -> Inspections:
        """Everything /proc says of them."""
        ...
