# SPDX-License-Identifier: Apache-2.0
"""EDGE: the processes of this node.

Owns which processes are read, in which order and for how long. Must not judge. psutil lists them;
what is asked of each is read directly: psutil reads more files for it, keeps an object of every
process of the node, and gives start times as rounded seconds. Every process may be hostile: see
watched_reads for those whose files block, and the bounds named MAX_ for those that have much.
"""

import os
import time
from collections.abc import Collection, Mapping
from pathlib import Path

import psutil

from ebpf.clock import offset_ns
from probes.host.process import Inspections, Scan, Unread, VmmId, VmmProcess
from probes.host.process_folder import ProcessFolder
from probes.host.process_reader import Machine, ProcessDraft
from probes.host.thread_tables import TableComparer
from probes.host.watched_reads import WatchedReads

MAX_SCAN_S = 1.0
"""How long a scan reads; processes whose turn has not come by then come first in the next one."""
MAX_INSPECT_S = 1.5
"""How long an inspection reads, likewise."""
_FOR_LIGHT_ONES = 0.7
"""Share of that time for processes with few threads, where there are others."""
MANY_THREADS = 256
"""Processes with more come after all others, because reading them takes long."""


class Host:
    """Processes of this node, read below a given /proc."""

    def __init__(self, *, proc_root: Path = Path("/proc")) -> None:
        self._proc = proc_root
        self.machine = os.uname().machine
        """Node architecture, as ``uname -m`` says it."""
        self.kernel = os.uname().release
        """Kernel release."""
        self._ticks_per_s = os.sysconf("SC_CLK_TCK")
        self._own = _own_number(proc_root)
        self._tables = TableComparer(self.machine, numbers_are_ours=self._own == os.getpid())
        self._reads = WatchedReads(proc_root)
        self._scan_queue = _Queue()
        self._inspect_queue = _Queue()
        self._threads: dict[int, int] = {}
        """How many threads each had when it was last read."""
        self._blocked: dict[VmmId, VmmProcess] = {}
        """What was read of those that block their readers, before they did."""

    def start_monotonic_ns(self, vmm: VmmId) -> int:
        """Earliest time at which the process can have started, on the clock of ebpf.clock.

        /proc counts from boot with suspended time (CLOCK_BOOTTIME), in whole ticks.
        """
        # In this order: a pause between the two makes the start earlier, never later.
        monotonic_ns = time.monotonic_ns()
        suspended_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - monotonic_ns
        start_ns = vmm.start_ticks * (1_000_000_000 // self._ticks_per_s) - suspended_ns
        return start_ns - offset_ns()

    def tgids(self) -> frozenset[int]:
        """All processes of now; empty where /proc cannot be listed."""
        # A global of the library, its only way to read another /proc: set here alone, at each use.
        psutil.PROCFS_PATH = str(self._proc)
        try:
            return frozenset(psutil.pids())
        except (OSError, IndexError):  # there is no /proc, or nothing in it
            return frozenset()

    def identify(self, tgid: int) -> VmmId | None:
        """The process that has this tgid now; None: none, one that has ended, or it blocks."""
        draft = self._draft(tgid)
        self._reads.run(
            [tgid],
            lambda _, folder: draft.read_identity(folder),
            until=time.monotonic() + MAX_SCAN_S,
        )
        return draft.vmm

    def scan(self, tgids: Collection[int], *, every_fd: bool) -> Scan:
        """Which of these processes may be VMMs; with every_fd, their descriptors are read, too.

        The agent's own process is none. One that was inspected and blocks its readers still is one
        that may be a VMM. A process with more descriptors than are read, none of
        them an accelerator's, is pending: TOO_MANY.
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
            if draft.tables.cut and tgid not in candidates:
                unread.setdefault(tgid, Unread.TOO_MANY)
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
        """Everything /proc says of them; those with few threads come first.

        The start time is compared again at the end: facts of two processes never mix.
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
        share = _FOR_LIGHT_ONES if heavy else 1.0
        unread = self._reads.run(light, read, until=begin + MAX_INSPECT_S * share)
        if heavy:
            unread |= self._reads.run(heavy, read, until=begin + MAX_INSPECT_S)
        self._inspect_queue.took(wanted, unread)
        self._threads |= {it.tgid: it.stat.threads for it in drafts.values() if it.stat is not None}
        self._threads = {tgid: self._threads.get(tgid, 0) for tgid in wanted}
        self._read_what_never_blocks(wanted, drafts, unread)
        return self._inspections(wanted, drafts, unread)

    def _inspections(
        self,
        wanted: Mapping[int, VmmId],
        drafts: Mapping[int, ProcessDraft],
        unread: Mapping[int, Unread],
    ) -> Inspections:
        """What was read, and what was not."""
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
        """Of those that block even the reader of their identity."""
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
        """Those with few and those with many threads, those that wait longest first.

        It goes by how many there were the last time: to ask for it now could block.
        """

        def key(tgid: int) -> tuple[int, int, int]:
            return self._inspect_queue.since(tgid), self._threads.get(tgid, 0), tgid

        ordered = sorted(tgids, key=key)
        many = frozenset(it for it in ordered if self._threads.get(it, 0) > MANY_THREADS)
        return [it for it in ordered if it not in many], [it for it in ordered if it in many]

    def _draft(self, tgid: int) -> ProcessDraft:
        machine = Machine(
            name=self.machine,
            tables=self._tables,
            numbers_are_ours=self._own == os.getpid(),
        )
        return ProcessDraft(machine=machine, tgid=tgid)


class _Queue:
    """Since which batch each of the processes waits that are read again and again.

    New ones come after all that waited, so that processes which are made all the time delay no
    other for long.
    """

    def __init__(self) -> None:
        self._since: dict[int, int] = {}
        self._batch = 0

    def since(self, tgid: int) -> int:
        """A number that is the lower the longer it waits; the highest one of a new process."""
        return self._since.get(tgid, self._batch)

    def took(self, tgids: Collection[int], unread: Mapping[int, Unread]) -> None:
        """All of these had their turn but those for which there was no time."""
        now = self._batch + 1  # after new ones that had no turn, before those of the next batch
        self._since = {
            it: self.since(it) if unread.get(it) is Unread.NO_TIME else now for it in tgids
        }
        self._batch += 2


def _own_number(proc: Path) -> int | None:
    """This process's number as that /proc shows it; None: it is no /proc of this kernel."""
    try:
        return int(os.readlink(proc / "self"))
    except (OSError, ValueError):
        return None


def _is_named(draft: ProcessDraft) -> bool:
    return draft.stat is not None and not draft.stat.kernel_thread and draft.is_named()


def _may_be_vmm(draft: ProcessDraft, folder: ProcessFolder, *, every_fd: bool) -> bool:
    """By the cheapest sign there is: its name, its program, its arguments, its descriptors."""
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
    fds = draft.tables.fds
    return fds.kvm or fds.mshv
