# SPDX-License-Identifier: Apache-2.0
"""EDGE: reads KVM's own statistics of a process's vCPUs through the process's descriptors.

Owns copying such a descriptor and reading it. Must not judge. pidfd_getfd(2) makes the copy
(CAP_SYS_PTRACE). Reading the copy does not disturb the process, because statistics are read by
position.

A copy holds the VM (struct kvm) and, through it, the guest's memory and passed-through devices. So
it is closed right after it is read, and is never kept until the next reading.

A process may put any file at the number before the copy is made. Therefore only the link of the
copy is examined before the copy is read: the kernel itself writes that link, while any other call
may wait for the server of a FUSE file. pidfd_getfd and close may wait as well, for a process in
execve(2) and for such a server, so callers must be ready to leave the reading thread behind.
"""

import ctypes
import errno
import os
from collections.abc import Callable, Collection, Iterable

from probes.host.hypervisors import HypervisorType
from probes.host.kvm_stats import EXITS, MAX_BYTES, layout_of
from probes.host.procfs import classify_fds

MAX_VCPUS = 4096
"""The most descriptors that are copied of a process: more than a VM has vCPUs."""
MAX_LINKS = 64
"""The most links of copies that are kept open."""
_SYSCALL = ctypes.CDLL(None, use_errno=True).syscall
_SYSCALL_WITHOUT_ERRNO = ctypes.CDLL(None).syscall
"""Does not swap errno at each call, which takes a tenth of the call's time."""
_SYS_PIDFD_GETFD = 438
"""System call number of pidfd_getfd(2), the same on every architecture.

Since Linux 8649c322f75c ("pid: Implement pidfd_getfd syscall") (v5.6).
"""


class StatisticsFiles:
    """Reads statistics files of other processes, each through a copy that is closed at once."""

    def __init__(self) -> None:
        self._own = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._links: dict[int, int] = {}
        """Handles of links in that folder, by the number of the descriptor that each shows."""

    def read(self, pidfd: int, fd: int, target: str, size: int, offset: int) -> bytes:
        """Return a part of a process's descriptor whose link has exactly this target.

        Raises OSError like read_each().
        """
        return self.read_each(pidfd, [(fd, target)], size, offset)[0]

    def read_each(
        self, pidfd: int, fds: Iterable[tuple[int, str]], size: int, offset: int
    ) -> list[bytes]:
        """Return the same part of several descriptors, each given with the target of its link.

        Raises OSError when one cannot be copied or read, and with ESTALE when a number has another
        file by now.
        """
        links, readlink, pread, close = self._links, os.readlink, os.pread, os.close
        found: list[bytes] = []
        for fd, target in fds:
            copy: int = _SYSCALL_WITHOUT_ERRNO(_SYS_PIDFD_GETFD, pidfd, fd, 0)
            if copy < 0:
                copy = copied(pidfd, fd)  # once more, for the reason
            try:
                link = links.get(copy)
                shown = self._target(copy) if link is None else readlink("", dir_fd=link)
                if shown != target:
                    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
                found.append(pread(copy, size, offset))
            finally:
                close(copy)
        return found

    def close(self) -> None:
        """Close what is kept."""
        for link in (self._own, *self._links.values()):
            os.close(link)

    def _target(self, copy: int) -> str:
        """Return the target of a copy's link, and keep the link itself open.

        Copies get the lowest free number, so the next ones have the same. An open link shows what
        has its number when it is read (fs/proc/fd.c, proc_fd_link) and need not be looked up. It is
        never closed while copies are made, because another thread may be about to read it.
        """
        if len(self._links) < MAX_LINKS:
            flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
            link = os.open(str(copy), flags, dir_fd=self._own)
            if self._links.setdefault(copy, link) != link:
                os.close(link)
        return os.readlink(str(copy), dir_fd=self._own)


def copied(pidfd: int, fd: int) -> int:
    """Copy a descriptor of a process. Raises OSError when that is impossible."""
    copy: int = _SYSCALL(_SYS_PIDFD_GETFD, pidfd, fd, 0)
    if copy < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return copy


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
            copy = _SYSCALL(_SYS_PIDFD_GETFD, process, fd, 0)
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
        raw = os.pread(fd, MAX_BYTES, 0)
    except OSError:
        return None
    layout = layout_of(raw)
    return None if layout is None else layout.value(raw, EXITS)


def is_vcpu_statistics(target: str) -> bool:
    """Return whether a descriptor with this link holds KVM's statistics of a vCPU."""
    return bool(classify_fds([(0, target)], complete=True).of(HypervisorType.KVM).statistics)


def is_vcpu(target: str) -> bool:
    """Return whether a descriptor with this link is a vCPU of KVM."""
    return bool(classify_fds([(0, target)], complete=True).of(HypervisorType.KVM).vcpus)
