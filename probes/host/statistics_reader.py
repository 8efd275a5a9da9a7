# SPDX-License-Identifier: Apache-2.0
"""EDGE: reads KVM's statistics of the vCPUs of many processes, at each refresh.

Owns when the descriptors of a process are listed again, and how long a reading may take. Must not
judge: probes.judge.exit_counts makes totals of the readings.

Where the kernel permits it, all processes are read at once in its memory (statistics_in_kernel).
The others are read in a pass by a thread that the caller watches (statistics_pass). A thread that
makes no progress is left behind, another one continues with the next process, and the process is
not read this way again until the thread has returned.

The descriptors of a process are listed again when a read fails, when the ledger shows new vCPUs,
once more when a listing shows a new vCPU without statistics, and, where no hook sees vCPUs, when
it has new threads, because QEMU starts a thread for each vCPU. The kernel's marks say which threads
are new; where they may be incomplete, the number of threads of each process does. What is listed
late is not lost: KVM counts a vCPU's exits from its first one.
"""

import time
from collections.abc import Collection, Iterable, Mapping, Sequence

from probes.host.kvm_stats import (
    EXITS,
    MAX_BYTES,
    NO_STATISTICS,
    Span,
    StatisticsReading,
    description_bytes,
    layout_of,
)
from probes.host.process import Unread, VmmId
from probes.host.process_folder import ProcessFolder
from probes.host.statistics_in_kernel import StatisticsInKernel
from probes.host.statistics_listing import KeptProcess, ReadableProcess, owners_of
from probes.host.statistics_pass import Found, Passes
from probes.host.vcpu_statistics import StatisticsFiles
from probes.host.watched_reads import WatchedReads

MAX_LISTING_S = 0.4
"""How long all listings of a reading may take."""
MAX_PASS_S = 0.4
"""How long all passes of a reading may take."""
MAX_LISTED_FOR_THREADS = 16
"""The most processes that one reading lists because their number of threads has changed.

QEMU's worker threads come and go as well.
"""
MAX_NEW_THREADS = 64
"""The most new threads whose processes are looked for. With more, the threads of every process are
counted, which then takes less time."""
MAX_KEPT = 65_536
"""The most processes of which descriptors are kept."""
_LAYOUTS = 16
"""The most layouts that are remembered; a kernel has one."""


class StatisticsReader:
    """Reads the wanted counts of processes. Not for use by two threads at once."""

    def __init__(
        self,
        reads: WatchedReads,
        *,
        optional: tuple[str, ...] = (),
        in_kernel: StatisticsInKernel | None = None,
    ) -> None:
        """Read the exits, and of the optional statistics those that this kernel has.

        reads lists the descriptors of processes. in_kernel reads in the kernel's memory; None: that
        is impossible.
        """
        self._reads = reads
        self._in_kernel = in_kernel
        self._optional = optional
        self._files = StatisticsFiles()
        self._passes = Passes(self._files)
        self._kept: dict[int, KeptProcess] = {}
        self._open: set[int] = set()
        """Tgids of those of which a pidfd is open."""
        self._readable: list[ReadableProcess] | None = None
        """Those of them whose statistics can be read; None: that has changed."""
        self._spans: dict[bytes, Span | None] = {}
        self._wanted: Sequence[tuple[VmmId, int]] = ()
        """What was wanted last."""
        self._settled: set[tuple[VmmId, int]] = set()
        """What of it has needed no listing since."""
        self._unread: frozenset[int] = frozenset()
        """Tgids for which the last reading had no time. They come first in the next one."""

    def read(
        self, wanted: Sequence[tuple[VmmId, int]], *, new_threads: Collection[int] | None
    ) -> Mapping[int, StatisticsReading]:
        """Read processes now; return readings by tgid.

        wanted holds each process with the vCPUs that the ledger saw it create. new_threads are the
        numbers at which a thread may have begun since the last reading, any of which may run a new
        vCPU; None: they are unknown. It is empty where the ledger sees new vCPUs. A process that
        has ended is left out of the result.
        """
        owners = None
        if new_threads is not None and len(new_threads) <= MAX_NEW_THREADS:
            listed_until = time.monotonic() + MAX_LISTING_S
            owners = owners_of(new_threads, self._reads, until=listed_until)
        unlisted = self._follow(wanted, owners)
        todo = self._todo()
        until = time.monotonic() + MAX_PASS_S
        found = self._found(todo, until)
        failed = {tgid for tgid, ended in found.unread.items() if not ended} - self._passes.held()
        if failed:
            again = [self._kept[tgid] for tgid in failed]
            to_list = [(kept.vmm, kept.vcpus_created) for kept in again]
            self._settled.difference_update(to_list)
            self._list(to_list, follow_threads=owners is None)
            todo_again = [each for each in self._todo() if each.tgid in failed]
            found.take(self._passes.run(todo_again, until))
        missing = () if len(found.readings) == len(self._kept) else (each.tgid for each in todo)
        self._unread = frozenset(missing) - found.readings.keys() - found.unread.keys()
        return self._readings(wanted, found, unlisted)

    def close(self) -> None:
        """Close everything that is kept."""
        self._forget_all_but(())
        self._files.close()

    def _todo(self) -> list[ReadableProcess]:
        """Return what can be read and holds up no thread; first what had no time before."""
        if self._readable is None:
            found = (kept.readable() for kept in self._kept.values())
            self._readable = [each for each in found if each is not None]
            self._open = {each.tgid for each in self._readable if each.pidfd is not None}
            if self._in_kernel is not None:
                self._in_kernel.place(self._readable)
        todo = self._readable
        held = self._passes.held()
        if held:
            todo = [each for each in todo if each.tgid not in held]
        if self._unread:
            todo = sorted(todo, key=lambda each: each.tgid not in self._unread)
        return todo

    def _readings(
        self,
        wanted: Sequence[tuple[VmmId, int]],
        found: Found,
        unlisted: Mapping[int, Unread],
    ) -> Mapping[int, StatisticsReading]:
        """Return the readings, with those that failed."""
        readings = found.readings
        if len(readings) == len(wanted):  # usual: every process was read
            return readings
        for vmm, _ in wanted:
            tgid = vmm.tgid
            if tgid in readings or found.unread.get(tgid):
                continue
            kept = self._kept.get(tgid)
            if kept is None or kept.listing is None:
                if tgid in unlisted:
                    wait = unlisted[tgid] is Unread.NO_TIME
                    readings[tgid] = StatisticsReading(None if wait else NO_STATISTICS, None)
            else:
                listing = None if tgid in self._unread else kept.listing
                reading = StatisticsReading(listing, None)
                if kept.span is not None:
                    reading = reading._replace(measures=kept.span.measures)
                readings[tgid] = reading
        return readings

    def _follow(
        self, wanted: Sequence[tuple[VmmId, int]], owners: Collection[int] | None
    ) -> Mapping[int, Unread]:
        """List the descriptors that have to be listed, and forget the processes not wanted.

        owners are the processes with new threads; None: any may have one. Returns the processes
        that were not listed, and why.
        """
        settled = self._settled
        same = wanted == self._wanted
        if not same:
            self._wanted = [*wanted]
            settled.intersection_update(wanted)
            self._forget_all_but({vmm.tgid for vmm, _ in wanted})
        if owners is None:
            asked = wanted
        elif same and not owners and len(settled) == len(wanted):
            return {}  # usual, and much faster than to ask for each process
        else:
            asked = [each for each in wanted if each not in settled or each[0].tgid in owners]
        new, changed = self._to_list(asked, owners)
        settled.update(asked)
        settled.difference_update(new, changed)
        return self._list(new + changed[:MAX_LISTED_FOR_THREADS], follow_threads=owners is None)

    def _to_list(
        self, wanted: Iterable[tuple[VmmId, int]], owners: Collection[int] | None
    ) -> tuple[list[tuple[VmmId, int]], list[tuple[VmmId, int]]]:
        """Return the processes whose descriptors have to be listed now.

        Those that are listed because of their threads alone are apart.
        """
        new: list[tuple[VmmId, int]] = []
        changed: list[tuple[VmmId, int]] = []
        for each in wanted:
            vmm, vcpus_created = each
            kept = self._kept.get(vmm.tgid)
            if kept is not None and kept.vmm is not vmm:
                if kept.vmm == vmm:
                    kept.vmm = vmm  # the next comparison is with the object itself
                else:
                    self._forget(vmm.tgid)
                    kept = None
            if (
                kept is None
                or kept.span is None
                or kept.unsettled
                or kept.vcpus_created != vcpus_created
            ):
                new.append(each)
            elif vmm.tgid in owners if owners is not None else kept.threads_changed():
                changed.append(each)
        return new, changed

    # listing

    def _list(
        self, wanted: Collection[tuple[VmmId, int]], *, follow_threads: bool
    ) -> Mapping[int, Unread]:
        """List the descriptors of processes. Returns those that were not listed, and why."""
        if not wanted:
            return {}
        self._readable = None
        by_tgid = {vmm.tgid: (vmm, created) for vmm, created in wanted}
        unlisted: dict[int, Unread] = {}
        ended: set[int] = set()

        def read(tgid: int, folder: ProcessFolder) -> None:
            vmm, created = by_tgid[tgid]
            kept = self._kept.get(tgid)
            if kept is None and len(self._kept) >= MAX_KEPT:
                unlisted[tgid] = Unread.TOO_MANY
                return
            kept = kept or KeptProcess(vmm=vmm)
            try:
                alive = kept.open(folder)
            except OSError:
                unlisted[tgid] = Unread.TOO_MANY
                return
            self._kept[tgid] = kept
            if not alive:
                ended.add(tgid)
                return
            changed = kept.list_descriptors(folder, follow_threads=follow_threads)
            if changed or kept.span is None:  # None: also where time was over before it was read
                kept.span = self._span(kept, folder)
            kept.vcpus_created = created

        until = time.monotonic() + MAX_LISTING_S
        unlisted |= self._reads.run([*by_tgid], read, until=until)
        for tgid in [*ended]:
            self._forget(tgid)
        return unlisted

    def _span(self, kept: KeptProcess, folder: ProcessFolder) -> Span | None:
        """Return where the wanted counts are; None: the statistics cannot be read."""
        listing = kept.listing
        if listing is None or not listing.fds or kept.pidfd is None:
            return None
        folder.at("its vCPUs' statistics")
        fd, target = listing.fds[0]
        try:
            raw = self._files.read(kept.pidfd, fd, target, MAX_BYTES, 0)
        except OSError:
            return kept.span
        key = description_bytes(raw)
        if key is None:
            return None
        if key not in self._spans and len(self._spans) < _LAYOUTS:
            layout = layout_of(raw)
            self._spans[key] = (
                None if layout is None else layout.span((EXITS,), optional=self._optional)
            )
        return self._spans.get(key)

    # reading

    def _found(self, todo: Sequence[ReadableProcess], until: float) -> Found:
        """Read these processes, those in the kernel's memory that can be read there."""
        if self._in_kernel is None:
            return self._passes.run(todo, until)
        found = Found(readings=self._in_kernel.read())
        self._release(self._open & found.readings.keys())
        if len(found.readings) < len(self._kept):
            rest = [each for each in todo if each.tgid not in found.readings]
            found.take(self._passes.run(rest, until))
            self._in_kernel.prove(
                found.readings, lambda processes: self._passes.run(processes, until).readings
            )
        return found

    def _release(self, tgids: Collection[int]) -> None:
        """Close the pidfds of processes of which nothing has to be copied."""
        for tgid in tgids:
            self._kept[tgid].release()
        if tgids:
            self._readable = None

    def _forget_all_but(self, tgids: Collection[int]) -> None:
        for tgid in self._kept.keys() - tgids:
            self._forget(tgid)

    def _forget(self, tgid: int) -> None:
        self._kept.pop(tgid).close()
        self._readable = None
