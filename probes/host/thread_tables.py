# SPDX-License-Identifier: Apache-2.0
"""EDGE: the descriptor tables of a process's threads.

Owns finding the tables that differ, and reading their links within bounds. Must not judge. Threads
share one table unless one has called unshare(CLONE_FILES), and a main thread that has ended has
none: only all tables together are the process's. KVM's and vhost's worker threads have no table,
which reads as an empty one.
"""

import ctypes
import os
from collections.abc import Iterator, Mapping, Sequence

from probes.host.process import AcceleratorFds
from probes.host.process_folder import ProcessFolder
from probes.host.procfs import classify_fds

MAX_DESCRIPTORS = 16_384
"""Of a process's tables together no more links are read."""
KCMP_SYSCALL: Mapping[str, int] = {
    "x86_64": 312,
    "aarch64": 272,
    "riscv64": 272,
    "s390x": 343,
    "ppc64le": 354,
    "loongarch64": 272,
}
"""System call number of kcmp(2) by machine (uname -m)."""

_LIBC = ctypes.CDLL(None, use_errno=True)
_KCMP_FILES = 2
_COMPARED = 4
"""Of so many tables it is known whether a thread shares them; more only cost reads."""


class TableComparer:
    """Tells whether two threads share one table; where that is unknown, that they do not."""

    def __init__(self, machine: str, *, numbers_are_ours: bool) -> None:
        """``numbers_are_ours``: whether system calls know processes by the numbers /proc shows."""
        self._number = KCMP_SYSCALL.get(machine) if numbers_are_ours else None
        if not self.same(os.getpid(), os.getpid()):
            self._number = None

    @property
    def able(self) -> bool:
        """Whether this kernel compares at all (CONFIG_KCMP)."""
        return self._number is not None

    def same(self, one: int, other: int) -> bool:
        """By thread numbers."""
        if self._number is None:
            return False
        return bool(_LIBC.syscall(self._number, one, other, _KCMP_FILES, 0, 0) == 0)

    def distinct(self, tids: Sequence[int]) -> Iterator[int]:
        """A thread of each table."""
        known: list[int] = []
        for tid in tids:
            if any(self.same(tid, other) for other in known[:_COMPARED]):
                continue
            known.append(tid)
            yield tid


class DescriptorTables:
    """The links of a process's tables, as far as they were read."""

    def __init__(self) -> None:
        self._targets: list[tuple[int, str]] = []
        self._left = MAX_DESCRIPTORS
        self._tables = 0
        self._failed = False
        self._complete = False
        self.cut = False
        """Whether there are more than MAX_DESCRIPTORS."""

    @property
    def fds(self) -> AcceleratorFds:
        """The accelerators' among them."""
        whole = self._complete and self._tables > 0 and not self._failed and not self.cut
        return classify_fds(list(self._targets), whole=whole)

    def read(self, folder: ProcessFolder, tgid: int, threads: Iterator[int]) -> None:
        """Read a table of each of these threads, the main one's too if it is among them."""
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
        """A descriptor closed meanwhile is not there, and nothing is lost."""
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
