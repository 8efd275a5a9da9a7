# SPDX-License-Identifier: Apache-2.0
"""Reading KVM's statistics in the kernel's memory, where this kernel lets that be done."""

import os
import re
from pathlib import Path

from ebpf.errors import BpfUnavailableError
from ebpf.loader_process import LoaderProcess
from ebpf.statistics.session import StatisticsSession

FIRST_KERNEL = (6, 2)
"""The first one with the functions that the program calls."""
_TYPES = Path("/sys/kernel/btf/vmlinux")


def open_statistics(
    *, counts: int = 1, capacity: int = 64, loader: LoaderProcess | None = None
) -> StatisticsSession | None:
    """Load the program; None: this kernel does not have what it needs, and is not expected to.

    Raises BpfUnavailableError on a kernel that must have it.
    """
    version = re.match(r"(\d+)\.(\d+)", os.uname().release)
    assert version is not None
    try:
        return StatisticsSession(counts=counts, capacity=capacity, loader=loader)
    except BpfUnavailableError:
        if _TYPES.exists() and (int(version[1]), int(version[2])) >= FIRST_KERNEL:
            raise
        return None
