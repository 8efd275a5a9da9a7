# SPDX-License-Identifier: Apache-2.0
"""Renders NodeReport as the page at ``/``. Pure.

Owns what the page shows in which order; the markup is in templates/page.html. Must not judge. The
page needs no JavaScript and no external resources.
"""

import collections
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ebpf import counters
from ebpf.counters import EXITS, Counter
from probes.host.hypervisors import HYPERVISORS, HypervisorType
from probes.judge.cause import CauseFound
from probes.judge.reasons import Outcome, Severity
from probes.judge.verdict import Verdict
from probes.render.page_frame import Frame, framed, vm_address
from probes.render.page_health import has_hook_problem, health_items, hook_rows, hook_summary
from probes.render.page_templates import MAX_NAME_CHARS
from probes.render.page_trouble import troubles
from probes.render.rates import rates_by_vm
from probes.report.exit_sources import EXIT_SOURCES, exit_sources
from probes.report.model import NodeReport, ProcessReport, ProcessState, VmiReport
from probes.report.vocabulary import Subject, cause_parts, subject_of_process, subject_of_vmi

Rates = Mapping[str, float]
"""Events per second by the counter's name; absent: not counted, or only one report has it."""
_TYPE_OUTCOMES: Mapping[HypervisorType, Outcome | None] = {
    **{hypervisor.type: Outcome.GOOD for hypervisor in HYPERVISORS},
    HypervisorType.TCG: Outcome.DEGRADED,
    HypervisorType.UNKNOWN: None,
}
_TILES: Mapping[Severity, str] = {
    Severity.CONTRADICTION: "contradicting the kernel",
    Severity.FALLBACK: "emulated although hardware is available",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """A number of the summary."""

    count: int
    label: str
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What both tables show of a verdict."""

    type: str
    urgent: str | None
    """The word for its severity; None: it is not urgent."""
    outcome: Outcome | None
    proof: str
    proof_outcome: Outcome | None
    """None: there is none to speak of."""
    reasons: str
    causes: tuple[tuple[str, str], ...]
    """Why the guest is emulated and what to do, as label and words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """The rate of one counter of a VM."""

    heading: str
    text: str | None
    """None: unknown."""
    source: str | None
    """What counts it; None: there is only one way."""


def page(
    report: NodeReport | None,
    *,
    previous: NodeReport | None,
    failure: str | None,
    last_known_s: float,
    refreshing: bool = True,
) -> bytes:
    """Render the page in UTF-8.

    report is the newest one; None: there is none yet. previous is an older one, for rates. failure
    says why the report is not current. last_known_s is how long /metrics then keeps showing VMs.
    refreshing says whether the browser loads the page again by itself.
    """
    frame = Frame(
        title=report.node if report else "this node",
        report=report,
        failure=failure,
        last_known_s=last_known_s,
        refreshing=refreshing,
        own="./",
    )
    values = {"most_title": MAX_NAME_CHARS, "shown": report is not None}
    return framed("page.html", frame, values | (_values(report, previous) if report else {}))


def _values(report: NodeReport, previous: NodeReport | None) -> dict[str, object]:
    window_s = report.taken_unix_s - previous.taken_unix_s if previous else 0.0
    rates = rates_by_vm(report, previous)
    counted = [counter for counter in counters.ranked() if counter.page_heading is not None]
    subjects = [(subject_of_vmi(vmi), vmi) for vmi in report.vmis]
    subjects.sort(key=lambda pair: pair[0].order)
    hooks = hook_rows(report)
    return {
        "troubles": [*troubles(report)],
        "tiles": [*_tiles(report, [subject for subject, _ in subjects])],
        "headings": [counter.page_heading for counter in counted],
        "vmis": (
            (
                vmi.vm,
                _judged(vmi.verdict, subject.severity, vmi.cause),
                [_rate(vmi, counter, rates.get(vmi.vm, {})) for counter in counted],
            )
            for subject, vmi in subjects
        ),
        "vm_count": len(subjects),
        "window_s": window_s,
        "exit_sources": exit_sources(report),
        "others": [*_other_processes(report)],
        "items": [*health_items(report)],
        "hooks": hooks,
        "hook_problem": has_hook_problem(hooks),
        "hook_summary": hook_summary(hooks),
        "address": vm_address,
    }


def _tiles(report: NodeReport, subjects: Sequence[Subject]) -> Iterator[Tile]:
    types = collections.Counter(vmi.verdict.type for vmi in report.vmis)
    severities = collections.Counter(subject.severity for subject in subjects)
    inferred = sum(not vmi.verdict.verified for vmi in report.vmis)
    yield Tile(count=len(report.vmis), label="VM" if len(report.vmis) == 1 else "VMs")
    for kind, outcome in _TYPE_OUTCOMES.items():
        if types[kind]:
            yield Tile(count=types[kind], label=kind.value, outcome=outcome)
    for severity, label in _TILES.items():
        if severities[severity]:
            yield Tile(count=severities[severity], label=label, outcome=severity.outcome)
    if inferred:
        unverified = Severity.UNVERIFIED
        yield Tile(count=inferred, label=unverified.label, outcome=unverified.outcome)


def _rate(vmi: VmiReport, counter: Counter, rates: Rates) -> Rate:
    """Return the rate of a counter; that of exits says what counts them."""
    value = rates.get(counter.name)
    counted_by = vmi.exits_source if counter is EXITS else None
    return Rate(
        heading=counter.page_heading or "",
        text=None if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.1f}",
        source=None if counted_by is None else f"counted by {EXIT_SOURCES[counted_by]}",
    )


def _other_processes(report: NodeReport) -> Sequence[tuple[ProcessReport, Judged, str]]:
    """Return the processes that run no VM with a name, the most urgent first."""
    others = [
        (subject_of_process(process, None), process)
        for process in report.processes
        if process.state is not ProcessState.ATTRIBUTED
    ]
    return [
        (
            process,
            _judged(process.verdict, subject.severity, process.cause),
            "capability probe" if process.state is ProcessState.PROBE else "no VM of this name",
        )
        for subject, process in sorted(others, key=lambda other: other[0].order)
    ]


def _judged(verdict: Verdict, severity: Severity, cause: CauseFound | None) -> Judged:
    proof: tuple[str, Outcome | None] = ("inferred", Outcome.DEGRADED)
    if verdict.verified:
        proof = ("verified", Outcome.GOOD)
    elif verdict.type is HypervisorType.UNKNOWN:
        proof = ("no proof", None)
    return Judged(
        type=verdict.type.value,
        urgent=severity.label if severity.urgent else None,
        outcome=severity.outcome if severity.urgent else _TYPE_OUTCOMES[verdict.type],
        proof=proof[0],
        proof_outcome=proof[1],
        reasons="; ".join(reason.sentence for reason in verdict.reasons),
        causes=cause_parts(cause) if cause is not None else (),
    )
