# SPDX-License-Identifier: Apache-2.0
"""What reading the ledger costs on machines with few and many CPUs, and how large its tables are.

For the reading, the arrays are memory of the bench, as large as such a machine would make them, and
the agent's own code reads them. For the size, the real tables are made for so many CPUs, and the
kernel says how much memory they take. So no figure depends on how many CPUs this machine has.
"""

import mmap
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from bench.rows import Row, spread
from bench.steady import Bench
from ebpf.ledger import (
    ACTIVITY_WORDS,
    CPU_ACTIVITY_WORDS,
    PLACE_WORDS,
    RECORD_WORDS,
    WORD_BYTES,
    ProcessRecord,
    owner_of,
    word_of,
)
from ebpf.ledger_arrays import LedgerArrays
from ebpf.maps import MappedArray
from ebpf.session import Session
from ebpf.tables import EXIT_PLACES, default_capacity
from tests.support.kernel_ledger import stated_bytes
from tests.support.sys_tree import CPUS_POSSIBLE, sysfs_with

ORDER = 55
GOAL_MS = 3.0
GOAL_CPUS = 256
CPUS = (2, 64, 256, 512)
MEMORY_BYTES = 1 << 40
FIRST_TGID, BETWEEN_TGIDS = 3001, 37
"""Process numbers of the VMs: each pod starts some other processes as well."""


class Arrays:
    """The ledger's arrays in memory, with what programs write to them. Use as a context manager."""

    def __init__(self, cpus: int) -> None:
        self._cpus = cpus
        self._capacity = default_capacity(memory_bytes=MEMORY_BYTES, cpus=cpus)
        self._stack = ExitStack()
        self._fds: dict[str, int] = {}
        self._records = self._array("records", RECORD_WORDS, self._capacity, 1)
        self._activity = self._array("activity", ACTIVITY_WORDS, self._capacity, 1)
        self._at_slot = self._array("cpu_activity", CPU_ACTIVITY_WORDS, self._capacity, cpus)
        self._places = self._array("places", PLACE_WORDS, EXIT_PLACES, cpus)
        self.reader = LedgerArrays(
            self._fds.__getitem__, capacity=self._capacity, cpus=cpus, places=EXIT_PLACES
        )
        self._stack.callback(self.reader.close)

    def begin(self, slot: int) -> None:
        """Give a VM a record, with counts that all CPUs share."""
        self._records.write(slot, word_of(ProcessRecord, "tgid"), _tgid(slot))
        self._records.write(slot, word_of(ProcessRecord, "first_ns"), 1 + slot)
        for word in range(ACTIVITY_WORDS):
            self._activity.write(slot, word, 1 << 33)

    def count_exits(self, slot: int) -> None:
        """Count exits of a VM on each CPU: in its place, or at its slot if that is taken."""
        for cpu in range(self._cpus):
            place = _tgid(slot) % EXIT_PLACES
            if self._places.across(place, 0)[cpu]:
                self._at_slot.write(slot, 0, 1 << 33, block=cpu)
                self._records.write(slot, word_of(ProcessRecord, "in_slot"), 1)
            else:
                self._places.write(place, 0, owner_of(_tgid(slot), slot), block=cpu)
                self._places.write(place, 1, 1 << 33, block=cpu)
                self._records.write(slot, word_of(ProcessRecord, "in_places"), 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _array(self, name: str, words: int, records: int, blocks: int) -> MappedArray:
        size = WORD_BYTES * words * records * blocks
        self._fds[name] = fd = os.memfd_create(name)
        self._stack.callback(os.close, fd)
        os.ftruncate(fd, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)
        made = MappedArray(fd, words=words, block_records=records, blocks=blocks)
        self._stack.callback(made.close)
        return made


def measure(bench: Bench) -> Iterator[Row]:
    """Counters that all CPUs share; then also exits that every CPU has counted for every VM."""
    vms, rounds = bench.plan.vms, bench.plan.scrapes
    for cpus in CPUS:
        with Arrays(cpus) as arrays:
            for slot in range(vms):
                arrays.begin(slot)
            ms = milliseconds(arrays, vms, rounds)
            goal = GOAL_MS if cpus == GOAL_CPUS else None
            yield _row(f"shared.{cpus}", f"reading the ledger at {cpus} CPUs x {vms} VMs", ms, goal)
            for slot in range(vms):
                arrays.count_exits(slot)
            ms = milliseconds(arrays, vms, rounds)
            what = f"the same at {cpus} CPUs, and each has counted exits of each VM"
            yield _row(f"exits.{cpus}", what, ms, None)
    for cpus in CPUS:
        yield _size(cpus)


def milliseconds(arrays: Arrays, vms: int, rounds: int) -> list[float]:
    """CPU time of each reading."""
    samples: list[float] = []
    for _ in range(rounds):
        begun_ns = time.thread_time_ns()
        entries = arrays.reader.entries()
        samples.append((time.thread_time_ns() - begun_ns) / 1e6)
        assert len(entries) == vms
    return samples


def _size(cpus: int) -> Row:
    """Make the tables of such a machine, with the programs that use them."""
    with tempfile.TemporaryDirectory() as directory:
        sys_root = sysfs_with(Path(directory) / "sys", {CPUS_POSSIBLE: f"0-{cpus - 1}\n"})
        capacity = default_capacity(memory_bytes=MEMORY_BYTES, cpus=cpus)
        with Session(capacity=capacity, sys_root=sys_root) as session:
            stated = stated_bytes(session)
    return Row(
        key=f"ledger.memory.{cpus}",
        what=f"kernel memory of the tables at {cpus} CPUs",
        value=stated / (1 << 20),
        unit="MiB",
        note=f"as the kernel says (memlock in fdinfo), with {capacity} slots, the default for "
        f"{MEMORY_BYTES >> 40} TiB of memory; this machine's kernel.pid_max",
    )


def _row(key: str, what: str, samples_ms: list[float], goal: float | None) -> Row:
    ms = spread(samples_ms)
    return Row(
        key=f"ledger.{key}",
        what=what,
        value=ms.middle,
        low=ms.low,
        high=ms.high,
        unit="ms",
        goal=goal,
        note=f"CPU time, {len(samples_ms)} times; the arrays are memory of the bench, as large as "
        f"for {MEMORY_BYTES >> 40} TiB of memory",
    )


def _tgid(slot: int) -> int:
    return FIRST_TGID + BETWEEN_TGIDS * slot
