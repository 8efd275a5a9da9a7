# SPDX-License-Identifier: Apache-2.0
"""EDGE: KVM's own statistics of a process's vCPUs, through its descriptors.

Owns copying such a descriptor and reading it. Must not judge. pidfd_getfd(2) gives the copy
(CAP_SYS_PTRACE); reading it takes nothing from the process, for statistics are read by position.
"""

import ctypes
import os
from collections.abc import Callable, Collection

from probes.host.kvm_stats import MAX_BYTES, statistic
from probes.host.procfs import classify_fds

MAX_VCPUS = 4096
"""Of a process no more descriptors are copied: more than a VM has vCPUs."""
_LIBC = ctypes.CDLL(None, use_errno=True)
_SYS_PIDFD_GETFD = 438
"""System call number of pidfd_getfd(2), the same on every architecture.

Since Linux 8649c322f75c ("pid: Implement pidfd_getfd syscall") (v5.6).
"""


def stats_exits(tgid: int, fds: Collection[int], at: Callable[[str], None]) -> int | None:
    """VM exits of all vCPUs; None: there are no such statistics, or more than are read."""
    if not fds or len(fds) > MAX_VCPUS:
        return None
    found: list[int] = []
    try:
        process = os.pidfd_open(tgid)
    except OSError:
        return None
    try:
        for fd in fds:
            at("its vCPUs' statistics")
            copy = _LIBC.syscall(_SYS_PIDFD_GETFD, process, fd, 0)
            if copy < 0:
                continue
            try:
                exits = _exits(copy)
            finally:
                os.close(copy)
            found += [] if exits is None else [exits]
    finally:
        os.close(process)
    return sum(found) if found else None


def _exits(fd: int) -> int | None:
    """The number may have been given to another file since it was seen: that is never read."""
    try:
        if not is_vcpu_statistics(os.readlink(f"/proc/self/fd/{fd}")):
            return None
        return statistic(os.pread(fd, MAX_BYTES, 0), "exits")
    except OSError:
        return None


def is_vcpu_statistics(target: str) -> bool:
    """Whether a descriptor with this link is one of KVM's statistics of a vCPU."""
    return bool(classify_fds([(0, target)], whole=True).kvm_vcpu_stats)
