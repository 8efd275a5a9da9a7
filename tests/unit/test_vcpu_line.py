# SPDX-License-Identifier: Apache-2.0
"""The line of the live view about KVM's statistics of a VM."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from probes.render.live.frame_data import TerminalSize
from probes.render.live.frames import plain
from probes.render.live.history import GUEST_CPU
from probes.render.live.rows import Row, rows_of
from probes.render.live.vcpu_line import has_vcpu_line, vcpu_line
from probes.render.live.view import ViewState
from probes.report.model import NodeReport, VcpuStatistics
from tests.support.live_app import screen_of
from tests.support.live_frames import shown
from tests.support.live_reports import RUNNING, guest, report, scene
from tests.support.rich_report import MEASURED, MEASURED_ARM64, TCG, UNCOUNTED

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "live_vcpu_stats.txt"
SMALL = TerminalSize(width=80, height=16)
WIDE = TerminalSize(width=120, height=16)


def later(seconds: int) -> NodeReport:
    """A node with VMs of several kinds, so many seconds after the beginning."""
    x86 = replace(
        MEASURED,
        counts={name: count * seconds for name, count in MEASURED.counts.items()},
        guest_cpu_s=1.87 * seconds,
    )
    return report(
        seconds,
        guest(4711, RUNNING, "alpha", exits=1500 * seconds, vcpu_statistics=x86),
        guest(4712, RUNNING, "arm", exits=50 * seconds, vcpu_statistics=MEASURED_ARM64),
        guest(4713, RUNNING, "hooked", exits=9, vcpu_statistics=UNCOUNTED),
        guest(4800, TCG, "beta", vcpus=4),
    )


def test_golden_frames() -> None:
    """Each VM with statistics has a line with its rates, which a narrow terminal shortens.

    After an intended change, run the test with HVPROBE_UPDATE_GOLDEN=1 and read the difference.
    """
    of = scene(later(1), later(2))
    text = "".join(screen_of(of, size=(size.width, size.height)) for size in (WIDE, SMALL))
    if os.environ.get("HVPROBE_UPDATE_GOLDEN") == "1":
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_a_key_hides_the_lines() -> None:
    """With the lines hidden, the frame is the same as that of a node without statistics.

    A wide footer names the key only if there is something to hide.
    """
    hidden = shown(scene(later(1), later(2)), SMALL, ViewState(details=False))
    bare = [
        replace(each, processes=tuple(one._replace(vcpu_statistics=None) for one in each.processes))
        for each in (later(1), later(2))
    ]
    assert hidden == shown(scene(*bare), SMALL)
    assert "c details" in shown(scene(later(1)), WIDE)
    assert "c details" not in shown(scene(bare[0]), WIDE)


def test_plain_output_has_every_part() -> None:
    """Output to a pipe is never cut."""
    lines = plain(scene(later(1), later(2)), width=None, ascii_only=False)
    (found,) = (line.plain for line in lines if "nested runs/s" in line.plain)
    parts = ("halt/s 900", "io/s 340", "mmio/s 5.0", "irq/s 20", "hypercall/s 0")
    more = ("guest CPU 187%", "halt polling 175%", "nested runs/s 12")
    assert found.strip() == "  ".join((*parts, *more))


def line_of(statistics: VcpuStatistics | None, *, width: int | None = None) -> str | None:
    """Return the line of a row at its first frame."""
    (row,) = rows_of(later(1), scene(later(1)).history)[:1]
    row = replace(row, statistics=statistics, statistics_rates={})
    return vcpu_line(row, width=width).plain if has_vcpu_line(row, width=width) else None


@pytest.mark.parametrize(
    ("statistics", "line"),
    [
        (None, None),
        (VcpuStatistics(counts={}, guest_cpu_s=None), None),
        (UNCOUNTED, "guest CPU -"),
        (VcpuStatistics(counts={"io": 5}, guest_cpu_s=None), "io/s -"),
        (VcpuStatistics(counts={"nested": 0}, guest_cpu_s=None), None),
        (VcpuStatistics(counts={"nested": 1}, guest_cpu_s=None), "nested runs/s -"),
        (VcpuStatistics(counts={"fail": 0.5}, guest_cpu_s=None), "halt polling -"),
    ],
)
def test_what_is_not_known_is_not_shown(
    statistics: VcpuStatistics | None, line: str | None
) -> None:
    """A count that the kernel lacks has no part, and one without a rate yet has no number."""
    found = line_of(statistics)
    assert (None if found is None else found.strip()) == line


@given(width=st.integers(0, 200), value=st.floats(0, 1e15))
def test_a_line_fits(width: int, value: float) -> None:
    """No part is cut: a line ends before the first part that does not fit."""
    (row,) = rows_of(later(1), scene(later(1)).history)[:1]
    rates = dict.fromkeys((*MEASURED.counts, GUEST_CPU), value)
    row = replace(row, statistics=MEASURED, statistics_rates=rates)
    complete, line = vcpu_line(row, width=None), vcpu_line(row, width=width)
    assert complete.plain
    assert cell_len(line.plain) <= width
    assert complete.plain.startswith(line.plain)
    assert has_vcpu_line(row, width=width) == bool(line.plain)


def test_rows_are_the_same_without_statistics() -> None:
    """A row of a VM without statistics has no rates of them."""
    rows: tuple[Row, ...] = rows_of(later(2), scene(later(1), later(2)).history)
    assert [bool(row.statistics_rates) for row in rows] == [True, True, True, False]
