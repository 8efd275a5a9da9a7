# SPDX-License-Identifier: Apache-2.0
"""The reader's side of the ledger, on memory files and ordinary dicts in the place of maps.

What ledger.bpf.c does with the same tables is tried in test_ledger_code.py.
"""

import mmap
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from ebpf.bpf_syscall import Update
from ebpf.clock import monotonic_ns
from ebpf.ledger import (
    ACTIVITY_WORDS,
    CPU_ACTIVITY_WORDS,
    LIFE_BYTES,
    PLACE_WORDS,
    RECORD_WORDS,
    RELEASED,
    ProcessRecord,
    owner_of,
    word_of,
)
from ebpf.ledger_arrays import MAX_READS
from ebpf.maps import MappedArray
from ebpf.tables import (
    CLAIM_NS,
    PID_MAX_LIMIT,
    TABLES,
    Sizes,
    Tables,
    default_capacity,
    life_pages,
)

Change = Callable[[int], None]
GIB = 1 << 30
SIZES = Sizes(capacity=5, cpus=2, exit_places=4, life_pages=2)
TGID, FIRST_NS = 42, 1007
MEETS = TGID + SIZES.exit_places


class Hash:
    """A dict in the place of a hash."""

    def __init__(self, fd: int, **_: int) -> None:
        self.held: dict[bytes, bytes] = {}
        self.deletes = True

    def get(self, key: bytes) -> bytes | None:
        return self.held.get(key)

    def set(self, key: bytes, value: bytes, how: Update) -> bool:
        assert how is Update.NOEXIST
        return self.held.setdefault(key, value) is value

    def delete(self, key: bytes) -> bool:
        return self.deletes and self.held.pop(key, None) is not None


class Numbers:
    """A list in the place of a stack."""

    def __init__(self, fd: int) -> None:
        self.held: list[int] = []

    def push(self, number: int) -> None:
        self.held.append(number)


@dataclass(slots=True, kw_only=True)
class Kernel:
    """The tables, and what programs write to them."""

    tables: Tables
    waits: list[int] = field(default_factory=list)
    """Free slots at each wait for the programs that run."""

    def word(self, name: str, at: int) -> int:
        return int(self._view(name)[at])

    def write(self, name: str, at: int, value: int) -> None:
        self._view(name)[at] = value

    def begin(self, tgid: int, slot: int, first_ns: int = FIRST_NS) -> None:
        """A process has a record in a slot, with nothing that is 0."""
        self.stack(slot).remove(slot)
        self.slots.held[key(tgid)] = key(slot)
        for word, value in enumerate((first_ns, tgid, 3, 4, 5, 1, 1)):
            self.write("records", RECORD_WORDS * slot + word, value)
        for word in range(ACTIVITY_WORDS):
            self.write("activity", ACTIVITY_WORDS * slot + word, 7)
        for cpu in range(SIZES.cpus):
            self.write("cpu_activity", self.exits_at_slot(slot, cpu), 7)
            if self.owner(tgid, cpu) in {0, RELEASED}:
                self.take_place(tgid, slot, cpu, exits=5)

    def take_place(self, tgid: int, slot: int, cpu: int, *, exits: int) -> None:
        self.write("places", self.place(tgid, cpu), owner_of(tgid, slot))
        self.write("places", self.place(tgid, cpu) + 1, exits)

    def place(self, tgid: int, cpu: int) -> int:
        return (SIZES.exit_places * cpu + tgid % SIZES.exit_places) * PLACE_WORDS

    def owner(self, tgid: int, cpu: int) -> int:
        return self.word("places", self.place(tgid, cpu))

    def exits_at_slot(self, slot: int, cpu: int) -> int:
        return (SIZES.capacity * cpu + slot) * CPU_ACTIVITY_WORDS

    def unmark(self, slot: int, field: str) -> None:
        self.write("records", RECORD_WORDS * slot + word_of(ProcessRecord, field), 0)

    @property
    def slots(self) -> Hash:
        hashed = self.tables._slots
        assert isinstance(hashed, Hash)
        return hashed

    @property
    def claims(self) -> Hash:
        hashed = self.tables._claims
        assert isinstance(hashed, Hash)
        return hashed

    def stack(self, slot: int) -> list[int]:
        stack = self.tables._stack(slot)
        assert isinstance(stack, Numbers)
        return stack.held

    def free(self) -> list[int]:
        return [*self.stack(0), *self.stack(SIZES.capacity - 1)]

    def _view(self, name: str) -> memoryview:
        owner = self.tables if name == "totals" else self.tables._arrays
        array = getattr(owner, f"_{name}")
        assert isinstance(array, MappedArray)
        return array._view


def key(number: int) -> bytes:
    return number.to_bytes(4, sys.byteorder)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    fds: dict[str, int] = {}

    def map_fd(name: str) -> int:
        fds[name] = os.memfd_create(name)
        os.ftruncate(fds[name], 4 * mmap.PAGESIZE)
        return fds[name]

    monkeypatch.setattr("ebpf.tables.HashMap", Hash)
    monkeypatch.setattr("ebpf.tables.Stack", Numbers)
    made = Kernel(tables=Tables(map_fd, SIZES))
    monkeypatch.setattr(
        "ebpf.tables.wait_for_running_programs", lambda: made.waits.append(len(made.free()))
    )
    yield made
    made.tables.close()
    made.tables.close()
    for fd in fds.values():
        os.close(fd)
    assert set(fds) == set(TABLES)


def test_all_slots_are_free_at_first_low_ones_on_top(kernel: Kernel) -> None:
    """Half, rounded up, is for any process; the rest is reserved."""
    assert SIZES.common == 3
    assert kernel.stack(0) == [2, 1, 0]
    assert kernel.stack(4) == [4, 3]


@pytest.mark.parametrize("slot", [1, 4])
def test_a_removed_record_leaves_nothing(kernel: Kernel, slot: int) -> None:
    """Its end shows at once; its slot is empty before it goes back to the stack it came from."""
    kernel.begin(TGID, slot)
    kernel.tables.forget(TGID, FIRST_NS)
    assert kernel.tables.entries() == {}
    assert kernel.slots.held == kernel.claims.held == {}
    assert [kernel.owner(TGID, cpu) for cpu in range(SIZES.cpus)] == [RELEASED] * SIZES.cpus
    assert slot not in kernel.free()
    kernel.tables.recycle()
    assert kernel.stack(slot)[-1] == slot
    assert sorted(kernel.free()) == list(range(SIZES.capacity))
    for word in range(RECORD_WORDS):
        assert kernel.word("records", RECORD_WORDS * slot + word) == 0
    for word in range(ACTIVITY_WORDS):
        assert kernel.word("activity", ACTIVITY_WORDS * slot + word) == 0
    for cpu in range(SIZES.cpus):
        assert kernel.word("cpu_activity", kernel.exits_at_slot(slot, cpu)) == 0
        assert kernel.word("places", kernel.place(TGID, cpu) + 1) == 5, "only its CPU clears it"


def test_a_slot_is_given_back_once_and_after_a_wait(kernel: Kernel) -> None:
    """A program that found the slot before may still write to it, and take a place for it."""
    kernel.begin(TGID, 1)
    kernel.tables.recycle()
    assert kernel.waits == []
    kernel.tables.forget(TGID, FIRST_NS)
    kernel.take_place(TGID, 1, 1, exits=6)
    kernel.write("cpu_activity", kernel.exits_at_slot(1, 1), 8)
    kernel.write("activity", ACTIVITY_WORDS, 8)
    kernel.tables.recycle()
    assert kernel.waits == [SIZES.capacity - 1]
    assert kernel.owner(TGID, 1) == RELEASED
    assert kernel.word("cpu_activity", kernel.exits_at_slot(1, 1)) == 0
    assert kernel.word("activity", ACTIVITY_WORDS) == 0
    kernel.tables.recycle()
    assert len(kernel.waits) == 1
    assert sorted(kernel.free()) == list(range(SIZES.capacity))


def test_a_place_of_the_next_record_stays(kernel: Kernel) -> None:
    """The process lives, and has a record again before the old one's slot is given back.

    A place that names the old slot is not counted as the new record's.
    """
    kernel.begin(TGID, 1)
    kernel.tables.forget(TGID, FIRST_NS)
    kernel.begin(TGID, 0, FIRST_NS + 1)
    kernel.take_place(TGID, 1, 1, exits=1000)
    assert kernel.tables.entries()[TGID].counters["exits"] == 7 + 7 + 5
    kernel.tables.recycle()
    assert [kernel.owner(TGID, cpu) for cpu in (0, 1)] == [owner_of(TGID, 0), RELEASED]
    assert kernel.tables.entries()[TGID].first_ns == FIRST_NS + 1


def test_a_place_of_another_process_stays(kernel: Kernel) -> None:
    """Its owner shares the number of the place with the process whose record is removed."""
    kernel.begin(MEETS, 2)
    kernel.begin(TGID, 1)
    kernel.tables.forget(TGID, FIRST_NS)
    kernel.tables.recycle()
    assert kernel.owner(MEETS, 0) == kernel.owner(MEETS, 1) == owner_of(MEETS, 2)
    assert kernel.tables.entries()[MEETS].counters["exits"] == 2 * (7 + 5)


def test_exits_are_those_in_places_and_at_the_slot(kernel: Kernel) -> None:
    """The sum over all CPUs, each count once; a place counts only for its owner."""
    kernel.begin(TGID, 1)
    kernel.take_place(TGID, 1, 0, exits=11)
    kernel.take_place(MEETS, 2, 1, exits=100)
    assert kernel.tables.entries()[TGID].counters["exits"] == 7 + 7 + 11
    kernel.begin(MEETS, 2)
    found = kernel.tables.entries()
    assert (found[TGID].counters["exits"], found[MEETS].counters["exits"]) == (25, 7 + 7 + 100)
    kernel.unmark(1, "in_slot")
    kernel.unmark(2, "in_places")
    found = kernel.tables.entries()
    assert (found[TGID].counters["exits"], found[MEETS].counters["exits"]) == (11, 7 + 7)


def test_a_place_that_changes_hands_during_a_reading(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The count of the new owner goes neither to the old one, whose record ends, nor twice."""
    kernel.begin(TGID, 1)
    kernel.begin(MEETS, 2)
    across = MappedArray.across
    changed: list[int] = []

    def change_hands(array: MappedArray, record: int, word: int) -> list[int]:
        if array is kernel.tables._arrays._places and word == 1 and not changed:
            changed.append(word)
            kernel.tables.forget(TGID, FIRST_NS)
            for cpu in range(SIZES.cpus):
                kernel.take_place(MEETS, 2, cpu, exits=1000)
        return across(array, record, word)

    monkeypatch.setattr(MappedArray, "across", change_hands)
    found = kernel.tables.entries()
    assert set(found) == {MEETS}
    assert found[MEETS].counters["exits"] == 7 + 7
    assert kernel.tables.entries()[MEETS].counters["exits"] == 7 + 7 + 2000


def test_a_reading_without_exits_touches_no_memory_of_a_cpu(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While no record is marked, the number of CPUs does not matter."""
    kernel.begin(TGID, 1)
    kernel.unmark(1, "in_places")
    kernel.unmark(1, "in_slot")

    def across(array: MappedArray, record: int, word: int) -> list[int]:
        raise AssertionError("read")

    monkeypatch.setattr(MappedArray, "across", across)
    assert kernel.tables.entries()[TGID].counters == {
        "runs": 7,
        "userspace_exits": 7,
        "completed_runs": 7,
        "mshv_runs": 7,
        "exits": 0,
    }


@pytest.mark.parametrize("first_ns", [0, FIRST_NS - 1, FIRST_NS + 1])
def test_only_the_record_that_is_meant_is_removed(kernel: Kernel, first_ns: int) -> None:
    """A process that has got the number since keeps its record; no claim is left, either."""
    kernel.begin(TGID, 1)
    kernel.tables.forget(TGID, first_ns)
    kernel.tables.forget(MEETS, FIRST_NS)
    kernel.tables.recycle()
    assert kernel.tables.entries()[TGID].first_ns == FIRST_NS
    assert kernel.owner(TGID, 0) == owner_of(TGID, 1)
    assert kernel.slots.held == {key(TGID): key(1)}
    assert kernel.claims.held == {}


def test_a_record_that_is_replaced_before_the_claim_stays(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is removed is looked up once the claim is there."""
    kernel.begin(TGID, 1)

    def claim(hashed: Hash, tgid: bytes, value: bytes, how: Update) -> bool:
        kernel.begin(TGID, 2, FIRST_NS + 1)
        return True

    monkeypatch.setattr(Hash, "set", claim)
    kernel.tables.forget(TGID, FIRST_NS)
    kernel.tables.recycle()
    assert kernel.slots.held == {key(TGID): key(2)}
    assert kernel.word("records", RECORD_WORDS * 2) == FIRST_NS + 1


def test_a_deletion_that_fails_removes_nothing(kernel: Kernel) -> None:
    """A program removed the record first: it gives the slot back, and nothing else does."""
    kernel.begin(TGID, 1)
    kernel.slots.deletes = False
    kernel.tables.forget(TGID, FIRST_NS)
    kernel.tables.recycle()
    assert kernel.word("records", RECORD_WORDS) == FIRST_NS
    assert kernel.word("activity", ACTIVITY_WORDS) == 7
    assert kernel.owner(TGID, 0) == owner_of(TGID, 1)
    assert 1 not in kernel.free()


def test_a_removal_at_work_is_left_alone(kernel: Kernel) -> None:
    """Until its claim is so old that its end must have gone wrong: then the next call removes."""
    kernel.begin(TGID, 1)
    young, old = monotonic_ns(), monotonic_ns() - CLAIM_NS - 1
    for began_ns, removed in ((young, [False, False]), (old, [False, True])):
        kernel.claims.held[key(TGID)] = began_ns.to_bytes(8, sys.byteorder)
        for expected in removed:
            kernel.tables.forget(TGID, FIRST_NS)
            assert (key(TGID) not in kernel.slots.held) is expected
    assert kernel.claims.held == {}


def before_counters(monkeypatch: pytest.MonkeyPatch, kernel: Kernel, change: Change) -> list[int]:
    """Call ``change`` with the number of each reading, before it reads the counters.

    Returns how many records each reading has read.
    """
    words = MappedArray.words
    readings: list[int] = []

    def reading(array: MappedArray, records: int) -> list[int]:
        if array is kernel.tables._arrays._activity:
            readings.append(records)
            change(len(readings))
        return words(array, records)

    monkeypatch.setattr(MappedArray, "words", reading)
    return readings


def test_records_that_change_hands_are_read_again(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first reading would give one process's counters to another; the second is complete."""
    kernel.begin(TGID, 0)
    kernel.begin(MEETS, 2)
    readings = before_counters(
        monkeypatch, kernel, lambda _: kernel.write("records", 0, FIRST_NS + 1)
    )
    entries = kernel.tables.entries()
    assert entries[TGID].first_ns == FIRST_NS + 1
    assert entries[MEETS].counters["runs"] == 7
    assert readings == [3, 3]


def test_reading_ends_while_records_change_hands(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that never stands still is left out, the others are there."""
    kernel.begin(TGID, 0)
    kernel.begin(MEETS, 2)
    readings = before_counters(
        monkeypatch, kernel, lambda reading: kernel.write("records", 0, FIRST_NS + reading)
    )
    assert set(kernel.tables.entries()) == {MEETS}
    assert len(readings) == MAX_READS


def test_a_record_above_those_in_use_is_noticed(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process whose record lands above all others during a reading is in the answer."""
    kernel.begin(TGID, 0)

    def begin_once(reading: int) -> None:
        if reading == 1:
            kernel.begin(MEETS, 4)

    readings = before_counters(monkeypatch, kernel, begin_once)
    assert set(kernel.tables.entries()) == {TGID, MEETS}
    assert readings == [1, 5]


def test_events_without_room_and_forks_without_a_mark(kernel: Kernel) -> None:
    """As the kernel counts them."""
    for word, count in enumerate((13, 9, 4)):
        kernel.write("totals", word, count)
    assert kernel.tables.dropped_total() == 13
    assert kernel.tables.unmarked_forks() == 5


@pytest.mark.parametrize(
    ("gib", "cpus", "capacity"),
    [(1, 2, 4096), (64, 8, 4096), (256, 16, 16384), (1024, 64, 65536), (8192, 8, 65536)],
)
def test_capacity_follows_the_memory(gib: int, cpus: int, capacity: int) -> None:
    """64 for each GiB, between two bounds."""
    assert default_capacity(memory_bytes=gib * GIB, cpus=cpus) == capacity


def test_capacity_is_bounded_by_what_the_counters_cost() -> None:
    """A machine of very many CPUs has fewer slots, but never less than the least."""
    assert default_capacity(memory_bytes=1024 * GIB, cpus=512) == 32 * 2**20 // (8 * 512)
    assert default_capacity(memory_bytes=1024 * GIB, cpus=4096) == 4096


@pytest.mark.parametrize("capacity", [1, 2, 3, 4096])
def test_half_of_the_slots_is_reserved(capacity: int) -> None:
    """Of an odd number the greater half is for all: a single slot is."""
    sizes = Sizes(capacity=capacity, cpus=1, exit_places=1, life_pages=1)
    assert sizes.common == capacity - capacity // 2
    assert f"-DLEDGER_COMMON={sizes.common}" in sizes.flags


@pytest.mark.parametrize("pid_max", [301, LIFE_BYTES - 1, LIFE_BYTES, 32768, PID_MAX_LIMIT])
def test_each_number_of_a_process_has_a_mark(pid_max: int) -> None:
    """The greatest number is pid_max - 1 at most."""
    assert life_pages(pid_max) * LIFE_BYTES >= pid_max
    assert life_pages(2**31) == life_pages(PID_MAX_LIMIT)
