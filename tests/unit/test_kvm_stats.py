# SPDX-License-Identifier: Apache-2.0
"""KVM's binary statistics: the layout of include/uapi/linux/kvm.h, and anything else."""

from hypothesis import given
from hypothesis import strategies as st

from probes.host.kvm_stats import statistic
from tests.support.kvm_statistics import statistics


def test_finds_a_statistic_by_its_whole_name() -> None:
    """``exits`` is not ``exits_more``, wherever the data begin."""
    raw = statistics({"exits_more": 1, "exits": 2**63 + 7, "halt_exits": 3}, gap=24)
    assert statistic(raw, "exits") == 2**63 + 7


def test_a_missing_statistic_is_not_zero() -> None:
    """A kernel that does not count it says nothing of it."""
    assert statistic(statistics({"halt_exits": 3}), "exits") is None


def test_a_file_cut_short_is_not_believed() -> None:
    """Whatever is missing, nothing is made up."""
    whole = statistics({"exits": 5})
    assert [statistic(whole[:end], "exits") for end in range(len(whole))] == [None] * len(whole)


@given(st.binary(max_size=300))
def test_any_bytes_have_an_answer(raw: bytes) -> None:
    """No bytes make it fail."""
    assert statistic(raw, "exits") is None or len(raw) >= 24
