# SPDX-License-Identifier: Apache-2.0
"""Says what the page shows of hvprobe itself: accelerators, counters, sources and hooks. Pure.

Owns the items and the order of the hooks; words and emphasis come from vocabulary.py, the markup is
in templates/page.html. Must not judge.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from ebpf.hook_status import HookStatus
from probes.host.hypervisors import HYPERVISORS
from probes.judge.reasons import Outcome
from probes.report.missed_runs import MISSED_LABEL, missed_runs
from probes.report.model import NodeReport, ProbeHealth
from probes.report.vocabulary import WatchState, counter_states, say, watch_error, watch_state
from probes.vmi.model import WatchStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One fact about hvprobe or the node."""

    label: str
    value: str
    detail: str | None = None
    outcome: Outcome | None = None
    """None: it is neither good nor bad."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HookRow:
    """How one hook is attached."""

    name: str
    attached_by: str
    proves: str
    reason: str
    """Why it is not attached; empty: it is."""
    missed_total: int
    outcome: Outcome | None
    """None: it is inactive, and nothing is wrong."""


def health_items(report: NodeReport) -> Iterator[Item]:
    """Return what hvprobe can observe on this node, and why it cannot observe more."""
    yield from _node_items(report)
    yield _ledger_item(report.health)
    missed = missed_runs(report.health)
    if missed is not None:
        yield Item(
            label=MISSED_LABEL, value=missed.value, detail=missed.why, outcome=missed.outcome
        )
    for counter in counter_states(report.health):
        words = counter.words
        yield Item(
            label=counter.label, value=words.value, detail=counter.why, outcome=words.outcome
        )
    if report.health.vmi_watch is not None:
        yield _watch_item(report.health.vmi_watch)
    for source, count in report.health.errors_total.items():
        outcome = Outcome.BAD if count else Outcome.GOOD
        yield Item(label=f"errors of {source.value}", value=str(count), outcome=outcome)
    if not report.proc_readable:
        remedy = "give the host's with --proc"
        yield Item(label="/proc", value="not readable", detail=remedy, outcome=Outcome.BAD)


def hook_rows(report: NodeReport) -> list[HookRow]:
    """Return the hooks: the broken ones first, then those that miss runs, the inactive ones last.

    Hooks that are alike keep the order of the table of hooks.
    """
    return sorted((_hook_row(status) for status in report.health.hooks), key=_by_weight)


def has_hook_problem(rows: list[HookRow]) -> bool:
    """Return whether a hook needs attention, so that the table must not be folded."""
    return any(row.outcome is Outcome.DEGRADED for row in rows)


def hook_summary(rows: list[HookRow]) -> str:
    """Say in a few words how the hooks are."""
    missing = sum(row.outcome is Outcome.DEGRADED and bool(row.reason) for row in rows)
    inactive = sum(row.outcome is None for row in rows)
    wanted = len(rows) - inactive
    missed = sum(bool(row.missed_total) for row in rows)
    parts = [f"{wanted - missing} of {wanted} hooks attached"]
    if missed:
        parts.append(f"{missed} with skipped runs")
    if inactive:
        parts.append(f"{inactive} inactive")
    return ", ".join(parts)


def _by_weight(row: HookRow) -> tuple[bool, bool, bool]:
    return row.outcome is None, row.outcome is Outcome.GOOD, not row.reason


def _hook_row(status: HookStatus) -> HookRow:
    """Return the row of a hook. An inactive one is not marked, because nothing is wrong."""
    missed = status.missed_total or 0
    healthy = status.attached and not missed
    return HookRow(
        name=status.hook.name,
        attached_by="inactive" if status.inactive else status.form,
        proves=status.hook.proves,
        reason=status.reason or "",
        missed_total=missed,
        outcome=None if status.inactive else Outcome.GOOD if healthy else Outcome.DEGRADED,
    )


def _node_items(report: NodeReport) -> Iterator[Item]:
    for accelerator in report.accelerators:
        yield Item(
            label=f"{accelerator.type.value} on this node",
            value=say(accelerator.available, "usable", "not usable", "not tried"),
            detail=accelerator.problem.text if accelerator.problem else None,
            outcome=say(accelerator.available, Outcome.GOOD, Outcome.BAD, Outcome.DEGRADED),
        )
    nested = say(report.virtualization.nested, "the node itself is a VM", "on bare hardware", None)
    for hypervisor in HYPERVISORS:
        module = report.virtualization.modules.get(hypervisor.type)
        if module is not None or hypervisor.expected:
            yield Item(label=f"{hypervisor.label} module", value=module or "none", detail=nested)


def _ledger_item(health: ProbeHealth) -> Item:
    if health.ledger_error is not None:
        error = health.ledger_error
        return Item(label="kernel table", value="none", detail=error, outcome=Outcome.BAD)
    full = health.ledger_entries >= health.ledger_capacity or health.ledger_dropped_total > 0
    return Item(
        label="kernel table",
        value=f"{health.ledger_entries} of {health.ledger_capacity}",
        detail=f"{health.ledger_dropped_total} events dropped",
        outcome=Outcome.BAD if full else Outcome.GOOD,
    )


def _watch_item(watch: WatchStatus) -> Item:
    state = watch_state(watch)
    error = None if state is WatchState.CURRENT else watch_error(watch)
    return Item(label="VMI names", value=state.value, detail=error, outcome=state.outcome)
