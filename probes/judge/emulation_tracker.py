# SPDX-License-Identifier: Apache-2.0
"""Remembers what is known of the processes that emulate their guests.

Owns which of them are read again: those of which something is unknown, each more rarely the longer
it stays unknown, because some can never be known: a VM that virt-launcher did not start has no pod.
A fact that is known stays while the process emulates. Must not know how facts are read, nor which
cause follows.
"""

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace

from probes.host.emulation import EmulationFacts, RegisteredBetween
from probes.host.hypervisors import HypervisorType
from probes.host.process import VmmId
from probes.judge.ports import Device, Emulation
from probes.judge.tracked import TrackedProcess

_FACTS = tuple(each.name for each in fields(EmulationFacts))
MAX_READ_AGAIN = 16
"""The most processes that a refresh reads again."""
MAX_PAUSE = 16
"""The most refreshes after which a process of which something is unknown is read again."""
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownEmulation:
    """What one refresh knows of the processes that emulate, and of the node's accelerator."""

    facts: Mapping[VmmId, EmulationFacts] = field(default_factory=dict)
    registered: RegisteredBetween | None = None
    """When the accelerator was registered; None: none is."""
    ticks_per_s: int = _TICKS_PER_S
    """Clock ticks of start times."""


class EmulationTracker:
    """Follows the processes that emulate, from refresh to refresh."""

    def __init__(self, emulation: Emulation, device: Device) -> None:
        self._emulation = emulation
        self._device = device
        self.known = KnownEmulation()
        """What the last refresh knew."""
        self._refreshes = 0
        self._unknown: dict[VmmId, _Pause] = {}
        """The processes of which something is unknown."""

    def refresh(self, processes: Iterable[TrackedProcess]) -> None:
        """Read what is unknown of those that emulate, and forget the others."""
        vmms = [each.vmm for each in processes if each.verdict.type is HypervisorType.TCG]
        before = self.known.facts
        self._refreshes += 1
        wanted = [vmm for vmm in vmms if vmm not in before]
        wanted += self._due(vmms)
        read = self._emulation.read(wanted) if wanted else {}
        facts = _after(before, vmms, read)
        self._unknown = {
            vmm: pause
            for vmm, found in facts.items()
            if (pause := self._pause_of(vmm, found, was_read=vmm in read)) is not None
        }
        self.known = KnownEmulation(facts=facts, registered=self._device.observe())

    def _due(self, vmms: Collection[VmmId]) -> list[VmmId]:
        """Return the processes to read again, of which something is unknown, the oldest first."""
        due = [
            vmm
            for vmm in vmms
            if (pause := self._unknown.get(vmm)) is not None and pause.until <= self._refreshes
        ]
        return sorted(due, key=lambda vmm: self._unknown[vmm].until)[:MAX_READ_AGAIN]

    def _pause_of(self, vmm: VmmId, facts: EmulationFacts, *, was_read: bool) -> "_Pause | None":
        """Return when to read a process again; None: everything is known."""
        if not was_read:
            return self._unknown.get(vmm)
        if not _is_incomplete(facts):
            return None
        last = self._unknown.get(vmm)
        length = 1 if last is None else min(2 * last.length, MAX_PAUSE)
        return _Pause(until=self._refreshes + length, length=length)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pause:
    """How long a process is not read, in refreshes."""

    until: int
    """The number of the refresh that may read it again."""
    length: int


def _is_incomplete(facts: EmulationFacts) -> bool:
    """Whether something that may decide is unknown.

    Whether a device is accessible does not matter, and stays unknown, where the pod has none.
    """
    return any(
        getattr(facts, name).value is None
        for name in _FACTS
        if name != "device_accessible" or facts.device_in_pod.value is not False
    )


def _after(
    before: Mapping[VmmId, EmulationFacts],
    vmms: Collection[VmmId],
    read: Mapping[VmmId, EmulationFacts],
) -> dict[VmmId, EmulationFacts]:
    """Return the facts of these processes after they were read. What was known stays."""
    facts = {vmm: found for vmm in vmms if (found := before.get(vmm) or read.get(vmm)) is not None}
    for vmm in before.keys() & read.keys() & facts.keys():
        known = {name: getattr(before[vmm], name) for name in _FACTS}
        facts[vmm] = replace(
            read[vmm], **{name: found for name, found in known.items() if found.value is not None}
        )
    return facts
