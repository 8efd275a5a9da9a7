# SPDX-License-Identifier: Apache-2.0
"""EDGE: reads the statistics of all processes at once in the kernel's memory.

Owns which processes are read this way, and the proof that their numbers are right. Must not know
when descriptors are listed, nor what happens to a process that is not read this way.

Where KVM keeps its statistics is no interface that the kernel promises to keep; the file behind a
descriptor is. So a process is read both ways once: through copies, in memory, and through copies
again. None of its counts may be less in memory than in the first copies, or more than in the last
ones. That is a proof only if a vCPU has exited, so until then there are only copies. A process that
fails it is read through copies until its descriptors are listed again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from probes.host.kvm_stats import Span, StatisticsReading
from probes.host.statistics_listing import ReadableProcess

_PREFIX = "anon_inode:"
"""What precedes a file's name in its link: anon_inodefs_dname (fs/anon_inodes.c)."""

Readings = Mapping[int, StatisticsReading]
"""Readings by tgid."""


class KernelMemory(Protocol):
    """What reads the kernel's memory: ebpf.statistics.session.StatisticsSession."""

    capacity: int
    """The most vCPUs that are read."""

    def want(self, offsets: Sequence[int]) -> None:
        """Read the counts at these offsets among a vCPU's statistics from now on."""

    def element(self, *, tgid: int, start_ticks: int, fd: int, name: str) -> bytes | None:
        """Return what place() takes for one vCPU; None: it cannot be read."""

    def place(self, elements: bytes) -> None:
        """Read the vCPUs of these elements from now on, at most as many as there is room for."""

    def read(self) -> tuple[list[int], list[tuple[int, ...]]]:
        """Return for each vCPU, in order, whether it was found (1 or 0), and its counts.

        Raises OSError when the kernel refuses.
        """


@dataclass(slots=True, kw_only=True)
class _Known:
    """A process that can be read this way."""

    process: ReadableProcess
    elements: bytes
    """Its vCPUs, as KernelMemory takes them."""
    proven: bool | None = None
    """Whether its numbers are right; None: that is not known yet."""
    begin: int = 0
    """Place of its first vCPU."""
    end: int = 0


class StatisticsInKernel:
    """Reads placed processes. Not for use by two threads at once."""

    def __init__(self, memory: KernelMemory) -> None:
        self._memory = memory
        self._span: Span | None = None
        """Where the counts are in a file, the same for all processes that are read; None: none
        was placed yet."""
        self._known: dict[int, _Known] = {}
        self._proven: list[_Known] = []
        self._unproven: list[_Known] = []

    def place(self, processes: Sequence[ReadableProcess]) -> None:
        """Read these processes from now on, those for which there is room."""
        before, self._known = self._known, {}
        elements: list[bytes] = []
        begin = 0
        for process in processes:
            known = before.get(process.tgid)
            if known is None or not _are_same(known.process, process):
                known = self._prepared(process)
            if known is None:
                continue
            known.process = process  # its pidfd may be another one by now
            self._known[process.tgid] = known
            vcpus = len(process.listing.fds)
            if known.proven is not False and begin + vcpus <= self._memory.capacity:
                known.begin, known.end = begin, begin + vcpus
                begin += vcpus
                elements.append(known.elements)
            else:
                known.begin = known.end = 0
        self._memory.place(b"".join(elements))
        self._sort()

    def read(self) -> dict[int, StatisticsReading]:
        """Read now; return readings of the proven processes whose vCPUs were all found."""
        return self._readings(self._proven) if self._proven else {}

    def prove(
        self, before: Readings, read_copies: Callable[[Sequence[ReadableProcess]], Readings]
    ) -> None:
        """Find out whether the numbers of further processes are right.

        before are readings through copies, and read_copies makes such readings.
        """
        tried = [known for known in self._unproven if _has_exits(before.get(known.process.tgid))]
        if not tried:
            return
        between = self._readings(tried)
        after = read_copies([known.process for known in tried])
        for known in tried:
            tgid = known.process.tgid
            if tgid in between and tgid in after:
                known.proven = _in_order(before[tgid], between[tgid], after[tgid])
        self._sort()

    def _prepared(self, process: ReadableProcess) -> _Known | None:
        """Return what is placed of a process; None: it cannot be read this way."""
        if self._span is None:
            self._span = process.span
            self._memory.want(process.span.data_offsets)
        elements: list[bytes] = []
        for fd, target in process.listing.fds:
            element = self._memory.element(
                tgid=process.tgid,
                start_ticks=process.start_ticks,
                fd=fd,
                name=target.removeprefix(_PREFIX),
            )
            if element is None:
                return None
            elements.append(element)
        if process.span != self._span:
            return None
        return _Known(process=process, elements=b"".join(elements))

    def _sort(self) -> None:
        placed = [known for known in self._known.values() if known.end]
        self._proven = [known for known in placed if known.proven]
        self._unproven = [known for known in placed if known.proven is None]

    def _readings(self, wanted: Sequence[_Known]) -> dict[int, StatisticsReading]:
        try:
            found, counts = self._memory.read()
        except OSError:
            return {}
        complete = all(found)  # usual, and much faster than to ask for each process
        readings: dict[int, StatisticsReading] = {}
        for known in wanted:
            tgid, _, listing, span, _ = known.process
            begin, end = known.begin, known.end
            if complete or all(found[begin:end]):
                values = tuple(counts[begin:end])
                readings[tgid] = StatisticsReading(listing, values, span.measures)
        return readings


def _are_same(one: ReadableProcess, other: ReadableProcess) -> bool:
    """Whether two of one number are the same process with the same statistics."""
    return one.start_ticks == other.start_ticks and one[2:4] == other[2:4]


def _has_exits(reading: StatisticsReading | None) -> bool:
    """Whether a vCPU has exited; its exits come first among its counts."""
    return reading is not None and any(counts[0] for counts in reading.counts or ())


def _in_order(*readings: StatisticsReading) -> bool:
    """Whether no count falls from one reading to the next."""
    counts = [[each for vcpu in reading.counts or () for each in vcpu] for reading in readings]
    return all([*each] == sorted(each) for each in zip(*counts, strict=True))
