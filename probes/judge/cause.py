# SPDX-License-Identifier: Apache-2.0
"""Finds out why a guest is emulated: from facts to one cause out of a closed set. Pure.

Owns the table of causes with their phrases and remedies, and the order in which they are tried.
Must not know how a fact was read. Like a verdict, a cause is never guessed: a fact that is unknown
and decides whether an earlier cause holds leads to ``unknown``, with what could not be read.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from probes.host.emulation import EmulationFacts, Finding, RegisteredBetween, runs_on, unknown

START_ROUNDING_S = 0.01
"""How much later than its start time in /proc, which is in clock ticks, a process can start."""
_TCG = "tcg"
_NO_ACCELERATORS = frozenset({_TCG, "qtest"})
"""QEMU's accelerators that do not accelerate."""


class Cause(StrEnum):
    """Why a guest is emulated, in the order in which causes are tried: the first that holds counts.

    The value is the code: the name in lower case, which never changes.
    """

    phrase: str
    """The sentence that all outputs show."""
    remedy: str
    """What a person can do, in one line."""

    def __new__(cls, code: str, phrase: str, remedy: str) -> Self:
        """Make the member from a row of the table."""
        cause = str.__new__(cls, code)
        cause._value_ = code
        cause.phrase = phrase
        cause.remedy = remedy
        return cause

    CROSS_ARCHITECTURE = (
        "cross_architecture",
        "the guest's architecture is not the node's",
        "run the VM on a node of its architecture, or accept emulation",
    )
    NODE_WITHOUT_ACCELERATOR = (
        "node_without_accelerator",
        "the node has no accelerator that works",
        "run hvprobe doctor on the node to see why, or run the VM on another node",
    )
    EMULATION_ALLOWED = (
        "emulation_allowed",
        "KubeVirt created the pod with emulation allowed, so it asked for no device",
        "remove useEmulation from the KubeVirt resource if it is still there, then restart the VM",
    )
    DEVICE_MISSING_IN_POD = (
        "device_missing_in_pod",
        "emulation is not allowed, yet the pod has no device",
        "check that virt-handler's device plugin works and the pod requests the device, restart it",
    )
    DEVICE_INACCESSIBLE = (
        "device_inaccessible",
        "the pod has the device, but QEMU's user may not open it",
        "let QEMU's user read and write the device: check its mode and owner, then restart the VM",
    )
    ACCELERATOR_ADDED_LATER = (
        "accelerator_added_later",
        "the node's accelerator is younger than the process",
        "restart the VM",
    )
    ACCELERATOR_REFUSED = (
        "accelerator_refused",
        "QEMU tried an accelerator that refused, and continued with tcg",
        "look in the log of the VM's pod for QEMU's message about the accelerator",
    )
    REQUESTED_BY_DOMAIN = (
        "requested_by_domain",
        "the device is accessible, but the domain asks for tcg",
        "look for a hook sidecar, a plugin or XML of your own that sets the domain's type",
    )
    UNKNOWN = (
        "unknown",
        "the cause is unknown",
        "make readable what could not be read: hvprobe doctor on the node shows missing privileges",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CauseFacts:
    """What decides why a guest is emulated."""

    guest_is_foreign: Finding[bool]
    """Whether the node's accelerators cannot run the guest's architecture."""
    node_has_accelerator: Finding[bool]
    """Whether the node has an accelerator that works."""
    emulation_allowed: Finding[bool]
    device_in_pod: Finding[bool]
    device_accessible: Finding[bool]
    """Whether QEMU may open the device; it does not matter where the pod has none."""
    accelerator_is_younger: Finding[bool]
    """Whether the accelerator was registered after the process started."""
    asked_for: Finding[tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class CauseFound:
    """Why a guest is emulated."""

    cause: Cause
    detail: str
    """What decided it or, for ``unknown``, what could not be read. It names processes, users and
    modes, and continues a line."""

    @property
    def sentence(self) -> str:
        """Phrase and detail on one line."""
        return f"{self.cause.phrase}: {self.detail}"


def cause_of(facts: CauseFacts) -> CauseFound:
    """Return the first cause that holds.

    ``unknown`` if it cannot be decided whether an earlier cause holds, or if none does.
    """
    for cause, rule in _RULES:
        holds = rule(facts)
        if holds.value is None:
            return CauseFound(cause=Cause.UNKNOWN, detail=holds.text)
        if holds.value:
            return CauseFound(cause=cause, detail=holds.text)
    return CauseFound(
        cause=Cause.UNKNOWN,
        detail=f"no known cause holds, because {facts.asked_for.text}, which does not lead to tcg",
    )


def cause_facts(
    read: EmulationFacts,
    *,
    machine: str,
    vmi_architecture: str | None,
    accelerator_available: bool | None,
    registered: RegisteredBetween | None,
    start_s: float,
) -> CauseFacts:
    """Combine what was read of a process with what is known of its VMI and its node.

    machine and vmi_architecture are in ``uname -m`` words; vmi_architecture is None where the API
    server names none. accelerator_available is None where no accelerator could be tried, and
    registered where none is registered. start_s is the start of the process on CLOCK_BOOTTIME, in
    clock ticks and thus rounded down.
    """
    return CauseFacts(
        guest_is_foreign=_foreign(read.architecture, vmi_architecture, machine),
        node_has_accelerator=_available(accelerator_available),
        emulation_allowed=read.emulation_allowed,
        device_in_pod=read.device_in_pod,
        device_accessible=read.device_accessible,
        accelerator_is_younger=_younger(registered, start_s),
        asked_for=read.asked_for,
    )


def _foreign(program: Finding[str], vmi_architecture: str | None, machine: str) -> Finding[bool]:
    """Compare the architectures of QEMU's program and of the VMI with the node's.

    One that is foreign is enough. A program that names no architecture, such as qemu-kvm, is built
    for the node's.
    """
    node = f"the node is {machine}"
    if program.value and not runs_on(program.value, machine):
        return Finding(value=True, text=f"{program.text}, {node}")
    if vmi_architecture is not None and (
        not program.value or not runs_on(vmi_architecture, machine)
    ):
        foreign = not runs_on(vmi_architecture, machine)
        return Finding(value=foreign, text=f"the VMI asks for {vmi_architecture}, {node}")
    if program.value is None:
        return unknown(program.text)
    return Finding(value=False, text=f"{program.text}, {node}")


def _available(available: bool | None) -> Finding[bool]:
    if available is None:
        return unknown("hvprobe can neither try the node's accelerator nor read /sys")
    return Finding(
        value=available, text=f"hvprobe found {'one' if available else 'none'} that works"
    )


def _younger(registered: RegisteredBetween | None, start_s: float) -> Finding[bool]:
    if registered is not None:
        after_s, by_s = registered.after_s, registered.by_s
        if after_s is not None and after_s >= start_s + START_ROUNDING_S:
            seconds = after_s - start_s
            return Finding(value=True, text=f"it was registered at least {seconds:.1f} s later")
        if by_s is not None and by_s <= start_s:
            return Finding(value=False, text="it was registered before the process started")
    return unknown("it cannot be read whether the accelerator was there when the process started")


def _not(finding: Finding[bool]) -> Finding[bool]:
    if finding.value is None:
        return finding
    return Finding(value=not finding.value, text=finding.text)


def _both(first: Finding[bool], second: Finding[bool]) -> Finding[bool]:
    """Whether both hold. It does not matter what is unknown if the other does not hold.

    The first one's text explains it.
    """
    for finding in (first, second):
        if finding.value is False:
            return finding
    return second if second.value is None else first


def _first_choice(asked_for: Finding[tuple[str, ...]], *, is_tcg: bool) -> Finding[bool]:
    """Whether QEMU was asked for tcg first (is_tcg), or for an accelerator and then for tcg."""
    names = asked_for.value
    if names is None:
        return unknown(asked_for.text)
    if is_tcg:
        return Finding(value=names[:1] == (_TCG,), text=asked_for.text)
    before = names[: names.index(_TCG)] if _TCG in names else ()
    return Finding(value=not _NO_ACCELERATORS.issuperset(before), text=asked_for.text)


_RULES: tuple[tuple[Cause, Callable[[CauseFacts], Finding[bool]]], ...] = (
    (Cause.CROSS_ARCHITECTURE, lambda facts: facts.guest_is_foreign),
    (Cause.NODE_WITHOUT_ACCELERATOR, lambda facts: _not(facts.node_has_accelerator)),
    (
        # KubeVirt uses a device that is there even where it allows emulation.
        Cause.EMULATION_ALLOWED,
        lambda facts: _both(facts.emulation_allowed, _not(facts.device_in_pod)),
    ),
    # What an earlier rule has decided is not asked again: here emulation is not allowed, and after
    # this rule the pod has the device.
    (Cause.DEVICE_MISSING_IN_POD, lambda facts: _not(facts.device_in_pod)),
    (Cause.DEVICE_INACCESSIBLE, lambda facts: _not(facts.device_accessible)),
    (Cause.ACCELERATOR_ADDED_LATER, lambda facts: facts.accelerator_is_younger),
    (Cause.ACCELERATOR_REFUSED, lambda facts: _first_choice(facts.asked_for, is_tcg=False)),
    (Cause.REQUESTED_BY_DOMAIN, lambda facts: _first_choice(facts.asked_for, is_tcg=True)),
)
"""When each cause holds, in the order of ``Cause``."""
