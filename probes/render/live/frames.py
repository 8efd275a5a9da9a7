# SPDX-License-Identifier: Apache-2.0
"""Renders reports for a person: the parts of a screen, plain tables, JSON. Pure.

Owns the lines below a row, and the line below the table. Must not know the terminal, nor read
anything.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import cast, overload

from rich.text import Text

from probes.render.live.cause_lines import cause_lines
from probes.render.live.columns import Layout, Table
from probes.render.live.frame_data import FrameData, TerminalSize
from probes.render.live.header import header, notes
from probes.render.live.history import Reasons
from probes.render.live.reason_line import reason_line
from probes.render.live.rows import Row, ordered, rows_of
from probes.render.live.vcpu_line import has_vcpu_line, vcpu_line
from probes.render.live.view import ViewState
from probes.render.terminal_text import visible
from probes.report.model import NodeReport, to_json
from probes.report.vocabulary import live_counters

_NOTES_SHOWN = 2
_SMALL_HEIGHT = 10
"""Terminal height below which header and notes are left out for the table."""
_ALL_HINTS_FROM = 100
"""Terminal width from which the line below the table names all keys."""


Line = Callable[[], Text]
"""Lays out one line below the heading."""


class FrameLines(Sequence[Text]):
    """Lines that are laid out when they are asked for, because few of many are on the screen."""

    def __init__(self, lines: Sequence[Line], width: int) -> None:
        self._lines = lines
        self._width = width

    def __len__(self) -> int:
        return len(self._lines)

    @overload
    def __getitem__(self, index: int) -> Text: ...
    @overload
    def __getitem__(self, index: slice) -> "FrameLines": ...
    def __getitem__(self, index: int | slice) -> "Text | FrameLines":
        if isinstance(index, slice):
            return FrameLines(self._lines[index], self._width)
        return _fitted(self._lines[index](), self._width)


@dataclass(frozen=True, slots=True, kw_only=True)
class TableFrame:
    """The table of one frame, with every line of it."""

    heading: Text
    lines: FrameLines
    rows: tuple[Row, ...]
    row_of_line: tuple[int, ...]
    """For each line the index of its row; the first line of a row has its columns."""


def top_lines(data: FrameData, size: TerminalSize, status: str) -> list[Text]:
    """Render what stands above the table; nothing on a terminal with few lines."""
    if size.height < _SMALL_HEIGHT:
        return []
    layout = _layout(data, width=size.width, ascii_only=size.ascii_only, minute=True)
    lines = [*header(data, layout, status), *notes(data, layout)[:_NOTES_SHOWN]]
    return [_fitted(line, size.width) for line in lines]


def table_frame(data: FrameData, view: ViewState, size: TerminalSize) -> TableFrame:
    """Render the complete table, of which no line is wider than the terminal."""
    rows = _chosen(data, view)
    layout = _layout(data, width=size.width, ascii_only=size.ascii_only, minute=True)
    table = Table(rows, data.history, replace(layout, order=view.order))
    found = list(_with_details(rows, table, data, layout, shown=view.details))
    return TableFrame(
        heading=_fitted(table.heading(), size.width),
        lines=FrameLines([line for _, line in found], size.width),
        rows=tuple(rows),
        row_of_line=tuple(index for index, _ in found),
    )


def plain(data: FrameData, *, width: int | None, ascii_only: bool) -> list[Text]:
    """Render header, notes and the complete table; width None: nothing is cut."""
    rows = _chosen(data, ViewState())
    layout = _layout(data, width=width, ascii_only=ascii_only, minute=False)
    table = Table(rows, data.history, layout)
    lines = (line() for _, line in _with_details(rows, table, data, layout, shown=True))
    top = [*header(data, layout, ""), *notes(data, layout)]
    return [_fitted(line, width) for line in (*top, table.heading(), *lines)]


def frame_json(report: NodeReport, reasons: Reasons | None = None) -> str:
    """Render one frame in the form of ``hvprobe snapshot``, on one line.

    With reasons, each requested process has ``exit_reasons``, the most frequent first.
    """
    frame = to_json(report)
    if reasons is not None:
        for process in cast("list[dict[str, object]]", frame["processes"]):
            counts = reasons.get(cast("int", process["tgid"]), ())
            process["exit_reasons"] = [
                {
                    "isa": count.isa.value,
                    "code": count.code,
                    "name": count.name,
                    "total": count.total,
                }
                for count in counts
            ]
    return json.dumps(frame, separators=(",", ":"))


def _chosen(data: FrameData, view: ViewState) -> list[Row]:
    rows = ordered(rows_of(data.report, data.history), view.order)
    return [row for row in rows if row.matches(view.words)]


def _layout(data: FrameData, *, width: int | None, ascii_only: bool, minute: bool) -> Layout:
    return Layout(
        width=width,
        ascii_only=ascii_only,
        minute=minute,
        counters=live_counters(data.report),
    )


def _with_details(
    rows: Sequence[Row], table: Table, data: FrameData, layout: Layout, *, shown: bool
) -> Iterator[tuple[int, Line]]:
    """Yield the line of each row, followed by its cause, its statistics and its exit reasons.

    Each line comes with the index of its row. shown says whether cause and statistics are shown.
    """
    for index, row in enumerate(rows):
        yield index, partial(table.line, index)
        if shown:
            for part in cause_lines(row, width=layout.width, ascii_only=layout.ascii_only):
                yield index, part.copy
            if has_vcpu_line(row, width=layout.width):
                yield index, partial(vcpu_line, row, width=layout.width)
        if data.reasons is not None:
            most = max((reason.count.total for reason in row.reasons), default=0)
            for reason in row.reasons:
                yield index, partial(reason_line, reason, most, ascii_only=layout.ascii_only)


def bottom_line(
    view: ViewState, frame: TableFrame, size: TerminalSize, *, first: int, shown: int
) -> Text:
    """Render the line below the table: the place in it, the filter, the order and the keys.

    first is the first line of the table that is shown, and shown how many there is room for.
    """
    of = len(frame.lines)
    last = min(first + shown, of)
    line = Text(f"{first + 1}-{last} of {of}  " if of else "0 of 0  ", "dim")
    if view.words:
        line.append(f"filter: {visible(view.words, ascii_only=size.ascii_only)}  ", "bold")
    line.append(f"by {view.order.value}  ", "dim")
    has_details = any(row.statistics is not None or row.cause is not None for row in frame.rows)
    wide = size.width >= _ALL_HINTS_FROM
    sorting = (("r", "exits"), ("t", "type"), ("n", "name"))
    for key, meaning in (
        ("Enter", "open"),
        *(sorting if wide else ()),
        *((("c", "details"),) if wide and has_details else ()),
        ("/", "filter"),
        ("p", "resume" if view.paused else "pause"),
        ("?", "help"),
        ("q", "quit"),
    ):
        line.append(key, "bold")
        line.append(f" {meaning}  ")
    line.rstrip()
    return _fitted(line, size.width)


def _fitted(line: Text, width: int | None) -> Text:
    if width is None or line.cell_len <= width:
        return line
    fitted = line.copy()
    fitted.truncate(width)
    return fitted
