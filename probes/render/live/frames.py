# SPDX-License-Identifier: Apache-2.0
"""Renders reports for a person: frames for a terminal, plain tables, JSON. Pure.

Owns the header, the notes about what is unavailable, and the lines of exit reasons. Must not know
the terminal, nor read anything.
"""

import collections
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast

from rich.text import Text

from ebpf.counters import EXITS, Counter
from probes.host.hypervisors import HYPERVISORS, HypervisorType
from probes.render.live.cause_lines import cause_lines
from probes.render.live.columns import Layout, number, table
from probes.render.live.history import History, ReasonRate, Reasons
from probes.render.live.options import REASONS_COST
from probes.render.live.rows import Row, ordered, rows_of
from probes.render.live.vcpu_line import vcpu_line
from probes.render.live.view import ViewState, scrolled
from probes.render.terminal_text import fit, visible
from probes.report.exit_sources import exit_sources, statistics_count_all
from probes.report.missed_runs import MISSED_LABEL, missed_runs
from probes.report.model import CounterTrust, NodeReport, to_json
from probes.report.vocabulary import counter_state, live_counters, watch_error

_NOTES_SHOWN = 2
_SMALL_HEIGHT = 10
"""Terminal height below which header and notes are left out for the table."""
_REASON_BAR_CELLS = 20
_DETAILS_HINT_FROM = 100
"""Terminal width from which the footer names the key for details."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameData:
    """Everything that a frame shows."""

    report: NodeReport
    """The report, reduced to what was selected."""
    history: History
    reasons: Reasons | None = None
    """Exit reasons by tgid; None: not requested."""
    reasons_lost_total: int = 0
    """Exits whose reason was dropped because the table was full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TerminalSize:
    """The size and the abilities of the terminal."""

    width: int
    height: int
    ascii_only: bool = False


def frame(
    data: FrameData, view: ViewState, size: TerminalSize, *, interval_s: float
) -> tuple[list[Text], ViewState]:
    """Render at most size.height lines, none wider than size.width, and scroll the view to fit."""
    rows = _chosen(data, view)
    layout = _layout(data, width=size.width, ascii_only=size.ascii_only, minute=True)
    heading, *lines = table(rows, data.history, layout)
    lines = list(_with_details(rows, lines, data, layout, shown=view.details))
    status = "paused" if view.paused else f"every {interval_s:g} s"
    top = [*_header(data, layout, status), *_notes(data, layout)[:_NOTES_SHOWN]]
    if size.height < _SMALL_HEIGHT:
        top = []
    page = page_lines(size, above=len(top))
    view = scrolled(view, lines=len(lines), page=page)
    shown = lines[view.top : view.top + page]
    shown += [Text("nothing to show", "dim")] if not lines else []
    blank = [Text()] * (page - len(shown))
    below = _footer(
        view,
        layout,
        shown=len(shown) if lines else 0,
        of=len(lines),
        details=any(row.statistics is not None or row.cause is not None for row in rows),
    )
    filled = [*top, heading, *shown, *blank, below]
    return [_fitted(line, size.width) for line in filled][: size.height], view


def page_lines(size: TerminalSize, *, above: int = 2 + _NOTES_SHOWN) -> int:
    """Return how many lines of the table fit below a header of ``above`` lines."""
    return max(size.height - above - 2, 1)


def plain(data: FrameData, *, width: int | None, ascii_only: bool) -> list[Text]:
    """Render header, notes and the complete table; width None: nothing is cut."""
    rows = _chosen(data, ViewState())
    layout = _layout(data, width=width, ascii_only=ascii_only, minute=False)
    heading, *lines = table(rows, data.history, layout)
    lines = list(_with_details(rows, lines, data, layout, shown=True))
    top = [*_header(data, layout, ""), *_notes(data, layout)]
    return [_fitted(line, width) for line in (*top, heading, *lines)]


def frame_json(report: NodeReport, reasons: Reasons | None = None) -> str:
    """Render one frame in the form of ``hvprobe snapshot``, on one line.

    With reasons, each requested process has ``exit_reasons``, the most frequent first.
    """
    frame = to_json(report)
    if reasons is not None:
        for process in cast("list[dict[str, object]]", frame["processes"]):
            counts = reasons.get(cast("int", process["tgid"]), ())
            process["exit_reasons"] = [
                {
                    "isa": count.isa.value,
                    "code": count.code,
                    "name": count.name,
                    "total": count.total,
                }
                for count in counts
            ]
    return json.dumps(frame, separators=(",", ":"))


def _chosen(data: FrameData, view: ViewState) -> list[Row]:
    rows = ordered(rows_of(data.report, data.history), view.order)
    return [row for row in rows if row.matches(view.words)]


def _layout(data: FrameData, *, width: int | None, ascii_only: bool, minute: bool) -> Layout:
    return Layout(
        width=width,
        ascii_only=ascii_only,
        minute=minute,
        counters=live_counters(data.report),
    )


def _header(data: FrameData, layout: Layout, status: str) -> list[Text]:
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


def _notes(data: FrameData, layout: Layout) -> list[Text]:
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


def _with_details(
    rows: Sequence[Row],
    lines: Sequence[Text],
    data: FrameData,
    layout: Layout,
    *,
    shown: bool,
) -> Iterator[Text]:
    """Yield the line of each row, followed by its cause, its statistics and its exit reasons.

    shown says whether cause and statistics are shown.
    """
    for row, line in zip(rows, lines, strict=True):
        yield line
        if shown:
            yield from cause_lines(row, width=layout.width, ascii_only=layout.ascii_only)
        details = vcpu_line(row, width=layout.width) if shown else None
        if details is not None:
            yield details
        if data.reasons is not None:
            most = max((reason.count.total for reason in row.reasons), default=0)
            for reason in row.reasons:
                yield _reason_line(reason, most, ascii_only=layout.ascii_only)


def _reason_line(reason: ReasonRate, most: int, *, ascii_only: bool) -> Text:
    count = reason.count
    line = Text("     ")
    line.append(fit(count.isa.value, 6), "dim")
    line.append(fit(count.name, 26, ascii_only=ascii_only))
    line.append(f"{count.total:>12} {number(reason.per_second):>6}/s ")
    cells = round(count.total / most * _REASON_BAR_CELLS) if most else 0
    line.append(("#" if ascii_only else "█") * cells, "cyan")
    return line


def _footer(view: ViewState, layout: Layout, *, shown: int, of: int, details: bool) -> Text:
    """Return the last line; details says whether there are any that can be hidden."""
    words = visible(view.words, ascii_only=layout.ascii_only)
    if view.editing:
        return Text(f"filter: {words}_   Enter applies, Esc clears", "bold")
    place = f"{view.top + 1}-{view.top + shown} of {of}" if shown else "0 of 0"
    line = Text(f"{place}  ", "dim")
    if view.words:
        line.append(f"filter: {words}  ", "bold")
    line.append(f"by {view.order.value}  ", "dim")
    wide = layout.width is None or layout.width >= _DETAILS_HINT_FROM
    hint = [("c", "details")] if details and wide else []
    for key, meaning in (
        ("r", "exits"),
        ("t", "type"),
        ("n", "name"),
        *hint,
        ("/", "filter"),
        ("p", "resume" if view.paused else "pause"),
        ("q", "quit"),
    ):
        line.append(key, "bold")
        line.append(f" {meaning}  ")
    line.rstrip()
    return line


def _fitted(line: Text, width: int | None) -> Text:
    if width is None or line.cell_len <= width:
        return line
    fitted = line.copy()
    fitted.truncate(width)
    return fitted
