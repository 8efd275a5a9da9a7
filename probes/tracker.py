"""The VMM processes of a node, judged: whom to read, whom not to read again. Reads through sources.

Owns what is remembered of processes between two refreshes, and when /proc has to be read again.
Must not know names, VMIs, or how anything is shown.

The kernel marks each number at which a life begins or ends (fork, exec, exit), so a process that
was read once and has no mark is still the same one and executes the same program. Each refresh
lists /proc, looks at the new and the marked processes, and reads those that may be VMMs until
their verdict is final. A final verdict stands until the process is marked, its record in the
ledger changes, or that record contradicts.

A mark can be lost: the kernel runs no tracepoint program on a CPU whose process is in a system call
on a BPF map. So some processes are looked at in each refresh, in turn, and a record that outlives
its process is removed.
"""

import contextlib
import os
import sys
import time
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from ebpf import clock
from ebpf.errors import LedgerReadError
from ebpf.ledger import KernelSnapshot
from probes.assemble import TrackedProcess
from probes.cgroup import pod_of
from probes.changes import is_vmm, needs_reading, removes_records, verdict_stands
from probes.evidence import gather, ledger_entry
from probes.sources import Ledger, Processes
from probes.verdict import Reason, judge
from probes.vmm import Scan, Unread, VmmId, VmmProcess

IN_TURN = 16
"""One in so many processes is looked at in each refresh, whether it is marked or not."""
FREED_WITHIN_NS = 10_000_000_000
"""After its main thread's end; the kernel frees a process within a fraction of a second."""


@dataclass(slots=True)
class _Memory:
    """What one refresh leaves for the next."""

    known: dict[int, TrackedProcess] = field(default_factory=dict)
    """VMMs, by tgid."""
    others: dict[int, VmmId] = field(default_factory=dict)
    """Processes that are no VMM, by tgid."""
    pending: set[int] = field(default_factory=set)
    """Tgids that could not be read, or not in time: they come first in the next refresh."""
    searching: bool = False
    """Whether some of these were to be searched for descriptors when the time ran out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """What one refresh has to do."""

    known: dict[int, TrackedProcess]
    """VMMs that were known and may still exist, by tgid; changed as they are read."""
    wanted: AbstractSet[int]
    """Tgids to look at."""
    marked: frozenset[int]
    """Tgids at which a life began or ended: what was known of them may not hold."""
    doubtful: set[int]
    """Tgids of known VMMs that have to be read again."""
    every_fd: bool
    """Whether users of accelerators have to be found by their descriptors."""


class ProcessTracker:
    """The VMM processes known. Not for use by two threads at once."""

    def __init__(self, processes: Processes, ledger: Ledger | None) -> None:
        """Read processes through one port and remove stale records through the other."""
        self._host = processes
        self._ledger = ledger
        self._memory = _Memory()
        self._in_order: tuple[TrackedProcess, ...] = ()
        self._dropped_total: int | None = None
        self._turn = 0

    @property
    def pending(self) -> int:
        """Processes of which it is not known yet whether they are VMMs, or of what kind."""
        return len(self._memory.pending)

    def refresh(
        self, kernel: KernelSnapshot, lives: frozenset[int] | None
    ) -> tuple[TrackedProcess, ...]:
        """All VMM processes of now, by tgid; the same object for as long as nothing changes.

        lives: numbers at which a life began or ended since the last refresh, taken before the
        ledger was read; None: that is not known. What is new or may have changed is read.
        """
        listed = self._host.tgids()
        work = self._plan(kernel, listed - {os.getpid()}, lives)
        pending = self._memory.pending & work.wanted
        scan = self._host.scan(
            [*sorted(pending), *sorted(work.wanted - pending)],
            every_fd=work.every_fd,
        )
        seen, unseen = self._seen(scan, recorded=kernel.entries.keys() & work.wanted)
        for tgid in work.wanted & work.known.keys() - unseen:
            if work.known[tgid].vmm != seen.get(tgid):
                del work.known[tgid]  # it ended, and its number may have a new owner
        inspected = self._to_inspect(work, scan, seen, recorded=kernel.entries.keys())
        inspections = self._host.inspect(inspected)
        unseen |= {vmm.tgid for vmm in inspections.pending}
        why = {*scan.pending.values(), *inspections.pending.values()}
        self._memory.searching = work.every_fd and Unread.NO_TIME in why
        for vmm in inspected:
            process = inspections.processes.get(vmm)
            if process is not None:
                self._judge(process, kernel, work)
            elif vmm not in inspections.pending:
                work.known.pop(vmm.tgid, None)
        self._remember(work.known, unseen)
        ended = work.wanted - seen.keys() - unseen
        self._remove_stale_records(kernel, listed, ended)
        return self._in_order

    def _plan(
        self, kernel: KernelSnapshot, tgids: frozenset[int], lives: frozenset[int] | None
    ) -> _Work:
        """Which processes have to be looked at, and which of those known may have changed."""
        others = self._memory.others
        for tgid in others.keys() - tgids:
            del others[tgid]
        known = {tgid: it for tgid, it in self._memory.known.items() if tgid in tgids}
        marked = (lives or frozenset()) & tgids
        doubtful = {
            tgid
            for tgid, process in known.items()
            if tgid in marked
            or lives is None
            or needs_reading(process, kernel.entries.get(tgid), kernel)
        }
        in_turn = {tgid for tgid in known.keys() | others if tgid % IN_TURN == self._turn}
        self._turn = (self._turn + 1) % IN_TURN
        recorded = kernel.entries.keys() & tgids
        unseen = tgids - known.keys() - others.keys()
        wanted = unseen | marked | doubtful | in_turn | (recorded - known.keys())
        lost_events = self._dropped_total is None or kernel.dropped_total > self._dropped_total
        self._dropped_total = kernel.dropped_total
        if lives is None or lost_events:  # a user of KVM may have found no room in the ledger
            wanted = tgids
        for tgid in wanted & others.keys():
            del others[tgid]
        return _Work(
            known=known,
            wanted=wanted,
            marked=marked,
            doubtful=doubtful,
            every_fd=lost_events or kernel.error is not None or self._memory.searching,
        )

    def _seen(self, scan: Scan, *, recorded: AbstractSet[int]) -> tuple[dict[int, VmmId], set[int]]:
        """Processes that a scan could identify, by tgid, and the tgids of the others that exist.

        What is in the ledger uses KVM, so it is identified even if it hides what it is.
        """
        seen = {**scan.others, **scan.found}
        for tgid in recorded & scan.pending.keys():
            vmm = self._host.identify(tgid)
            if vmm is not None:
                seen[tgid] = vmm
        return seen, {*scan.pending} - seen.keys()

    def _to_inspect(
        self, work: _Work, scan: Scan, seen: Mapping[int, VmmId], *, recorded: AbstractSet[int]
    ) -> list[VmmId]:
        """Which of the processes seen have to be read completely; the others are remembered."""
        chosen: list[VmmId] = []
        for tgid, vmm in seen.items():
            process = work.known.get(tgid)
            named = tgid in scan.found
            if process is None:
                if named or tgid in recorded:
                    chosen.append(vmm)
                else:
                    self._memory.others[tgid] = vmm
            elif tgid in work.doubtful or (process.named_like_qemu and not named):
                chosen.append(vmm)
        return chosen

    def _remember(self, known: dict[int, TrackedProcess], pending: set[int]) -> None:
        memory = self._memory
        memory.pending = pending
        if known != memory.known:
            memory.known = known
            self._in_order = tuple(known[tgid] for tgid in sorted(known))

    def _judge(self, process: VmmProcess, kernel: KernelSnapshot, work: _Work) -> None:
        """Put a process that was read where it belongs: with its verdict, or among the others."""
        vmm = process.vmm
        start_ns = self._host.start_monotonic_ns(vmm)
        entry = ledger_entry(vmm, kernel, start_monotonic_ns=start_ns)
        evidence = gather(process, kernel, start_monotonic_ns=start_ns)
        if not is_vmm(process, evidence):
            work.known.pop(vmm.tgid, None)
            self._memory.others[vmm.tgid] = vmm
            return
        before = work.known.get(vmm.tgid)
        stands = (
            before is not None
            and vmm.tgid not in work.marked
            and before.program == process.program
            and verdict_stands(before, entry, kernel)
        )
        verdict = before.verdict if before is not None and stands else judge(evidence)
        now_unix_s = time.time() - (clock.monotonic_ns() - start_ns) / 1e9
        tracked = TrackedProcess(
            vmm=vmm,
            comm=sys.intern(process.comm),
            program=process.program and sys.intern(process.program),
            guest_name=process.command_line.guest_name,
            command_line_unread=process.blocked,
            parent_tgid=process.parent_tgid,
            pod=pod_of(process.cgroup) if process.cgroup else None,
            named_like_qemu=process.named_like_qemu,
            capability_probe=verdict.reasons[0] is Reason.CAPABILITY_PROBE,
            vcpus=max(evidence.kvm_vcpus, evidence.mshv_vps, evidence.tcg_threads) or None,
            started_unix_s=before.started_unix_s if before else now_unix_s,
            verdict=verdict,
            record_ns=entry.first_ns if entry else None,
            vcpus_created=entry.vcpus_created if entry else 0,
            main_thread_ended=process.main_thread_ended,
        )
        if tracked != before:
            work.known[vmm.tgid] = tracked

    def _remove_stale_records(
        self, kernel: KernelSnapshot, tgids: frozenset[int], ended: AbstractSet[int]
    ) -> None:
        """Do what the kernel's own hooks do, where they are missing, were silenced, or come late.

        The processes were listed after the ledger was read, so a record whose process is not
        listed has outlived it. One that began before its process is of a former owner. ended: those
        that are listed and run no more; a parent that never collects them would fill the ledger.
        """
        removes = removes_records(kernel)
        for tgid, entry in kernel.entries.items():
            process = self._memory.known.get(tgid)
            if tgid in tgids:
                former = (
                    process is not None
                    and not process.owns(entry)
                    and entry.first_ns < self._host.start_monotonic_ns(process.vmm)
                )
                over = tgid in ended and entry.leader_exit_ns is not None
                if former or over or tgid in self._memory.others:
                    self._forget(tgid, entry.first_ns)
                continue
            marked_ns = entry.leader_exit_ns
            overdue = marked_ns is None or kernel.taken_ns - marked_ns > FREED_WITHIN_NS
            if overdue or not removes:
                self._forget(tgid, entry.first_ns)

    def _forget(self, tgid: int, first_ns: int) -> None:
        if self._ledger is not None:
            with contextlib.suppress(LedgerReadError):
                self._ledger.forget(tgid, first_ns)
