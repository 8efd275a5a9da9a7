# SPDX-License-Identifier: Apache-2.0
"""Defines the vocabulary of all outputs: severity, trust in a counter, state of the VMI watch.

Pure. Owns the words, the emphasis and the order that page, live view, doctor and readiness share;
the texts of reasons are in reasons.py. Must not lay anything out.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from ebpf import counters
from ebpf.counters import Counter
from ebpf.hooks import Hook
from probes.host.hypervisors import HypervisorType
from probes.host.process import VmmId
from probes.judge.cause import CauseFound
from probes.judge.reasons import Outcome, Reason, Severity
from probes.judge.verdict import Verdict
from probes.report.model import (
    CounterTrust,
    NodeReport,
    ProbeHealth,
    ProcessReport,
    ProcessState,
    VmiReport,
)
from probes.vmi.attribution import VmName
from probes.vmi.model import WatchStatus

_T = TypeVar("_T")

NOT_ANSWERED = "the API server has not answered yet"


def say(value: bool | None, yes: _T, no: _T, unknown: _T) -> _T:
    """Return one of three words for what is true, false or unknown."""
    if value is None:
        return unknown
    return yes if value else no


# Severity


def severity_of(verdict: Verdict, *, fallback: bool | None, probe: bool = False) -> Severity:
    """Return how urgently a person should look at a process or VM.

    fallback means that it is emulated although the node has an accelerator. probe means that it is
    libvirt's capability probe, which has no guest.
    """
    found = {reason.severity for reason in verdict.reasons}
    if fallback:
        found.add(Severity.FALLBACK)
    if not probe and verdict.type is HypervisorType.UNKNOWN:
        found.add(Severity.UNKNOWN)
    if not probe and not verdict.verified:
        found.add(Severity.UNVERIFIED)
    return min(found, default=Severity.FINE)


def deciding_reason(verdict: Verdict) -> Reason:
    """Return the reason to show if there is room for only one.

    That is the last contradiction, or else the reason that decided.
    """
    contradictions = [
        reason for reason in verdict.reasons if reason.severity is Severity.CONTRADICTION
    ]
    return contradictions[-1] if contradictions else verdict.reasons[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A process of a report, or a VM without a process, with its severity."""

    vmm: VmmId | None
    """The process; None: none was found for the VM."""
    vm: VmName | None
    name: str
    """``namespace/name``, otherwise the guest's name, otherwise ``-``. Foreign text."""
    verdict: Verdict
    severity: Severity
    cause: CauseFound | None
    """Why it is emulated; None: its type is not tcg."""

    @property
    def order(self) -> tuple[Severity, str, int, int]:
        """The sort key: most urgent first, then by name. Equal subjects keep their order."""
        return (self.severity, *self.by_name)

    @property
    def by_name(self) -> tuple[str, int, int]:
        """The sort key among subjects of the same severity."""
        if self.vmm is None:
            return self.name, 0, 0
        return self.name, self.vmm.tgid, self.vmm.start_ticks


def subject_of_process(process: ProcessReport, vmi: VmiReport | None) -> Subject:
    """Make the subject of a process. vmi is the VM that it runs; None: it runs none with a name."""
    name = full_name(process.vm) if process.vm else process.guest_name or "-"
    return Subject(
        vmm=process.vmm,
        vm=process.vm,
        name=name,
        verdict=process.verdict,
        severity=severity_of(
            process.verdict,
            fallback=vmi.fallback if vmi else None,
            probe=process.state is ProcessState.PROBE,
        ),
        cause=process.cause,
    )


def subject_of_vmi(vmi: VmiReport) -> Subject:
    """Make the subject of a VM, with or without a process."""
    return Subject(
        vmm=vmi.vmm,
        vm=vmi.vm,
        name=full_name(vmi.vm),
        verdict=vmi.verdict,
        severity=severity_of(vmi.verdict, fallback=vmi.fallback),
        cause=vmi.cause,
    )


def subjects(report: NodeReport) -> tuple[Subject, ...]:
    """Return every process of a report and every VM without one, most urgent first."""
    by_vmm = {vmi.vmm: vmi for vmi in report.vmis if vmi.vmm is not None}
    processes = [
        subject_of_process(process, by_vmm.get(process.vmm)) for process in report.processes
    ]
    orphans = [subject_of_vmi(vmi) for vmi in report.vmis if vmi.vmm is None]
    return tuple(sorted((*processes, *orphans), key=lambda subject: subject.order))


def full_name(vm: VmName) -> str:
    """Return ``namespace/name``."""
    return f"{vm.namespace}/{vm.name}"


def cause_parts(found: CauseFound) -> tuple[tuple[str, str], ...]:
    """Return what outputs say of a cause: label and words of each part. Holds foreign text."""
    return ("cause", found.sentence), ("remedy", found.cause.remedy)


# Counters


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustWords:
    """The words for a counter whose hook is trusted to a certain degree."""

    value: str
    """Whether the counter counts."""
    sentence: str
    """The reason, with ``{hook}`` in place of the name of its hook, and ``{reason}`` in place of
    why that is not attached."""
    outcome: Outcome
    remedy: str | None = None


TRUSTS: Mapping[CounterTrust, TrustWords] = {
    CounterTrust.PROVEN: TrustWords(
        value="counted", sentence="{hook} has fired on this node", outcome=Outcome.GOOD
    ),
    CounterTrust.UNTRIED: TrustWords(
        value="none yet",
        sentence="{hook} is attached, and no VM has triggered it yet",
        outcome=Outcome.GOOD,
    ),
    CounterTrust.BLIND: TrustWords(
        value="not counted",
        sentence="this kernel never fires {hook}",
        outcome=Outcome.DEGRADED,
        remedy="none: the KVM module in use does not report this event",
    ),
    CounterTrust.MISSING: TrustWords(
        value="not counted",
        sentence="the hook {hook} is not attached",
        outcome=Outcome.DEGRADED,
    ),
    CounterTrust.INACTIVE: TrustWords(
        value="inactive", sentence="{hook} is detached ({reason})", outcome=Outcome.GOOD
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterState:
    """A counter of a node, and how far it can be trusted."""

    label: str
    hook: str
    trust: CounterTrust
    reason: str | None
    """Why its hook is not attached; None: it is."""

    @property
    def words(self) -> TrustWords:
        """The words for its trust."""
        return TRUSTS[self.trust]

    @property
    def why(self) -> str:
        """The sentence with the name of its hook."""
        return self.words.sentence.format(hook=self.hook, reason=self.reason)


def counter_state(health: ProbeHealth, counter: Counter) -> CounterState:
    """Return how far a counter can be trusted. The counter must have a label."""
    return CounterState(
        label=counter.label or counter.name,
        hook=counter.hook.name,
        trust=health.trusts[counter.name],
        reason=next((status.reason for status in health.hooks if status.is_of(counter.hook)), None),
    )


def counter_states(health: ProbeHealth) -> Iterator[CounterState]:
    """Return the state of each counter whose trust is reported."""
    return (counter_state(health, counter) for counter in counters.trusted())


def live_counters(report: NodeReport) -> tuple[Counter, ...]:
    """Return the counters that have a column in the live view of a report, in order.

    A counter that stands in for another one has a column only while that one's hook is not
    attached. A counter whose hook is optional has a column only while it counts a process.
    """
    stand_ins = {
        column.stands_in_for: counter
        for counter in counters.COUNTERS
        if (column := counter.column) is not None and column.stands_in_for is not None
    }
    shown: list[Counter] = []
    for counter in counters.COUNTERS:
        if counter.column is None or counter.column.stands_in_for is not None:
            continue
        if counter.hook.optional and not any(
            process.counters.get(counter.name) for process in report.processes
        ):
            continue
        attached = is_attached(report, counter.hook)
        shown.append(counter if attached else stand_ins.get(counter.name, counter))
    return tuple(shown)


def is_attached(report: NodeReport, hook: Hook) -> bool:
    """Return whether a hook is attached."""
    return any(status.attached for status in report.health.hooks if status.is_of(hook))


# The watch of VMIs


class WatchState(StrEnum):
    """Where VMI names come from, and how current they are."""

    STANDALONE = "standalone"
    """They are libvirt's domain names; no cluster is used."""
    CURRENT = "current"
    LAST_KNOWN = "last known"
    """The API server is lost; its last answer is in use."""
    UNKNOWN = "unknown"
    """The API server has never answered."""

    @property
    def outcome(self) -> Outcome:
        """The emphasis for this state."""
        match self:
            case WatchState.STANDALONE | WatchState.CURRENT:
                return Outcome.GOOD
            case WatchState.LAST_KNOWN:
                return Outcome.DEGRADED
            case WatchState.UNKNOWN:
                return Outcome.BAD


def watch_state(watch: WatchStatus | None) -> WatchState:
    """Return the state of a watch; None: there is none, because the agent is standalone."""
    if watch is None:
        return WatchState.STANDALONE
    if watch.is_current:
        return WatchState.CURRENT
    return WatchState.LAST_KNOWN if watch.synced else WatchState.UNKNOWN


def watch_error(watch: WatchStatus) -> str:
    """Say in one line why the names are not current."""
    return watch.error or NOT_ANSWERED
