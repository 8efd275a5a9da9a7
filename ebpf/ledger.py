# SPDX-License-Identifier: Apache-2.0
"""Decodes the ledger's records, which tables.py reads, into Python values. Pure.

Owns the ctypes mirror of ledger.h and the immutable types made from it. Must not know how the table
is reached, nor anything about pods, VMIs or metrics.
"""

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from ebpf.counters import COUNTERS, Counter
from ebpf.hook_status import HookStatus

WORD_BYTES = 8
"""Size of each field of a process's record and of each of its counters."""


class ProcessRecord(ctypes.Structure):
    """Mirrors ``struct ledger_process``."""

    _fields_ = (
        ("first_ns", ctypes.c_uint64),
        ("tgid", ctypes.c_uint64),
        ("leader_exit_ns", ctypes.c_uint64),
        ("vms_created", ctypes.c_uint64),
        ("vcpus_created", ctypes.c_uint64),
        ("in_places", ctypes.c_uint64),
        ("in_slot", ctypes.c_uint64),
    )


class ActivityRecord(ctypes.Structure):
    """Mirrors ``struct ledger_activity``: the counters of a slot that all CPUs share."""

    _fields_ = tuple((counter.name, ctypes.c_uint64) for counter in COUNTERS if not counter.per_cpu)


class CpuActivityRecord(ctypes.Structure):
    """Mirrors ``struct ledger_cpu_activity``: the counters that each CPU has for itself."""

    _fields_ = tuple((counter.name, ctypes.c_uint64) for counter in COUNTERS if counter.per_cpu)


class PlaceRecord(ctypes.Structure):
    """Mirrors ``struct ledger_place``: per-CPU counters of one process, found by its number."""

    _fields_ = (("owner", ctypes.c_uint64), ("activity", CpuActivityRecord))


class LivesRecord(ctypes.Structure):
    """Mirrors ``struct ledger_lives``: a page with one byte for each process and thread number."""

    _fields_ = (("began", ctypes.c_uint8 * 4096),)


def word_of(record: type[ctypes.Structure], field: str) -> int:
    """Return the index of a field among the 64-bit words of a record."""
    return int(getattr(record, field).offset) // WORD_BYTES


RECORD_WORDS = ctypes.sizeof(ProcessRecord) // WORD_BYTES
ACTIVITY_WORDS = ctypes.sizeof(ActivityRecord) // WORD_BYTES
CPU_ACTIVITY_WORDS = ctypes.sizeof(CpuActivityRecord) // WORD_BYTES
PLACE_WORDS = ctypes.sizeof(PlaceRecord) // WORD_BYTES
LIFE_BYTES = ctypes.sizeof(LivesRecord)

_FIRST_NS = word_of(ProcessRecord, "first_ns")
_TGID = word_of(ProcessRecord, "tgid")
_LEADER_EXIT_NS = word_of(ProcessRecord, "leader_exit_ns")
_VMS_CREATED = word_of(ProcessRecord, "vms_created")
_VCPUS_CREATED = word_of(ProcessRecord, "vcpus_created")
_READ_COLUMNS = (_FIRST_NS, _TGID, _LEADER_EXIT_NS, _VMS_CREATED, _VCPUS_CREATED)
_IN_PLACES = word_of(ProcessRecord, "in_places")
_IN_SLOT = word_of(ProcessRecord, "in_slot")
NOT_COUNTED = (0,) * CPU_ACTIVITY_WORDS
"""Counters that each CPU has for itself, of a process for which none has counted."""
RELEASED = 1 << 63
"""Mirrors ``LEDGER_RELEASED``: the owner of a place that its CPU has yet to clear."""
PLACES: dict[str, int] = {
    field: place
    for place, (field, *_) in enumerate((*ActivityRecord._fields_, *CpuActivityRecord._fields_))
}
"""Index of each counter in ``LedgerEntry.counts``, by the counter's name: those that all CPUs share
come first."""


class Total(IntEnum):
    """Mirrors ``enum ledger_total``: the index of each total that belongs to no process."""

    DROPPED = 0
    FORKS = 1
    FORKS_MARKED = 2


class LedgerEntry(NamedTuple):
    """What the kernel has recorded about one process since its first accelerator event.

    Counters of a hook that is not attached stay 0, so the reader needs the hooks' status to know
    whether a 0 means anything. This is a tuple, unlike all other values, because each refresh makes
    one for every record, and a frozen dataclass takes more than twice as long to make.
    """

    tgid: int
    """Thread group id in the initial PID namespace."""
    first_ns: int
    """When the ledger first saw the process: host CLOCK_MONOTONIC (clock.py)."""
    leader_exit_ns: int | None
    """When its main thread ended: host CLOCK_MONOTONIC (clock.py); None: it has not ended."""
    vms_created: int = 0
    """KVM_CREATE_VM calls."""
    vcpus_created: int = 0
    """KVM_CREATE_VCPU calls."""
    counts: tuple[int, ...] = (0,) * len(COUNTERS)
    """Total of each counter, in the order of PLACES."""

    @property
    def counters(self) -> dict[str, int]:
        """Total of each counter, by the counter's name."""
        return dict(zip(PLACES, self.counts, strict=True))

    def count(self, counter: Counter) -> int:
        """Return the total of a counter."""
        return self.counts[PLACES[counter.name]]


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSnapshot:
    """The ledger at one moment, with the status of the hooks that fill it."""

    taken_ns: int
    """Host CLOCK_MONOTONIC (clock.py) at the time of reading."""
    attached_ns: int | None
    """Host CLOCK_MONOTONIC since when every attached hook has been counting; None: none ever
    was."""
    entries: Mapping[int, LedgerEntry]
    """Records by tgid."""
    capacity: int
    """Processes that the table has room for."""
    dropped_total: int
    """Events that were dropped because the ledger was full."""
    hooks: tuple[HookStatus, ...]
    """One status per wanted hook, in the order of hooks.HOOKS."""
    error: str | None = None
    """Why there is no ledger, in one line; None: there is one."""
    misses_counted: bool = False
    """Whether the kernel counts every run of a hook's program that it skips."""


def owner_of(tgid: int, slot: int) -> int:
    """Return what a place of a process holds as its owner."""
    return slot << 32 | tgid


def tgid_of(owner: int) -> int:
    """Return the process of a place by the place's owner."""
    return owner & 0xFFFFFFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class PerCpuCounts:
    """Which processes have counts that the reader has to collect from all CPUs."""

    in_places: Mapping[int, int]
    """Slots of those with counts in places, by their owner."""
    in_slot: Sequence[int]
    """Slots of those with counts at their slots."""


def per_cpu_counts(records: Sequence[int]) -> PerCpuCounts:
    """Return what the words of all records say of the counts that each CPU has for itself."""
    return PerCpuCounts(
        in_places={
            owner_of(records[slot * RECORD_WORDS + _TGID], slot): slot
            for slot, is_so in enumerate(records[_IN_PLACES::RECORD_WORDS])
            if is_so
        },
        in_slot=[slot for slot, is_so in enumerate(records[_IN_SLOT::RECORD_WORDS]) if is_so],
    )


def entries_from(
    before: Sequence[int],
    activity: Sequence[int],
    cpu_activity: Mapping[int, tuple[int, ...]],
    after: Sequence[int],
) -> tuple[dict[int, LedgerEntry], bool]:
    """Join records with the counters of their slots.

    Returns entries by tgid, and whether they are complete. before and after hold the words of all
    records, slot by slot in the order of ProcessRecord, as read before and after the counters.
    activity holds the shared counters of the slots in before, slot by slot in the order of
    ActivityRecord. cpu_activity holds by slot the counters that each CPU has for itself, summed
    over all CPUs, in the order of CpuActivityRecord; a slot without any may be absent. A record
    that does not belong to the same process in both may have been joined with another process's
    counters, so it is left out. The same holds for a record in a slot beyond the end of before,
    because it is new.
    """
    entries: dict[int, LedgerEntry] = {}
    complete = True
    # Columns and pieces are made at once, because this is done for every process at each refresh.
    first_before, tgids_before = (before[at::RECORD_WORDS] for at in (_FIRST_NS, _TGID))
    columns = (after[at::RECORD_WORDS] for at in _READ_COLUMNS)
    shared = [*zip(*[iter(activity)] * ACTIVITY_WORDS, strict=True)]
    for slot, (first_ns, tgid, ended_ns, vms, vcpus) in enumerate(zip(*columns, strict=True)):
        if not first_ns:
            continue
        if (
            slot >= len(first_before)
            or first_before[slot] != first_ns
            or tgids_before[slot] != tgid
        ):
            complete = False
            continue
        # Arguments are positional because keywords would double the time that each record takes.
        counts = shared[slot] + cpu_activity.get(slot, NOT_COUNTED)
        entries[tgid] = LedgerEntry(tgid, first_ns, ended_ns or None, vms, vcpus, counts)
    return entries, complete
