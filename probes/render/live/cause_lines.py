# SPDX-License-Identifier: Apache-2.0
"""Lays out the lines of the live view that say why one VM is emulated, and what to do. Pure.

Must not know where the lines stand; the words are those of vocabulary.py.
"""

import textwrap
from collections.abc import Iterator

from rich.text import Text

from probes.render.live.rows import Row
from probes.render.terminal_text import fit, visible
from probes.report.vocabulary import cause_parts

_BEGIN = "     "
_MINIMUM_CELLS = 20
"""How many cells the words get on a terminal however narrow; the frame cuts the line."""


def cause_lines(row: Row, *, width: int | None, ascii_only: bool) -> Iterator[Text]:
    """Yield the parts of the cause, each wrapped to the width; nothing if there is no cause."""
    for label, words in cause_parts(row.cause) if row.cause is not None else ():
        begin = f"{_BEGIN}{label} "
        room = None if width is None else max(width - len(begin), _MINIMUM_CELLS)
        shown = visible(words, ascii_only=ascii_only)
        pieces = [shown] if room is None else textwrap.wrap(shown, room, break_on_hyphens=False)
        for piece in pieces:
            # Wide characters take two cells, which wrapping does not know.
            fitted = piece if room is None else fit(piece, room, ascii_only=ascii_only).rstrip()
            line = Text(begin, "dim")
            line.append(fitted, "yellow")
            yield line
            begin = " " * len(begin)
