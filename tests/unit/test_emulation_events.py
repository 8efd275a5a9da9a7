# SPDX-License-Identifier: Apache-2.0
"""Which change between two reports is an event, and the words of its note."""

from dataclasses import dataclass, replace

import pytest

from probes.host.process import VmmId
from probes.judge.cause import Cause, CauseFound
from probes.judge.verdict import Verdict
from probes.report.emulation_events import SETTLE_S, EmulationHistory
from probes.report.model import NodeReport, VmiReport
from probes.report.vocabulary import cause_parts
from probes.vmi.event import NOTE_MAX_BYTES, EventType, VmiEvent
from tests.support.rich_report import (
    ALLOWED,
    KVM,
    MSHV,
    NONE,
    PAUSED,
    TCG,
    UNREAD,
    rich_report,
    vmi,
)

UID = "f81d4fae-7dec-11d0-a765-00a0c91e6bf6"
FIRST, SECOND = VmmId(tgid=4711, start_ticks=6000), VmmId(tgid=4712, start_ticks=9000)
INFERRED = Verdict(type=TCG.type, verified=False, reasons=TCG.reasons)
ABSENT = CauseFound(cause=Cause.NODE_WITHOUT_ACCELERATOR, detail="hvprobe found none that works")
FOREIGN = CauseFound(cause=Cause.CROSS_ARCHITECTURE, detail="QEMU's program is for s390x")
REFUSED = CauseFound(cause=Cause.ACCELERATOR_REFUSED, detail="QEMU was asked for kvm, then tcg")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What a report says of the VM, and the events that it makes."""

    verdict: Verdict = TCG
    cause: CauseFound | None = None
    fallback: bool | None = False
    vmm: VmmId | None = FIRST
    after_s: float = 30.0
    """Time since the report before."""
    events: tuple[str, ...] = ()
    """Reason and what distinguishes each event."""

    def report(self, uid: str | None = UID) -> NodeReport:
        found = vmi("alpha", self.verdict, vmm=self.vmm, fallback=self.fallback, cause=self.cause)
        return report(found._replace(uid=uid))


def emulated(
    *events: str,
    verdict: Verdict = TCG,
    cause: CauseFound = ALLOWED,
    vmm: VmmId = FIRST,
    after_s: float = 30.0,
) -> Step:
    return Step(
        verdict=verdict, cause=cause, fallback=True, vmm=vmm, after_s=after_s, events=events
    )


def kvm(*events: str, verdict: Verdict = KVM, vmm: VmmId = FIRST, after_s: float = 30.0) -> Step:
    return Step(verdict=verdict, vmm=vmm, after_s=after_s, events=events)


GONE = Step(verdict=NONE, vmm=None)
"""The VMI has no process at the moment."""
ALLOWED_TOLD = "SoftwareEmulation emulation_allowed 4711 6000"
UNKNOWN_TOLD = "SoftwareEmulation unknown 4711 6000"
ENDED = "HardwareAcceleration kvm 4711 6000"

COURSES = {
    "verified with a known cause": [emulated(ALLOWED_TOLD), emulated(), emulated(after_s=9e9)],
    "accelerated from the start": [kvm(), kvm(after_s=9e9)],
    "inferred, and it lasts": [
        emulated(verdict=INFERRED),
        emulated(verdict=INFERRED, after_s=SETTLE_S - 0.1),
        emulated(ALLOWED_TOLD, verdict=INFERRED, after_s=0.1),
        emulated(),
    ],
    "inferred, then verified": [emulated(verdict=INFERRED), emulated(ALLOWED_TOLD, after_s=1)],
    "inferred briefly": [emulated(verdict=INFERRED), kvm(after_s=9e9)],
    "inferred again and again": [
        *[emulated(verdict=INFERRED, after_s=SETTLE_S), GONE] * 4,
    ],
    "cause unknown, and it lasts": [
        emulated(cause=UNREAD),
        emulated(UNKNOWN_TOLD, cause=UNREAD, after_s=SETTLE_S),
        emulated(ALLOWED_TOLD),
        emulated(cause=UNREAD, after_s=SETTLE_S),
        emulated(after_s=SETTLE_S),
    ],
    "cause unknown at first": [emulated(cause=UNREAD), emulated(ALLOWED_TOLD, after_s=1)],
    "the cause changes": [
        emulated(ALLOWED_TOLD),
        emulated("SoftwareEmulation accelerator_refused 4711 6000", cause=REFUSED),
        emulated(),
    ],
    "it ends, verified": [emulated(ALLOWED_TOLD), kvm(ENDED), kvm(after_s=9e9)],
    "it ends, inferred": [
        emulated(ALLOWED_TOLD),
        kvm(verdict=PAUSED),
        kvm(ENDED, verdict=PAUSED, after_s=SETTLE_S),
        kvm(),
    ],
    "it seems to end": [
        emulated(ALLOWED_TOLD),
        kvm(verdict=PAUSED),
        emulated(),
        kvm(verdict=PAUSED, after_s=SETTLE_S),
        emulated(),
    ],
    "it ends on the Microsoft hypervisor": [
        emulated(ALLOWED_TOLD),
        kvm("HardwareAcceleration mshv 4712 9000", verdict=MSHV, vmm=SECOND),
    ],
    "it ends and begins again": [
        emulated(ALLOWED_TOLD),
        kvm("HardwareAcceleration kvm 4712 9000", vmm=SECOND),
        emulated(ALLOWED_TOLD),
    ],
    "the process is lost for a while": [
        emulated(ALLOWED_TOLD),
        GONE,
        Step(verdict=NONE, vmm=None, after_s=9e9),
        emulated(),
        GONE,
        kvm(ENDED),
    ],
    "another process of the VMI": [
        emulated(ALLOWED_TOLD),
        emulated("SoftwareEmulation emulation_allowed 4712 9000", vmm=SECOND),
        emulated(vmm=SECOND),
    ],
    "the accelerator disappears": [
        emulated(ALLOWED_TOLD),
        Step(cause=ABSENT, fallback=False, after_s=9e9),
        emulated(),
    ],
    "nothing better is possible": [
        Step(cause=ABSENT, fallback=False),
        Step(cause=FOREIGN, fallback=False, after_s=9e9),
        Step(cause=ALLOWED, fallback=None, after_s=9e9),
        kvm(after_s=9e9),
    ],
}


def report(*vmis: VmiReport) -> NodeReport:
    return replace(rich_report(), vmis=vmis)


def shown(event: VmiEvent) -> str:
    return " ".join((event.reason, *event.identity))


@pytest.mark.parametrize("steps", COURSES.values(), ids=list(COURSES))
def test_courses(steps: list[Step]) -> None:
    """A VM makes an event when it is settled that it is emulated without need, and when it ends."""
    history, now_s = EmulationHistory(), 1000.0
    found = []
    for step in steps:
        now_s += step.after_s
        history, events = history.after(step.report(), now_s)
        found.append(tuple(shown(event) for event in events))
    assert found == [step.events for step in steps]


def test_a_vm_that_left_is_forgotten() -> None:
    """A VM that is no longer reported has no end, and its return is the same event again."""
    history, begun = EmulationHistory().after(emulated().report(), 0.0)
    history, none = history.after(report(), 30.0)
    assert (none, dict(history.courses)) == ((), {})
    _, again = history.after(emulated().report(), 60.0)
    assert [event.identity for event in again] == [event.identity for event in begun]


def test_only_emulated_vms_are_remembered() -> None:
    """Accelerated VMs take no memory, also after an emulation that has ended or was none."""
    history, _ = EmulationHistory().after(emulated(verdict=INFERRED).report(), 0.0)
    assert list(history.courses) == [UID]
    history, _ = history.after(kvm().report(), 1.0)
    assert dict(history.courses) == {}
    history, _ = history.after(emulated().report(), 2.0)
    history, _ = history.after(kvm().report(), 3.0)
    assert dict(history.courses) == {}


def test_another_vmi_of_the_same_name() -> None:
    """A VM that was started again is another VMI: the first one did not become accelerated."""
    history, _ = EmulationHistory().after(emulated().report(), 0.0)
    history, events = history.after(kvm(vmm=SECOND).report("another"), 1.0)
    assert events == ()
    _, events = history.after(emulated(vmm=SECOND).report("another"), 2.0)
    assert [event.uid for event in events] == ["another"]


def test_a_vm_without_a_uid() -> None:
    """A VM that no API server knows has no events."""
    assert EmulationHistory().after(emulated().report(None), 0.0)[1] == ()


def test_the_beginning() -> None:
    """The first event warns, with cause and remedy in the words of all outputs."""
    (event,) = EmulationHistory().after(emulated().report(), 0.0)[1]
    words = dict(cause_parts(ALLOWED))
    assert event == VmiEvent(
        namespace="default",
        name="alpha",
        uid=UID,
        node="node-1",
        type=EventType.WARNING,
        reason="SoftwareEmulation",
        note="The virtual machine runs in software emulation although its node node-1 has a usable "
        f"accelerator. Cause: {words['cause']}. Remedy: {words['remedy']}.",
        happened_unix_s=1700000100.5,
        identity=("emulation_allowed", "4711", "6000"),
    )


def test_the_end() -> None:
    """The second event is normal, and says where the first one came from."""
    history, _ = EmulationHistory().after(emulated().report(), 0.0)
    (event,) = history.after(kvm(vmm=SECOND).report(), 1.0)[1]
    assert (event.type, event.reason) == (EventType.NORMAL, "HardwareAcceleration")
    assert event.note == (
        "The virtual machine runs on kvm now: the software emulation that hvprobe reported on node "
        "node-1 has ended."
    )


@pytest.mark.parametrize(
    "detail",
    ["x" * 3000, "é" * 3000, "\N{OLD PERSIAN SIGN A}" * 900, "line\nline\u202e\ud800\x1b[31m" * 99],
    ids=["ASCII", "two bytes", "four bytes", "hostile"],
)
@pytest.mark.parametrize("cause", Cause)
def test_a_long_note(detail: str, cause: Cause) -> None:
    """What decided the cause is cut at the border of a character, and the remedy never is."""
    step = emulated(cause=CauseFound(cause=cause, detail=detail), after_s=SETTLE_S)
    history, early = EmulationHistory().after(step.report(), 0.0)
    (event,) = (*early, *history.after(step.report(), SETTLE_S)[1])
    size = len(event.note.encode())
    assert NOTE_MAX_BYTES - 4 < size <= NOTE_MAX_BYTES
    assert event.note.endswith(f".... Remedy: {cause.remedy}.")
    assert event.note.isprintable()


@pytest.mark.parametrize("detail", ["short", "x" * 3000])
def test_a_long_name_of_a_node(detail: str) -> None:
    """A note with a node's name of many characters of two bytes is not too long either."""
    cause = CauseFound(cause=Cause.EMULATION_ALLOWED, detail=detail)
    named = replace(emulated(cause=cause).report(), node="é" * 4000)
    history, (event,) = EmulationHistory().after(named, 0.0)
    assert len(event.note.encode()) <= NOTE_MAX_BYTES
    assert event.note.endswith(f"{ALLOWED.cause.remedy}.")
    ended = replace(kvm().report(), node="é" * 4000)
    (event,) = history.after(ended, 1.0)[1]
    assert len(event.note.encode()) <= NOTE_MAX_BYTES


def test_each_vm_has_its_own_course() -> None:
    """VMs without events do not hide those that follow them in the report."""
    anonymous, accelerated, first, second = (
        vmi(name, verdict, fallback=cause is not None, cause=cause)._replace(uid=uid)
        for name, verdict, cause, uid in (
            ("a", TCG, ALLOWED, None),
            ("b", KVM, None, "2"),
            ("c", TCG, ALLOWED, "3"),
            ("d", TCG, REFUSED, "4"),
        )
    )
    everything = report(anonymous, accelerated, first, second)
    history, events = EmulationHistory().after(everything, 0.0)
    assert [event.name for event in events] == ["c", "d"]
    _, events = history.after(report(accelerated._replace(uid="3"), second), 1.0)
    assert [event.reason for event in events] == ["HardwareAcceleration"]
