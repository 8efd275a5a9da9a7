# SPDX-License-Identifier: Apache-2.0
"""The table of the live view: rows → cells of fitting width. Pure.

Owns the columns: what each shows, and how much room it gets. Must not know header, keys, or where
the table is shown. Widths of all text are counted in cells (terminal_text).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from rich.text import Text

from probes.host.process import HypervisorType
from probes.judge.reasons import Severity
from probes.render.live.history import MINUTE_S, History
from probes.render.live.rows import Row
from probes.render.terminal_text import cells, fit, visible
from probes.report.vocabulary import deciding_reason

MINUTE_CELLS = int(MINUTE_S)
"""More would show nothing more."""
LONG_HEADINGS_FROM = 110
"""Cells from which the counters' headings are written out."""


class Column(StrEnum):
    """A column; the value is its heading."""

    TGID = "TGID"
    COMMAND = "COMMAND"
    VMI = "VMI"
    TYPE = "TYPE"
    PROOF = "PROOF"
    VCPUS = "vCPU"
    RUNS = "RUN/s"
    EXITS = "EXIT/s"
    MINUTE = "1 MIN"
    AGE = "AGE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The layout of the table."""

    width: int | None
    """Cells of the terminal; None: as wide as the table needs."""
    ascii_only: bool
    minute: bool
    """Whether there is a last minute to be drawn."""
    runs_counted: bool
    """Whether KVM_RUN is counted here; otherwise its returns are shown."""


_RIGHT = frozenset({Column.TGID, Column.VCPUS, Column.RUNS, Column.EXITS, Column.AGE})
_LEAST = {
    Column.TGID: 4,
    Column.COMMAND: 7,
    Column.VMI: 13,
    Column.TYPE: 7,
    Column.PROOF: 12,
    Column.VCPUS: 4,
    Column.RUNS: 6,
    Column.EXITS: 6,
    Column.MINUTE: 5,
    Column.AGE: 4,
}
_DISPENSABLE = (
    Column.MINUTE,
    Column.COMMAND,
    Column.AGE,
    Column.VCPUS,
    Column.RUNS,
    Column.EXITS,
    Column.PROOF,
)
"""Left out one after the other where even the least widths find no room."""
_GROWING = (
    (Column.VMI, 24),
    (Column.COMMAND, 15),
    (Column.PROOF, 44),
    (Column.VMI, 80),
    (Column.PROOF, 80),
    (Column.COMMAND, 80),
)
"""Who gets room, in this order, and up to how much; the last minute takes the rest."""
_CUT = frozenset(column for column, _ in _GROWING)

_STYLES = {
    HypervisorType.KVM: "green",
    HypervisorType.MSHV: "green",
    HypervisorType.TCG: "yellow",
    HypervisorType.UNKNOWN: "magenta",
}
_URGENT = "bold red"
_BARS, _ASCII_BARS = "▁▂▃▄▅▆▇█", "_.:-=+*#"


def table(rows: Sequence[Row], history: History, look: Look) -> list[Text]:
    """Heading and one line per row, none wider than look.width."""
    contents = [_contents(row, look) for row in rows]
    widths = _widths(contents, look)
    heading = Text()
    for column, width in widths.items():
        _append(heading, fit(_heading(column, look), width, right=column in _RIGHT), "bold")
    lines = [_cut(heading, look)]
    for row, content in zip(rows, contents, strict=True):
        line = Text()
        for column, width in widths.items():
            text = content.get(column, "")
            if column is Column.PROOF and cells(text) > width:
                text = _proof(row, short=True)
            if column is Column.MINUTE and row.vmm is not None:
                text = bars(history.minute(row.vmm, width), ascii_only=look.ascii_only)
            text = fit(text, width, right=column in _RIGHT, ascii_only=look.ascii_only)
            _append(line, text, _style(row, column))
        lines.append(_cut(line, look))
    return lines


def number(value: float | None) -> str:
    """A rate or a count in at most six cells; ``-``: not known."""
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
    """How long, in at most four cells."""
    if seconds is None:
        return "-"
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{min(int(seconds / length), 999)}{unit}"
    return f"{int(seconds)}s"


def bars(values: Sequence[float | None], *, ascii_only: bool) -> str:
    """One bar per value, relative to the highest; a blank where there is no value."""
    steps = _ASCII_BARS if ascii_only else _BARS
    most = max((it for it in values if it is not None), default=0.0)
    return "".join(
        " " if it is None else steps[round(it / most * (len(steps) - 1)) if most else 0]
        for it in values
    )


def _contents(row: Row, look: Look) -> dict[Column, str]:
    rates = row.rates
    runs = rates.runs if look.runs_counted else rates.userspace_exits
    return {
        Column.TGID: "-" if row.tgid is None else str(row.tgid),
        Column.COMMAND: visible(row.command, ascii_only=look.ascii_only),
        Column.VMI: visible(row.name, ascii_only=look.ascii_only),
        Column.TYPE: type_mark(row),
        Column.PROOF: _proof(row, short=False),
        Column.VCPUS: "-" if row.vcpus is None else str(row.vcpus),
        Column.RUNS: number(runs),
        Column.EXITS: number(rates.exits),
        Column.AGE: age(row.age_s),
    }


def type_mark(row: Row) -> str:
    """The type, with ``!`` for a fallback and ``?`` for what is only inferred."""
    kind = row.verdict.type
    if row.severity is Severity.FALLBACK:
        return f"{kind.value}!"
    inferred = not row.verdict.verified and kind is not HypervisorType.UNKNOWN
    return f"{kind.value}?" if inferred else kind.value


def _proof(row: Row, *, short: bool) -> str:
    reason = deciding_reason(row.verdict)
    return reason.short if short else reason.sentence


def _heading(column: Column, look: Look) -> str:
    long = look.width is None or look.width >= LONG_HEADINGS_FROM
    if column is Column.RUNS and not look.runs_counted:
        return "USER_EXIT/s" if long else "USER/s"
    if column is Column.RUNS and long:
        return "KVM_RUN/s"
    return column.value


def _widths(contents: Sequence[dict[Column, str]], look: Look) -> dict[Column, int]:
    """Of the columns that are shown, in order."""
    columns = [column for column in Column if look.minute or column is not Column.MINUTE]
    wants = {
        column: max((cells(row.get(column, "")) for row in contents), default=0)
        for column in columns
    }
    least = {column: max(_LEAST[column], len(_heading(column, look))) for column in columns}
    return fit_columns(wants, least, look.width)


def fit_columns(
    wants: Mapping[Column, int], least: Mapping[Column, int], width: int | None
) -> dict[Column, int]:
    """The columns of ``wants`` that a line of so many cells has room for, in its order, and widths.

    wants: cells of the widest content. least: below this a column is not shown. width: None for
    as many as are wanted. Columns of which nothing may be cut get what they want; if that is too
    much, the least important are left out; then what is left goes to the others, in order.
    """
    if width is None:
        return {column: max(least[column], want) for column, want in wants.items()}
    needs = {
        column: least[column] if column in _CUT else max(least[column], want)
        for column, want in wants.items()
    }
    shown = tuple(needs)
    for column in _DISPENSABLE:
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


def _line_cells(columns: Sequence[Column], widths: Mapping[Column, int]) -> int:
    """Cells of a line of these columns, a blank between two."""
    return sum(widths[column] + 1 for column in columns) - 1


def _append(line: Text, text: str, style: str) -> None:
    if line:
        line.append(" ")
    line.append(text, style)


def _cut(line: Text, look: Look) -> Text:
    """Strip blanks at the end, and cut the line to the terminal's width."""
    line.rstrip()
    if look.width is not None and line.cell_len > look.width:
        line.truncate(look.width)
    return line


def _style(row: Row, column: Column) -> str:
    if column is Column.TYPE:
        return _URGENT if row.severity.urgent else _STYLES[row.verdict.type]
    if column is Column.PROOF and row.severity is Severity.CONTRADICTION:
        return _URGENT
    return {Column.MINUTE: "cyan", Column.AGE: "dim", Column.PROOF: "dim"}.get(column, "")
