# SPDX-License-Identifier: Apache-2.0
"""KVM's binary statistics, in the layout of include/uapi/linux/kvm.h or malformed."""

import struct
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from probes.host.kvm_stats import (
    MAX_BYTES,
    Kind,
    Layout,
    Measure,
    StatisticsListing,
    StatisticsReading,
    Unit,
    description_bytes,
    layout_of,
)
from tests.support.kvm_statistics import captured_statistics, statistics


def statistic(raw: bytes, name: str) -> int | None:
    """Parse a file and return one value."""
    layout = layout_of(raw)
    return None if layout is None else layout.value(raw, name)


def parsed(raw: bytes) -> Layout:
    layout = layout_of(raw)
    assert layout is not None
    return layout


def test_finds_a_statistic_by_its_complete_name() -> None:
    """``exits`` is not confused with ``exits_more``, at any offset of the data."""
    raw = statistics({"exits_more": 1, "exits": 2**63 + 7, "halt_exits": 3}, gap=24)
    assert statistic(raw, "exits") == 2**63 + 7


def test_a_missing_statistic_is_not_zero() -> None:
    """A statistic that the kernel does not have is None."""
    assert statistic(statistics({"halt_exits": 3}), "exits") is None


def test_a_truncated_file_has_no_statistic() -> None:
    """A file that is truncated at any byte gives None."""
    complete = statistics({"exits": 5})
    assert [statistic(complete[:end], "exits") for end in range(len(complete))] == [None] * len(
        complete
    )


@given(st.binary(max_size=300))
def test_any_bytes_have_an_answer(raw: bytes) -> None:
    """Any bytes give a value or None, and no exception."""
    assert statistic(raw, "exits") is None or len(raw) >= 24
    assert description_bytes(raw) is None or len(raw) >= 24


@given(
    st.lists(st.tuples(st.integers(0, 400), st.binary(min_size=1, max_size=8)), max_size=5),
    st.integers(0, 400),
)
@example([(8, struct.pack("=I", 2**31))], 400)
def test_a_damaged_file_has_an_answer(damage: list[tuple[int, bytes]], end: int) -> None:
    """A real file with other bytes in it, cut anywhere, gives a layout or None, never a wrong read.

    No offset of a layout lies beyond what hvprobe reads.
    """
    raw = bytearray(statistics({"exits": 5, "halt_exits": 3, "io_exits": 1}))
    for at, new in damage:
        raw[at : at + len(new)] = new
    layout = layout_of(bytes(raw[:end]))
    for each in layout.statistics.values() if layout else ():
        assert each.offset + 8 * each.values <= MAX_BYTES


def test_a_name_described_twice_is_malformed() -> None:
    """A file with two statistics of one name has no layout, because either could be meant."""
    raw = statistics({"exits": 5, "exitt": 3}).replace(b"exitt", b"exits")
    assert layout_of(raw) is None


def test_a_captured_file() -> None:
    """A real vCPU's file has the exits that were made, and units and kinds of every statistic."""
    capture = captured_statistics("x86_64")
    layout = parsed(capture.file)
    assert layout.value(capture.file, "exits") == capture.exits > 0
    polled = layout.statistics["halt_poll_success_ns"]
    assert (polled.kind, polled.unit, polled.exponent) == (Kind.CUMULATIVE, Unit.SECONDS, -9)
    histogram = layout.statistics["halt_wait_hist"]
    assert (histogram.kind, histogram.values, histogram.counts) == (Kind.LOG_HISTOGRAM, 32, False)
    assert layout.value(capture.file, "halt_wait_hist") is None
    state = layout.statistics["blocking"]
    assert (state.kind, state.unit, state.counts) == (Kind.INSTANT, Unit.BOOLEAN, False)
    assert not any(each.binary for each in layout.statistics.values())


def test_what_a_later_kernel_adds_is_unknown() -> None:
    """A kind or a unit that hvprobe does not know is no count."""
    layout = parsed(statistics({"exits": 5}, kind=9, unit=7))
    assert (layout.statistics["exits"].kind, layout.statistics["exits"].unit) == (None, None)
    assert layout.span(("exits",)) is None


@pytest.mark.parametrize("names", [("exits",), ("exits", "io_exits"), ("nested_run", "exits")])
def test_a_span_is_all_that_has_to_be_read(names: tuple[str, ...]) -> None:
    """The wanted counts come from one short read, in the order in which they are wanted."""
    capture = captured_statistics("x86_64")
    layout = parsed(capture.file)
    span = layout.span(names)
    assert span is not None
    part = capture.file[span.offset : span.offset + span.size]
    expected = tuple(layout.value(capture.file, name) for name in names)
    for vcpus in (1, 2, 3):
        assert span.counts([part] * vcpus) == (expected,) * vcpus
    assert span.size == 8 or len(names) > 1
    for short in ([part[:-1]], [part, part[:-8]], [b"", part]):
        assert span.counts(short) is None


@pytest.mark.parametrize("names", [("exits", "absent"), ("blocking",), ("halt_wait_hist",), ()])
def test_only_counts_have_a_span(names: tuple[str, ...]) -> None:
    """What is missing, an instant value and a histogram cannot be read as a count."""
    assert parsed(captured_statistics("x86_64").file).span(names) is None


def test_a_span_leaves_out_what_the_kernel_lacks() -> None:
    """A required count is always read, and of the optional ones those that are counts here.

    What each one measures is what its descriptor says.
    """
    capture = captured_statistics("x86_64")
    layout = parsed(capture.file)
    optional = ("absent", "blocking", "halt_wait_hist", "halt_poll_fail_ns", "io_exits")
    span = layout.span(("exits",), optional=optional)
    assert span is not None
    assert span.measures == (
        Measure("exits"),
        Measure("halt_poll_fail_ns", Unit.SECONDS, -9),
        Measure("io_exits"),
    )
    part = capture.file[span.offset : span.offset + span.size]
    assert span.counts([part]) == ((capture.exits, 0, 0),)
    assert layout.span(("absent",), optional=("exits",)) is None
    assert layout.span(("exits",), optional=("absent",)) == layout.span(("exits",))


def test_a_span_has_no_value_between_two_others() -> None:
    """An optional count that is not aligned with the required one is left out."""
    layout = parsed(statistics({"exits": 5, "io_exits": 3}))
    moved = replace(layout.statistics["io_exits"], offset=layout.statistics["exits"].offset + 4)
    crooked = replace(layout, statistics={**layout.statistics, "io_exits": moved})
    assert crooked.span(("exits",), optional=("io_exits",)) == layout.span(("exits",))
    assert crooked.span(("exits", "io_exits")) is None


def test_a_layout_is_recognized_by_its_description() -> None:
    """Files of two vCPUs differ in identity and values, and have the same description."""
    one, other = statistics({"exits": 5}), statistics({"exits": 7}).replace(b"vcpu-0", b"vcpu-9")
    assert description_bytes(one) == description_bytes(other)
    assert description_bytes(one) != description_bytes(statistics({"exitt": 5}))
    assert description_bytes(one[:60]) is None


@pytest.mark.parametrize(
    ("fds", "vcpus", "covered"), [(0, 0, False), (1, 1, True), (1, 2, False), (2, 1, False)]
)
def test_every_vcpu_has_to_have_statistics(fds: int, vcpus: int, *, covered: bool) -> None:
    """Statistics cover a process if it has exactly one for each of its vCPUs."""
    listing = StatisticsListing(
        tuple((fd, "anon_inode:kvm-vcpu-stats:0") for fd in range(fds)), vcpus
    )
    assert listing.covers_every_vcpu is covered


def test_a_process_without_statistics_has_not_failed() -> None:
    """A reading fails if there are statistics that are not read, or no time to find out."""
    some = StatisticsListing(((9, "anon_inode:kvm-vcpu-stats:0"),), 1)
    readings = (
        StatisticsReading(None, None),
        StatisticsReading(some, None),
        StatisticsReading(some, ((5,),)),
        StatisticsReading(StatisticsListing(), None),
    )
    assert [reading.failed for reading in readings] == [True, True, False, False]
