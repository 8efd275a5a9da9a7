# SPDX-License-Identifier: Apache-2.0
"""Lays out the table of the live view: rows become cells that fit the width. Pure.

Owns the columns: what each one shows, and how much room it gets. Must not know header, keys, or
where the table is shown. All widths of text are counted in cells (terminal_text).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from rich.cells import cell_len
from rich.style import Style
from rich.text import Text

from ebpf.counters import Counter
from probes.host.hypervisors import HYPERVISORS, HypervisorType
from probes.judge.reasons import Severity
from probes.render.live.history import MINUTE_S, History
from probes.render.live.rows import Order, Row
from probes.render.terminal_text import fit, visible
from probes.report.vocabulary import deciding_reason

MINUTE_CELLS = int(MINUTE_S)
"""The most cells of the last minute. More cells would show nothing more."""
ORDER_META = "order"
"""The name under which a heading's style carries the order that it stands for."""
LONG_HEADINGS_FROM = 110
"""Terminal width from which the counters' headings are written in full."""


class Column(StrEnum):
    """A column; the value is its heading. The counters' columns are between VCPUS and MINUTE."""

    TGID = "TGID"
    COMMAND = "COMMAND"
    VMI = "VMI"
    TYPE = "TYPE"
    PROOF = "PROOF"
    VCPUS = "vCPU"
    MINUTE = "1 MIN"
    AGE = "AGE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How the table is laid out."""

    width: int | None
    """Width of the terminal in cells; None: the table is as wide as it needs."""
    ascii_only: bool
    minute: bool
    """Whether the table has a column that draws the last minute."""
    counters: tuple[Counter, ...]
    """The counters that have a column, in order."""
    order: Order | None = None
    """By what the rows are sorted; that heading is marked. None: no heading is."""


Key = str
"""A Column, or the name of the counter whose rate a column shows."""

_LEFT = frozenset({Column.COMMAND, Column.VMI, Column.TYPE, Column.PROOF, Column.MINUTE})
_MINIMUM_COUNTER_CELLS = 6
_MINIMUM_CELLS: Mapping[Key, int] = {
    Column.TGID: 4,
    Column.COMMAND: 7,
    Column.VMI: 13,
    Column.TYPE: 7,
    Column.PROOF: 12,
    Column.VCPUS: 4,
    Column.MINUTE: 5,
    Column.AGE: 4,
}
_DISPENSABLE = (
    Column.MINUTE,
    Column.COMMAND,
    Column.AGE,
    Column.VCPUS,
)
"""Columns that are left out, in this order, if a line has no room for the minimum widths.

The counters follow, in order, and then the proof.
"""
_GROWING = (
    (Column.VMI, 24),
    (Column.COMMAND, 15),
    (Column.PROOF, 44),
    (Column.VMI, 80),
    (Column.PROOF, 80),
    (Column.COMMAND, 80),
)
"""Columns that get the remaining cells, in this order and up to these widths.

The last minute gets the rest.
"""
_ORDERS: Mapping[Key, Order] = {
    Column.VMI: Order.NAME,
    Column.TYPE: Order.TYPE,
    Column.PROOF: Order.SEVERITY,
    Column.VCPUS: Order.VCPUS,
    Column.AGE: Order.AGE,
}
"""The order that the heading of a column stands for. A counter's stands for EXITS."""
_CUT: frozenset[Key] = frozenset(column for column, _ in _GROWING)

_STYLES: Mapping[HypervisorType, str] = {
    **{hypervisor.type: "green" for hypervisor in HYPERVISORS},
    HypervisorType.TCG: "yellow",
    HypervisorType.UNKNOWN: "magenta",
}
_URGENT = "bold red"
_BARS, _ASCII_BARS = "▁▂▃▄▅▆▇█", "_.:-=+*#"


class Table:
    """The heading and the line of each row, none of them wider than ``layout.width``.

    The widths follow all rows. A line is laid out when it is asked for.
    """

    def __init__(self, rows: Sequence[Row], history: History, layout: Layout) -> None:
        self._rows = rows
        self._history = history
        self._layout = layout
        self._contents = [_contents(row, layout) for row in rows]
        self._widths = _widths(self._contents, layout)

    def heading(self) -> Text:
        """Return the headings; each carries the order that a click on it chooses."""
        return _heading(self._widths, self._layout)

    def line(self, index: int) -> Text:
        """Return the line of a row."""
        row, content, layout = self._rows[index], self._contents[index], self._layout
        line = Text()
        for column, width in self._widths.items():
            text = content.get(column, "")
            if column is Column.PROOF and cell_len(text) > width:
                text = _proof(row, short=True)
            if column is Column.MINUTE and row.vmm is not None:
                text = bars(self._history.minute(row.vmm, width), ascii_only=layout.ascii_only)
            text = fit(text, width, right=column not in _LEFT, ascii_only=layout.ascii_only)
            _append(line, text, _style(row, column))
        return _cut(line, layout)


def _heading(widths: Mapping[Key, int], layout: Layout) -> Text:
    heading, headings = Text(), _headings(layout)
    for column, width in widths.items():
        order = _ORDERS.get(column) if column in _MINIMUM_CELLS else Order.EXITS
        style = Style(
            bold=True,
            reverse=order is not None and order is layout.order,
            meta={ORDER_META: order.value} if order is not None else None,
        )
        _append(heading, fit(headings[column], width, right=column not in _LEFT), style)
    return _cut(heading, layout)


def number(value: float | None) -> str:
    """Format a rate or a count in at most six cells; ``-``: unknown."""
    if value is None:
        return "-"
    if 0 < value < 9.95:
        return f"{value:.1f}"
    for unit in ("", "k", "M", "G", "T"):
        if value < 9999.5:
            return f"{value:.0f}{unit}"
        value /= 1000
    return f"{value:.0f}P"


def age(seconds: float | None) -> str:
    """Format a duration in at most four cells."""
    if seconds is None:
        return "-"
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{min(int(seconds / length), 999)}{unit}"
    return f"{int(seconds)}s"


def bars(values: Sequence[float | None], *, ascii_only: bool) -> str:
    """Draw one bar per value, relative to the highest; a blank for an absent value."""
    steps = _ASCII_BARS if ascii_only else _BARS
    most = max((value for value in values if value is not None), default=0.0)
    return "".join(
        " " if value is None else steps[round(value / most * (len(steps) - 1)) if most else 0]
        for value in values
    )


def _contents(row: Row, layout: Layout) -> dict[Key, str]:
    return {
        Column.TGID: "-" if row.tgid is None else str(row.tgid),
        Column.COMMAND: visible(row.command, ascii_only=layout.ascii_only),
        Column.VMI: visible(row.name, ascii_only=layout.ascii_only),
        Column.TYPE: type_mark(row),
        Column.PROOF: _proof(row, short=False),
        Column.VCPUS: "-" if row.vcpus is None else str(row.vcpus),
        **{counter.name: number(row.rates.get(counter.name)) for counter in layout.counters},
        Column.AGE: age(row.age_s),
    }


def type_mark(row: Row) -> str:
    """Return the type, with ``!`` for a fallback and ``?`` for an inferred type."""
    kind = row.verdict.type
    if row.severity is Severity.FALLBACK:
        return f"{kind.value}!"
    inferred = not row.verdict.verified and kind is not HypervisorType.UNKNOWN
    return f"{kind.value}?" if inferred else kind.value


def _proof(row: Row, *, short: bool) -> str:
    reason = deciding_reason(row.verdict)
    return reason.short if short else reason.sentence


def _headings(layout: Layout) -> dict[Key, str]:
    """Return the headings of the columns of a layout, in order."""
    long = layout.width is None or layout.width >= LONG_HEADINGS_FROM
    headings: dict[Key, str] = {}
    for column in Column:
        if layout.minute or column is not Column.MINUTE:
            headings[column] = column.value
        if column is Column.VCPUS:
            headings |= {
                counter.name: counter.column.text(long=long)
                for counter in layout.counters
                if counter.column is not None
            }
    return headings


def _widths(contents: Sequence[Mapping[Key, str]], layout: Layout) -> dict[Key, int]:
    """Return the widths of the columns that are shown, in order."""
    headings = _headings(layout)
    wants = {
        column: max((cell_len(row.get(column, "")) for row in contents), default=0)
        for column in headings
    }
    minimums = {
        column: max(_MINIMUM_CELLS.get(column, _MINIMUM_COUNTER_CELLS), len(heading))
        for column, heading in headings.items()
    }
    return fit_columns(wants, minimums, layout.width)


def fit_columns(
    wants: Mapping[Key, int], minimums: Mapping[Key, int], width: int | None
) -> dict[Key, int]:
    """Return the widths of the columns that a line of ``width`` cells has room for, in order.

    wants holds the width of the widest content of each column, and minimums the width below which a
    column is not shown. width None means as many cells as wanted. Columns that must not be cut get
    the width they want. If the line has no room for that, the least important columns are left out.
    The remaining cells go to the columns of ``_GROWING``.
    """
    if width is None:
        return {column: max(minimums[column], want) for column, want in wants.items()}
    needs = {
        column: minimums[column] if column in _CUT else max(minimums[column], want)
        for column, want in wants.items()
    }
    shown = tuple(needs)
    counters = [column for column in needs if column not in _MINIMUM_CELLS]
    for column in (*_DISPENSABLE, *counters, Column.PROOF):
        if _line_cells(shown, needs) > width:
            shown = tuple(kept for kept in shown if kept is not column)
    spare = max(width - _line_cells(shown, needs), 0)
    widths = {column: needs[column] for column in shown}
    for column, most in (*_GROWING, (Column.MINUTE, MINUTE_CELLS)):
        if column in widths:
            wanted = most if column is Column.MINUTE else min(wants[column], most)
            more = min(max(wanted - widths[column], 0), spare)
            widths[column] += more
            spare -= more
    return widths


def _line_cells(columns: Sequence[Key], widths: Mapping[Key, int]) -> int:
    """Return the width of a line of these columns, with one blank between two columns."""
    return sum(widths[column] + 1 for column in columns) - 1


def _append(line: Text, text: str, style: str | Style) -> None:
    if line:
        line.append(" ")
    line.append(text, style)


def _cut(line: Text, layout: Layout) -> Text:
    """Strip blanks at the end, and cut the line to the terminal's width."""
    line.rstrip()
    if layout.width is not None and line.cell_len > layout.width:
        line.truncate(layout.width)
    return line


def _style(row: Row, column: Key) -> str:
    if column is Column.TYPE:
        return _URGENT if row.severity.urgent else _STYLES[row.verdict.type]
    if column is Column.PROOF and row.severity is Severity.CONTRADICTION:
        return _URGENT
    styles: Mapping[Key, str] = {Column.MINUTE: "cyan", Column.AGE: "dim", Column.PROOF: "dim"}
    return styles.get(column, "")
