"""KVM's binary statistics: the layout of include/uapi/linux/kvm.h, and anything else."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from probes.kvmstats import statistic

NAME_BYTES = 48


def statistics(values: dict[str, int], *, gap: int = 0) -> bytes:
    """A statistics file as the kernel writes it: header, id, descriptors, data."""
    descriptors_at = 24 + NAME_BYTES
    data_at = descriptors_at + len(values) * (16 + NAME_BYTES) + gap
    header = struct.pack("=6I", 0, NAME_BYTES, len(values), 24, descriptors_at, data_at)
    identity = b"kvm-4711/vcpu-0".ljust(NAME_BYTES, b"\0")
    descriptors = b"".join(
        struct.pack("=IhHII", 0, 0, 1, 8 * index, 0) + name.encode().ljust(NAME_BYTES, b"\0")
        for index, name in enumerate(values)
    )
    data = struct.pack(f"={len(values)}Q", *values.values())
    return (header + identity + descriptors).ljust(data_at, b"\0") + data


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
