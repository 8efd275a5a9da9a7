# SPDX-License-Identifier: Apache-2.0
"""EDGE: reads the processes of this node.

Owns which processes are read, in which order and for how long. Must not judge. psutil lists the
processes; their files are read directly, because psutil reads more files for the same facts, keeps
an object for every process of the node, and rounds start times to seconds. Any process may be
hostile: watched_reads handles processes whose files block, and the bounds named MAX_ handle those
that have too much to read.
"""

import os
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import psutil

from ebpf.clock import offset_ns
from probes.host.guest_times import read_guest_times
from probes.host.kvm_stats import NO_STATISTICS, StatisticsReading
from probes.host.process import Inspections, Scan, Unread, VmmId, VmmProcess
from probes.host.process_folder import ProcessFolder
from probes.host.process_reader import Machine, ProcessDraft
from probes.host.read_queue import ReadQueue
from probes.host.statistics_in_kernel import KernelMemory, StatisticsInKernel
from probes.host.statistics_reader import StatisticsReader
from probes.host.thread_tables import TableComparer
from probes.host.vcpu_counts import STATISTICS
from probes.host.watched_reads import WatchedReads

MAX_SCAN_S = 1.0
"""How long a scan may read. Processes it does not reach come first in the next one."""
MAX_INSPECT_S = 1.5
"""How long an inspection may read. Processes it does not reach come first in the next one."""
_SHARE_OF_LIGHT = 0.7
"""Share of that time for processes with few threads, if there are others."""
MANY_THREADS = 256
"""Processes with more threads come after all others, because reading them takes long."""


class Host:
    """The processes of this node, read from a given /proc."""

    def __init__(
        self,
        *,
        proc_root: Path = Path("/proc"),
        vcpu_statistics: bool = False,
        memory: KernelMemory | None = None,
    ) -> None:
        """Read the processes of proc_root.

        vcpu_statistics says whether more than the exits is wanted of KVM's statistics, and the CPU
        time in guest code. memory reads statistics in the kernel's memory and stays the caller's;
        None: they are read through copies of descriptors.
        """
        self._proc = proc_root
        self._guest_times_wanted = vcpu_statistics
        self.machine = os.uname().machine
        """Architecture of the node, in ``uname -m`` words."""
        self.kernel = os.uname().release
        """Kernel release."""
        self._ticks_per_s = os.sysconf("SC_CLK_TCK")
        self._own = _own_number(proc_root)
        self._tables = TableComparer(self.machine, numbers_are_ours=self._own == os.getpid())
        self._reads = WatchedReads(proc_root)
        optional = STATISTICS if vcpu_statistics else ()
        self._statistics = StatisticsReader(
            self._reads,
            optional=optional,
            in_kernel=None if memory is None else StatisticsInKernel(memory),
        )
        self._scan_queue = ReadQueue()
        self._inspect_queue = ReadQueue()
        self._threads: dict[int, int] = {}
        """How many threads each process had when it was last read."""
        self._blocked: dict[VmmId, VmmProcess] = {}
        """What was read of processes that block their readers now, before they did."""

    def start_monotonic_ns(self, vmm: VmmId) -> int:
        """Return the earliest possible start of the process, on the clock of ebpf.clock.

        /proc counts from boot with suspended time (CLOCK_BOOTTIME), rounded down to ticks.
        """
        # The order matters: a pause between the two makes the start earlier, never later.
        monotonic_ns = time.monotonic_ns()
        suspended_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - monotonic_ns
        start_ns = vmm.start_ticks * (1_000_000_000 // self._ticks_per_s) - suspended_ns
        return start_ns - offset_ns()

    def tgids(self) -> frozenset[int]:
        """Return the tgids of all processes; empty where /proc cannot be listed."""
        # The library reads another /proc only by this global, which is set here alone, before each
        # use.
        psutil.PROCFS_PATH = str(self._proc)
        try:
            return frozenset(psutil.pids())
        except (OSError, IndexError):  # /proc is missing or empty
            return frozenset()

    def identify(self, tgid: int) -> VmmId | None:
        """Return the process that has this tgid now.

        None: there is none, it has ended, or it blocks its readers.
        """
        draft = self._draft(tgid)
        if tgid == self._own == os.getpid():  # reading itself never blocks, and needs no thread
            with self._reads.folder(tgid, lambda _: None) as folder:
                draft.read_identity(folder)
            return draft.vmm
        self._reads.run(
            [tgid],
            lambda _, folder: draft.read_identity(folder),
            until=time.monotonic() + MAX_SCAN_S,
        )
        return draft.vmm

    def scan(self, tgids: Collection[int], *, every_fd: bool) -> Scan:
        """Find out which of these processes may be VMMs; every_fd also reads their descriptors.

        The agent's own process is no VMM. A process that was inspected and now blocks its readers
        still may be one. A process that has more descriptors than are read, none of them an
        accelerator's, is pending: TOO_MANY. So is one that may not be identified: DENIED.
        """
        drafts: dict[int, ProcessDraft] = {}
        candidates: set[int] = set()

        def read(tgid: int, folder: ProcessFolder) -> None:
            drafts[tgid] = draft = self._draft(tgid)
            if tgid != self._own and _may_be_vmm(draft, folder, every_fd=every_fd):
                candidates.add(tgid)
            elif tgid == self._own:
                draft.read_identity(folder)

        unread = self._reads.run(
            sorted(tgids, key=lambda tgid: (self._scan_queue.since(tgid), tgid)),
            read,
            until=time.monotonic() + MAX_SCAN_S,
        )
        self._scan_queue.took(tgids, unread)
        found: dict[int, VmmId] = {}
        others: dict[int, VmmId] = {}
        for tgid, draft in list(drafts.items()):
            why = _why_unclassified(draft, candidate=tgid in candidates)
            if why is not None:
                unread.setdefault(tgid, why)
            vmm = draft.vmm
            if vmm is not None and (tgid in candidates or _is_named(draft)):
                found[tgid] = vmm
                self._threads[tgid] = 0 if draft.stat is None else draft.stat.threads
                unread.pop(tgid, None)
            elif vmm is not None and tgid not in unread:
                others[tgid] = vmm
        for vmm in self._blocked:
            if unread.get(vmm.tgid) is Unread.BLOCKED:
                found[vmm.tgid] = vmm
                unread.pop(vmm.tgid)
        return Scan(found=found, others=others, pending=unread)

    def inspect(self, vmms: Collection[VmmId]) -> Inspections:
        """Read everything that /proc says about these processes, those with few threads first.

        The start time is compared again at the end, so that facts of two processes never mix.
        """
        begin = time.monotonic()
        wanted = {vmm.tgid: vmm for vmm in sorted(vmms)}
        drafts = {tgid: self._draft(tgid) for tgid in wanted}

        def read(tgid: int, folder: ProcessFolder) -> None:
            draft = drafts[tgid]
            draft.read_identity(folder)
            if draft.vmm == wanted[tgid]:
                draft.read_names(folder)
                draft.read_rest(folder)
            else:
                draft.ended = True

        light, heavy = self._in_order(wanted)
        share = _SHARE_OF_LIGHT if heavy else 1.0
        unread = self._reads.run(light, read, until=begin + MAX_INSPECT_S * share)
        if heavy:
            unread |= self._reads.run(heavy, read, until=begin + MAX_INSPECT_S)
        self._inspect_queue.took(wanted, unread)
        self._threads |= {
            draft.tgid: draft.stat.threads for draft in drafts.values() if draft.stat is not None
        }
        self._threads = {tgid: self._threads.get(tgid, 0) for tgid in wanted}
        self._read_what_never_blocks(wanted, drafts, unread)
        return self._inspections(wanted, drafts, unread)

    def read_statistics(
        self, wanted: Sequence[tuple[VmmId, int]], *, new_threads: Collection[int] | None
    ) -> Mapping[int, StatisticsReading]:
        """Read KVM's statistics of these processes' vCPUs (StatisticsReader.read)."""
        if self._own != os.getpid():
            return {vmm.tgid: StatisticsReading(NO_STATISTICS, None) for vmm, _ in wanted}
        return self._statistics.read(wanted, new_threads=new_threads)

    def close(self) -> None:
        """Close what is kept of processes. No method may be called afterwards."""
        self._statistics.close()

    def read_guest_times(self, vmms: Iterable[VmmId]) -> Mapping[int, float]:
        """Return the CPU time of these processes in guest code (guest_times.read_guest_times)."""
        if not self._guest_times_wanted:
            return {}
        return read_guest_times(self._reads, [*vmms], ticks_per_s=self._ticks_per_s)

    def _inspections(
        self,
        wanted: Mapping[int, VmmId],
        drafts: Mapping[int, ProcessDraft],
        unread: Mapping[int, Unread],
    ) -> Inspections:
        """Sort the processes into read and pending ones."""
        processes: dict[VmmId, VmmProcess] = {}
        pending: dict[VmmId, Unread] = {}
        stuck = self._reads.stuck()
        blocked = {
            vmm: process
            for vmm, process in self._blocked.items()
            if vmm.tgid in stuck and vmm.tgid not in wanted
        }
        for tgid, draft in drafts.items():
            vmm, why = wanted[tgid], unread.get(tgid)
            if why is Unread.BLOCKED and draft.vmm is None and vmm in self._blocked:
                processes[vmm] = self._blocked[vmm]
            elif draft.ended:
                continue
            elif why is not None and draft.cgroup is None:
                pending[vmm] = why
            else:
                processes[vmm] = draft.process(vmm, why)
            if why is Unread.BLOCKED and vmm in processes:
                blocked[vmm] = processes[vmm]
        self._blocked = blocked
        return Inspections(processes=processes, pending=pending)

    def _read_what_never_blocks(
        self,
        wanted: Mapping[int, VmmId],
        drafts: Mapping[int, ProcessDraft],
        unread: Mapping[int, Unread],
    ) -> None:
        """Read harmless files of the processes that block even the reader of their identity."""
        nameless = [
            tgid
            for tgid, why in unread.items()
            if why is Unread.BLOCKED and not drafts[tgid].comm and wanted[tgid] not in self._blocked
        ]
        if nameless:
            self._reads.run(
                nameless,
                lambda tgid, folder: drafts[tgid].read_harmless(folder),
                until=time.monotonic() + MAX_SCAN_S,
                harmless=True,
            )

    def _in_order(self, tgids: Collection[int]) -> tuple[list[int], list[int]]:
        """Split processes into those with few and many threads, the longest waiting ones first.

        The number of threads is that of the last reading, because reading it now could block.
        """

        def key(tgid: int) -> tuple[int, int, int]:
            return self._inspect_queue.since(tgid), self._threads.get(tgid, 0), tgid

        ordered = sorted(tgids, key=key)
        many = frozenset(tgid for tgid in ordered if self._threads.get(tgid, 0) > MANY_THREADS)
        few = [tgid for tgid in ordered if tgid not in many]
        return few, [tgid for tgid in ordered if tgid in many]

    def _draft(self, tgid: int) -> ProcessDraft:
        machine = Machine(
            name=self.machine,
            tables=self._tables,
            numbers_are_ours=self._own == os.getpid(),
        )
        return ProcessDraft(machine=machine, tgid=tgid)


def _own_number(proc: Path) -> int | None:
    """Return this process's number in that /proc; None: it is no /proc of this kernel."""
    try:
        return int(os.readlink(proc / "self"))
    except (OSError, ValueError):
        return None


def _is_named(draft: ProcessDraft) -> bool:
    return draft.stat is not None and not draft.stat.kernel_thread and draft.is_named()


def _why_unclassified(draft: ProcessDraft, *, candidate: bool) -> Unread | None:
    """Say why a scan that had time enough could not classify a process; None: it could."""
    if draft.denied:
        return Unread.DENIED
    return Unread.TOO_MANY if draft.tables.cut and not candidate else None


def _may_be_vmm(draft: ProcessDraft, folder: ProcessFolder, *, every_fd: bool) -> bool:
    """Search for signs of a VMM, the cheapest first: name, program, arguments, descriptors."""
    draft.read_identity(folder)
    if draft.vmm is None or draft.stat is None or draft.stat.kernel_thread:
        return False
    if draft.is_named():
        return True
    draft.read_program(folder)
    if draft.is_named():
        return True
    draft.read_arguments(folder)
    if draft.is_named():
        return True
    if not every_fd:
        return False
    several = draft.stat.threads > 1 and (draft.machine.tables.able or draft.stat.state in "ZX")
    draft.read_descriptors(folder, draft.read_tids(folder) if several else ())
    return draft.tables.fds.any
