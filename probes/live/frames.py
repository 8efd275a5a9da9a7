"""Reports → what a person sees of them: frames for a terminal, plain tables, JSON. Pure renderer.

Owns the header, the notes of what cannot be told here, and the lines of exit reasons. Must not
know the terminal, nor find anything out.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast

from rich.text import Text

from ebpf.hooks import Question
from probes.celltext import fit, visible
from probes.live.columns import Look, number, table
from probes.live.history import History, ReasonRate, Reasons
from probes.live.options import REASONS_COST
from probes.live.rows import Row, ordered, rows_of
from probes.live.view import View, scrolled
from probes.report import CounterTrust, NodeReport, to_json
from probes.vmm import HypervisorType

_NOTES_SHOWN = 2
_SMALL_HEIGHT = 10
"""Lines below which header and notes give way to the table."""
_REASON_BAR_CELLS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """All that a frame shows."""

    report: NodeReport
    """Without what was not asked for."""
    history: History
    reasons: Reasons | None = None
    """Exit reasons by tgid; None: not asked for."""
    reasons_lost_total: int = 0
    """Exits whose reason found no room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What it is shown on."""

    width: int
    height: int
    ascii_only: bool = False


def frame(scene: Scene, view: View, shape: Shape, *, interval_s: float) -> tuple[list[Text], View]:
    """At most shape.height lines, none wider than shape.width; the view, its place mended."""
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
    """Lines of the table that fit below a header of so many lines."""
    return max(shape.height - above - 2, 1)


def plain(scene: Scene, *, width: int | None, ascii_only: bool) -> list[Text]:
    """Header, notes and the whole table; width None: nothing is cut."""
    rows = _chosen(scene, View())
    look = _look(scene, width=width, ascii_only=ascii_only, minute=False)
    heading, *lines = table(rows, scene.history, look)
    lines = list(_with_reasons(rows, lines, scene, look))
    top = [*_header(scene, look, ""), *_notes(scene, look)]
    return [_fitted(it, width) for it in (*top, heading, *lines)]


def frame_json(report: NodeReport, reasons: Reasons | None = None) -> str:
    """One frame in the form of ``hvprobe snapshot``, on one line.

    With reasons each process that was asked about has ``exit_reasons``, the most frequent first.
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
        runs_counted=_attached(scene.report, Question.RUNS_VCPU),
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
    """What cannot be told on this node, and why; the most important first."""
    return [Text(visible(it, ascii_only=look.ascii_only), "yellow") for it in _notes_of(scene)]


def _notes_of(scene: Scene) -> Iterator[str]:
    health = scene.report.health
    if health.ledger_error:
        yield f"no BPF, types are only inferred: {health.ledger_error}"
        return
    watch = health.vmi_watch
    if watch is not None and not watch.is_current:
        yield f"VMI names are not up to date: {watch.error or 'the API server has not answered'}"
    if scene.reasons is not None:
        yield _reasons_note(scene)
    if not _attached(scene.report, Question.RUNS_VCPU):
        yield "USER/s: returns of KVM_RUN to user space; KVM_RUN itself is not counted here"
    if health.exits_trust is CounterTrust.BLIND:
        yield "EXIT/s: not to be had, this kernel never calls its tracepoint kvm_exit"
    elif health.exits_trust is CounterTrust.MISSING:
        yield "EXIT/s: not to be had, the hook kvm_exit is not attached (see hvprobe doctor)"
    elif health.exits_trust is CounterTrust.UNTRIED:
        yield "EXIT/s: no VM exit was seen yet"


def _reasons_note(scene: Scene) -> str:
    trust = scene.report.health.exits_trust
    lost = f"; {scene.reasons_lost_total} exits found no room" if scene.reasons_lost_total else ""
    if trust is CounterTrust.BLIND:
        return "reasons: not to be had, this kernel never calls its tracepoint kvm_exit"
    if trust is CounterTrust.MISSING:
        return "reasons: not to be had, the hook kvm_exit is not attached"
    return f"reasons: since shown; {REASONS_COST}{lost}"


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
        ("p", "go on" if view.paused else "pause"),
        ("q", "quit"),
    ):
        line.append(key, "bold")
        line.append(f" {meaning}  ")
    line.rstrip()
    return line


def _attached(report: NodeReport, question: Question) -> bool:
    return any(it.attached for it in report.health.hooks if it.hook.question is question)


def _fitted(line: Text, width: int | None) -> Text:
    if width is None or line.cell_len <= width:
        return line
    fitted = line.copy()
    fitted.truncate(width)
    return fitted
