# SPDX-License-Identifier: Apache-2.0
"""What KVM's statistics count beside exits, on kernels with other statistics."""

from collections.abc import Mapping

import pytest

from probes.host.kvm_stats import EXITS, Measure, Unit, layout_of
from probes.host.vcpu_counts import (
    EXITS_BY_CLASS,
    GROUPS,
    STATISTICS,
    VCPU_COUNTS,
    counts_of,
)
from tests.support.kvm_statistics import arm64_statistics, captured_statistics, statistics

SECONDS = Unit.SECONDS


def counts_in(file: bytes) -> Mapping[str, float]:
    """Read a statistics file as the agent does."""
    layout = layout_of(file)
    assert layout is not None
    span = layout.span((EXITS,), optional=STATISTICS)
    assert span is not None
    counts = span.counts([file[span.offset : span.offset + span.size]])
    assert counts is not None
    (totals,) = counts
    assert totals[0] == layout.value(file, EXITS)
    return counts_of(span.measures, totals)


def test_x86() -> None:
    """A real file of x86 has every count, and the idle guest that made it has none above 0."""
    found = counts_in(captured_statistics("x86_64").file)
    assert found == dict.fromkeys((count.name for count in VCPU_COUNTS), 0)


@pytest.mark.parametrize(
    ("statistic", "name", "expected"),
    [
        ("halt_exits", "halt", 7),
        ("io_exits", "io", 7),
        ("mmio_exits", "mmio", 7),
        ("irq_exits", "irq", 7),
        ("hypercalls", "hypercall", 7),
        ("nested_run", "nested", 7),
        ("halt_poll_success_ns", "success", 7e-9),
        ("halt_poll_fail_ns", "fail", 7e-9),
    ],
)
def test_each_statistic_of_x86(statistic: str, name: str, expected: float) -> None:
    """Each statistic is in the count of its name, and in no other one."""
    layout = layout_of(captured_statistics("x86_64").file)
    assert layout is not None
    file = bytearray(captured_statistics("x86_64").file)
    at = layout.statistics[statistic].offset
    file[at : at + 8] = (7).to_bytes(8, "little")
    found = counts_in(bytes(file))
    assert {name: count for name, count in found.items() if count} == {name: expected}


def test_arm64() -> None:
    """WFE and WFI are halts, MMIO is what user space and the kernel emulate, signals are neither.

    What arm64 does not count is absent, not 0.
    """
    assert counts_in(arm64_statistics()) == {
        "halt": 12,
        "mmio": 24,
        "hypercall": 3,
        "success": 1.5,
        "fail": 0.25,
    }


def test_half_of_a_sum_is_no_count() -> None:
    """A kernel that has only one of two statistics of a count does not have the count."""
    found = counts_in(statistics({"exits": 9, "wfi_exit_stat": 4, "mmio_exit_user": 3}))
    assert found == {}


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        (Measure("halt_poll_fail_ns", SECONDS, -9), 2.048e-6),
        (Measure("halt_poll_fail_ns", SECONDS, -6), 2.048e-3),
        (Measure("halt_poll_fail_ns", SECONDS, 0), 2048),
        (Measure("halt_poll_fail_ns", SECONDS, 3), 2048000),
        (Measure("halt_poll_fail_ns", SECONDS, -10, binary=True), 2),
        (Measure("halt_poll_fail_ns", Unit.CYCLES, -9), None),
        (Measure("halt_poll_fail_ns", None, -9), None),
        (Measure("halt_poll_fail_ns", SECONDS, -30000), None),
        (Measure("halt_poll_fail_ns", SECONDS, 30000), None),
    ],
)
def test_units(measure: Measure, expected: float | None) -> None:
    """The descriptor says what the numbers are. Cycles are no seconds, whatever the name says."""
    assert counts_of((Measure(EXITS), measure), (5, 2048)).get("fail") == expected


def test_two_scales_do_not_add_up() -> None:
    """Statistics of one count with different scales are not added."""
    measures = (Measure("wfe_exit_stat"), Measure("wfi_exit_stat", exponent=3))
    assert counts_of(measures, (1, 1)) == {}


def test_polled_time_never_falls() -> None:
    """A higher number of nanoseconds is never a lower number of seconds."""
    measures = (Measure("halt_poll_fail_ns", SECONDS, -9),)
    seconds = [counts_of(measures, (2**63 + more,))["fail"] for more in range(3000)]
    assert seconds == sorted(seconds)


def test_exits_alone_have_no_counts() -> None:
    """An account of exits only, and one without any total, has no such count."""
    assert counts_of((Measure(EXITS),), (5,)) == {}
    assert counts_of((), ()) == {}


def test_the_tables_fit_together() -> None:
    """Names of counts and keys are unique, and a group without a label has one count."""
    names = [count.name for count in VCPU_COUNTS]
    assert len({*names}) == len(names)
    assert len({group.json for group in GROUPS}) == len({group.metric for group in GROUPS}) == 3
    for group in GROUPS:
        members = [count for count in VCPU_COUNTS if count.group is group]
        assert len(members) == 1 or (members and group.label)
    assert [count.name for count in VCPU_COUNTS if count.group is EXITS_BY_CLASS] == [
        "halt",
        "io",
        "mmio",
        "irq",
        "hypercall",
    ]
    assert EXITS not in STATISTICS
