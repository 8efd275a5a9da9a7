# SPDX-License-Identifier: Apache-2.0
"""The lines of the live view that say why a VM is emulated, and what to do about it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from probes.judge.cause import Cause, CauseFound
from probes.render.live.cause_lines import cause_lines
from probes.render.live.frame_data import TerminalSize
from probes.render.live.history import History
from probes.render.live.rows import Row, rows_of
from probes.render.live.view import ViewState
from tests.support.live_frames import shown
from tests.support.live_reports import RUNNING, guest, report, scene
from tests.support.rich_report import ALLOWED, TCG

HOSTILE = "QEMU's program is <b>evil\u202e\x1b[2J\u65e5\u672c\u8a9e"


def row(cause: Cause | None, detail: str = "it was read") -> Row:
    """A row of a VM that is emulated for this reason; None: one that is accelerated."""
    found = CauseFound(cause=cause, detail=detail) if cause is not None else None
    process = guest(12, RUNNING if found is None else TCG, "alpha", cause=found)
    return rows_of(report(1, process), History())[0]


def test_only_emulated_vms_have_a_cause() -> None:
    """A VM that is accelerated has no line."""
    assert list(cause_lines(row(None), width=None, ascii_only=False)) == []


def test_causes_can_be_hidden() -> None:
    """The cause of each row can be hidden; the line below a wide table names the key."""
    data = scene(report(1, guest(12, TCG, "alpha", cause=ALLOWED)))
    size = TerminalSize(width=120, height=24)
    for details in (True, False):
        lines = shown(data, size, ViewState(details=details)).splitlines()
        assert any(line.startswith("     cause ") for line in lines) is details
        assert "c details" in lines[-1]


def test_every_word_is_shown() -> None:
    """A narrow terminal wraps the words, indented below the first one, and loses none."""
    cause = Cause.DEVICE_MISSING_IN_POD
    found = row(cause)
    lines = [line.plain for line in cause_lines(found, width=50, ascii_only=False)]
    assert lines[0].startswith("     cause emulation is not allowed")
    assert lines[1].startswith("           ")
    assert " ".join(" ".join(lines).split()) == (
        f"cause {cause.phrase}: it was read remedy {cause.remedy}"
    )


@pytest.mark.parametrize("ascii_only", [False, True])
@given(detail=st.text() | st.just(HOSTILE), width=st.integers(min_value=40, max_value=200))
def test_no_line_is_wider_than_the_terminal(detail: str, width: int, *, ascii_only: bool) -> None:
    """Whatever the detail holds, each line fits and has no control character."""
    for line in cause_lines(row(Cause.UNKNOWN, detail), width=width, ascii_only=ascii_only):
        assert cell_len(line.plain) <= width
        assert line.plain.isprintable()
        assert line.plain.isascii() or not ascii_only
