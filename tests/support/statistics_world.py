# SPDX-License-Identifier: Apache-2.0
"""Processes whose statistics a test decides, and a reader of them.

The processes are real children without statistics; a tree of the test shows descriptors for them,
and doubles give what these say: one through copies, one in memory.
"""

import errno
import re
import struct
import subprocess
import threading
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from probes.host import statistics_reader
from probes.host.kvm_stats import StatisticsReading
from probes.host.process import VmmId
from probes.host.process_folder import ProcessFolder
from probes.host.statistics_in_kernel import StatisticsInKernel
from probes.host.statistics_reader import StatisticsReader
from probes.host.vcpu_statistics import StatisticsFiles
from probes.host.watched_reads import WatchedReads
from tests.support.facts import captured
from tests.support.kvm_statistics import statistics

STATISTICS = "anon_inode:kvm-vcpu-stats:"
DEADLINE_S = 20
START_TICKS = 4242
LONGEST_NAME = 32
_ELEMENT = struct.Struct("=QQQ32s")


class Guest:
    """A process, and what the test's /proc and its descriptors show of it."""

    def __init__(self, proc: Path) -> None:
        self.child = subprocess.Popen(["sleep", "600"])
        self.vmm = VmmId(tgid=self.child.pid, start_ticks=START_TICKS)
        self.root = proc / str(self.child.pid)
        (self.root / "fd").mkdir(parents=True)
        self.be(START_TICKS)
        self.links: dict[int, str] = {}
        self.exits: dict[int, int | OSError] = {}
        self.others: dict[str, int] = {"halt_exits": 1}
        """The statistics of each vCPU beside its exits."""
        self.threads = 0
        self.start_thread()

    def be(self, start_ticks: int) -> None:
        """Give the process this start time."""
        fields = captured("kvm_inside_run").stat.rpartition(")")[2].split()
        fields[19] = str(start_ticks)
        (self.root / "stat").write_text(f"{self.child.pid} (qemu) {' '.join(fields)}\n")

    def start_thread(self) -> None:
        """Show one more thread."""
        self.threads += 1
        (self.root / "task" / str(self.threads)).mkdir(parents=True)

    def plug(self, fd: int, number: int, exits: int | OSError) -> None:
        """Add a vCPU with statistics."""
        self.open(100 + number, f"anon_inode:kvm-vcpu:{number}")
        self.open(fd, f"{STATISTICS}{number}")
        self.exits[fd] = exits

    def open(self, fd: int, target: str) -> None:
        self.links[fd] = target
        (self.root / "fd" / str(fd)).symlink_to(target)

    def close(self, fd: int) -> None:
        del self.links[fd]
        (self.root / "fd" / str(fd)).unlink()


class Files(StatisticsFiles):
    """Reads what the guests of the test say."""

    def __init__(self) -> None:
        super().__init__()
        self.guests: list[Guest] = []
        self.blocks: dict[int, threading.Event] = {}
        """Reads of these descriptors wait for the event."""
        self.reads: Counter[int] = Counter()
        self.sizes: set[int] = set()
        self.gone: set[int] = set()
        """Guests that have ended."""

    def read_each(
        self, pidfd: int, fds: Iterable[tuple[int, str]], size: int, offset: int
    ) -> list[bytes]:
        return [self._read_one(pidfd, fd, target, size, offset) for fd, target in fds]

    def _read_one(self, pidfd: int, fd: int, target: str, size: int, offset: int) -> bytes:
        text = Path(f"/proc/self/fdinfo/{pidfd}").read_text()
        found = re.search(r"^Pid:\s*(-?\d+)", text, re.MULTILINE)
        assert found is not None
        if found[1] == "-1" and self.gone:
            raise ProcessLookupError(errno.ESRCH, "no such process")
        guest = next(guest for guest in self.guests if guest.vmm.tgid == int(found[1]))
        self.reads[guest.vmm.tgid] += 1
        if fd in self.blocks:
            self.blocks[fd].wait(DEADLINE_S)
        if fd not in guest.links:
            raise OSError(errno.EBADF, "no such descriptor")
        if guest.links[fd] != target:
            raise OSError(errno.ESTALE, "another file")
        exits = guest.exits[fd]
        if isinstance(exits, OSError):
            raise exits
        self.sizes.add(size)
        return statistics({**guest.others, "exits": exits})[offset : offset + size]


class Memory:
    """Says what the guests of the test have in memory, as the kernel's program would."""

    def __init__(self, guests: Sequence[Guest], *, capacity: int = 16) -> None:
        """guests may grow."""
        self.capacity = capacity
        self.refused = False
        self.shift = 0
        """How far all its numbers are wrong."""
        self.reads = 0
        self.gone: set[int] = set()
        """Guests that have ended."""
        self._guests = guests
        self._elements = b""
        self._places: Sequence[int] = ()

    def want(self, offsets: Sequence[int]) -> None:
        self._places = [offset // 8 for offset in offsets]

    def element(self, *, tgid: int, start_ticks: int, fd: int, name: str) -> bytes | None:
        fits = len(name) < LONGEST_NAME
        return _ELEMENT.pack(tgid, start_ticks, fd, name.encode()) if fits else None

    def place(self, elements: bytes) -> None:
        assert len(elements) // _ELEMENT.size <= self.capacity
        self._elements = elements

    def read(self) -> tuple[list[int], list[tuple[int, ...]]]:
        if self.refused:
            raise OSError(errno.EPERM, "refused")
        self.reads += 1
        found = [self._read_one(*each) for each in _ELEMENT.iter_unpack(self._elements)]
        none = (0,) * len(self._places)
        return [int(each is not None) for each in found], [each or none for each in found]

    def _read_one(self, tgid: int, ticks: int, fd: int, name: bytes) -> tuple[int, ...] | None:
        guest = next(guest for guest in self._guests if guest.vmm.tgid == tgid)
        target = f"anon_inode:{name.rstrip(bytes(1)).decode()}"
        exits = guest.exits.get(fd)
        if tgid in self.gone or guest.links.get(fd) != target or ticks != guest.vmm.start_ticks:
            return None
        if not isinstance(exits, int):
            return None
        numbers = [*{**guest.others, "exits": exits}.values()]
        return tuple(numbers[place] + self.shift for place in self._places)


class World:
    """A reader, its guests, and the number of listings."""

    def __init__(
        self,
        proc: Path,
        monkeypatch: pytest.MonkeyPatch,
        *,
        optional: tuple[str, ...] = (),
        in_memory: bool = False,
    ) -> None:
        """in_memory says whether the reader may read in memory."""
        self.proc = proc
        self.files = Files()
        monkeypatch.setattr(statistics_reader, "StatisticsFiles", lambda: self.files)
        self.memory = Memory(self.files.guests)
        in_kernel = StatisticsInKernel(self.memory) if in_memory else None
        self.reader = StatisticsReader(WatchedReads(proc), optional=optional, in_kernel=in_kernel)
        self.listings = 0
        names = ProcessFolder.names

        def counting(folder: ProcessFolder, name: str) -> Iterator[str]:
            self.listings += name == "fd"
            return names(folder, name)

        monkeypatch.setattr(ProcessFolder, "names", counting)

    def guest(self, *exits: int | OSError) -> Guest:
        guest = Guest(self.proc)
        for number, each in enumerate(exits):
            guest.plug(10 + number, number, each)
        self.files.guests.append(guest)
        return guest

    def read(
        self, *, created: int = 0, new_threads: Collection[int] | None = ()
    ) -> dict[int, StatisticsReading]:
        """Read all guests."""
        wanted = [(guest.vmm, created) for guest in self.files.guests]
        return dict(self.reader.read(wanted, new_threads=new_threads))

    def exits(
        self, guest: Guest, *, created: int = 0, new_threads: Collection[int] | None = ()
    ) -> list[int] | None:
        """Read all guests; return one's exits by vCPU, None: they were not read."""
        reading = self.read(created=created, new_threads=new_threads)[guest.vmm.tgid]
        return None if reading.counts is None else [exits for (exits,) in reading.counts]

    def close(self) -> None:
        """End the guests."""
        for event in self.files.blocks.values():
            event.set()
        self.reader.close()
        for guest in self.files.guests:
            guest.child.kill()
            guest.child.wait()
