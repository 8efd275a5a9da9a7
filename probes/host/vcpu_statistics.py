# SPDX-License-Identifier: Apache-2.0
"""EDGE: reads KVM's own statistics of a process's vCPUs through the process's descriptors.

Owns copying such a descriptor and reading it. Must not judge. pidfd_getfd(2) makes the copy
(CAP_SYS_PTRACE). Reading the copy does not disturb the process, because statistics are read by
position.
"""

import ctypes
import os
from collections.abc import Callable, Collection

from probes.host.hypervisors import HypervisorType
from probes.host.kvm_stats import MAX_BYTES, statistic
from probes.host.procfs import classify_fds

MAX_VCPUS = 4096
"""The most descriptors that are copied of a process: more than a VM has vCPUs."""
_LIBC = ctypes.CDLL(None, use_errno=True)
_SYS_PIDFD_GETFD = 438
"""System call number of pidfd_getfd(2), the same on every architecture.

Since Linux 8649c322f75c ("pid: Implement pidfd_getfd syscall") (v5.6).
"""


def stats_exits(tgid: int, fds: Collection[int], at: Callable[[str], None]) -> int | None:
    """Return the VM exits of all vCPUs.

    None: there are no such statistics, or more than hvprobe reads.
    """
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
    """Return the exits of one vCPU.

    The process may have reused the number for another file since, which is never read.
    """
    try:
        if not is_vcpu_statistics(os.readlink(f"/proc/self/fd/{fd}")):
            return None
        return statistic(os.pread(fd, MAX_BYTES, 0), "exits")
    except OSError:
        return None


def is_vcpu_statistics(target: str) -> bool:
    """Return whether a descriptor with this link holds KVM's statistics of a vCPU."""
    return bool(classify_fds([(0, target)], complete=True).of(HypervisorType.KVM).statistics)
