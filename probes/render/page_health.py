# SPDX-License-Identifier: Apache-2.0
"""Renders the page's section about hvprobe: accelerators, counters, sources and hooks. Pure.

Owns what the section says; words and emphasis come from vocabulary.py. Must not judge.
"""

from collections.abc import Iterator

from ebpf.hook_status import HookStatus
from probes.host.hypervisors import HYPERVISORS
from probes.judge.reasons import Outcome
from probes.render.markup import Markup, element, line, plain, table, text
from probes.render.page_style import CLASSES
from probes.report.missed_runs import MISSED_LABEL, missed_runs
from probes.report.model import NodeReport, ProbeHealth
from probes.report.vocabulary import WatchState, counter_states, say, watch_error, watch_state
from probes.vmi.model import WatchStatus


def health_section(report: NodeReport) -> Iterator[Markup]:
    """Render what hvprobe can observe on this node, and why it cannot observe more."""
    yield Markup("<section>\n<h2>Probe health</h2>\n<dl>\n")
    yield from _node_items(report)
    yield _ledger_item(report.health)
    missed = missed_runs(report.health)
    if missed is not None:
        yield _item(MISSED_LABEL, missed.value, missed.why, missed.outcome)
    for counter in counter_states(report.health):
        words = counter.words
        yield _item(counter.label, words.value, counter.why, words.outcome)
    if report.health.vmi_watch is not None:
        yield _watch_item(report.health.vmi_watch)
    for source, count in report.health.errors_total.items():
        outcome = Outcome.BAD if count else Outcome.GOOD
        yield _item(f"errors of {source.value}", str(count), None, outcome)
    if not report.proc_readable:
        yield _item("/proc", "not readable", "give the host's with --proc", Outcome.BAD)
    yield Markup("</dl>\n")
    rows = [
        (
            text(status.hook.name),
            _attached_by(status),
            text(status.hook.proves),
            text(status.reason or ""),
        )
        for status in report.health.hooks
    ]
    yield from table(("Hook", "Attached by", "Proves", "Why not"), rows)
    yield Markup("</section>\n")


def _node_items(report: NodeReport) -> Iterator[Markup]:
    for accelerator in report.accelerators:
        yield _item(
            f"{accelerator.type.value} on this node",
            say(accelerator.available, "usable", "not usable", "not tried"),
            accelerator.problem.text if accelerator.problem else None,
            say(accelerator.available, Outcome.GOOD, Outcome.BAD, Outcome.DEGRADED),
        )
    nested = say(report.virtualization.nested, "the node itself is a VM", "on bare hardware", None)
    for hypervisor in HYPERVISORS:
        module = report.virtualization.modules.get(hypervisor.type)
        if module is not None or hypervisor.expected:
            yield _item(f"{hypervisor.label} module", module or "none", nested)


def _attached_by(status: HookStatus) -> Markup:
    """Render how a hook is attached. An inactive one is not marked, because nothing is wrong."""
    if status.inactive:
        return plain("inactive")
    outcome = Outcome.GOOD if status.attached else Outcome.DEGRADED
    return element("b", plain(status.backend.value), class_=CLASSES[outcome])


def _ledger_item(health: ProbeHealth) -> Markup:
    if health.ledger_error is not None:
        return _item("kernel table", "none", health.ledger_error, Outcome.BAD)
    full = health.ledger_entries >= health.ledger_capacity or health.ledger_dropped_total > 0
    return _item(
        "kernel table",
        f"{health.ledger_entries} of {health.ledger_capacity}",
        f"{health.ledger_dropped_total} events dropped",
        Outcome.BAD if full else Outcome.GOOD,
    )


def _watch_item(watch: WatchStatus) -> Markup:
    state = watch_state(watch)
    error = None if state is WatchState.CURRENT else watch_error(watch)
    return _item("VMI names", state.value, error, state.outcome)


def _item(
    label: str, value: str, detail: str | None = None, outcome: Outcome | None = None
) -> Markup:
    shown = [element("b", text(value), class_=CLASSES[outcome] if outcome else "")]
    if detail:
        shown += [Markup(" "), element("span", text(detail), class_="dim")]
    return line("div", element("dt", plain(label)), element("dd", *shown))
