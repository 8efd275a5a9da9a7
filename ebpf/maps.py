# SPDX-License-Identifier: Apache-2.0
"""EDGE: gives Python access to BPF maps: hashes, arrays and marks in memory, and stacks.

Owns reading and writing maps by descriptor. Must not know what they hold: keys and values are
bytes. A map lives as long as its descriptor, or a program that uses it. While a call on a hash or a
stack runs, the kernel runs no kprobe and no tracepoint program on that CPU (ledger.bpf.c).
"""

import ctypes
import mmap
from collections.abc import Iterator

from ebpf.bpf_syscall import Command, Update, bpf, map_element

_PIECE_RECORDS = 512
"""Records that MappedArray.used() compares at a time."""


class BatchAttributes(ctypes.Structure):
    """Mirrors ``union bpf_attr`` of MAP_LOOKUP_BATCH."""

    _fields_ = (
        ("in_batch", ctypes.c_uint64),
        ("out_batch", ctypes.c_uint64),
        ("keys", ctypes.c_uint64),
        ("values", ctypes.c_uint64),
        ("count", ctypes.c_uint32),
        ("map_fd", ctypes.c_uint32),
        ("elem_flags", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
    )


class HashMap:
    """A hash. The value of a per-CPU hash holds the values of all possible CPUs in order."""

    def __init__(self, fd: int, *, key_bytes: int, value_bytes: int, capacity: int) -> None:
        """Use a descriptor, which stays the caller's. Sizes are those of one key and one value."""
        self._fd = fd
        self._key_bytes = key_bytes
        self._value_bytes = value_bytes
        self._capacity = capacity

    def items(self) -> list[tuple[bytes, bytes]]:
        """Return all pairs. Raises OSError when the kernel refuses.

        A pair that is added or removed during the call may or may not be included. The kernel reads
        bucket by bucket, so each pair that stays in the map is returned once. Since Linux
        057996380a42 ("bpf: Add batch ops to all htab bpf map") (v5.6).
        """
        room = self._capacity
        keys = ctypes.create_string_buffer(room * self._key_bytes)
        values = ctypes.create_string_buffer(room * self._value_bytes)
        place = ctypes.create_string_buffer(max(self._key_bytes, 8))
        attributes = BatchAttributes(
            out_batch=ctypes.addressof(place),
            keys=ctypes.addressof(keys),
            values=ctypes.addressof(values),
            map_fd=self._fd,
        )
        found: list[tuple[bytes, bytes]] = []
        ended = False
        while not ended:
            attributes.count = room
            try:
                bpf(Command.MAP_LOOKUP_BATCH, attributes)
            except FileNotFoundError:  # the last batch
                ended = True
            attributes.in_batch = attributes.out_batch
            count = attributes.count
            found += zip(
                _pieces(keys, self._key_bytes, count),
                _pieces(values, self._value_bytes, count),
                strict=True,
            )
        return found

    def __iter__(self) -> Iterator[bytes]:
        """Iterate over the keys, which are read in advance, so the caller may delete pairs."""
        return iter([key for key, _ in self.items()])

    def get(self, key: bytes) -> bytes | None:
        """Return the value of a key; None: the map does not have the key."""
        value = ctypes.create_string_buffer(self._value_bytes)
        try:
            map_element(Command.MAP_LOOKUP_ELEM, self._fd, _address(key), ctypes.addressof(value))
        except FileNotFoundError:
            return None
        return value.raw

    def set(self, key: bytes, value: bytes, how: Update = Update.ANY) -> bool:
        """Write a pair. Returns False if the key exists and NOEXIST was given."""
        try:
            map_element(Command.MAP_UPDATE_ELEM, self._fd, _address(key), _address(value), int(how))
        except FileExistsError:
            return False
        return True

    def delete(self, key: bytes) -> bool:
        """Remove a key. Returns False if the map does not have it."""
        try:
            map_element(Command.MAP_DELETE_ELEM, self._fd, _address(key), 0)
        except FileNotFoundError:
            return False
        return True


class MappedArray:
    """An array of records of 64-bit words, mapped into memory, so reading it makes no system call.

    It consists of equal blocks (one per CPU). The map must be created with BPF_F_MMAPABLE.
    """

    def __init__(self, fd: int, *, words: int, block_records: int, blocks: int) -> None:
        """Map the array of a descriptor, which may be closed afterwards.

        words is the size of a record. Raises OSError when the kernel refuses the mapping.
        """
        self._words = words
        self._block_words = self._words * block_records
        self._blocks = blocks
        self._memory = _mapped(fd, 8 * words * block_records * blocks)
        self._view = memoryview(self._memory).cast("Q")

    def words(self, records: int) -> list[int]:
        """Return the first records of the first block, word by word."""
        return self._view[: records * self._words].tolist()

    def column(self) -> list[int]:
        """Return the first word of each record of the first block."""
        return self._view[: self._block_words : self._words].tolist()

    def used(self) -> int:
        """Count the records of the first block up to the last one whose first word is not 0.

        Most records of a large array are empty, and pieces of zeros are found much faster than
        single words that are not 0.
        """
        record_bytes = self._words * self._view.itemsize
        end = self._block_words // self._words
        while end:
            start = max(0, end - _PIECE_RECORDS)
            piece = self._memory[start * record_bytes : end * record_bytes]
            if piece != bytes(len(piece)):
                column = memoryview(piece).cast("Q")[:: self._words].tobytes().rstrip(b"\0")
                if column:
                    return start - (-len(column) // self._view.itemsize)
            end = start
        return 0

    def across(self, record: int, word: int) -> list[int]:
        """Return one word of a record in each block.

        Each is read atomically, but counting continues during the call.
        """
        start, end = record * self._words + word, self._blocks * self._block_words
        return self._view[start : end : self._block_words].tolist()

    def word(self, record: int, word: int) -> int:
        """Return one word of a record of the first block."""
        return self._view[record * self._words + word]

    def write(self, record: int, word: int, value: int, *, block: int = 0) -> None:
        """Set one word of a record of a block."""
        self._view[block * self._block_words + record * self._words + word] = value

    def clear(self, record: int) -> None:
        """Set the counters of one record to 0 in all blocks."""
        for block in range(self._blocks):
            start = block * self._block_words + record * self._words
            for word in range(start, start + self._words):
                self._view[word] = 0

    def close(self) -> None:
        """Release the memory. May be called again."""
        self._view.release()
        self._memory.close()


class MappedMarks:
    """Reads and clears bytes, arranged in pages and mapped into memory, that BPF programs set to 1.

    A second array has a word for each page, which a program sets to 1 after it has set a byte. Both
    maps must be created with BPF_F_MMAPABLE.
    """

    def __init__(self, bytes_fd: int, pages_fd: int, *, page_bytes: int, pages: int) -> None:
        """Map both arrays, whose descriptors may be closed afterwards.

        Raises OSError when the kernel refuses a mapping.
        """
        self._page_bytes = page_bytes
        self._marks = _mapped(bytes_fd, page_bytes * pages)
        self._bytes = memoryview(self._marks)
        self._words = MappedArray(pages_fd, words=1, block_records=pages, blocks=1)
        self._before: frozenset[int] = frozenset()
        self.numbers = page_bytes * pages
        """One more than the greatest number that can be marked."""

    def take(self) -> frozenset[int]:
        """Return the numbers of the bytes that are set, and clear them.

        A byte that is set during this call is in this result or in the next one. A page's word is
        cleared before its bytes are read. Neither side orders its writes for the other's CPU, so
        the bytes are read at the next call as well: by then every write has arrived.
        """
        written = frozenset(n for n, word in enumerate(self._words.column()) if word)
        for page in written:
            self._words.write(page, 0, 0)
        found: list[int] = []
        for page in written | self._before:
            start = page * self._page_bytes
            data = self._bytes[start : start + self._page_bytes].tobytes()
            at = data.find(1)
            while at >= 0:
                self._bytes[start + at] = 0
                found.append(start + at)
                at = data.find(1, at + 1)
        self._before = written
        return frozenset(found)

    def close(self) -> None:
        """Release the memory. May be called again."""
        self._bytes.release()
        self._marks.close()
        self._words.close()


class Stack:
    """A stack of 32-bit numbers (BPF_MAP_TYPE_STACK)."""

    def __init__(self, fd: int) -> None:
        """Use a descriptor, which stays the caller's."""
        self._fd = fd

    def push(self, number: int) -> None:
        """Push a number. Raises OSError (E2BIG) when the stack is full."""
        value = ctypes.c_uint32(number)
        map_element(Command.MAP_UPDATE_ELEM, self._fd, 0, ctypes.addressof(value))


def _mapped(fd: int, size: int) -> mmap.mmap:
    return mmap.mmap(
        fd,
        -(-size // mmap.PAGESIZE) * mmap.PAGESIZE,
        flags=mmap.MAP_SHARED,
        prot=mmap.PROT_READ | mmap.PROT_WRITE,
    )


def _address(data: bytes) -> int:
    """Return the address of bytes that the caller keeps alive while the address is in use."""
    return ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0


def _pieces(buffer: ctypes.Array[ctypes.c_char], size: int, count: int) -> list[bytes]:
    data = ctypes.string_at(buffer, count * size)
    return [data[at : at + size] for at in range(0, len(data), size)]
