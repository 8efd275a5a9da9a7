# SPDX-License-Identifier: Apache-2.0
"""Lays out what the live view shows of one VM: what ``why`` shows, and what it does now. Pure.

Owns the section about the present. The words of all others are those of probes.report.why_words.
"""

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from rich.text import Text

from ebpf.counters import EXITS
from probes.host.hypervisors import BY_TYPE, HYPERVISORS
from probes.host.process import VmmId
from probes.judge.evidence import Evidence
from probes.render.live.columns import MINUTE_CELLS, bars, number
from probes.render.live.frame_data import FrameData
from probes.render.live.options import REASONS_COST
from probes.render.live.reason_line import reason_line
from probes.render.live.rows import Row, RowKey, rows_of
from probes.render.live.thread_lines import thread_lines
from probes.render.live.vcpu_line import vcpu_parts
from probes.render.terminal_text import visible
from probes.render.why_text import headline_text, section_text
from probes.report.model import CounterTrust, NodeReport
from probes.report.vocabulary import counter_state, live_counters
from probes.report.why import Explanation, explain
from probes.report.why_words import sections

_LABEL_CELLS = 14
_MINIMUM_CELLS = 20
"""How many cells the words get on a terminal however narrow; the screen cuts the line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DetailLayout:
    """How the lines about a VM are laid out."""

    width: int
    ascii_only: bool
    by_reason: bool
    """Whether the user wants the VM's exits by reason."""

    @property
    def room(self) -> int:
        """The cells beside the labels."""
        return max(self.width - _LABEL_CELLS - 2, _MINIMUM_CELLS)


def detail_lines(data: FrameData, key: RowKey, layout: DetailLayout) -> list[Text] | None:
    """Return the lines about the VM or process of a row; None: it is no longer there."""
    row = next((row for row in rows_of(data.report, data.history) if row.key == key), None)
    explanation = _explanation(data.complete or data.report, key)
    if row is None or explanation is None:
        return None
    width, ascii_only = max(layout.width, _MINIMUM_CELLS), layout.ascii_only
    lines = [
        Text(line, "bold red" if row.severity.urgent else "bold")
        for line in headline_text(explanation, width=width, ascii_only=ascii_only)
    ]
    present = list(_present(row, data, layout))
    if present:
        lines += [Text(), Text("Now", "bold"), *present]
    for section in sections(explanation):
        title, *rest = section_text(section, width=width, ascii_only=ascii_only)
        lines += [Text(), Text(title, "bold"), *map(Text, rest)]
    return lines


def _explanation(report: NodeReport, key: RowKey) -> Explanation | None:
    if not isinstance(key, VmmId):
        return explain(report, key)
    # The number may belong to another process by now.
    there = any(process.vmm == key for process in report.processes)
    return explain(report, key.tgid) if there else None


def _present(row: Row, data: FrameData, layout: DetailLayout) -> Iterator[Text]:
    """Yield what the VM does now: its last minute, rates, exit classes, threads and reasons."""
    if row.vmm is not None:
        cells = min(layout.room, MINUTE_CELLS)
        minute = bars(data.history.minute(row.vmm, cells), ascii_only=layout.ascii_only)
        if minute.strip():
            yield _labelled("last minute", Text(minute, "cyan"))
    rates = [
        f"{counter.column.heading} {number(row.rates[counter.name])}"
        for counter in live_counters(data.report)
        if counter.column is not None and counter.name in row.rates
    ]
    yield from _wrapped("rates", "  ".join(rates), layout)
    parts = [f"{name} {value}" for name, value in vcpu_parts(row)]
    yield from _wrapped("statistics", "  ".join(parts), layout)
    yield from _threads(row, data, layout)
    yield from _reasons(row, data, layout)


def _threads(row: Row, data: FrameData, layout: DetailLayout) -> Iterator[Text]:
    """Yield what each vCPU thread is in, or what was seen when the process was last judged."""
    if data.threads is None or data.threads.vmm != row.vmm or not data.threads.threads:
        for label, words in _last_seen(row, data):
            yield from _wrapped(label, words, layout)
        return
    label = "vCPU threads"
    for line in thread_lines(data.threads, data.threads_before, ascii_only=layout.ascii_only):
        yield _labelled(label, line)
        label = ""


def _last_seen(row: Row, data: FrameData) -> Iterator[tuple[str, str]]:
    """Yield what the vCPU threads were in when the process was last read."""
    process = next((each for each in data.report.processes if each.vmm == row.vmm), None)
    evidence = process.tracked.evidence if process and process.tracked else None
    if evidence is None:
        return
    for hypervisor in HYPERVISORS:
        seen = evidence.of(hypervisor.type)
        if seen.vcpus:
            inside = f"{seen.vcpus_in_run} of {seen.vcpus}"
            yield "vCPU threads", f"{inside} in a run call of {hypervisor.label}, as last read"
    yield from _emulating(evidence)


def _emulating(evidence: Evidence) -> Iterator[tuple[str, str]]:
    if evidence.tcg_threads:
        state = "they compute" if evidence.tcg_cpu_ticks else "they are idle"
        yield "vCPU threads", f"{evidence.tcg_threads} named like TCG's; {state}, as last read"


def _reasons(row: Row, data: FrameData, layout: DetailLayout) -> Iterator[Text]:
    if not (layout.by_reason or row.reasons):
        return
    exits = counter_state(data.report.health, EXITS)
    if row.verdict.type not in BY_TYPE:
        yield from _wrapped("by reason", "only what uses an accelerator has exits", layout)
    elif data.reasons_error is not None:
        yield from _wrapped("by reason", f"unavailable: {data.reasons_error}", layout)
    elif exits.trust in (CounterTrust.BLIND, CounterTrust.MISSING):
        yield from _wrapped("by reason", f"unavailable: {exits.why}", layout)
    elif not row.reasons:
        yield from _wrapped("by reason", f"nothing yet; counting {REASONS_COST}", layout)
    most = max((reason.count.total for reason in row.reasons), default=0)
    for reason in row.reasons:
        yield reason_line(reason, most, ascii_only=layout.ascii_only)


def _wrapped(label: str, words: str, layout: DetailLayout) -> Iterator[Text]:
    """Yield the words beside their label; nothing if there are none."""
    shown = visible(words, ascii_only=layout.ascii_only)
    for piece in textwrap.wrap(shown, layout.room, break_on_hyphens=False):
        yield _labelled(label, Text(piece))
        label = ""


def _labelled(label: str, words: Text) -> Text:
    return Text.assemble((f"  {label:{_LABEL_CELLS}}", "dim"), words)
