# SPDX-License-Identifier: Apache-2.0
"""KVM's binary statistics, in the layout of include/uapi/linux/kvm.h or malformed."""

from hypothesis import given
from hypothesis import strategies as st

from probes.host.kvm_stats import statistic
from tests.support.kvm_statistics import statistics


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
