# SPDX-License-Identifier: Apache-2.0
"""EDGE: reads the clock of the kernel's records from within any time namespace.

bpf_ktime_get_ns() returns the host's CLOCK_MONOTONIC. A process in a time namespace reads that
clock with an offset (time_namespaces(7)), so its times cannot be compared with the kernel's
records. This module removes the offset. It must not know what its times are compared with.
"""

import functools
import re
import time
from pathlib import Path

INIT_TIME_NAMESPACE_INODE = 0xEFFFFFFA
"""Inode of the initial time namespace (include/linux/proc_ns.h, PROC_TIME_INIT_INO)."""
_S_NS = 1_000_000_000


def monotonic_ns() -> int:
    """Return CLOCK_MONOTONIC as the kernel's BPF programs read it."""
    return time.monotonic_ns() - offset_ns()


@functools.cache
def offset_ns() -> int:
    """Return how far this process's CLOCK_MONOTONIC is ahead of the host's.

    The offset of a process never changes, so it is read once.
    """
    return offset_of_process(Path("/proc/self"))


def offset_of_process(process: Path) -> int:
    """Return the offset of a process, given its directory in /proc.

    It is 0 where the kernel has no time namespaces.
    """
    try:
        inode = (process / "ns/time").stat().st_ino
        offsets = (process / "timens_offsets").read_text()
    except OSError:
        # Before Linux 769071ac9f20 ("ns: Introduce Time Namespace") (v5.6), or without
        # CONFIG_TIME_NS.
        return 0
    return 0 if inode == INIT_TIME_NAMESPACE_INODE else monotonic_offset(offsets)


def monotonic_offset(offsets: str) -> int:
    """Parse the text of ``timens_offsets`` and return the offset of CLOCK_MONOTONIC. Pure.

    Each line of the file holds a clock, seconds and nanoseconds.
    """
    found = re.search(r"^(?:monotonic|1)\s+(-?\d+)\s+(\d+)$", offsets, re.MULTILINE)
    return int(found[1]) * _S_NS + int(found[2]) if found else 0
