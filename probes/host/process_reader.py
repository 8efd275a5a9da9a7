# SPDX-License-Identifier: Apache-2.0
"""EDGE: reads everything that /proc says about one process, step by step.

Owns the order of the steps and what is kept of each, so that a step that never returns does not
lose the results of earlier ones. Must not judge.
"""

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from probes.host.hypervisors import HypervisorType
from probes.host.process import Unread, VmmId, VmmProcess, VmmThread
from probes.host.process_folder import ProcessFolder
from probes.host.procfs import (
    MalformedProcError,
    ProcStat,
    looks_like_vmm,
    parse_command_line,
    parse_ioctl,
    parse_stat,
    split_arguments,
)
from probes.host.thread_tables import DescriptorTables, TableComparer
from probes.host.vcpu_statistics import stats_exits

MAX_THREADS = 4096
"""The most threads that are read of a process."""
_TRIES_WHILE_RUNNING = 3
"""How often a thread's system call is read again while the thread is on a processor."""

_EMULATES = re.compile(r"(CPU \d+|ALL CPUs)/TCG")
"""QEMU's names for threads that emulate vCPUs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What reading any process requires."""

    name: str
    """Architecture, in ``uname -m`` words."""
    tables: TableComparer
    numbers_are_ours: bool
    """Whether system calls use the same process numbers as this /proc."""


@dataclass(slots=True, kw_only=True)
class ProcessDraft:
    """What has been read of a process so far."""

    machine: Machine
    tgid: int
    stat: ProcStat | None = None
    ended: bool = False
    """Whether it ended while it was read, or another process has its number."""
    denied: bool = False
    """Whether the kernel denies reading even its identity."""
    comm: str = ""
    program: str | None = None
    arguments: Sequence[str] = ()
    cgroup: str | None = None
    tables: DescriptorTables = field(default_factory=DescriptorTables)
    threads: list[VmmThread] = field(default_factory=list)
    threads_cut: bool = False
    """Whether it has more threads than were listed."""
    threads_complete: bool = False
    stats_exits: int | None = None

    @property
    def vmm(self) -> VmmId | None:
        """The identity of the process; None: no process of this number is alive."""
        if self.stat is None or self.stat.ended:
            return None
        return VmmId(tgid=self.tgid, start_ticks=self.stat.start_ticks)

    def is_named(self) -> bool:
        """Whether it is named or started like a VMM, as far as it was read."""
        return looks_like_vmm(self.comm, self.program, self.arguments)

    def process(self, vmm: VmmId, unread: Unread | None) -> VmmProcess:
        """Make the process from what was read. unread says why it is incomplete."""
        if unread is None and self.tables.cut:
            unread = Unread.TOO_MANY
        return VmmProcess(
            vmm=vmm,
            comm=self.comm,
            program=self.program,
            named_like_qemu=self.is_named(),
            command_line=parse_command_line(self.arguments),
            cgroup=self.cgroup,
            fds=self.tables.fds,
            threads=tuple(self.threads),
            stats_exits=self.stats_exits,
            guest_ticks=0 if self.stat is None else self.stat.guest_ticks,
            parent_tgid=0 if self.stat is None else self.stat.parent_tgid,
            threads_complete=self.threads_complete,
            unread=unread,
            main_thread_ended=self.stat is not None and self.stat.state in "ZX",
        )

    # steps

    def read_identity(self, folder: ProcessFolder) -> None:
        """Read its identity and its name."""
        self.stat = read_stat(folder, "stat")
        self.denied = self.stat is None and folder.denied
        if self.stat is not None:
            self.comm = self.stat.comm

    def read_names(self, folder: ProcessFolder) -> None:
        """Read what identifies its VMI and its kind.

        The arguments come last because they can block.
        """
        cgroup = folder.read("cgroup")
        self.cgroup = None if cgroup is None else cgroup.decode(errors="replace")
        self.read_program(folder)
        self.read_arguments(folder)

    def read_program(self, folder: ProcessFolder) -> None:
        """Read the base name of its executable file."""
        with contextlib.suppress(OSError):
            target = folder.target("exe")
            self.program = target.removesuffix(" (deleted)").rpartition("/")[2]

    def read_arguments(self, folder: ProcessFolder) -> None:
        """Read its arguments, which the process can change."""
        self.arguments = split_arguments(folder.read("cmdline") or b"")

    def read_harmless(self, folder: ProcessFolder) -> None:
        """Read what can be read of a process that blocks its readers."""
        self.comm = (folder.read("comm") or b"").decode(errors="replace").removesuffix("\n")
        cgroup = folder.read("cgroup")
        self.cgroup = None if cgroup is None else cgroup.decode(errors="replace")
        self.ended = cgroup is None

    def read_descriptors(self, folder: ProcessFolder, tids: Sequence[int]) -> None:
        """Read all descriptor tables of these threads. A main thread that has ended has none."""
        main = [] if self.stat is not None and self.stat.state in "ZX" else [self.tgid]
        others = [tid for tid in tids if tid != self.tgid]
        self.tables.read(folder, self.tgid, self.machine.tables.distinct([*main, *others]))
        self.tables.cut = self.tables.cut or self.threads_cut

    def read_rest(self, folder: ProcessFolder) -> None:
        """Read descriptors, threads and statistics.

        At the end it checks that it is still the same process.
        """
        before = self.vmm
        tids = self.read_tids(folder)
        self.read_descriptors(folder, tids)
        self.threads_complete = self._read_threads(folder, tids) and not self.threads_cut
        if self.machine.numbers_are_ours:
            statistics = self.tables.fds.of(HypervisorType.KVM).statistics
            self.stats_exits = stats_exits(self.tgid, statistics, folder.at)
        self.read_identity(folder)
        self.ended = self.vmm != before

    def read_tids(self, folder: ProcessFolder) -> list[int]:
        """Return the numbers of its threads, at most MAX_THREADS."""
        tids: list[int] = []
        try:
            for name in folder.names("task"):
                if len(tids) == MAX_THREADS:
                    self.threads_cut = True
                    break
                tids.append(int(name))
        except OSError:
            self.threads_cut = True
        return sorted(tids)

    def _read_threads(self, folder: ProcessFolder, tids: Sequence[int]) -> bool:
        """Read the threads. Returns whether the system call of every live thread was read."""
        complete = True
        for tid in tids:
            stat = read_stat(folder, f"task/{tid}/stat")
            if stat is None:
                continue
            call = self._system_call(folder, tid, stat.comm)
            if call is None and folder.read(f"task/{tid}/stat") is None:
                continue  # the thread has ended
            fd = request = None
            try:
                fd, request = parse_ioctl(call or "", machine=self.machine.name) or (None, None)
            except MalformedProcError:
                call = None
            complete = complete and bool(call)
            self.threads.append(
                VmmThread(
                    tid=tid,
                    comm=stat.comm,
                    cpu_ticks=stat.cpu_ticks,
                    ioctl_fd=fd,
                    ioctl_request=request,
                    running=call is not None and call.strip() == "running",
                )
            )
        return complete

    def _system_call(self, folder: ProcessFolder, tid: int, comm: str) -> str | None:
        """Return the text of a thread's ``syscall`` file.

        A thread on a processor shows none, so it is read again, unless it emulates a vCPU: such a
        thread is expected to run.
        """
        tries = 1 if _EMULATES.fullmatch(comm) else _TRIES_WHILE_RUNNING
        call: str | None = None
        for _ in range(tries):
            raw = folder.read(f"task/{tid}/syscall")
            call = None if raw is None else raw.decode(errors="replace")
            if call is None or call.strip() != "running":
                break
        return call


def read_stat(folder: ProcessFolder, name: str) -> ProcStat | None:
    """Read and parse a stat file; None: it is missing or malformed."""
    raw = folder.read(name)
    if raw is None:
        return None
    with contextlib.suppress(MalformedProcError):
        return parse_stat(raw.decode(errors="replace"))
    return None
