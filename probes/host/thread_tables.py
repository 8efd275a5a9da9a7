# SPDX-License-Identifier: Apache-2.0
"""EDGE: reads the descriptor tables of a process's threads.

Owns finding the tables that differ, and reading their links within bounds. Must not judge. Threads
share one table unless one has called unshare(CLONE_FILES), and a main thread that has ended has
none, so only all tables together are the process's. The worker threads of KVM and vhost have no
table, which reads as an empty one.
"""

import ctypes
import os
from collections.abc import Iterator, Mapping, Sequence

from probes.host.process import AcceleratorFds
from probes.host.process_folder import ProcessFolder
from probes.host.procfs import classify_fds

MAX_DESCRIPTORS = 16_384
"""The most links that are read of all tables of a process."""
KCMP_SYSCALL: Mapping[str, int] = {
    "x86_64": 312,
    "aarch64": 272,
    "riscv64": 272,
    "s390x": 343,
    "ppc64le": 354,
    "loongarch64": 272,
}
"""System call number of kcmp(2) by machine (``uname -m``)."""

_LIBC = ctypes.CDLL(None, use_errno=True)
_KCMP_FILES = 2
_COMPARED = 4
"""With how many tables a thread's table is compared. An unnoticed match only costs reads."""


class TableComparer:
    """Compares the descriptor tables of threads. If it cannot, it takes them for different ones."""

    def __init__(self, machine: str, *, numbers_are_ours: bool) -> None:
        """numbers_are_ours says whether system calls use the same process numbers as /proc."""
        self._number = KCMP_SYSCALL.get(machine) if numbers_are_ours else None
        if not self.same(os.getpid(), os.getpid()):
            self._number = None

    @property
    def able(self) -> bool:
        """Whether this kernel can compare tables (CONFIG_KCMP)."""
        return self._number is not None

    def same(self, one: int, other: int) -> bool:
        """Whether two threads, given by number, are known to share one table."""
        if self._number is None:
            return False
        return bool(_LIBC.syscall(self._number, one, other, _KCMP_FILES, 0, 0) == 0)

    def distinct(self, tids: Sequence[int]) -> Iterator[int]:
        """Iterate over threads, one for each different table."""
        known: list[int] = []
        for tid in tids:
            if any(self.same(tid, other) for other in known[:_COMPARED]):
                continue
            known.append(tid)
            yield tid


class DescriptorTables:
    """Collects the links of a process's descriptor tables."""

    def __init__(self) -> None:
        self._targets: list[tuple[int, str]] = []
        self._left = MAX_DESCRIPTORS
        self._tables = 0
        self._failed = False
        self._complete = False
        self.cut = False
        """Whether the tables have more than MAX_DESCRIPTORS links."""

    @property
    def fds(self) -> AcceleratorFds:
        """The descriptors of accelerators among the links."""
        complete = self._complete and self._tables > 0 and not self._failed and not self.cut
        return classify_fds(list(self._targets), complete=complete)

    def read(self, folder: ProcessFolder, tgid: int, threads: Iterator[int]) -> None:
        """Read the table of each of these threads, and the main one's if it is among them."""
        for tid in threads:
            name = "fd" if tid == tgid else f"task/{tid}/fd"
            try:
                self._read_table(folder, name)
            except (FileNotFoundError, ProcessLookupError):  # the thread has ended
                continue
            except OSError:
                self._failed = True
            if self.cut:
                break
        self._complete = True

    def _read_table(self, folder: ProcessFolder, name: str) -> None:
        """Read the links of one table. A descriptor that is closed during the read is skipped."""
        for number in folder.names(name):
            if self._left == 0:
                self.cut = True
                break
            self._left -= 1
            try:
                self._targets.append((int(number), folder.target(f"{name}/{number}")))
            except FileNotFoundError:
                continue
            except OSError:
                self._failed = True
        self._tables += 1
