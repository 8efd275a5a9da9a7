# SPDX-License-Identifier: Apache-2.0
"""Finds out, from successive reports, when a VM is emulated without need and when that ends. Pure.

Owns which change between reports is an event, how long it has to last, and the words of its note.
Must not know how an Event is written, nor whether that works.

A VM that turns out emulated only briefly makes no event: a process is inferred to emulate before it
holds a vCPU, and a cause is unknown until its facts are read. So a change counts at once only if
the kernel proved it and the cause is known. Any other change has to last for SETTLE_S.

The emulation has ended only when the same VMI runs on an accelerator. A VM that stops, leaves the
node or becomes unknown ends nothing, and neither does an accelerator that disappears.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from probes.host.hypervisors import HypervisorType
from probes.host.process import VmmId
from probes.judge.cause import Cause, CauseFound
from probes.report.model import NodeReport, VmiReport
from probes.vmi.event import NOTE_MAX_BYTES, EventType, VmiEvent
from probes.vmi.foreign_text import cut_bytes, one_line

SOFTWARE_EMULATION = "SoftwareEmulation"
HARDWARE_ACCELERATION = "HardwareAcceleration"
SETTLE_S = 60.0
"""How long a change that is not proven, or whose cause is unknown, has to last."""
_NODE_MAX_BYTES = 253
"""The longest name of a node in Kubernetes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Situation:
    """What a report says of a VM, as far as events depend on it."""

    vmm: VmmId
    type: HypervisorType
    cause: Cause | None
    """Why it is emulated without need; None: it is accelerated."""

    @property
    def identity(self) -> tuple[str, ...]:
        """The words that every agent of this node finds for this situation."""
        kind = self.type if self.cause is None else self.cause
        return (kind.value, str(self.vmm.tgid), str(self.vmm.start_ticks))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Course:
    """What is remembered of one VMI."""

    situation: _Situation | None = None
    """What the last report said; None: nothing that counts."""
    since_s: float = 0.0
    """When a report said so first."""
    reported: frozenset[_Situation] = frozenset()
    """The emulation that was reported, once for each cause; empty: none, or it has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulationHistory:
    """What has been reported so far of the VMIs of a node."""

    courses: Mapping[str, _Course] = field(default_factory=dict)
    """By uid; only VMIs that are emulated without need, or were."""

    def after(self, report: NodeReport, now_s: float) -> tuple[Self, tuple[VmiEvent, ...]]:
        """Return the history after a report, and the events that it makes.

        now_s is the time on any clock that never goes back.
        """
        courses: dict[str, _Course] = {}
        events: list[VmiEvent] = []
        for vmi in report.vmis:
            if vmi.uid is None:
                continue
            before = self.courses.get(vmi.uid)
            situation = _situation(vmi)
            if before is None and (situation is None or situation.cause is None):
                continue  # nearly every VM: neither is it emulated without need, nor was it
            course = _seen(before or _Course(), situation, now_s)
            if situation is not None and _is_settled(vmi, situation, now_s - course.since_s):
                course, event = _reported(course, situation, vmi, report)
                events += event
            if course.reported or (situation is not None and situation.cause is not None):
                courses[vmi.uid] = course
        return replace(self, courses=courses), tuple(events)


def _situation(vmi: VmiReport) -> _Situation | None:
    """Return what counts of a VM; None: it is unknown, or emulation is all that it can have."""
    if vmi.vmm is None:
        return None
    if vmi.verdict.type.accelerated:
        return _Situation(vmm=vmi.vmm, type=vmi.verdict.type, cause=None)
    if vmi.fallback and vmi.cause is not None:
        return _Situation(vmm=vmi.vmm, type=vmi.verdict.type, cause=vmi.cause.cause)
    return None


def _seen(course: _Course, situation: _Situation | None, now_s: float) -> _Course:
    if situation == course.situation:
        return course
    return replace(course, situation=situation, since_s=now_s)


def _is_settled(vmi: VmiReport, situation: _Situation, lasted_s: float) -> bool:
    proven = vmi.verdict.verified and situation.cause is not Cause.UNKNOWN
    return proven or lasted_s >= SETTLE_S


def _reported(
    course: _Course, situation: _Situation, vmi: VmiReport, report: NodeReport
) -> tuple[_Course, tuple[VmiEvent, ...]]:
    """Return the course of a VMI after a settled situation, and its event if that is news."""
    if situation.cause is None:
        if not course.reported:
            return course, ()
        return replace(course, reported=frozenset()), (_end(situation, vmi, report),)
    if situation in course.reported or vmi.cause is None:
        return course, ()
    of_process = {known for known in course.reported if known.vmm == situation.vmm}
    return (
        replace(course, reported=frozenset({*of_process, situation})),
        (_begin(situation, vmi.cause, vmi, report),),
    )


def _begin(
    situation: _Situation, cause: CauseFound, vmi: VmiReport, report: NodeReport
) -> VmiEvent:
    return _event(
        situation, EventType.WARNING, SOFTWARE_EMULATION, _emulated(report.node, cause), vmi, report
    )


def _end(situation: _Situation, vmi: VmiReport, report: NodeReport) -> VmiEvent:
    note = (
        f"The virtual machine runs on {situation.type.value} now: the software emulation that "
        f"hvprobe reported on node {_shown_node(report.node)} has ended."
    )
    return _event(situation, EventType.NORMAL, HARDWARE_ACCELERATION, note, vmi, report)


def _emulated(node: str, cause: CauseFound) -> str:
    """Say why a VM is emulated and what to do.

    What decided the cause is foreign text. It is shortened, so that the remedy is always complete.
    """
    before = (
        "The virtual machine runs in software emulation although its node "
        f"{_shown_node(node)} has a usable accelerator. Cause: "
    )
    after = f". Remedy: {cause.cause.remedy}."
    room = NOTE_MAX_BYTES - len(f"{before}{after}".encode())
    sentence = one_line(cause.sentence, longest=NOTE_MAX_BYTES)
    return f"{before}{cut_bytes(sentence, room)}{after}"


def _shown_node(node: str) -> str:
    return cut_bytes(node, _NODE_MAX_BYTES)


def _event(
    situation: _Situation,
    kind: EventType,
    reason: str,
    note: str,
    vmi: VmiReport,
    report: NodeReport,
) -> VmiEvent:
    return VmiEvent(
        namespace=vmi.vm.namespace,
        name=vmi.vm.name,
        uid=vmi.uid or "",
        node=report.node,
        type=kind,
        reason=reason,
        note=note,
        happened_unix_s=report.taken_unix_s,
        identity=situation.identity,
    )
