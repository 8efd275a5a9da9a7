# SPDX-License-Identifier: Apache-2.0
"""Renders the doctor's checks as text for a person, lines for a program, or JSON. Pure.

Owns marks and layout. Must not know what is checked, nor read anything.
"""

import json
from collections.abc import Sequence

from rich.text import Text

from probes.judge.reasons import Outcome
from probes.render.doctor import Ability, Check
from probes.render.doctor_json import doctor_json
from probes.render.terminal_text import cut, visible

SUMMARIES = {
    Ability.VERIFIED: "verdicts can be verified on this node",
    Ability.INFERRED: "verdicts can only be inferred on this node",
    Ability.NOTHING: "this node's VMs cannot be judged",
}
_MARKS = {Outcome.GOOD: "✓", Outcome.DEGRADED: "!", Outcome.BAD: "✗"}
_ASCII_MARKS = {Outcome.GOOD: "ok", Outcome.DEGRADED: "--", Outcome.BAD: "NO"}
_STYLES = {Outcome.GOOD: "green", Outcome.DEGRADED: "yellow", Outcome.BAD: "bold red"}
_SUMMARY_OUTCOMES = {
    Ability.VERIFIED: Outcome.GOOD,
    Ability.INFERRED: Outcome.DEGRADED,
    Ability.NOTHING: Outcome.BAD,
}


def lines(checks: Sequence[Check], ability: Ability) -> list[str]:
    """Render one line per check with its reason and remedy, then the summary, for a pipe."""
    return [
        *(
            visible(
                f"{check.outcome.value:<4}  {check.label}: {check.finding}"
                + (f"; {check.remedy}" if check.remedy else "")
            )
            for check in checks
        ),
        SUMMARIES[ability],
    ]


def screen(
    checks: Sequence[Check], ability: Ability, *, width: int, ascii_only: bool
) -> list[Text]:
    """Render for a terminal of this width: marks, colours, and each remedy below its check."""
    marks = _ASCII_MARKS if ascii_only else _MARKS
    arrow = "->" if ascii_only else "→"
    indent = len(marks[Outcome.GOOD]) + 1
    shown: list[Text] = []
    for check in checks:
        mark = Text(f"{marks[check.outcome]} ", _STYLES[check.outcome])
        said = Text()
        said.append(f"{check.label}: ", "bold")
        said.append(visible(check.finding, ascii_only=ascii_only))
        shown += _indented(mark, said, indent, width)
        if check.remedy:
            remedy = Text(visible(check.remedy, ascii_only=ascii_only), "cyan")
            first = Text(" " * indent + f"{arrow} ", "cyan")
            shown += _indented(first, remedy, indent + len(arrow) + 1, width)
    outcome = _SUMMARY_OUTCOMES[ability]
    summary = Text(f"{marks[outcome]} {SUMMARIES[ability]}", f"bold {_STYLES[outcome]}")
    return [*shown, Text(), summary]


def to_json(checks: Sequence[Check], ability: Ability) -> str:
    """Render the checks as one JSON object."""
    return json.dumps(doctor_json(checks, ability), indent=2)


def _indented(first: Text, text: Text, indent: int, width: int) -> list[Text]:
    """Wrap text after its mark between words, with further lines indented."""
    room = max(width - indent, 20)
    out: list[Text] = []
    rest = text
    while True:
        line, rest = _split(rest, room)
        out.append((Text(" " * indent) if out else first) + line)
        if not rest:
            return out


def _split(text: Text, room: int) -> tuple[Text, Text]:
    """Split text into what fits, up to a blank if there is one, and the rest."""
    if text.cell_len <= room:
        return text, Text()
    at = len(cut(text.plain, room + 1))
    blank = text.plain.rfind(" ", 0, at)
    if blank > 0:
        return text[:blank], text[blank + 1 :]
    at = max(len(cut(text.plain, room)), 1)
    return text[:at], text[at:]
