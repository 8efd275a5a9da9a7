"""EDGE: /proc, /sys and the accelerators' device files of this node.

Owns the reading; procfs.py does the parsing. Must not judge. psutil lists the processes and knows
their full names; what is asked of every VMM again and again (stat, fd, task) is read directly,
because psutil would read more files for it and gives start times as rounded seconds.
"""

import contextlib
import ctypes
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

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
        """
        psutil.PROCFS_PATH = str(self._proc)
        try:
            if not any(name.isdigit() for name in os.listdir(self._proc)):
                return set()
        except OSError:
            return set()
        found: set[int] = set()
        for process in psutil.process_iter(["name"]):
            if is_qemu_name(process.info["name"] or ""):
                found.add(process.pid)
            elif every_fd:
                fds = self._fds(self._proc / str(process.pid))
                if fds.kvm or fds.mshv:
                    found.add(process.pid)
        return found

    def identify(self, tgid: int) -> VmmId | None:
        """The process that has this tgid now; None: no such process, or one that has ended."""
        stat = self._stat(self._proc / str(tgid))
        if stat is None or stat.ended:
            return None
        return VmmId(tgid=tgid, start_ticks=stat.start_ticks)

    def inspect(self, vmm: VmmId) -> VmmProcess | None:
        """Everything /proc says of a process; None: it has gone.

        The start time is compared again at the end: facts of two processes never mix.
        """
        directory = self._proc / str(vmm.tgid)
        stat = self._stat(directory)
        if stat is None:
            return None
        program = self._program(directory)
        fds = self._fds(directory) if stat.state != "Z" else self._fds_of_threads(directory)
        command_line = self._read(directory / "cmdline") or b""
        cgroup = self._read(directory / "cgroup")
        process = VmmProcess(
            vmm=vmm,
            comm=stat.comm,
            program=program,
            named_like_qemu=is_qemu_name(program or "") or is_qemu_name(stat.comm),
            command_line=parse_command_line(command_line),
            cgroup=None if cgroup is None else cgroup.decode(errors="replace"),
            fds=fds,
            threads=tuple(self._threads(directory, in_ioctl=fds.kvm or fds.mshv)),
            stats_exits=self._stats_exits(vmm.tgid, fds.kvm_vcpu_stats),
            guest_ticks=stat.guest_ticks,
        )
        return process if self.identify(vmm.tgid) == vmm else None

    def _stat(self, directory: Path) -> ProcStat | None:
        raw = self._read(directory / "stat")
        if raw is None:
            return None
        with contextlib.suppress(MalformedProcError):
            return parse_stat(raw.decode(errors="replace"))
        return None

    def _fds_of_threads(self, directory: Path) -> AcceleratorFds:
        """Those of a process whose main thread has ended (and shows none).

        KVM's worker threads have a table of their own, an empty one: the threads' tables together
        are the process's.
        """
        tables = []
        with contextlib.suppress(OSError):
            tids = set(os.listdir(directory / "task")) - {directory.name}
            tables = [self._fds(directory / "task" / tid) for tid in tids]
        return merged_fds(tables)

    def _program(self, directory: Path) -> str | None:
        try:
            target = (directory / "exe").readlink()
        except OSError:
            return None
        return target.name.removesuffix(" (deleted)")

    def _fds(self, directory: Path) -> AcceleratorFds:
        """The accelerators' descriptors. One closed meanwhile is not there, and nothing is lost."""
        targets: list[tuple[int, str]] = []
        whole = True
        try:
            numbers = os.listdir(directory / "fd")
        except OSError:
            return AcceleratorFds(whole=False)
        for number in numbers:
            try:
                targets.append((int(number), os.readlink(f"{directory}/fd/{number}")))
            except FileNotFoundError:
                continue
            except OSError:
                whole = False
        return classify_fds(targets, whole=whole)

    def _stats_exits(self, tgid: int, fds: Iterable[int]) -> int | None:
        """VM exits of all vCPUs, read through the process's own statistics descriptors.

        pidfd_getfd(2) gives a copy of a descriptor (CAP_SYS_PTRACE); reading it takes nothing from
        the process, for the statistics are read by position.
        """
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

    def _threads(self, directory: Path, *, in_ioctl: bool) -> Iterator[VmmThread]:
        """All threads; with in_ioctl, also which ioctl(2) each sleeps in."""
        try:
            tids = sorted(int(tid) for tid in os.listdir(directory / "task"))
        except OSError:
            return
        for tid in tids:
            task = directory / "task" / str(tid)
            stat = self._stat(task)
            if stat is None:
                continue
            fd = request = None
            if in_ioctl:
                raw = self._read(task / "syscall") or b""
                with contextlib.suppress(MalformedProcError):
                    fd, request = parse_ioctl(raw.decode(), machine=self.machine) or (None, None)
            yield VmmThread(
                tid=tid,
                comm=stat.comm,
                cpu_ticks=stat.cpu_ticks,
                ioctl_fd=fd,
                ioctl_request=request,
            )

    @staticmethod
    def _read(path: Path) -> bytes | None:
        """A file's bytes; None: it cannot be read, for whatever reason of that one process."""
        try:
            return path.read_bytes()
        except OSError:
            return None
