# SPDX-License-Identifier: Apache-2.0
"""Puts an explanation into words: a sentence, and sections of labelled lines. Pure.

Text and page show exactly these. Owns the words and their order. Must not lay anything out, nor
escape: names, programs and causes are foreign text.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from ebpf import counters
from ebpf.counters import EXITS, Counter
from probes.host.cgroup import PodUid
from probes.host.hypervisors import BY_TYPE, HypervisorType
from probes.host.vcpu_counts import EXITS_BY_CLASS, GROUPS, HALT_POLLING, NESTED_RUNS, VCPU_COUNTS
from probes.judge.exit_counts import ExitSource
from probes.judge.reasons import Severity
from probes.report.exit_sources import EXIT_SOURCES
from probes.report.model import NodeReport, ProcessReport, ProcessState, VcpuStatistics
from probes.report.vocabulary import (
    WatchState,
    cause_parts,
    counter_state,
    deciding_reason,
    full_name,
    say,
    watch_error,
    watch_state,
)
from probes.report.why import Attributed, Explanation
from probes.report.why_evidence import Piece, Side
from probes.report.why_places import counter_place
from probes.report.why_seen import MAX_FOREIGN

_MAX_PODS = 4
_GROUP_LABELS = {
    EXITS_BY_CLASS.json: "exits by class",
    HALT_POLLING.json: "halt polling",
    NESTED_RUNS.json: "nested runs",
}
_NAMES = {
    WatchState.STANDALONE: "libvirt's domain names; no cluster is used",
    WatchState.CURRENT: "from the API server, current",
    WatchState.LAST_KNOWN: "from the API server, last known",
    WatchState.UNKNOWN: "unknown",
}
_STATES = {
    ProcessState.PROBE: "libvirt's capability probe, which has no guest",
    ProcessState.UNATTRIBUTED: "no VM of this name",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A labelled line. The words may hold foreign text."""

    label: str
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A title and its lines, of which there is at least one."""

    title: str
    lines: tuple[Line, ...]


def headline(explanation: Explanation) -> str:
    """Return the verdict in one sentence. It holds the VM's name."""
    title, verdict = explanation.title, explanation.verdict
    if verdict.type is HypervisorType.UNKNOWN:
        return f"It is unknown how {title} runs: {deciding_reason(verdict).sentence}."
    proof = (
        "the kernel shows it (verified)"
        if verdict.verified
        else "inferred, not proven by the kernel (not verified)"
    )
    hypervisor = BY_TYPE.get(verdict.type)
    if hypervisor is not None:
        runs = f"{title} runs on {hypervisor.label}"
    else:
        runs = f"{title} is emulated in software ({verdict.type.value})"
    if explanation.fallback:
        runs += ", although this node has an accelerator that works"
    if explanation.severity is Severity.CONTRADICTION:
        proof += f", but {deciding_reason(verdict).sentence}"
    return f"{runs}: {proof}."


def sections(explanation: Explanation) -> tuple[Section, ...]:
    """Return everything below the sentence, the most important first."""
    return tuple(
        Section(title=title, lines=lines)
        for title, found in _sections(explanation)
        if (lines := tuple(found))
    )


def _sections(explanation: Explanation) -> Iterator[tuple[str, Iterator[Line]]]:
    report = explanation.report
    if explanation.cause is not None:
        yield "Why it is emulated", (_line(*part) for part in cause_parts(explanation.cause))
    yield "What to do", _remedies(explanation)
    if explanation.evidence:
        yield "Evidence", _evidence_lines(explanation.evidence)
    others: list[tuple[str, Iterator[Line]]] = []
    for explained in explanation.processes:
        evidence = _evidence_lines(explained.evidence)
        lines = _process_lines(explained.process, report)
        tgid = explained.process.vmm.tgid
        if explained.is_main:
            yield "Evidence", evidence
            yield "Counters", _counter_lines(explained.process, report)
            yield "Process", lines
        else:
            verdict = _verdict_lines(explained.process)
            title = f"Another process of this VM: {tgid}"
            others.append((title, itertools.chain(verdict, lines, evidence)))
    yield "Name and pod", _name_lines(explanation)
    yield from others
    yield "Node", _node_lines(report)


def _line(label: str, words: str) -> Line:
    return Line(label=label, words=words)


def _remedies(explanation: Explanation) -> Iterator[Line]:
    """Yield the remedies of the verdict's reasons."""
    for reason in explanation.verdict.reasons:
        if reason.remedy is not None:
            yield _line("remedy", reason.remedy)


def _evidence_lines(evidence: Sequence[Piece]) -> Iterator[Line]:
    """Yield each piece with where it was seen, and that nothing speaks against a type."""
    for piece in evidence:
        yield _line(piece.side.value, f"{piece.words} ({piece.where})")
    sides = {piece.side for piece in evidence}
    if Side.FOR in sides and Side.AGAINST not in sides:
        yield _line(Side.AGAINST.value, "nothing")


def _verdict_lines(process: ProcessReport) -> Iterator[Line]:
    verdict = process.verdict
    proof = "verified" if verdict.verified else "not verified"
    yield _line("type", f"{verdict.type.value}, {proof}")
    if process.cause is not None:
        yield from (_line(*part) for part in cause_parts(process.cause))


def _counter_lines(process: ProcessReport, report: NodeReport) -> Iterator[Line]:
    """Yield each counter with its source, and why one that VMs usually have is absent."""
    hypervisor = BY_TYPE.get(process.verdict.type)
    if hypervisor is None:
        yield _line("none", "only what uses an accelerator is counted")
        return
    if not process.counters and hypervisor.type is not HypervisorType.KVM:
        yield _line("none", "nothing was counted for this VM")
    for counter in counters.ranked():
        if counter.json is None:
            continue
        label = counter.label or counter.counts
        if counter.name in process.counters:
            yield _line(
                label, f"{process.counters[counter.name]:,}, {_source(counter, process, report)}"
            )
        elif counter.label is not None and counter.hook.driver is hypervisor.driver:
            why = counter_state(report.health, counter).why
            yield _line(label, f"not counted for this VM; {why}")
    if process.vcpu_statistics is not None:
        yield from _statistics_lines(process.vcpu_statistics)


def _source(counter: Counter, process: ProcessReport, report: NodeReport) -> str:
    if counter is EXITS and process.exits_source is ExitSource.KVM_STATISTICS:
        return f"from {EXIT_SOURCES[ExitSource.KVM_STATISTICS]}, since the VM started"
    hook = counter_place(counter, report.health.hooks)
    return f"by the hook {hook}, since the VM started or the hook was attached"


def _statistics_lines(statistics: VcpuStatistics) -> Iterator[Line]:
    """Yield what KVM's statistics count beside exits, and the CPU time in guest code."""
    for group in GROUPS:
        unit = " s" if group is HALT_POLLING else ""
        found = [
            (count.name, f"{statistics.counts[count.name]:,.6g}{unit}")
            for count in VCPU_COUNTS
            if count.group is group and count.name in statistics.counts
        ]
        words = [f"{name} {total}" if group.label else total for name, total in found]
        if words:
            yield _line(_GROUP_LABELS[group.json], ", ".join(words))
    if statistics.guest_cpu_s is not None:
        yield _line("guest CPU", f"{statistics.guest_cpu_s:,.2f} s in guest code")


def _process_lines(process: ProcessReport, report: NodeReport) -> Iterator[Line]:
    tracked = process.tracked
    program = tracked.program if tracked is not None else None
    named = f"program {_cut(program or 'unknown')}, named {_cut(process.comm)}"
    yield _line("pid", f"{process.vmm.tgid}, {named}")
    started = datetime.fromtimestamp(process.started_unix_s, UTC)
    age = _duration(report.taken_unix_s - process.started_unix_s)
    yield _line("started", f"{started:%Y-%m-%d %H:%M:%S} UTC, {age} ago")
    if tracked is not None and tracked.evidence is not None:
        asked_for = ", ".join(tracked.evidence.asked_for[:8])
        yield _line("asked for", _cut(asked_for) or "no accelerator by name")
    yield _line("vCPUs", "unknown" if process.vcpus is None else str(process.vcpus))
    if process.vm is None:
        yield _line("state", _STATES.get(process.state, process.state.value))


def _name_lines(explanation: Explanation) -> Iterator[Line]:
    """Yield how the process was found to be the VM, and its pods."""
    yield _line("found by", _found_by(explanation))
    guest = next((each.process for each in explanation.processes if each.is_main), None)
    uid: PodUid | None = None
    if guest is not None:
        yield _line("domain", "no name" if guest.guest_name is None else _cut(guest.guest_name))
        if guest.tracked is not None and guest.tracked.pod is not None:
            uid = guest.tracked.pod.uid
        yield _line("pod", "none: its cgroup names no pod" if uid is None else uid)
    if explanation.pods and explanation.pods != (uid,):
        pods = list(explanation.pods[:_MAX_PODS])
        more = ["..."] if len(explanation.pods) > _MAX_PODS else []
        yield _line("VMI's pods", ", ".join([*pods, *more]))
    if explanation.others_left_out:
        yield _line("more", f"{explanation.others_left_out} other processes of its pods")


def _found_by(explanation: Explanation) -> str:
    match explanation.attributed:
        case Attributed.DOMAIN_NAME:
            return "libvirt's domain name, because no cluster is used"
        case Attributed.POD:
            return "its cgroup's pod, which the VMI lists in status.activePods"
        case None:
            pass
    if explanation.vm is not None:
        return f"nothing: {explanation.verdict.reasons[0].sentence}"
    if explanation.pod_of is not None:
        return f"nothing: it is in a pod of {full_name(explanation.pod_of)}, but is not that VM"
    return "nothing: it is no VM with a name on this node"


def _node_lines(report: NodeReport) -> Iterator[Line]:
    yield _line("name", f"{_cut(report.node)}, Linux {_cut(report.kernel)}, {report.machine}")
    for accelerator in report.accelerators:
        usable = say(accelerator.available, "usable", "not usable", "not tried")
        problem = f": {accelerator.problem.text}" if accelerator.problem else ""
        yield _line(accelerator.type.value, f"{usable}{problem}")
    watch = report.health.vmi_watch
    state = watch_state(watch)
    error = watch_error(watch) if watch is not None and not watch.is_current else None
    yield _line("VMI names", f"{_NAMES[state]}: {error}" if error else _NAMES[state])
    if report.health.ledger_error is not None:
        yield _line("probes", f"no kernel table: {report.health.ledger_error}")
    else:
        hooks = [status for status in report.health.hooks if not status.inactive]
        attached = sum(status.attached for status in hooks)
        yield _line("probes", f"{attached} of {len(hooks)} hooks attached")
    taken = datetime.fromtimestamp(report.taken_unix_s, UTC)
    yield _line("seen at", f"{taken:%Y-%m-%d %H:%M:%S} UTC by hvprobe {report.version}")


def _cut(foreign: str) -> str:
    return foreign if len(foreign) <= MAX_FOREIGN else f"{foreign[:MAX_FOREIGN]}..."


def _duration(seconds: float) -> str:
    """Say a duration in its two largest units."""
    left = max(int(seconds), 0)
    parts: list[str] = []
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count or (parts and len(parts) < 2) or (unit == "s" and not parts):
            parts.append(f"{count} {unit}")
        if len(parts) == 2:
            break
    return " ".join(parts)
