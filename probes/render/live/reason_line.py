# SPDX-License-Identifier: Apache-2.0
"""Lays out the line of the live view that shows one reason of a VM's exits. Pure.

Must not know where the line stands.
"""

from rich.text import Text

from probes.render.live.columns import number
from probes.render.live.history import ReasonRate
from probes.render.terminal_text import fit

_BAR_CELLS = 20


def reason_line(reason: ReasonRate, most: int, *, ascii_only: bool) -> Text:
    """Return ISA, name, total, rate, and a bar relative to the most frequent reason's total."""
    count = reason.count
    line = Text("     ")
    line.append(fit(count.isa.value, 6), "dim")
    line.append(fit(count.name, 26, ascii_only=ascii_only))
    line.append(f"{count.total:>12} {number(reason.per_second):>6}/s ")
    cells = round(count.total / most * _BAR_CELLS) if most else 0
    line.append(("#" if ascii_only else "█") * cells, "cyan")
    return line
