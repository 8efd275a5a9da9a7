"""EDGE: /proc, /sys and the accelerators' device files of this node.

Owns the reading; procfs.py does the parsing. Must not judge. psutil lists the processes. What is
asked of each is read directly: psutil reads more files for it, keeps an object of every process of
the node, and gives start times as rounded seconds. A process is read through one descriptor of its
folder, which shows that process or nothing: the number's next owner has a folder of its own.
"""

import contextlib
import ctypes
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import psutil

from probes.kvmstats import MAX_BYTES, statistic
from probes.procfs import (
    MalformedProcError,
    ProcStat,
    classify_fds,
    is_qemu_name,
    merged_fds,
    parse_command_line,
    parse_ioctl,
    parse_stat,
)
from probes.vmm import AcceleratorFds, VmmId, VmmProcess, VmmThread

_LIBC = ctypes.CDLL(None, use_errno=True)
_SYS_PIDFD_GETFD = 438
"""System call number of pidfd_getfd(2), the same on every architecture; since Linux 5.6."""
_CHUNK_BYTES = 4096
"""More than a stat, comm or syscall file has: one read gets it whole."""


class Host:
    """Processes of this node, read below a given /proc."""

    def __init__(self, *, proc_root: Path = Path("/proc")) -> None:
        self._proc = proc_root
        self.machine = os.uname().machine
        """Node architecture, as ``uname -m`` says it."""
        self.kernel = os.uname().release
        """Kernel release."""
        self._ticks_per_s = os.sysconf("SC_CLK_TCK")

    def start_monotonic_ns(self, vmm: VmmId) -> int:
        """Earliest CLOCK_MONOTONIC time at which the process can have started.

        /proc counts from boot with suspended time (CLOCK_BOOTTIME), in whole ticks.
        """
        # In this order: a pause between the two makes the start earlier, never later.
        monotonic_ns = time.monotonic_ns()
        suspended_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - monotonic_ns
        return vmm.start_ticks * (1_000_000_000 // self._ticks_per_s) - suspended_ns

    def sweep(self, *, every_fd: bool) -> set[int]:
        """Tgids of all processes named like QEMU; with every_fd, of all that hold an accelerator.

        Costs a walk over the whole of /proc, and with every_fd over all descriptors of the node.
        A name is cut to 15 bytes, which is more than tells a QEMU.
        """
        psutil.PROCFS_PATH = str(self._proc)
        try:
            tgids = psutil.pids()
        except (OSError, IndexError):  # there is no /proc, or nothing in it
            return set()
        found: set[int] = set()
        for tgid in tgids:
            with _Folder(f"{self._proc}/{tgid}") as folder:
                if is_qemu_name((folder.read("comm") or b"").decode(errors="replace").rstrip("\n")):
                    found.add(tgid)
                elif every_fd:
                    fds = _fds(folder, "fd")
                    if fds.kvm or fds.mshv:
                        found.add(tgid)
        return found

    def identify(self, tgid: int) -> VmmId | None:
        """The process that has this tgid now; None: no such process, or one that has ended."""
        with _Folder(f"{self._proc}/{tgid}") as folder:
            return _identity(tgid, _stat(folder, "stat"))

    def inspect(self, vmm: VmmId) -> VmmProcess | None:
        """Everything /proc says of a process; None: it has gone.

        The start time is compared again at the end: facts of two processes never mix.
        """
        with _Folder(f"{self._proc}/{vmm.tgid}") as folder:
            stat = _stat(folder, "stat")
            if stat is None:
                return None
            program = _program(folder)
            main_thread_ended = stat.state in "ZX"
            fds = _fds_of_threads(folder, vmm.tgid) if main_thread_ended else _fds(folder, "fd")
            cgroup = folder.read("cgroup")
            process = VmmProcess(
                vmm=vmm,
                comm=stat.comm,
                program=program,
                named_like_qemu=is_qemu_name(program or "") or is_qemu_name(stat.comm),
                command_line=parse_command_line(folder.read("cmdline") or b""),
                cgroup=None if cgroup is None else cgroup.decode(errors="replace"),
                fds=fds,
                threads=tuple(self._threads(folder, in_ioctl=fds.kvm or fds.mshv)),
                stats_exits=_stats_exits(vmm.tgid, fds.kvm_vcpu_stats),
                guest_ticks=stat.guest_ticks,
                main_thread_ended=main_thread_ended,
            )
            return process if _identity(vmm.tgid, _stat(folder, "stat")) == vmm else None

    def _threads(self, folder: "_Folder", *, in_ioctl: bool) -> Iterator[VmmThread]:
        """All threads; with in_ioctl, also which ioctl(2) each sleeps in."""
        for tid in sorted(int(tid) for tid in folder.names("task") or ()):
            stat = _stat(folder, f"task/{tid}/stat")
            if stat is None:
                continue
            fd = request = None
            if in_ioctl:
                raw = folder.read(f"task/{tid}/syscall") or b""
                with contextlib.suppress(MalformedProcError):
                    fd, request = parse_ioctl(raw.decode(), machine=self.machine) or (None, None)
            yield VmmThread(
                tid=tid,
                comm=stat.comm,
                cpu_ticks=stat.cpu_ticks,
                ioctl_fd=fd,
                ioctl_request=request,
            )


class _Folder:
    """The folder of one process, held open; names are relative to it. Use as a context manager.

    What cannot be read, for whatever reason, is None: of a process that is gone, everything.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd: int | None = None

    def __enter__(self) -> Self:
        with contextlib.suppress(OSError):
            self._fd = os.open(self._path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd is not None:
            os.close(self._fd)

    def read(self, name: str) -> bytes | None:
        """A file's bytes, to its end."""
        if self._fd is None:
            return None
        try:
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._fd)
        except OSError:
            return None
        try:
            chunk = raw = os.read(fd, _CHUNK_BYTES)
            while chunk and len(raw) >= _CHUNK_BYTES:
                chunk = os.read(fd, _CHUNK_BYTES)
                raw += chunk
        except OSError:
            return None
        finally:
            os.close(fd)
        return raw

    def names(self, name: str) -> list[str] | None:
        """What is in a folder of it."""
        if self._fd is None:
            return None
        try:
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._fd)
        except OSError:
            return None
        try:
            return os.listdir(fd)
        except OSError:
            return None
        finally:
            os.close(fd)

    def target(self, name: str) -> str:
        """Where a link leads; OSError."""
        if self._fd is None:
            raise FileNotFoundError(name)
        return os.readlink(name, dir_fd=self._fd)


def _identity(tgid: int, stat: ProcStat | None) -> VmmId | None:
    if stat is None or stat.ended:
        return None
    return VmmId(tgid=tgid, start_ticks=stat.start_ticks)


def _stat(folder: _Folder, name: str) -> ProcStat | None:
    raw = folder.read(name)
    if raw is None:
        return None
    with contextlib.suppress(MalformedProcError):
        return parse_stat(raw.decode(errors="replace"))
    return None


def _program(folder: _Folder) -> str | None:
    try:
        target = folder.target("exe")
    except OSError:
        return None
    return target.removesuffix(" (deleted)").rpartition("/")[2]


def _fds(folder: _Folder, name: str) -> AcceleratorFds:
    """The accelerators' descriptors. One closed meanwhile is not there, and nothing is lost."""
    numbers = folder.names(name)
    if numbers is None:
        return AcceleratorFds(whole=False)
    targets: list[tuple[int, str]] = []
    whole = True
    for number in numbers:
        try:
            targets.append((int(number), folder.target(f"{name}/{number}")))
        except FileNotFoundError:
            continue
        except OSError:
            whole = False
    return classify_fds(targets, whole=whole)


def _fds_of_threads(folder: _Folder, tgid: int) -> AcceleratorFds:
    """Those of a process whose main thread has ended (and shows none).

    KVM's worker threads have a table of their own, an empty one: the threads' tables together
    are the process's.
    """
    tids = set(folder.names("task") or ()) - {str(tgid)}
    return merged_fds([_fds(folder, f"task/{tid}/fd") for tid in tids])


def _stats_exits(tgid: int, fds: frozenset[int]) -> int | None:
    """VM exits of all vCPUs, read through the process's own statistics descriptors.

    pidfd_getfd(2) gives a copy of a descriptor (CAP_SYS_PTRACE); reading it takes nothing from
    the process, for the statistics are read by position.
    """
    if not fds:
        return None
    found: list[int] = []
    try:
        process = os.pidfd_open(tgid)
    except OSError:
        return None
    try:
        for fd in fds:
            copy = _LIBC.syscall(_SYS_PIDFD_GETFD, process, fd, 0)
            if copy < 0:
                continue
            try:
                exits = statistic(os.pread(copy, MAX_BYTES, 0), "exits")
            except OSError:
                exits = None
            finally:
                os.close(copy)
            found += [] if exits is None else [exits]
    finally:
        os.close(process)
    return sum(found) if found else None
