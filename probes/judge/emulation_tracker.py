# SPDX-License-Identifier: Apache-2.0
"""Remembers what is known of the processes that emulate their guests.

Owns which of them are read again: those of which something is unknown. A fact that is known stays
while the process emulates. Must not know how facts are read, nor which cause follows.
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

    def refresh(self, processes: Iterable[TrackedProcess]) -> None:
        """Read what is unknown of those that emulate, and forget the others."""
        vmms = [each.vmm for each in processes if each.verdict.type is HypervisorType.TCG]
        before = self.known.facts
        wanted = [vmm for vmm in vmms if vmm not in before or _is_incomplete(before[vmm])]
        read = self._emulation.read(wanted) if wanted else {}
        self.known = KnownEmulation(
            facts=_after(before, vmms, read), registered=self._device.observe()
        )


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
