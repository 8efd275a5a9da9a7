# SPDX-License-Identifier: Apache-2.0
"""The clock of the kernel's records, and its offset in time namespaces."""

import os
import time
from pathlib import Path

import pytest

from ebpf.clock import INIT_TIME_NAMESPACE_INODE, monotonic_ns, monotonic_offset, offset_of_process

OFFSETS = "monotonic  {:>10} {:>9}\nboottime          -9         5\n"


@pytest.mark.parametrize(
    ("text", "offset_ns"),
    [
        (OFFSETS.format(0, 0), 0),
        (OFFSETS.format(86400, 7), 86_400_000_000_007),
        (OFFSETS.format(-86400, 999_999_999), -86_399_000_000_001),
        ("1 5 6\n7 8 9\n", 5_000_000_006),
        ("boottime 1 2\n", 0),
        ("", 0),
    ],
)
def test_the_offset_is_that_of_the_monotonic_clock(text: str, offset_ns: int) -> None:
    """The offset is in seconds, which may be negative, plus nanoseconds."""
    assert monotonic_offset(text) == offset_ns


def test_a_kernel_without_time_namespaces(tmp_path: Path) -> None:
    """Linux before 5.6 has no time namespaces, so the offset is 0."""
    assert offset_of_process(tmp_path) == 0


def test_offsets_of_another_namespace_are_not_applied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The offsets are those of the process's children and do not apply in the initial namespace."""
    (tmp_path / "ns").mkdir()
    (tmp_path / "ns/time").touch()
    (tmp_path / "timens_offsets").write_text(OFFSETS.format(5, 0))
    assert offset_of_process(tmp_path) == 5_000_000_000
    stat = os.stat_result((0, INIT_TIME_NAMESPACE_INODE, *[0] * 8))
    monkeypatch.setattr(Path, "stat", lambda path: stat)
    assert offset_of_process(tmp_path) == 0


def test_the_initial_namespace_has_the_ordinary_clock() -> None:
    """In the initial time namespace the clock is the ordinary monotonic clock."""
    if Path("/proc/self/ns/time").stat().st_ino != INIT_TIME_NAMESPACE_INODE:
        pytest.skip("the tests run in a time namespace")
    before = time.monotonic_ns()
    assert before <= monotonic_ns() <= time.monotonic_ns()
