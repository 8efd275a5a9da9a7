# SPDX-License-Identifier: Apache-2.0
"""Tracks the VMM processes of a node: which to read, judge and remember. Reads through ports.

Owns what is remembered about processes between two refreshes, and executes the steps that changes
decides on. Must not know names, VMIs, or how anything is shown.

The kernel marks each number at which a life begins or ends (fork, exec, exit), so a process that
was read once and has no mark is still the same one and runs the same program. Each refresh lists
/proc, scans the new and the marked processes, and reads those that may be VMMs until their verdict
is final. A final verdict stands until the process is marked, its record in the ledger changes, or
that record contradicts it.

A mark can be lost: the kernel runs no tracepoint program on a CPU whose process is in a system call
on a BPF map. Newer kernels count that, and the next refresh then scans everything. Because others
do not, each refresh also scans a share of all processes, which is smaller where the kernel counts,
and removes a record that outlives its process.
"""

import contextlib
import os
import time
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace

from ebpf import clock
from ebpf.errors import LedgerReadError
from ebpf.ledger import KernelSnapshot, LedgerEntry
from probes.host.process import Unread, VmmId, VmmProcess
from probes.judge.changes import (
    event_of_reading,
    next_step,
    record_has_news,
    record_is_stale,
    tracked_process,
)
from probes.judge.evidence import gather
from probes.judge.ports import Ledger, Processes
from probes.judge.tracked import Action, Event, State, TrackedProcess, Tracking
from probes.judge.verdict import judge

RECHECK_EVERY = 64
"""Each refresh scans one in this many processes, whether they are marked or not."""
RECHECK_EVERY_IF_COUNTED = 1024
"""The same where the kernel counts the runs that it skips, so that no mark is lost unnoticed."""


@dataclass(slots=True)
class _Memory:
    """What one refresh remembers for the next."""

    known: dict[int, TrackedProcess] = field(default_factory=dict)
    """VMMs by tgid."""
    others: dict[int, VmmId] = field(default_factory=dict)
    """Processes that are no VMMs, by tgid."""
    pending: set[int] = field(default_factory=set)
    """Tgids that could not be read, or not in time. They come first in the next refresh."""
    searching: bool = False
    """Whether the time ran out before the descriptors of some of them were searched."""


@dataclass(slots=True, kw_only=True)
class _Refresh:
    """What one refresh has to do, and what it has done so far."""

    kernel: KernelSnapshot
    known: dict[int, TrackedProcess]
    """VMMs that /proc still lists, by tgid."""
    every_fd: bool
    """Whether users of accelerators must be found by their descriptors."""
    to_scan: set[int] = field(default_factory=set)
    seen: dict[int, VmmId] = field(default_factory=dict)
    """Processes that were identified, by tgid."""
    to_read: list[VmmId] = field(default_factory=list)
    ended: AbstractSet[int] = frozenset()
    """Tgids that /proc lists although no process of them runs."""
    waiting: set[int] = field(default_factory=set)
    """Tgids that must wait for the next refresh."""
    denied: int = 0
    """How many processes the kernel does not let hvprobe identify."""


class ProcessTracker:
    """The VMM processes of this node. Not for use by two threads at once."""

    def __init__(self, processes: Processes, ledger: Ledger | None) -> None:
        """Read processes through one port, and remove stale records through the other."""
        self._host = processes
        self._ledger = ledger
        self._memory = _Memory()
        self._in_order: tuple[TrackedProcess, ...] = ()
        self._dropped_total: int | None = None
        self._refreshes = 0

    def refresh(self, kernel: KernelSnapshot, lives: frozenset[int] | None) -> Tracking:
        """Return all VMM processes; the tuple is the same object until something changes.

        lives holds the numbers at which a life began or ended since the last refresh, taken before
        the ledger was read; None: they are unknown. Reads only processes that are new or may have
        changed.
        """
        listed = self._host.tgids()
        work = self._begin(kernel, listed - {os.getpid()}, lives)
        why_unread = self._scan(work) | self._read(work)
        self._memory.searching = work.every_fd and Unread.NO_TIME in why_unread
        # Where the kernel does not count the marks that it skips, one may be missing.
        marked = lives if kernel.misses_counted else None
        tracking = self._remember(work, None if marked is None else marked - listed)
        self._remove_stale_records(work, tracking, listed)
        return tracking

    def _begin(
        self, kernel: KernelSnapshot, tgids: frozenset[int], lives: frozenset[int] | None
    ) -> _Refresh:
        """Decide which processes to scan.

        Of the processes that are no VMMs, only those that are marked, have a record or are due take
        a step, unless lives are unknown or a user of an accelerator may have been dropped from the
        ledger.
        """
        known, others = self._memory.known, self._memory.others
        for tgid in others.keys() - tgids:
            del others[tgid]
        lost_events = self._dropped_total is None or kernel.dropped_total > self._dropped_total
        self._dropped_total = kernel.dropped_total
        every = RECHECK_EVERY_IF_COUNTED if kernel.misses_counted else RECHECK_EVERY
        recheck_slot = self._refreshes % every
        self._refreshes += 1
        work = _Refresh(
            kernel=kernel,
            known={tgid: tracked for tgid, tracked in known.items() if tgid in tgids},
            every_fd=lost_events or kernel.error is not None or self._memory.searching,
        )
        concerned = tgids
        if lives is not None and not lost_events:
            rechecked = {tgid for tgid in others if tgid % every == recheck_slot}
            concerned -= others.keys() - lives - kernel.entries.keys() - rechecked
        for tgid in concerned:
            tracked = known.get(tgid)
            if lives is None:
                event = Event.UNFOLLOWED
            elif tgid in lives:
                event = Event.MARKED
            elif lost_events or tgid % every == recheck_slot:
                event = Event.DUE
            elif (
                tracked is not None
                and tracked.state is State.FOLLOWED
                and not record_has_news(tracked, kernel.entries.get(tgid))
            ):
                continue  # next_step() says the same of almost every process, in more time
            else:
                event = Event.LISTED
            self._take_step(work, tgid, event)
        return work

    def _scan(self, work: _Refresh) -> set[Unread]:
        """Scan the chosen processes. Returns why some could not be scanned.

        A process in the ledger uses an accelerator, so it is identified even if it hides what it
        is.
        """
        first = self._memory.pending & work.to_scan
        scan = self._host.scan(
            [*sorted(first), *sorted(work.to_scan - first)], every_fd=work.every_fd
        )
        work.seen = {**scan.others, **scan.found}
        for tgid in work.kernel.entries.keys() & scan.pending.keys():
            vmm = self._host.identify(tgid)
            if vmm is not None:
                work.seen[tgid] = vmm
        work.ended = work.to_scan - work.seen.keys() - scan.pending.keys()
        for tgid in work.to_scan:
            vmm, tracked = work.seen.get(tgid), work.known.get(tgid)
            if tracked is not None and vmm is not None and tracked.vmm != vmm:
                self._take_step(work, tgid, Event.ENDED)  # its number has been reused
            if vmm is not None:
                self._take_step(work, tgid, Event.FOUND if tgid in scan.found else Event.PLAIN)
            else:
                self._take_step(work, tgid, Event.UNREAD if tgid in scan.pending else Event.ENDED)
        work.denied = sum(why is Unread.DENIED for why in scan.pending.values())
        return {*scan.pending.values()}

    def _read(self, work: _Refresh) -> set[Unread]:
        """Read and judge the chosen processes. Returns why some could not be read."""
        inspections = self._host.inspect(work.to_read)
        for vmm in work.to_read:
            process = inspections.processes.get(vmm)
            if process is not None:
                self._take_over(work, process)
            elif vmm in inspections.pending:
                self._take_step(work, vmm.tgid, Event.UNREAD)
            else:
                self._take_step(work, vmm.tgid, Event.ENDED)
        return {*inspections.pending.values()}

    def _take_over(self, work: _Refresh, process: VmmProcess) -> None:
        """Store a process that was read, with its previous or a new verdict."""
        tgid, kernel = process.vmm.tgid, work.kernel
        start_ns = self._host.start_monotonic_ns(process.vmm)
        evidence = gather(process, kernel, start_monotonic_ns=start_ns)
        before = work.known.get(tgid)
        event = event_of_reading(before, process, evidence)
        step = next_step(before, event, evidence.ledger, ledger_read=kernel.error is None)
        if step.action is Action.SET_ASIDE:
            self._set_aside(work, tgid)
            return
        started_unix_s = time.time() - (clock.monotonic_ns() - start_ns) / 1e9
        work.known[tgid] = tracked_process(
            process,
            evidence,
            before.verdict if before and step.action is Action.KEEP else judge(evidence),
            started_unix_s=before.started_unix_s if before else started_unix_s,
        )

    def _take_step(self, work: _Refresh, tgid: int, event: Event) -> None:
        """Execute the next step for a process that has not been read yet."""
        kernel, tracked = work.kernel, work.known.get(tgid)
        entry = kernel.entries.get(tgid)
        step = next_step(tracked, event, entry, ledger_read=kernel.error is None)
        match step.action:
            case Action.LEAVE:
                return
            case Action.SCAN:
                work.to_scan.add(tgid)
                self._memory.others.pop(tgid, None)
            case Action.READ:
                work.to_read.append(work.seen[tgid])
            case Action.WAIT:
                work.waiting.add(tgid)
            case Action.SET_ASIDE:
                self._set_aside(work, tgid)
                return
            case Action.DROP:
                work.known.pop(tgid, None)
                return
        if tracked is not None and step.state is not None and step.state is not tracked.state:
            work.known[tgid] = replace(tracked, state=step.state)

    def _set_aside(self, work: _Refresh, tgid: int) -> None:
        work.known.pop(tgid, None)
        self._memory.others[tgid] = work.seen[tgid]

    def _remember(self, work: _Refresh, new_threads: frozenset[int] | None) -> Tracking:
        """Remember what the next refresh needs, and match each process with its record."""
        memory = self._memory
        memory.pending = work.waiting
        if work.known != memory.known:
            memory.known = work.known
            self._in_order = tuple(work.known[tgid] for tgid in sorted(work.known))
        entries = work.kernel.entries
        records: dict[int, LedgerEntry] = {}
        for tracked in self._in_order:
            tgid = tracked.vmm.tgid
            entry = entries.get(tgid)
            if entry is not None and tracked.record_ns == entry.first_ns:  # tracked.owns(entry)
                records[tgid] = entry
        return Tracking(
            processes=self._in_order,
            records=records,
            pending=len(memory.pending),
            denied=work.denied,
            new_threads=new_threads,
        )

    def _remove_stale_records(
        self, work: _Refresh, tracking: Tracking, listed: frozenset[int]
    ) -> None:
        """Remove the records that belong to no process.

        /proc was listed after the ledger was read, so a record whose process is not listed has
        outlived it.
        """
        for tgid, entry in work.kernel.entries.items():
            if tgid in tracking.records:
                continue
            tracked = self._memory.known.get(tgid)
            started_ns = self._host.start_monotonic_ns(tracked.vmm) if tracked else None
            state = self._state(tgid, work, listed)
            if record_is_stale(entry, state, work.kernel, started_ns=started_ns):
                self._forget(tgid, entry.first_ns)

    def _state(self, tgid: int, work: _Refresh, listed: frozenset[int]) -> State:
        """Return the state of the process that has this number at the end of a refresh."""
        tracked = self._memory.known.get(tgid)
        if tracked is not None:
            return tracked.state
        if tgid not in listed:
            return State.GONE
        if tgid in self._memory.others:
            return State.OTHER
        return State.ENDED if tgid in work.ended else State.NEW

    def _forget(self, tgid: int, first_ns: int) -> None:
        if self._ledger is not None:
            with contextlib.suppress(LedgerReadError):
                self._ledger.forget(tgid, first_ns)
