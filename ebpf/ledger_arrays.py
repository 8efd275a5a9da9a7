# SPDX-License-Identifier: Apache-2.0
"""EDGE: reads the ledger's records and counters from memory, and clears them.

Owns which counts belong to a record, wherever the programs have put them. Must not know when a
record has to be removed, nor how its slot is found and given back: see tables.py.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from operator import add

from ebpf.ledger import (
    ACTIVITY_WORDS,
    CPU_ACTIVITY_WORDS,
    NOT_COUNTED,
    PLACE_WORDS,
    RECORD_WORDS,
    RELEASED,
    LedgerEntry,
    PlaceRecord,
    ProcessRecord,
    entries_from,
    owner_of,
    per_cpu_counts,
    tgid_of,
    word_of,
)
from ebpf.maps import MappedArray

ARRAYS = ("records", "activity", "cpu_activity", "places")
MAX_READS = 3
"""How often the records are read at most while processes start and end."""
_FIRST_NS = word_of(ProcessRecord, "first_ns")
_OWNER = word_of(PlaceRecord, "owner")
_COUNTS = word_of(PlaceRecord, "activity")
_WORDS = range(CPU_ACTIVITY_WORDS)


class LedgerArrays:
    """The records of one ledger and their counters."""

    def __init__(
        self, map_fd: Callable[[str], int], *, capacity: int, cpus: int, places: int
    ) -> None:
        """Use the maps by their names (see ARRAYS); they stay the caller's.

        capacity is the number of slots, places that of places on each CPU. Raises OSError when the
        kernel refuses.
        """
        self._places_per_cpu = places
        self._records = MappedArray(
            map_fd("records"), words=RECORD_WORDS, block_records=capacity, blocks=1
        )
        self._activity = MappedArray(
            map_fd("activity"), words=ACTIVITY_WORDS, block_records=capacity, blocks=1
        )
        self._cpu_activity = MappedArray(
            map_fd("cpu_activity"), words=CPU_ACTIVITY_WORDS, block_records=capacity, blocks=cpus
        )
        self._places = MappedArray(
            map_fd("places"), words=PLACE_WORDS, block_records=places, blocks=cpus
        )

    def entries(self) -> dict[int, LedgerEntry]:
        """Read all records with their counters from memory, which silences no hook.

        A record that exists before and after its counters are read had its slot all the time. If
        records appeared or disappeared during the read, everything is read again, up to MAX_READS
        times. A record that is still incomplete then is left out.
        """
        entries: dict[int, LedgerEntry] = {}
        for _ in range(MAX_READS):
            before = self._records.words(self._records.used())
            activity = self._activity.words(len(before) // RECORD_WORDS)
            cpu_activity = self._cpu_sums(before)
            after = self._records.words(self._records.used())
            entries, complete = entries_from(before, activity, cpu_activity, after)
            if complete:
                break
        return entries

    def first_ns(self, slot: int) -> int:
        """Return when the record of a slot began; 0: the slot is free."""
        return self._records.word(slot, _FIRST_NS)

    def end(self, tgid: int, slot: int) -> None:
        """End the record that a process has in a slot, and release its places.

        The order is that of recycle() in ledger.bpf.c, for the same reason.
        """
        self._records.write(slot, _FIRST_NS, 0)
        self.release(tgid, slot)

    def release(self, tgid: int, slot: int) -> None:
        """Release all places of the record that a process had in a slot. Each CPU clears its own.

        Nothing else releases them, and no program takes a place that is owned, so what is compared
        here cannot change before it is written.
        """
        place, owner = tgid % self._places_per_cpu, owner_of(tgid, slot)
        for cpu, held in enumerate(self._places.across(place, _OWNER)):
            if held == owner:
                self._places.write(place, _OWNER, RELEASED, block=cpu)

    def clear(self, slot: int) -> None:
        """Set the record of a slot and its counters on all CPUs to 0."""
        for array in (self._records, self._activity, self._cpu_activity):
            array.clear(slot)

    def close(self) -> None:
        """Release the memory. May be called again."""
        for array in (self._records, self._activity, self._cpu_activity, self._places):
            array.close()

    def _cpu_sums(self, records: Sequence[int]) -> dict[int, tuple[int, ...]]:
        """Sum over all CPUs, by slot, the counters that each CPU has for itself.

        Owners are read before counts. A place that changes hands in between belonged to a record
        that has ended, and entries() does not believe that one.
        """
        having = per_cpu_counts(records)
        sums: dict[int, tuple[int, ...]] = {}
        for slot in having.in_slot:
            sums[slot] = tuple(sum(self._cpu_activity.across(slot, word)) for word in _WORDS)
        owners_at: defaultdict[int, list[int]] = defaultdict(list)
        for owner in having.in_places:
            owners_at[tgid_of(owner) % self._places_per_cpu].append(owner)
        for place, owners in owners_at.items():
            held = self._places.across(place, _OWNER)
            counts = [self._places.across(place, _COUNTS + word) for word in _WORDS]
            for owner in owners:
                slot = having.in_places[owner]
                found = [_sum_of(owner, held, counted) for counted in counts]
                sums[slot] = tuple(map(add, sums.get(slot, NOT_COUNTED), found))
        return sums


def _sum_of(owner: int, held: list[int], counts: list[int]) -> int:
    """Sum the counts of one place on all CPUs, as far as the owner is the one that is given."""
    if held.count(owner) == len(held):  # much faster, and usual where guests run on every CPU
        return sum(counts)
    return sum(count for other, count in zip(held, counts, strict=True) if other == owner)
