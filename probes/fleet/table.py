# SPDX-License-Identifier: Apache-2.0
"""Lays rows of text out as a table, CSV or JSON. Pure.

Owns columns, widths and emphasis. Foreign text is made visible here, in every form that a terminal
may show. Must not know what a row means (views.py).
"""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len

from probes.judge.reasons import Outcome
from probes.render.terminal_text import fit, visible

_GAP = "   "


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRow:
    """One row of texts."""

    texts: tuple[str, ...]
    """May hold foreign text."""
    outcome: Outcome = Outcome.GOOD
    """How it is emphasized."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Headings and rows."""

    headings: tuple[str, ...]
    rows: tuple[TableRow, ...]
    right: frozenset[str] = frozenset()
    """Headings of columns whose texts are aligned to the right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableLine:
    """One line of a table as it is printed; outcome is None for the headings."""

    text: str
    outcome: Outcome | None


def lines(table: Table, *, ascii_only: bool) -> Iterator[TableLine]:
    """Yield the lines of a table. Each column is as wide as its widest text."""
    shown = [
        (tuple(visible(text, ascii_only=ascii_only) for text in row.texts), row.outcome)
        for row in table.rows
    ]
    widths = [
        max(cell_len(texts[at]) for texts in (table.headings, *(texts for texts, _ in shown)))
        for at in range(len(table.headings))
    ]
    yield TableLine(text=_line(table, table.headings, widths), outcome=None)
    for texts, outcome in shown:
        yield TableLine(text=_line(table, texts, widths), outcome=outcome)


def as_csv(table: Table) -> str:
    """Return a table as CSV with a line of headings, in lower case."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([_key(heading) for heading in table.headings])
    for row in table.rows:
        writer.writerow([_cell(text) for text in row.texts])
    return out.getvalue()


def _line(table: Table, texts: Sequence[str], widths: Sequence[int]) -> str:
    parts = [
        fit(text, width, right=heading in table.right)
        for heading, text, width in zip(table.headings, texts, widths, strict=True)
    ]
    return _GAP.join(parts).rstrip()


def _key(heading: str) -> str:
    return heading.lower().replace(" ", "_").replace("/s", "_per_second")


def _cell(text: str) -> str:
    """Return the text of a CSV cell: ``-`` means nothing, and no spreadsheet takes it for code."""
    shown = visible("" if text == "-" else text)
    return f"'{shown}" if shown[:1] in ("=", "+", "-", "@") else shown
