# SPDX-License-Identifier: Apache-2.0
"""Renders NodeReport as the page at ``/``. Pure.

Owns the page's sections. Must not judge, and must not trust any text: names come from command lines
and may contain markup, control characters or marks that reverse the direction of the following text
(markup.py escapes them). The page needs no JavaScript and no external resources.
"""

import collections
from collections.abc import Iterator, Mapping, Sequence

from ebpf import counters
from ebpf.counters import EXITS, Counter
from probes.host.hypervisors import HYPERVISORS, HypervisorType
from probes.judge.cause import CauseFound
from probes.judge.reasons import Severity
from probes.judge.verdict import Verdict
from probes.render.markup import Markup, element, isolated, joined, line, plain, table, text
from probes.render.page_frame import document, failure_alarm, report_header, vm_link
from probes.render.page_health import health_section
from probes.render.page_style import CLASSES
from probes.render.rates import rates_of
from probes.report.exit_sources import EXIT_SOURCES, exit_sources
from probes.report.model import NodeReport, ProcessState, VmiReport
from probes.report.vocabulary import (
    cause_parts,
    subject_of_process,
    subject_of_vmi,
)
from probes.vmi.attribution import VmName

Rates = Mapping[str, float]
"""Events per second by the counter's name; absent: not counted, or only one report has it."""
_UNKNOWN = Markup('<span class="dim">&ndash;</span>')
_TYPE_CLASSES: Mapping[HypervisorType, str] = {
    **{hypervisor.type: "good" for hypervisor in HYPERVISORS},
    HypervisorType.TCG: "warn",
    HypervisorType.UNKNOWN: "",
}
_MAX_CAUSE_CHARS = 400
"""The most characters of a cause. It may name a device with its mode, and a user with groups."""
_TILES: Mapping[Severity, str] = {
    Severity.CONTRADICTION: "contradicting the kernel",
    Severity.FALLBACK: "emulated although hardware is available",
}


def page(
    report: NodeReport | None,
    *,
    previous: NodeReport | None,
    failure: str | None,
    last_known_s: float,
) -> bytes:
    """Render the page in UTF-8.

    report is the newest one; None: there is none yet. previous is an older one, for rates. failure
    says why the report is not current. last_known_s is how long /metrics then keeps showing VMs.
    """
    node = report.node if report else "this node"
    parts = [*failure_alarm(report, failure, last_known_s)]
    if report is not None:
        parts += _summary(report)
        parts += _vmis(report, previous)
        parts += _other_processes(report)
        parts += health_section(report)
    return document(
        title=text(node), header=report_header(report, isolated(node)), main=joined(parts)
    )


def _summary(report: NodeReport) -> Iterator[Markup]:
    types = collections.Counter(vmi.verdict.type for vmi in report.vmis)
    severities = collections.Counter(subject_of_vmi(vmi).severity for vmi in report.vmis)
    inferred = sum(not vmi.verdict.verified for vmi in report.vmis)
    yield Markup('<ul class="tiles">\n')
    yield _tile(len(report.vmis), "VM" if len(report.vmis) == 1 else "VMs")
    for kind, style in _TYPE_CLASSES.items():
        if types[kind]:
            yield _tile(types[kind], kind.value, style)
    for severity, label in _TILES.items():
        if severities[severity]:
            yield _tile(severities[severity], label, CLASSES[severity.outcome])
    if inferred:
        unverified = Severity.UNVERIFIED
        yield _tile(inferred, unverified.label, CLASSES[unverified.outcome])
    yield Markup("</ul>\n")


def _tile(count: int, label: str, style: str = "") -> Markup:
    return line("li", element("b", plain(str(count))), plain(f" {label}"), class_=style)


def _vmis(report: NodeReport, previous: NodeReport | None) -> Iterator[Markup]:
    yield Markup("<section>\n<h2>Virtual machines</h2>\n")
    if not report.vmis:
        yield Markup("<p>No VM with a name runs on this node.</p>\n</section>\n")
        return
    window_s = report.taken_unix_s - previous.taken_unix_s if previous else 0.0
    rates = _rates(report, previous, window_s)
    ordered = sorted(report.vmis, key=lambda vmi: subject_of_vmi(vmi).order)
    shown = [counter for counter in counters.ranked() if counter.page_heading is not None]
    rows = [_vmi_row(vmi, rates.get(vmi.vm, {}), shown) for vmi in ordered]
    headings = [counter.page_heading or "" for counter in shown]
    yield from table(("VM", "Type", "Proof", *headings, "Reasons"), rows)
    over = (
        f"Rates are over {window_s:.0f} s. "
        if window_s > 0
        else "Rates need two refreshes: reload the page. "
    )
    sources = exit_sources(report)
    counted = f" Exits are counted by {sources}." if sources is not None else ""
    unknown = Markup(": not counted here.")
    yield line("p", plain(over), _UNKNOWN, unknown, plain(counted), class_="dim")
    yield Markup("</section>\n")


def _vmi_row(vmi: VmiReport, rates: Rates, shown: Sequence[Counter]) -> tuple[Markup, ...]:
    namespace = element("span", isolated(vmi.vm.namespace), Markup("/"), class_="dim")
    return (
        vm_link(vmi.vm, joined((namespace, isolated(vmi.vm.name)))),
        _type(vmi.verdict, subject_of_vmi(vmi).severity),
        _proof(vmi.verdict),
        *(_counter_cell(vmi, counter, rates.get(counter.name)) for counter in shown),
        _reasons(vmi.verdict, vmi.cause),
    )


def _counter_cell(vmi: VmiReport, counter: Counter, rate: float | None) -> Markup:
    """Render a rate; that of exits says in its title what counts them."""
    if counter is not EXITS or vmi.exits_source is None:
        return _rate(rate)
    return element("span", _rate(rate), title=f"counted by {EXIT_SOURCES[vmi.exits_source]}")


def _rates(report: NodeReport, previous: NodeReport | None, window_s: float) -> dict[VmName, Rates]:
    """Return rates by VM.

    A VM that was restarted between the reports is a different process, so it has no rate.
    """
    before = {vmi.vm: vmi for vmi in previous.vmis} if previous else {}
    return {
        vmi.vm: rates_of(old.counters, vmi.counters, window_s)
        for vmi in report.vmis
        if (old := before.get(vmi.vm)) is not None and old.vmm == vmi.vmm
    }


def _other_processes(report: NodeReport) -> Iterator[Markup]:
    others = [
        (subject_of_process(process, None), process)
        for process in report.processes
        if process.state is not ProcessState.ATTRIBUTED
    ]
    if not others:
        return
    rows = [
        (
            joined(
                (
                    isolated(process.comm),
                    Markup(" "),
                    element("span", plain(str(process.vmm.tgid)), class_="dim"),
                )
            ),
            _type(process.verdict, subject.severity),
            _proof(process.verdict),
            _UNKNOWN if process.guest_name is None else isolated(process.guest_name),
            plain(
                "capability probe" if process.state is ProcessState.PROBE else "no VM of this name"
            ),
            _reasons(process.verdict, process.cause),
        )
        for subject, process in sorted(others, key=lambda other: other[0].order)
    ]
    yield Markup("<section>\n<h2>VMM processes without a VM</h2>\n")
    yield from table(("Process", "Type", "Proof", "Guest name", "State", "Reasons"), rows)
    yield Markup("</section>\n")


def _type(verdict: Verdict, severity: Severity) -> Markup:
    """Render the type. An urgent one is marked and says why."""
    kind = plain(verdict.type.value)
    if not severity.urgent:
        return element("b", kind, class_=_TYPE_CLASSES[verdict.type])
    style = CLASSES[severity.outcome]
    why = element("span", plain(severity.label), class_=style)
    return joined((element("b", kind, class_=style), Markup(" "), why))


def _proof(verdict: Verdict) -> Markup:
    if verdict.verified:
        return element("span", plain("verified"), class_="good")
    if verdict.type is HypervisorType.UNKNOWN:
        return element("span", plain("no proof"), class_="dim")
    return element("span", plain("inferred"), class_="warn")


def _reasons(verdict: Verdict, cause: CauseFound | None) -> Markup:
    """Render the reasons and, below them, why the guest is emulated and what to do."""
    reasons = plain("; ".join(reason.sentence for reason in verdict.reasons))
    parts = cause_parts(cause) if cause is not None else ()
    return joined(
        (
            reasons,
            *(
                element("div", plain(f"{label}: "), isolated(words, most=_MAX_CAUSE_CHARS))
                for label, words in parts
            ),
        )
    )


def _rate(value: float | None) -> Markup:
    if value is None:
        return _UNKNOWN
    return plain(f"{value:,.0f}" if value >= 10 else f"{value:.1f}")
