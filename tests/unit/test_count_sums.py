# SPDX-License-Identifier: Apache-2.0
"""Several counts of each vCPU in one account: exits decide which vCPU it is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.host.kvm_stats import Measure, StatisticsListing, StatisticsReading
from probes.judge.count_sums import begun_again, grew
from probes.judge.exit_counts import Created, ExitAccount, opened
from tests.support.facts import VMM

MEASURES = (Measure("exits"), Measure("halt_exits"))
ONCE = Created(1, 1)


def reading(*vcpus: tuple[int, int, int]) -> StatisticsReading:
    """A reading of vCPUs, each with number, exits and halts."""
    fds = tuple((10 + number, f"anon_inode:kvm-vcpu-stats:{number}") for number, _, _ in vcpus)
    counts = tuple((exits, halts) for _, exits, halts in vcpus)
    return StatisticsReading(StatisticsListing(fds, len(vcpus)), counts, MEASURES)


def account(*readings: StatisticsReading) -> ExitAccount:
    """The account after these readings, during which the hooks saw nothing."""
    found = opened(VMM, readings[0], ONCE)
    assert found is not None
    for each in readings[1:]:
        found = found.after(each, ONCE)
    return found


def test_each_count_adds_up() -> None:
    """The totals are the sums of each count over all vCPUs, in the order of the measures."""
    found = account(reading((0, 5, 1), (1, 7, 2)), reading((0, 6, 1), (1, 70, 20)))
    assert (found.totals, found.exits, found.measures) == ((76, 21), 76, MEASURES)


def test_a_count_that_was_cleared() -> None:
    """A count that root clears goes on from where it was, and changes no other count."""
    found = account(reading((0, 50, 10)), reading((0, 60, 3)), reading((0, 61, 4)))
    assert found.totals == (61, 14)


def test_exits_that_begin_again() -> None:
    """With the exits, all counts of the vCPU begin again, also those that have not fallen."""
    assert account(reading((0, 50, 1)), reading((0, 3, 2))).totals == (53, 3)


def test_a_vcpu_that_returns_with_a_cleared_count() -> None:
    """A vCPU that was unplugged is known by its exits. A count cleared since then is kept."""
    both = account(reading((0, 5, 5), (1, 7, 7)), reading((0, 5, 5)))
    assert both.totals == (12, 12)
    again = both.after(reading((0, 5, 5), (1, 9, 2)), ONCE)
    assert again.totals == (14, 14)
    assert again.gone == ()


def test_other_measures_change_nothing() -> None:
    """A reading of something else is not added up with what was read before."""
    before = account(reading((0, 5, 1)))
    other = reading((0, 9, 9))._replace(measures=(Measure("exits"), Measure("io_exits")))
    assert before.after(other, ONCE) is before


@pytest.mark.parametrize(
    ("before", "now", "again"),
    [
        ((5, 1), (5, 1), (0, 0)),
        ((5, 1), (6, 0), (0, 1)),
        ((5, 1), (4, 9), (5, 1)),
        ((5,), (6,), (0,)),
        ((5,), (4,), (5,)),
    ],
)
def test_what_begins_again(
    before: tuple[int, ...], now: tuple[int, ...], again: tuple[int, ...]
) -> None:
    """What a count was before is kept if it, or its vCPU, has begun again."""
    assert begun_again(before, now) == again


numbers = st.integers(0, 40)


@given(st.lists(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=3), min_size=1))
def test_no_total_falls(steps: list[list[tuple[int, int]]]) -> None:
    """Whatever the vCPUs show, no total falls, and exits are what they are without other counts."""
    found: ExitAccount | None = None
    alone: ExitAccount | None = None
    for step in steps:
        now = reading(*((number, *counts) for number, counts in enumerate(step)))
        only = StatisticsReading(now.listing, tuple((exits,) for exits, _ in step))
        later = opened(VMM, now, ONCE) if found is None else found.after(now, ONCE)
        alone = opened(VMM, only, ONCE) if alone is None else alone.after(only, ONCE)
        assert later is not None
        assert alone is not None
        assert found is None or grew([found.totals], [later.totals])
        assert later.exits == alone.exits
        found = later
