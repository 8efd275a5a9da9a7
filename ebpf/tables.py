# SPDX-License-Identifier: Apache-2.0
"""EDGE: the ledger's tables: read from memory, and the reader's side of removing a record.

Owns their names and sizes, and what ledger.bpf.c and the reader must both keep to. Must not know
which hook writes them, nor when a record has to go.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

from ebpf.bpf_syscall import Update, wait_for_running_programs
from ebpf.clock import monotonic_ns
from ebpf.ledger import (
    ACTIVITY_WORDS,
    LIFE_BYTES,
    RECORD_WORDS,
    LedgerEntry,
    ProcessRecord,
    Total,
    entries_from,
    word_of,
)
from ebpf.maps import HashMap, MappedArray, MappedMarks, Stack

TABLES = (
    "records",
    "activity",
    "totals",
    "slots",
    "free_slots",
    "reserved_slots",
    "claims",
    "recent",
    "lives",
    "life_pages",
)
RECENT_PLACES = 4096
"""Processes whose counters are found without a look-up in a hash, see ledger.bpf.c."""
PID_MAX_LIMIT = 4 * 1024 * 1024
"""What kernel.pid_max can be at most (include/linux/threads.h)."""

_SLOTS_A_GIB = 64
_MIN_CAPACITY, _MAX_CAPACITY = 4096, 65536
_MAX_COUNTER_BYTES = 32 << 20

MAX_READS = 3
"""How often the records are read at most when processes come or go while they are read."""
CLAIM_NS = 10_000_000_000
"""A removal takes microseconds. A claim this old is of one whose end went wrong."""
_FIRST_NS = word_of(ProcessRecord, "first_ns")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How large the tables are."""

    capacity: int
    """Processes there is room for."""
    cpus: int
    """Above the greatest number that a CPU can have."""
    recent_places: int
    life_pages: int

    @property
    def common(self) -> int:
        """Slots that any process can have. The other half is kept for processes that use a vCPU."""
        return (self.capacity + 1) // 2

    @property
    def flags(self) -> list[str]:
        """For the compiler of ledger.bpf.c."""
        return [
            f"-DLEDGER_CAPACITY={self.capacity}",
            f"-DLEDGER_COMMON={self.common}",
            f"-DLEDGER_CPUS={self.cpus}",
            f"-DRECENT_PLACES={self.recent_places}",
            f"-DLIFE_PAGES={self.life_pages}",
        ]


def default_capacity(*, memory_bytes: int, cpus: int) -> int:
    """Processes that the ledger has room for on a machine: far more than it can have VMs.

    64 for each GiB of memory, from 4096 to 65536. One costs 40 bytes for each CPU that the machine
    can have and about 130 once; 4096 are always there, more only while the counters stay within
    32 MiB.
    """
    affordable = _MAX_COUNTER_BYTES // (8 * ACTIVITY_WORDS * cpus)
    wanted = min(_SLOTS_A_GIB * memory_bytes >> 30, _MAX_CAPACITY, affordable)
    return max(wanted, _MIN_CAPACITY)


def memory_bytes() -> int:
    """Of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def life_pages(pid_max: int) -> int:
    """Pages of marks for all numbers that a process can have."""
    return min(pid_max, PID_MAX_LIMIT) // LIFE_BYTES + 1


class Tables:
    """The tables of one ledger."""

    def __init__(self, map_fd: Callable[[str], int], sizes: Sizes) -> None:
        """Take the maps by their names (see TABLES), which stay the caller's; OSError."""
        self._sizes = sizes
        room = sizes.capacity
        self._slots = HashMap(map_fd("slots"), key_bytes=4, value_bytes=4, capacity=room)
        self._claims = HashMap(map_fd("claims"), key_bytes=4, value_bytes=8, capacity=room)
        self._records = _array(map_fd("records"), words=RECORD_WORDS, records=room)
        self._activity = MappedArray(
            map_fd("activity"), words=ACTIVITY_WORDS, block_records=room, blocks=sizes.cpus
        )
        self._totals = _array(map_fd("totals"), words=1, records=len(Total))
        self._recent = _array(map_fd("recent"), words=1, records=sizes.recent_places)
        self.lives = MappedMarks(
            map_fd("lives"),
            map_fd("life_pages"),
            page_bytes=LIFE_BYTES,
            pages=sizes.life_pages,
        )
        """Numbers at which a process or a thread began a life."""
        self._common, self._reserved = Stack(map_fd("free_slots")), Stack(map_fd("reserved_slots"))
        self._removed: list[tuple[int, int]] = []
        # Low numbers on top: then the counters in use are close to each other.
        for slot in reversed(range(room)):
            self._stack(slot).push(slot)

    def dropped_total(self) -> int:
        """Events that found no room."""
        return self._totals.word(Total.DROPPED, 0)

    def unmarked_forks(self) -> int:
        """Forks that the kernel skipped the marking program for; those at work may be among them.

        Counts from when both programs of the hook were attached, give or take a constant.
        """
        return self._totals.word(Total.FORKS, 0) - self._totals.word(Total.FORKS_MARKED, 0)

    def entries(self) -> dict[int, LedgerEntry]:
        """All records with their counters, from memory: no call that would silence a hook.

        A record that was there before and after its counters were read had its slot all the time.
        Those that came or went in between are read once more, also one in a slot above all that
        were in use before; one that is still not complete after that is not there yet.
        """
        entries: dict[int, LedgerEntry] = {}
        for _ in range(MAX_READS):
            before = self._records.words(self._records.used())
            activity = self._activity.sums(len(before) // RECORD_WORDS)
            after = self._records.words(self._records.used())
            entries, complete = entries_from(before, activity, after)
            if complete:
                break
        return entries

    def forget(self, tgid: int, first_ns: int) -> None:
        """Remove the record of tgid that began at first_ns, if it still is the one; OSError.

        In the order of forget() in ledger.bpf.c, and for the same reasons. The process may live and
        be counted by a program that has found the slot before: recycle() gives the slot back.
        """
        key = _bytes(tgid, 4)
        if self._slot(key, first_ns) is None or not self._claim(key):
            return
        try:
            slot = self._slot(key, first_ns)
            if slot is not None and self._slots.delete(key):
                self._records.write(slot, _FIRST_NS, 0)
                self._recent.write(self._place(tgid), 0, 0)
                self._removed.append((tgid, slot))
        finally:
            self._claims.delete(key)

    def recycle(self) -> None:
        """Give the slots of removed records back; OSError.

        A program that ran when a record was removed may still count in its slot, or write the slot
        to ``recent``, where a program that begins later finds it. So each is waited for in turn.
        """
        if not self._removed:
            return
        wait_for_running_programs()
        for tgid, slot in self._removed:
            if self._recent.word(self._place(tgid), 0) == slot << 32 | tgid:
                self._recent.write(self._place(tgid), 0, 0)
        wait_for_running_programs()
        while self._removed:
            _, slot = self._removed[-1]
            self._records.clear(slot)
            self._activity.clear(slot)
            self._stack(slot).push(slot)
            self._removed.pop()

    def close(self) -> None:
        """Release the memory. May be called again."""
        for table in (self._records, self._activity, self._totals, self._recent, self.lives):
            table.close()

    def _slot(self, key: bytes, first_ns: int) -> int | None:
        """The slot of the record that began at first_ns; None: there is no such record."""
        found = self._slots.get(key)
        if found is None:
            return None
        slot = int.from_bytes(found, sys.byteorder)
        return slot if self._records.word(slot, _FIRST_NS) == first_ns else None

    def _claim(self, key: bytes) -> bool:
        """Whether the removal is the caller's now. If not, another one is at work."""
        now_ns = monotonic_ns()
        if self._claims.set(key, _bytes(now_ns, 8), Update.NOEXIST):
            return True
        began = self._claims.get(key)
        if began is not None and now_ns - int.from_bytes(began, sys.byteorder) > CLAIM_NS:
            self._claims.delete(key)
        return False

    def _stack(self, slot: int) -> Stack:
        return self._common if slot < self._sizes.common else self._reserved

    def _place(self, tgid: int) -> int:
        return tgid % self._sizes.recent_places


def _array(fd: int, *, words: int, records: int) -> MappedArray:
    return MappedArray(fd, words=words, block_records=records, blocks=1)


def _bytes(number: int, size: int) -> bytes:
    return number.to_bytes(size, sys.byteorder)
