# SPDX-License-Identifier: Apache-2.0
"""Parses the binary statistics of a KVM vCPU (KVM_GET_STATS_FD). Pure: bytes in, values out.

Owns the format, and the values that a reading of a process's statistics gives. Layout:
include/uapi/linux/kvm.h, struct kvm_stats_header and struct kvm_stats_desc; the data are unsigned
64-bit numbers. Documentation/virt/kvm/api.rst, KVM_GET_STATS_FD. Since Linux cb082bfab59a ("KVM:
stats: Add fd-based API to read binary stats data") and ce55c049459c ("KVM: stats: Support binary
stats retrieval for a VCPU") (v5.14).

Header and descriptors are the same for every vCPU while the kernel runs. So they are parsed once,
and afterwards a reading takes only the values at their offsets.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

EXITS = "exits"
"""Name of the statistic that counts VM exits, on every architecture."""
MAX_BYTES = 64 * 1024
"""More than any kernel's statistics of a vCPU take."""

_HEADER = struct.Struct("=6I")
"""flags, name_size, num_desc, id_offset, desc_offset, data_offset (offsets in the file)."""
_DESCRIPTOR = struct.Struct("=IhHII")
"""flags, exponent, size, offset from data_offset, bucket_size; then the name."""
_VALUE = struct.Struct("=Q")
_VALUE_BYTES = _VALUE.size
_MAX_STATISTICS = 1024
"""More than any kernel has of a vCPU."""
_TYPE_MASK, _UNIT_SHIFT, _UNIT_MASK, _BASE_MASK = 0xF, 4, 0xF, 0xF00
"""Fields of the flags: KVM_STATS_TYPE_MASK, KVM_STATS_UNIT_MASK and KVM_STATS_BASE_MASK."""


class Kind(IntEnum):
    """What a statistic's values are: KVM_STATS_TYPE_* of its flags."""

    CUMULATIVE = 0
    INSTANT = 1
    PEAK = 2
    LINEAR_HISTOGRAM = 3
    LOG_HISTOGRAM = 4


class Unit(IntEnum):
    """The unit of a statistic: KVM_STATS_UNIT_* of its flags."""

    NONE = 0
    BYTES = 1
    SECONDS = 2
    CYCLES = 3
    BOOLEAN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistic:
    """One statistic, as its descriptor describes it."""

    offset: int
    """Where its first value begins in the file."""
    values: int
    """Number of its values; more than 1 only for a histogram."""
    kind: Kind | None
    """None: a kind that hvprobe does not know."""
    unit: Unit | None
    """None: a unit that hvprobe does not know."""
    exponent: int
    """A value times 10 to this power is in the unit, unless ``binary``."""
    binary: bool
    """Whether the exponent is one of 2."""

    @property
    def counts(self) -> bool:
        """Whether it is a single number that only grows while the vCPU exists."""
        return self.kind is Kind.CUMULATIVE and self.values == 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The statistics of every vCPU of this kernel."""

    statistics: Mapping[str, Statistic]
    """Statistics by name."""
    data: int
    """Where the values begin in the file."""

    def value(self, raw: bytes, name: str) -> int | None:
        """Return the only value of a statistic; None: it is missing, or cut off."""
        found = self.statistics.get(name)
        if found is None or found.values != 1 or len(raw) < found.offset + _VALUE_BYTES:
            return None
        return int(struct.unpack_from("=Q", raw, found.offset)[0])

    def span(self, required: tuple[str, ...], *, optional: tuple[str, ...] = ()) -> "Span | None":
        """Return the part of a file that holds these counts; None: a required one is missing.

        A statistic that is no count is missing. An optional count that is missing is left out.
        """
        counts = {
            name: found
            for name in (*required, *optional)
            if (found := self.statistics.get(name)) is not None and found.counts
        }
        if not required or not counts.keys() >= {*required}:
            return None
        first = counts[required[0]].offset
        counts = {
            name: count
            for name, count in counts.items()
            if (count.offset - first) % _VALUE_BYTES == 0
        }
        if not counts.keys() >= {*required}:
            return None
        begin = min(count.offset for count in counts.values())
        end = max(count.offset for count in counts.values()) + _VALUE_BYTES
        return Span(
            offset=begin,
            size=end - begin,
            places=tuple((count.offset - begin) // _VALUE_BYTES for count in counts.values()),
            data=self.data,
            measures=tuple(
                Measure(name, count.unit, count.exponent, count.binary)
                for name, count in counts.items()
            ),
        )


class Measure(NamedTuple):
    """What a count counts, as the kernel describes it."""

    name: str
    unit: Unit | None = Unit.NONE
    """None: a unit that hvprobe does not know."""
    exponent: int = 0
    binary: bool = False


class Span(NamedTuple):
    """The part of a file that holds wanted values."""

    offset: int
    size: int
    places: tuple[int, ...]
    """Index of each wanted value among the numbers of the span."""
    measures: tuple[Measure, ...]
    """The wanted values that this kernel has, the required ones first."""
    data: int
    """Where all values begin in the file."""

    @property
    def data_offsets(self) -> list[int]:
        """Offset of each wanted value from the first value of the file, in bytes.

        The values are a copy of KVM's own structure: kvm_stats_read (virt/kvm/binary_stats.c).
        """
        return [self.offset - self.data + place * _VALUE_BYTES for place in self.places]

    def counts(self, parts: Sequence[bytes]) -> tuple[tuple[int, ...], ...] | None:
        """Return the wanted values of each file, by the part that was read of it.

        None: one was not read to the end of the span.
        """
        size = self.size
        raw = parts[0] if len(parts) == 1 else b"".join(parts)
        if len(raw) != size * len(parts):  # no part is longer
            return None
        if size == _VALUE_BYTES:
            return tuple(_VALUE.iter_unpack(raw))
        all_numbers = struct.iter_unpack(f"={size // _VALUE_BYTES}Q", raw)
        return tuple([tuple([numbers[at] for at in self.places]) for numbers in all_numbers])


class StatisticsListing(NamedTuple):
    """The descriptors of a process that concern its vCPUs' statistics."""

    fds: tuple[tuple[int, str], ...] = ()
    """Number and link target of each statistics descriptor, which names the vCPU."""
    vcpus: int = 0
    """Number of vCPU descriptors."""

    @property
    def covers_every_vcpu(self) -> bool:
        """Whether there are as many statistics as vCPUs."""
        return 0 < self.vcpus == len(self.fds)


NO_STATISTICS = StatisticsListing()
"""The listing of a process without statistics, or whose statistics hvprobe does not read."""


class StatisticsReading(NamedTuple):
    """The statistics of one process at one moment.

    This is a tuple, as ``LedgerEntry`` is, because each refresh makes one for every process.
    """

    listing: StatisticsListing | None
    """None: there was no time to list its descriptors or to read them."""
    counts: tuple[tuple[int, ...], ...] | None
    """The wanted counts of each vCPU, in the order of ``listing.fds``; None: one could not be
    read."""
    measures: tuple[Measure, ...] = (Measure(EXITS),)
    """What the counts of a vCPU are, in order."""

    @property
    def complete(self) -> bool:
        """Whether there are counts, and statistics of every vCPU that was listed."""
        counts, listing = self.counts, self.listing
        return counts is not None and listing is not None and len(listing.fds) >= listing.vcpus

    @property
    def failed(self) -> bool:
        """Whether there are statistics that could not be read."""
        return self.listing is None or (self.counts is None and bool(self.listing.fds))


def layout_of(raw: bytes) -> Layout | None:
    """Parse header and descriptors of a statistics file; None: they are malformed.

    The file may be cut behind the descriptors. A statistic that is described twice is malformed.
    """
    found: dict[str, Statistic] = {}
    try:
        _, name_bytes, count, _, descriptors, data = _HEADER.unpack_from(raw)
        if count > _MAX_STATISTICS:
            return None
        for index in range(count):
            at = descriptors + index * (_DESCRIPTOR.size + name_bytes)
            flags, exponent, values, offset, _ = _DESCRIPTOR.unpack_from(raw, at)
            begin = at + _DESCRIPTOR.size
            name = raw[begin : begin + name_bytes]
            if len(name) < name_bytes or data + offset + values * _VALUE_BYTES > MAX_BYTES:
                return None
            text = name.split(b"\0", 1)[0].decode("ascii")
            if text in found:
                return None
            found[text] = _statistic(flags, exponent, values, data + offset)
    except (struct.error, UnicodeDecodeError):
        return None
    return Layout(statistics=found, data=data)


def _statistic(flags: int, exponent: int, values: int, offset: int) -> Statistic:
    kind, unit = flags & _TYPE_MASK, flags >> _UNIT_SHIFT & _UNIT_MASK
    return Statistic(
        offset=offset,
        values=values,
        kind=Kind(kind) if kind in Kind.__members__.values() else None,
        unit=Unit(unit) if unit in Unit.__members__.values() else None,
        exponent=exponent,
        binary=bool(flags & _BASE_MASK),
    )


def description_bytes(raw: bytes) -> bytes | None:
    """Return header and descriptors, by which a layout is recognized; None: they are cut off.

    The identity of the vCPU, which stands between them, is left out.
    """
    if len(raw) < _HEADER.size:
        return None
    _, name_bytes, count, _, descriptors, _ = _HEADER.unpack_from(raw)
    end = descriptors + count * (_DESCRIPTOR.size + name_bytes)
    if count > _MAX_STATISTICS or len(raw) < end:
        return None
    return raw[: _HEADER.size] + raw[descriptors:end]
