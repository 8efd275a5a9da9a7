# SPDX-License-Identifier: Apache-2.0
"""Mapped arrays, on ordinary memory files that the test writes in place of the kernel."""

import itertools
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import pytest

from ebpf.maps import HashMap, MappedArray, MappedMarks


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """A memory file in place of a map, and the kernel's view of it."""

    fd: int
    view: memoryview

    @classmethod
    def of(cls, size: int) -> Self:
        """A file of zeros, of this size rounded up to pages."""
        fd = os.memfd_create("map")
        size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        os.ftruncate(fd, size)
        return cls(fd=fd, view=memoryview(mmap.mmap(fd, size)))


PAGE_BYTES, PAGES = 16, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """Marks, and the writes of the kernel's program."""

    numbers: Memory
    pages: Memory
    reader: MappedMarks

    def set(self, number: int) -> None:
        """Set the mark in the order of ``mark_life`` in ledger.bpf.c."""
        self.set_byte(number)
        self.set_page(number)

    def set_byte(self, number: int) -> None:
        self.numbers.view[number] = 1

    def set_page(self, number: int) -> None:
        self.pages.view.cast("Q")[number // PAGE_BYTES] = 1


@pytest.fixture
def marks() -> Iterator[Marks]:
    numbers, pages = Memory.of(PAGE_BYTES * PAGES), Memory.of(8 * PAGES)
    reader = MappedMarks(numbers.fd, pages.fd, page_bytes=PAGE_BYTES, pages=PAGES)
    yield Marks(numbers=numbers, pages=pages, reader=reader)
    reader.close()
    for memory in (numbers, pages):
        os.close(memory.fd)


def test_marks_are_taken_once(marks: Marks) -> None:
    """Each mark, anywhere in its page, is in one answer, and can then be set again."""
    numbers = {0, 1, PAGE_BYTES - 1, PAGE_BYTES, 5 * PAGE_BYTES + 3, PAGE_BYTES * PAGES - 1}
    for _ in range(2):
        for number in numbers:
            marks.set(number)
        assert marks.reader.take() == numbers
        assert marks.reader.take() == frozenset()
    assert marks.reader.numbers == PAGE_BYTES * PAGES


def test_a_byte_that_arrives_after_its_page_is_taken_next(marks: Marks) -> None:
    """If the page's word is visible first, the reader clears it and finds the byte later."""
    marks.set_page(7)
    assert marks.reader.take() == frozenset()
    marks.set_byte(7)
    assert marks.reader.take() == {7}


def test_a_page_that_arrives_after_its_byte_is_taken_next(marks: Marks) -> None:
    """If the byte is visible first, the reader finds it once the page's word is visible."""
    marks.set_byte(7)
    assert marks.reader.take() == frozenset()
    marks.set_page(7)
    assert marks.reader.take() == {7}


def test_a_mark_set_while_marks_are_taken_is_not_lost(
    marks: Marks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page's word is cleared before its bytes are read, so a later mark sets it again.

    A life that begins while its number is taken is in this answer or the next one.
    """
    write = MappedArray.write

    def write_and_mark(array: MappedArray, record: int, word: int, value: int) -> None:
        write(array, record, word, value)
        marks.set(PAGE_BYTES + 2)

    marks.set(PAGE_BYTES + 1)
    with monkeypatch.context() as patched:
        patched.setattr(MappedArray, "write", write_and_mark)
        taken = marks.reader.take()
    assert taken | marks.reader.take() == {PAGE_BYTES + 1, PAGE_BYTES + 2}
    marks.set(PAGE_BYTES + 2)
    assert marks.reader.take() == {PAGE_BYTES + 2}


WORDS, RECORDS, BLOCKS = 5, 4, 3


@pytest.fixture
def memory() -> Iterator[Memory]:
    made = Memory.of(8 * WORDS * RECORDS * BLOCKS)
    yield made
    os.close(made.fd)


@pytest.fixture
def array(memory: Memory) -> Iterator[MappedArray]:
    made = MappedArray(memory.fd, words=WORDS, block_records=RECORDS, blocks=BLOCKS)
    yield made
    made.close()


def fill(memory: Memory) -> list[int]:
    """Fill the memory with a different number in every word."""
    words = memory.view.cast("Q")
    for at in range(WORDS * RECORDS * BLOCKS):
        words[at] = 10**at % (2**61 - 1)
    return words.tolist()


def test_clearing_a_record_clears_it_in_all_blocks(memory: Memory, array: MappedArray) -> None:
    """Clearing removes the counters of all CPUs, and changes no other record."""
    before = fill(memory)
    array.clear(1)
    after = memory.view.cast("Q").tolist()
    for at in range(WORDS * RECORDS * BLOCKS):
        of_the_record = at // WORDS % RECORDS == 1
        assert after[at] == (0 if of_the_record else before[at])


def test_records_in_use_end_with_the_last_used_one(memory: Memory, array: MappedArray) -> None:
    """A record is in use if any byte of its first word in the first block is set."""
    words = memory.view.cast("Q")
    assert array.used() == 0
    words[WORDS * RECORDS - 1] = 1
    words[WORDS * RECORDS] = 1
    assert array.used() == 0
    for record, value in ((0, 1 << 63), (2, 1), (1, 1 << 32)):
        words[record * WORDS] = value
        assert array.used() == {0: 1, 2: 3, 1: 3}[record]


@pytest.mark.parametrize("piece", [1, 2, 3, 4])
def test_records_in_use_are_found_in_any_piece(
    memory: Memory, array: MappedArray, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    """Other words of a record do not count, wherever the pieces end that are compared at once."""
    monkeypatch.setattr("ebpf.maps._PIECE_RECORDS", piece)
    words = memory.view.cast("Q")
    for record in range(RECORDS):
        words[record * WORDS + 1] = 1
    assert array.used() == 0
    for record in range(RECORDS):
        words[record * WORDS] = 1 << 63
        assert array.used() == record + 1


def test_a_word_is_read_across_all_blocks(memory: Memory, array: MappedArray) -> None:
    """A counter is read once for each CPU, and nothing behind the last block is read."""
    words = fill(memory)
    memory.view.cast("Q")[WORDS * RECORDS * BLOCKS] = 1
    block = WORDS * RECORDS
    for record, word in itertools.product(range(RECORDS), range(WORDS)):
        at = record * WORDS + word
        assert array.across(record, word) == [words[at + block * cpu] for cpu in range(BLOCKS)]
    assert array.column() == words[:block:WORDS]
    assert array.used() == RECORDS
    assert array.words(2) == words[: 2 * WORDS]
    assert array.word(2, 3) == words[2 * WORDS + 3]


def test_a_word_is_written_in_one_block(memory: Memory, array: MappedArray) -> None:
    """The write changes that word of that block; without a block it is the first one's."""
    before = fill(memory)
    array.write(2, 3, 11)
    array.write(1, 4, 12, block=2)
    after = memory.view.cast("Q").tolist()
    changed = {2 * WORDS + 3: 11, 2 * WORDS * RECORDS + WORDS + 4: 12}
    assert after == [changed.get(at, value) for at, value in enumerate(before)]


def test_keys_of_a_hash_are_those_at_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys are read once, so that pairs can be deleted during the iteration."""
    held = {b"one1": b"1111", b"two2": b"2222"}
    reads: list[int] = []

    def items(_: HashMap) -> list[tuple[bytes, bytes]]:
        reads.append(len(held))
        return list(held.items())

    monkeypatch.setattr(HashMap, "items", items)
    for key in HashMap(-1, key_bytes=4, value_bytes=4, capacity=2):
        del held[key]
    assert held == {}
    assert reads == [2]
