# SPDX-License-Identifier: Apache-2.0
"""EDGE: makes the ledger's tables usable, and removes records on the reader's side.

Owns the names and sizes of the tables, and the protocol of removal that the reader shares with
ledger.bpf.c. Must not know which hook writes them, nor when a record has to be removed.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

from ebpf.bpf_syscall import Update, wait_for_running_programs
from ebpf.clock import monotonic_ns
from ebpf.ledger import (
    ACTIVITY_WORDS,
    CPU_ACTIVITY_WORDS,
    LIFE_BYTES,
    PLACE_WORDS,
    RECORD_WORDS,
    WORD_BYTES,
    LedgerEntry,
    Total,
)
from ebpf.ledger_arrays import ARRAYS, LedgerArrays
from ebpf.maps import HashMap, MappedArray, MappedMarks, Stack

TABLES = (
    *ARRAYS,
    "totals",
    "slots",
    "free_slots",
    "reserved_slots",
    "claims",
    "lives",
    "life_pages",
)
EXIT_PLACES = 512
"""Places on each CPU where exits are counted without a lookup in a hash, see ledger.bpf.c.

A power of 2. All places of 512 CPUs take 4 MiB.
"""
PID_MAX_LIMIT = 4 * 1024 * 1024
"""The highest possible kernel.pid_max (include/linux/threads.h)."""

_SLOTS_A_GIB = 64
_MIN_CAPACITY, _MAX_CAPACITY = 4096, 65536
_MAX_COUNTER_BYTES = 32 << 20
_ENTRY_BYTES = 88
"""A slot's part of the hash (80 bytes on Linux 6.18) and of the stacks of free slots."""

MAX_READS = 3
"""How often a total is read at most until it stands still."""
CLAIM_NS = 10_000_000_000
"""Age at which a claim is stale. A removal takes microseconds, so an older one has failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How large the tables are."""

    capacity: int
    """Number of processes that the ledger has room for."""
    cpus: int
    """One more than the greatest number that a CPU can have."""
    exit_places: int
    life_pages: int

    @property
    def common(self) -> int:
        """Slots that any process can have; the others are kept for processes that use a vCPU."""
        return (self.capacity + 1) // 2

    @property
    def memory_bytes(self) -> int:
        """Kernel memory of all tables.

        It is calculated, because before Linux 90a5527d7686 ("bpf: add new map ops
        ->map_mem_usage") (v6.4) the kernel states up to twice as much for an array (memlock in the
        fdinfo of a map).
        """
        of_slot = RECORD_WORDS + ACTIVITY_WORDS + self.cpus * CPU_ACTIVITY_WORDS
        words = self.capacity * of_slot + self.cpus * self.exit_places * PLACE_WORDS
        pages = self.life_pages * (LIFE_BYTES + WORD_BYTES)
        return words * WORD_BYTES + pages + self.capacity * _ENTRY_BYTES

    @property
    def flags(self) -> list[str]:
        """Compiler flags for ledger.bpf.c."""
        return [
            f"-DLEDGER_CAPACITY={self.capacity}",
            f"-DLEDGER_COMMON={self.common}",
            f"-DLEDGER_CPUS={self.cpus}",
            f"-DEXIT_PLACES={self.exit_places}",
            f"-DLIFE_PAGES={self.life_pages}",
        ]


def default_capacity(*, memory_bytes: int, cpus: int) -> int:
    """Return the default capacity of the ledger, far more processes than the machine can have VMs.

    That is 64 for each GiB of memory, from 4096 to 65536. Each process costs 8 bytes for each CPU
    that the machine can have, and about 180 bytes once. There are always 4096, and more only while
    the counters of the CPUs stay within 32 MiB.
    """
    affordable = _MAX_COUNTER_BYTES // (WORD_BYTES * CPU_ACTIVITY_WORDS * cpus)
    wanted = min(_SLOTS_A_GIB * memory_bytes >> 30, _MAX_CAPACITY, affordable)
    return max(wanted, _MIN_CAPACITY)


def memory_bytes() -> int:
    """Return the memory size of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def life_pages(pid_max: int) -> int:
    """Return how many pages of marks cover all process numbers."""
    return min(pid_max, PID_MAX_LIMIT) // LIFE_BYTES + 1


class Tables:
    """The tables of one ledger."""

    def __init__(self, map_fd: Callable[[str], int], sizes: Sizes) -> None:
        """Use the maps by their names (see TABLES); they stay the caller's.

        Raises OSError when the kernel refuses.
        """
        self._sizes = sizes
        room = sizes.capacity
        self._slots = HashMap(map_fd("slots"), key_bytes=4, value_bytes=4, capacity=room)
        self._claims = HashMap(map_fd("claims"), key_bytes=4, value_bytes=8, capacity=room)
        self._arrays = LedgerArrays(
            map_fd, capacity=room, cpus=sizes.cpus, places=sizes.exit_places
        )
        self._totals = MappedArray(map_fd("totals"), words=1, block_records=len(Total), blocks=1)
        self.lives = MappedMarks(
            map_fd("lives"),
            map_fd("life_pages"),
            page_bytes=LIFE_BYTES,
            pages=sizes.life_pages,
        )
        """Numbers at which a process or a thread has begun a life."""
        self._common, self._reserved = Stack(map_fd("free_slots")), Stack(map_fd("reserved_slots"))
        self._removed: list[tuple[int, int]] = []
        # Low numbers are pushed last, so that the counters in use are close to each other.
        for slot in reversed(range(room)):
            self._stack(slot).push(slot)

    def dropped_total(self) -> int:
        """Return how many events were dropped because the ledger was full."""
        return self._totals.word(Total.DROPPED, 0)

    def unmarked_forks(self) -> int:
        """Return how many forks were not marked, possibly including forks in progress.

        The count starts when both programs of the hook are attached, with a constant offset.
        """
        return self._totals.word(Total.FORKS, 0) - self._totals.word(Total.FORKS_MARKED, 0)

    def entries(self) -> dict[int, LedgerEntry]:
        """Read all records with their counters from memory, which silences no hook."""
        return self._arrays.entries()

    def forget(self, tgid: int, first_ns: int) -> None:
        """Remove the record of tgid that began at first_ns, if it still exists.

        This follows the order of forget() in ledger.bpf.c, for the same reasons. The process may be
        alive and a program that has already found the slot may still count in it, so recycle()
        frees the slot later. Raises OSError when the kernel refuses.
        """
        key = _bytes(tgid, 4)
        if self._slot(key, first_ns) is None or not self._claim(key):
            return
        try:
            slot = self._slot(key, first_ns)
            if slot is not None and self._slots.delete(key):
                self._arrays.end(tgid, slot)
                self._removed.append((tgid, slot))
        finally:
            self._claims.delete(key)

    def recycle(self) -> None:
        """Free the slots of removed records. Raises OSError when the kernel refuses.

        A program that was running when a record was removed may still count in its slot, or take a
        place for it, where later programs of the process count. So this waits for programs, and
        releases the places again. Then no program knows the slot.
        """
        if not self._removed:
            return
        wait_for_running_programs()
        while self._removed:
            tgid, slot = self._removed[-1]
            self._arrays.release(tgid, slot)
            self._arrays.clear(slot)
            self._stack(slot).push(slot)
            self._removed.pop()

    def close(self) -> None:
        """Release the memory. May be called again."""
        for table in (self._arrays, self._totals, self.lives):
            table.close()

    def _slot(self, key: bytes, first_ns: int) -> int | None:
        """Return the slot of the record that began at first_ns; None: there is no such record."""
        found = self._slots.get(key)
        if found is None:
            return None
        slot = int.from_bytes(found, sys.byteorder)
        return slot if self._arrays.first_ns(slot) == first_ns else None

    def _claim(self, key: bytes) -> bool:
        """Claim the removal of a record. Returns False if another removal is in progress."""
        now_ns = monotonic_ns()
        if self._claims.set(key, _bytes(now_ns, 8), Update.NOEXIST):
            return True
        began = self._claims.get(key)
        if began is not None and now_ns - int.from_bytes(began, sys.byteorder) > CLAIM_NS:
            self._claims.delete(key)
        return False

    def _stack(self, slot: int) -> Stack:
        return self._common if slot < self._sizes.common else self._reserved


def _bytes(number: int, size: int) -> bytes:
    return number.to_bytes(size, sys.byteorder)
