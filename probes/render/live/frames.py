# SPDX-License-Identifier: Apache-2.0
"""Reports → what a person sees of them: frames for a terminal, plain tables, JSON. Pure renderer.

Owns the header, the notes about what is unavailable, and the lines of exit reasons. Must not know
the terminal, nor find anything out.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast

from rich.text import Text

from ebpf.hooks import Question
from probes.host.process import HypervisorType
from probes.render.live.columns import Look, number, table
from probes.render.live.history import History, ReasonRate, Reasons
from probes.render.live.options import REASONS_COST
from probes.render.live.rows import Row, ordered, rows_of
from probes.render.live.view import View, scrolled
from probes.render.terminal_text import fit, visible
from probes.report.model import CounterTrust, NodeReport, to_json
from probes.report.vocabulary import is_attached, vm_exits, watch_error

_NOTES_SHOWN = 2
_SMALL_HEIGHT = 10
"""Lines below which header and notes give way to the table."""
_REASON_BAR_CELLS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Everything that a frame shows."""

    report: NodeReport
    """Only what was selected."""
    history: History
    reasons: Reasons | None = None
    """Exit reasons by tgid; None: not requested."""
    reasons_lost_total: int = 0
    """Exits whose reason was dropped because the table was full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The terminal's size and abilities."""

    width: int
    height: int
    ascii_only: bool = False


def frame(scene: Scene, view: View, shape: Shape, *, interval_s: float) -> tuple[list[Text], View]:
    """At most shape.height lines, none wider than shape.width; and the view, scrolled to fit."""
    rows = _chosen(scene, view)
    look = _look(scene, width=shape.width, ascii_only=shape.ascii_only, minute=True)
    heading, *lines = table(rows, scene.history, look)
    lines = list(_with_reasons(rows, lines, scene, look))
    status = "paused" if view.paused else f"every {interval_s:g} s"
    top = [*_header(scene, look, status), *_notes(scene, look)[:_NOTES_SHOWN]]
    if shape.height < _SMALL_HEIGHT:
        top = []
    page = page_lines(shape, above=len(top))
    view = scrolled(view, lines=len(lines), page=page)
    shown = lines[view.top : view.top + page]
    shown += [Text("nothing to show", "dim")] if not lines else []
    blank = [Text()] * (page - len(shown))
    below = _footer(view, look, shown=len(shown) if lines else 0, of=len(lines))
    whole = [*top, heading, *shown, *blank, below]
    return [_fitted(it, shape.width) for it in whole][: shape.height], view


def page_lines(shape: Shape, *, above: int = 2 + _NOTES_SHOWN) -> int:
    """Lines of the table that fit below a header with the given number of lines."""
    return max(shape.height - above - 2, 1)


def plain(scene: Scene, *, width: int | None, ascii_only: bool) -> list[Text]:
    """Header, notes and the complete table; width None: nothing is cut."""
    rows = _chosen(scene, View())
    look = _look(scene, width=width, ascii_only=ascii_only, minute=False)
    heading, *lines = table(rows, scene.history, look)
    lines = list(_with_reasons(rows, lines, scene, look))
    top = [*_header(scene, look, ""), *_notes(scene, look)]
    return [_fitted(it, width) for it in (*top, heading, *lines)]


def frame_json(report: NodeReport, reasons: Reasons | None = None) -> str:
    """One frame in the form of ``hvprobe snapshot``, on one line.

    With reasons each requested process has ``exit_reasons``, the most frequent first.
    """
    frame = to_json(report)
    if reasons is not None:
        for process in cast("list[dict[str, object]]", frame["processes"]):
            counts = reasons.get(cast("int", process["tgid"]), ())
            process["exit_reasons"] = [
                {"isa": it.isa.value, "code": it.code, "name": it.name, "total": it.total}
                for it in counts
            ]
    return json.dumps(frame, separators=(",", ":"))


def _chosen(scene: Scene, view: View) -> list[Row]:
    rows = ordered(rows_of(scene.report, scene.history), view.order)
    return [row for row in rows if row.matches(view.words)]


def _look(scene: Scene, *, width: int | None, ascii_only: bool, minute: bool) -> Look:
    return Look(
        width=width,
        ascii_only=ascii_only,
        minute=minute,
        runs_counted=is_attached(scene.report, Question.RUNS_VCPU),
    )


def _header(scene: Scene, look: Look, status: str) -> list[Text]:
    report, health = scene.report, scene.report.health
    module = report.virtualization.module or "no KVM"
    nested = " nested" if report.virtualization.nested else ""
    taken = datetime.fromtimestamp(report.taken_unix_s, UTC).strftime("%H:%M:%SZ")
    left = f"hvprobe {report.version}  {report.node}  Linux {report.kernel}  {module}{nested}"
    left = visible(left, ascii_only=look.ascii_only)
    right = f"  {taken}  {status}".rstrip()
    if look.width is not None:
        left = fit(left, max(look.width - len(right), 0), ascii_only=look.ascii_only)
    attached = sum(hook.attached for hook in health.hooks)
    second = Text(f"hooks {attached}/{len(health.hooks)}", "" if attached else "bold red")
    second.append(f"  ledger {health.ledger_entries}/{health.ledger_capacity}")
    if health.ledger_dropped_total:
        second.append(f" dropped {health.ledger_dropped_total}", "bold red")
    second.append(f"  VMIs {_by_type(report)}")
    fallbacks = sum(bool(vmi.fallback) for vmi in report.vmis)
    second.append(f" fallback {fallbacks}", "bold red" if fallbacks else "")
    second.append(f"  processes {len(report.processes)}")
    return [Text(left + right, "bold"), second]


def _by_type(report: NodeReport) -> str:
    found = Counter(vmi.verdict.type for vmi in report.vmis)
    kinds = [it for it in HypervisorType if found[it] or it is not HypervisorType.MSHV]
    return " ".join(f"{it.value} {found[it]}" for it in kinds)


def _notes(scene: Scene, look: Look) -> list[Text]:
    """What is unavailable on this node, and why; the most important first."""
    return [Text(visible(it, ascii_only=look.ascii_only), "yellow") for it in _notes_of(scene)]


def _notes_of(scene: Scene) -> Iterator[str]:
    health = scene.report.health
    if health.ledger_error:
        yield f"no BPF, types are only inferred: {health.ledger_error}"
        return
    watch = health.vmi_watch
    if watch is not None and not watch.is_current:
        yield f"VMI names are not up to date: {watch_error(watch)}"
    if scene.reasons is not None:
        yield _reasons_note(scene)
    if not is_attached(scene.report, Question.RUNS_VCPU):
        yield "USER/s: returns of KVM_RUN to user space; KVM_RUN itself is not counted here"
    exits = vm_exits(health)
    match exits.trust:
        case CounterTrust.UNTRIED:
            yield f"EXIT/s: {exits.why}"
        case CounterTrust.BLIND:
            yield f"EXIT/s unavailable: {exits.why}"
        case CounterTrust.MISSING:
            yield f"EXIT/s unavailable: {exits.why} (see hvprobe doctor)"
        case CounterTrust.PROVEN:
            pass


def _reasons_note(scene: Scene) -> str:
    exits = vm_exits(scene.report.health)
    if exits.trust in (CounterTrust.BLIND, CounterTrust.MISSING):
        return f"exit reasons unavailable: {exits.why}"
    lost = scene.reasons_lost_total
    dropped = f"; {lost} exits dropped for want of room" if lost else ""
    return f"exit reasons: since first shown; {REASONS_COST}{dropped}"


def _with_reasons(
    rows: Sequence[Row], lines: Sequence[Text], scene: Scene, look: Look
) -> Iterator[Text]:
    for row, line in zip(rows, lines, strict=True):
        yield line
        if scene.reasons is not None:
            most = max((it.count.total for it in row.reasons), default=0)
            for reason in row.reasons:
                yield _reason_line(reason, most, ascii_only=look.ascii_only)


def _reason_line(reason: ReasonRate, most: int, *, ascii_only: bool) -> Text:
    count = reason.count
    line = Text("     ")
    line.append(fit(count.isa.value, 6), "dim")
    line.append(fit(count.name, 26, ascii_only=ascii_only))
    line.append(f"{count.total:>12} {number(reason.per_second):>6}/s ")
    cells = round(count.total / most * _REASON_BAR_CELLS) if most else 0
    line.append(("#" if ascii_only else "█") * cells, "cyan")
    return line


def _footer(view: View, look: Look, *, shown: int, of: int) -> Text:
    words = visible(view.words, ascii_only=look.ascii_only)
    if view.editing:
        return Text(f"filter: {words}_   Enter keeps it, Esc clears it", "bold")
    place = f"{view.top + 1}-{view.top + shown} of {of}" if shown else "0 of 0"
    line = Text(f"{place}  ", "dim")
    if view.words:
        line.append(f"filter: {words}  ", "bold")
    line.append(f"by {view.order.value}  ", "dim")
    for key, meaning in (
        ("r", "exits"),
        ("t", "type"),
        ("n", "name"),
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
