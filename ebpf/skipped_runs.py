# SPDX-License-Identifier: Apache-2.0
"""EDGE: reads how many runs of loaded programs the kernel has skipped.

Owns where the kernel counts them, and that a total never falls. Must not know which programs there
are, nor why they were skipped.

The kernel counts the skipped runs of a program in two places. What it decides with the program in
hand is in the program's fdinfo (``recursion_misses``), since Linux 9ed9e9ba2337 ("bpf: Count the
number of times recursion was prevented") (v5.12); for kprobes and classic tracepoints since
dd8657894c11 ("bpf: Count missed stats in trace_call_bpf") and for links of type kprobe_multi since
f915fcb38553 ("bpf: Count stats for kprobe_multi programs") (both v6.7). Such a link also counts the
calls of the function that ftrace did not pass on, see ``bpf_syscall.missed_by_kprobe_link``. That
count ends with the link.
"""

import contextlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from ebpf.bpf_syscall import missed_by_kprobe_link
from ebpf.btf import counts_skipped_runs
from ebpf.loader_protocol import Loadable

_MISSED = re.compile(rb"^recursion_misses:\s*(\d+)$", re.MULTILINE)
_FDINFO_BYTES = 4096
"""More than a program's fdinfo has."""


class SkippedRuns:
    """Counts the skipped runs of the programs of one text, while they are attached or not."""

    def __init__(
        self, programs: Mapping[Loadable, int], *, sys_root: Path, proc_root: Path
    ) -> None:
        """programs has the descriptor of each loaded program, which stays the caller's."""
        self._programs = programs
        self._fdinfo = str(proc_root / "self/fdinfo")
        self.zero_is_known = counts_skipped_runs(sys_root)
        """Whether this kernel counts every run of a program that it skips."""
        self._by_program: dict[Loadable, int] = {}
        self._links: dict[Loadable, int] = {}
        self._by_open_link: Counter[Loadable] = Counter()
        self._by_closed_links: Counter[Loadable] = Counter()

    def link_opened(self, program: Loadable, link_fd: int) -> None:
        """Count what a link of type kprobe_multi misses, until link_closes() is called."""
        self._links[program] = link_fd

    def link_closes(self, program: Loadable) -> None:
        """Keep the count of the program's link, which is about to be closed, if there is one."""
        self._read_link(program)
        self._by_closed_links[program] += self._by_open_link.pop(program, 0)
        self._links.pop(program, None)

    def total(self, programs: Iterable[Loadable]) -> int | None:
        """Return how many runs of these programs the kernel has skipped since they were loaded.

        None: this kernel does not count them. A 0 is believed only if it does (see ``btf``); any
        other number is always true. The total never falls, because programs stay loaded while they
        are detached, and what cannot be read keeps its last number.
        """
        counted = [
            missed
            for program in dict.fromkeys(programs)
            if (missed := self._of_program(program)) is not None
        ]
        total = sum(counted)
        return total if total or (counted and self.zero_is_known) else None

    def _of_program(self, program: Loadable) -> int | None:
        """Return how many runs of a program were skipped, as last read; None: it is unknown."""
        fd = self._programs.get(program)
        if fd is not None:
            with contextlib.suppress(OSError):
                found = _MISSED.search(_start_of(f"{self._fdinfo}/{fd}"))
                if found:
                    self._by_program[program] = int(found[1])
        self._read_link(program)
        by_links = self._by_open_link[program] + self._by_closed_links[program]
        by_program = self._by_program.get(program)
        return by_program if by_program is None else by_program + by_links

    def _read_link(self, program: Loadable) -> None:
        if program in self._links:
            with contextlib.suppress(OSError):
                self._by_open_link[program] = missed_by_kprobe_link(self._links[program])


def _start_of(path: str) -> bytes:
    """Return the start of a file, without a text file around it: each refresh reads a dozen."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, _FDINFO_BYTES)
    finally:
        os.close(fd)
