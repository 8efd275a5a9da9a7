# SPDX-License-Identifier: Apache-2.0
"""Renders what stands above the table: node, hooks, ledger, and what is unavailable. Pure.

Must not know the table, nor whether it is shown on a screen or printed.
"""

import collections
from collections.abc import Iterator
from datetime import UTC, datetime

from rich.text import Text

from ebpf.counters import EXITS, Counter
from probes.host.hypervisors import HYPERVISORS, HypervisorType
from probes.render.live.columns import Layout
from probes.render.live.frame_data import FrameData
from probes.render.live.options import REASONS_COST
from probes.render.terminal_text import fit, visible
from probes.report.exit_sources import exit_sources, statistics_count_all
from probes.report.missed_runs import MISSED_LABEL, missed_runs
from probes.report.model import CounterTrust, NodeReport
from probes.report.vocabulary import counter_state, live_counters, watch_error


def header(data: FrameData, layout: Layout, status: str) -> list[Text]:
    """Render the two lines about node, hooks, ledger and VMs."""
    report, health = data.report, data.report.health
    module = " ".join(report.virtualization.modules.values()) or "no KVM"
    nested = " nested" if report.virtualization.nested else ""
    taken = datetime.fromtimestamp(report.taken_unix_s, UTC).strftime("%H:%M:%SZ")
    left = f"hvprobe {report.version}  {report.node}  Linux {report.kernel}  {module}{nested}"
    left = visible(left, ascii_only=layout.ascii_only)
    right = f"  {taken}  {status}".rstrip()
    if layout.width is not None:
        left = fit(left, max(layout.width - len(right), 0), ascii_only=layout.ascii_only)
    wanted = [hook for hook in health.hooks if not hook.inactive]
    attached = sum(hook.attached for hook in wanted)
    second = Text(f"hooks {attached}/{len(wanted)}", "" if attached else "bold red")
    missed = missed_runs(health)
    if missed is not None and missed.total:
        second.append(f" missed {missed.total}", "bold red")
    second.append(f"  ledger {health.ledger_entries}/{health.ledger_capacity}")
    if health.ledger_dropped_total:
        second.append(f" dropped {health.ledger_dropped_total}", "bold red")
    second.append(f"  VMIs {_by_type(report)}")
    fallbacks = sum(bool(vmi.fallback) for vmi in report.vmis)
    second.append(f" fallback {fallbacks}", "bold red" if fallbacks else "")
    second.append(f"  processes {len(report.processes)}")
    return [Text(left + right, "bold"), second]


def _by_type(report: NodeReport) -> str:
    found = collections.Counter(vmi.verdict.type for vmi in report.vmis)
    rare = {hypervisor.type for hypervisor in HYPERVISORS if not hypervisor.expected}
    shown = [kind for kind in HypervisorType if found[kind] or kind not in rare]
    return " ".join(f"{kind.value} {found[kind]}" for kind in shown)


def notes(data: FrameData, layout: Layout) -> list[Text]:
    """Describe what is unavailable on this node and why, the most important first."""
    return [Text(visible(note, ascii_only=layout.ascii_only), "yellow") for note in _notes_of(data)]


def _notes_of(data: FrameData) -> Iterator[str]:
    health = data.report.health
    if health.ledger_error:
        yield f"no BPF, types are only inferred: {health.ledger_error}"
        return
    watch = health.vmi_watch
    if watch is not None and not watch.is_current:
        yield f"VMI names are not up to date: {watch_error(watch)}"
    if data.reasons is not None:
        yield _reasons_note(data)
    missed = missed_runs(health)
    if missed is not None and missed.total:
        yield f"{MISSED_LABEL}: {missed.why}"
    for counter in live_counters(data.report):
        yield from _column_notes(data, counter)
    sources = exit_sources(data.report)
    if sources is not None and EXITS.column is not None:
        yield f"{EXITS.column.heading}: counted by {sources}"


def _column_notes(data: FrameData, counter: Counter) -> Iterator[str]:
    """Yield the note that explains why a counter's column is replaced, untried or empty."""
    column = counter.column
    if column is None:
        return
    if column.stands_in_for is not None:
        yield f"{column.heading}: {column.note}"
    elif counter.label is not None:
        state = counter_state(data.report.health, counter)
        if counter is EXITS and statistics_count_all(data.report):
            return
        match state.trust:
            case CounterTrust.UNTRIED:
                yield f"{column.heading}: {state.why}"
            case CounterTrust.BLIND:
                yield f"{column.heading} unavailable: {state.why}"
            case CounterTrust.MISSING:
                yield f"{column.heading} unavailable: {state.why} (see hvprobe doctor)"
            case CounterTrust.PROVEN | CounterTrust.INACTIVE:
                pass


def _reasons_note(data: FrameData) -> str:
    exits = counter_state(data.report.health, EXITS)
    if exits.trust in (CounterTrust.BLIND, CounterTrust.MISSING):
        return f"exit reasons unavailable: {exits.why}"
    lost = data.reasons_lost_total
    dropped = f"; {lost} exits dropped because the table is full" if lost else ""
    return f"exit reasons: since first shown; {REASONS_COST}{dropped}"
