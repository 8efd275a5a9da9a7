# SPDX-License-Identifier: Apache-2.0
"""Lays out what agents say of one VM, and the doctors of all nodes. Pure.

The words are the agents'. They are foreign text, which is made visible here.
"""

from collections.abc import Iterator, Sequence

from probes.fleet.answers import CheckAnswer, DoctorAnswer, WhyAnswer, shown_version
from probes.fleet.model import NodeAnswer
from probes.fleet.table import TableLine
from probes.judge.reasons import Outcome
from probes.render.doctor import Ability
from probes.render.doctor_view import SUMMARIES
from probes.render.terminal_text import visible
from probes.render.why_text import laid_out
from probes.report.why_words import Line, Section

DOCTORS_SCHEMA = "hvprobe-fleet-doctor/v1"
_SUMMARIES = {ability.name.lower(): words for ability, words in SUMMARIES.items()}
_OUTCOMES = {outcome.value: outcome for outcome in Outcome}
_OF_ABILITY = {
    Ability.VERIFIED.name.lower(): Outcome.GOOD,
    Ability.INFERRED.name.lower(): Outcome.DEGRADED,
}
_MAX_CHECKS = 100

Doctors = Sequence[tuple[NodeAnswer, DoctorAnswer | None]]
"""Each node with its checks; None: it is missing, and the answer says why."""


def answered_text(said: WhyAnswer, *, width: int, ascii_only: bool) -> Iterator[str]:
    """Yield the lines of an explanation, as ``hvprobe why`` prints them on its node."""
    sections = [
        Section(
            title=section.title,
            lines=tuple(Line(label=label, words=words) for label, words in section.lines),
        )
        for section in said.sections
        if section.lines
    ]
    yield from laid_out(said.summary, sections, width=width, ascii_only=ascii_only)


def doctor_lines(found: Doctors, *, verbose: bool, ascii_only: bool) -> Iterator[TableLine]:
    """Yield a line for each node and one for each of its checks that is not fine, then a summary.

    verbose also yields those that are fine.
    """
    fine = missing = 0
    for answer, doctor in sorted(found, key=lambda pair: (pair[1] is not None, pair[0].node)):
        checks = [*_shown(doctor, verbose=verbose)] if doctor is not None else []
        missing += doctor is None
        fine += doctor is not None and _is_fine(doctor)
        if doctor is None:
            yield _line(f"{answer.node}: missing: {answer.failure}", Outcome.BAD, ascii_only)
        elif checks:
            words = _SUMMARIES.get(doctor.ability, "its ability is unknown to this hvprobe")
            outcome = _OF_ABILITY.get(doctor.ability, Outcome.BAD)
            yield _line(f"{answer.node}: {words}", outcome, ascii_only)
        for check in checks:
            remedy = f"; {check.remedy}" if check.remedy else ""
            text = f"  {check.outcome[:4]:<4}  {check.question}: {check.finding}{remedy}"
            yield _line(text, _outcome(check), ascii_only)
    total = len(found)
    words = f"{total} node{'' if total == 1 else 's'}: {fine} fine, "
    words += f"{total - fine - missing} with findings, {missing} missing"
    yield _line(words, None, ascii_only)


def doctors_json(found: Doctors, *, version: str, notice: str | None) -> dict[str, object]:
    """Convert the checks of all nodes to plain JSON values. Keys are a public interface."""
    return {
        "schema": DOCTORS_SCHEMA,
        "version": version,
        "notice": notice,
        "nodes": [
            {
                "node": answer.node,
                "version": shown_version(doctor.version) if doctor else None,
                "ability": doctor.ability if doctor else None,
                "failure": answer.failure,
                "checks": [
                    {
                        "question": check.question,
                        "outcome": check.outcome,
                        "finding": check.finding,
                        "remedy": check.remedy,
                    }
                    for check in (doctor.checks if doctor else ())
                ],
            }
            for answer, doctor in found
        ],
    }


def _shown(doctor: DoctorAnswer, *, verbose: bool) -> Iterator[CheckAnswer]:
    for check in doctor.checks[:_MAX_CHECKS]:
        if verbose or _outcome(check) is not Outcome.GOOD:
            yield check


def _is_fine(doctor: DoctorAnswer) -> bool:
    return all(_outcome(check) is Outcome.GOOD for check in doctor.checks)


def _outcome(check: CheckAnswer) -> Outcome:
    return _OUTCOMES.get(check.outcome, Outcome.BAD)


def _line(text: str, outcome: Outcome | None, ascii_only: bool) -> TableLine:
    return TableLine(text=visible(text, ascii_only=ascii_only), outcome=outcome)
