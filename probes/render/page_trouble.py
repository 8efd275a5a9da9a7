# SPDX-License-Identifier: Apache-2.0
"""Says what the page shows on top: what needs attention, with its cause and its remedy. Pure.

Owns what is trouble, and which VMs are listed together; the words come from the tables of reasons
and causes, and from vocabulary.py. Must not judge.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from probes.judge.cause import CauseFound
from probes.judge.reasons import Outcome, Reason, Severity
from probes.judge.verdict import Verdict
from probes.report.causes import is_any_available
from probes.report.missed_runs import MISSED_LABEL, missed_runs
from probes.report.model import NodeReport, ProbeHealth, ProcessState
from probes.report.vocabulary import (
    Subject,
    deciding_reason,
    subject_of_process,
    subject_of_vmi,
    watch_error,
    watch_state,
)

MAX_LISTED = 10
"""The most VMs that are listed by name in one trouble; the table below has all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """Something that needs attention. All words may be foreign text."""

    label: str
    outcome: Outcome
    cause: str
    remedy: str | None
    """What a person can do; None: no remedy is known."""
    subjects: tuple[Subject, ...] = ()
    """The first of the VMs and processes that it concerns."""
    left_out: int = 0
    """How many more it concerns."""


def troubles(report: NodeReport) -> Iterator[Trouble]:
    """Return what needs attention: VMs, the most urgent first, and what hvprobe cannot observe.

    That a verdict is not verified is no trouble: a VM that is paused cannot be proven to run.
    """
    yield from _of_vms(report)
    yield from _of_node(report)
    yield from _of_health(report.health)


def _of_vms(report: NodeReport) -> Iterator[Trouble]:
    """Yield one trouble for all VMs and processes that have the same cause and remedy."""
    unnamed = (
        subject_of_process(process, None)
        for process in report.processes
        if process.state is not ProcessState.ATTRIBUTED
    )
    groups: dict[tuple[Severity, str, str | None], list[Subject]] = {}
    for subject in (*map(subject_of_vmi, report.vmis), *unnamed):
        if subject.severity <= Severity.UNKNOWN:
            cause, remedy = _cause(subject.severity, subject.verdict, subject.cause)
            groups.setdefault((subject.severity, cause, remedy), []).append(subject)
    for (severity, cause, remedy), found in sorted(groups.items(), key=lambda group: group[0][0]):
        in_order = sorted(found, key=lambda subject: subject.order)
        details = {each.cause.sentence for each in found if each.cause is not None}
        yield Trouble(
            label=severity.label,
            outcome=severity.outcome,
            cause=details.pop() if severity is Severity.FALLBACK and len(details) == 1 else cause,
            remedy=remedy,
            subjects=tuple(in_order[:MAX_LISTED]),
            left_out=max(0, len(found) - MAX_LISTED),
        )


def _cause(
    severity: Severity, verdict: Verdict, cause: CauseFound | None
) -> tuple[str, str | None]:
    """Return the cause of a trouble without what differs from VM to VM, and its remedy."""
    if severity is Severity.FALLBACK and cause is not None:
        return cause.cause.phrase, cause.cause.remedy
    reason = deciding_reason(verdict)
    remedies = (each.remedy for each in (reason, *verdict.reasons) if each.remedy is not None)
    return reason.sentence, next(remedies, None)


def _of_node(report: NodeReport) -> Iterator[Trouble]:
    if is_any_available(report.accelerators) is False:
        for accelerator in report.accelerators:
            if accelerator.problem is not None:
                yield Trouble(
                    label=f"{accelerator.type.value} not usable on this node",
                    outcome=Outcome.BAD,
                    cause=accelerator.problem.detail,
                    remedy=accelerator.problem.remedy,
                )
    if not report.proc_readable:
        yield Trouble(
            label="no processes",
            outcome=Outcome.BAD,
            cause="/proc of the node is not readable",
            remedy="give the host's with --proc",
        )
    watch = report.health.vmi_watch
    if watch is not None and watch_state(watch).outcome is not Outcome.GOOD:
        yield Trouble(
            label=f"VMI names {watch_state(watch).value}",
            outcome=watch_state(watch).outcome,
            cause=watch_error(watch),
            remedy=None,
        )


def _of_health(health: ProbeHealth) -> Iterator[Trouble]:
    doctor = Reason.HOOKS_MISSING.remedy
    broken = [each for each in health.hooks if not each.attached and not each.inactive]
    if health.ledger_error is not None:
        yield Trouble(
            label="no kernel table", outcome=Outcome.BAD, cause=health.ledger_error, remedy=doctor
        )
    elif broken:
        reasons = "; ".join(f"{status.hook.name}: {status.reason}" for status in broken)
        yield Trouble(
            label="hooks not attached", outcome=Outcome.DEGRADED, cause=reasons, remedy=doctor
        )
    if health.ledger_dropped_total:
        yield Trouble(
            label="events lost",
            outcome=Outcome.BAD,
            cause=f"{Reason.LEDGER_INCOMPLETE.sentence}: {health.ledger_dropped_total}",
            remedy=Reason.LEDGER_INCOMPLETE.remedy,
        )
    missed = missed_runs(health)
    if missed is not None and missed.total:
        yield Trouble(
            label=MISSED_LABEL, outcome=missed.outcome, cause=missed.why, remedy=missed.remedy
        )
