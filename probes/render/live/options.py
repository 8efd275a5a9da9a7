# SPDX-License-Identifier: Apache-2.0
"""What a user can ask of the live view. Pure, and light: the command line's grammar imports it.

Owns the options, what a selection keeps of a report, and what ``--reasons`` costs.
"""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from probes.host.process import HypervisorType, VmmId

if TYPE_CHECKING:
    from probes.judge.verdict import Verdict
    from probes.report.model import NodeReport
    from probes.vmi.attribution import VmName

REASONS_COST = "adds about 0.3 µs to each exit of a displayed VM and 0.15 µs to others"
"""Of --reasons: CPU time of a vCPU thread with and without it, on kernel 6.18 in a VM."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which processes and VMs are wanted; an empty set wants all."""

    tgids: frozenset[int] = frozenset()
    namespaces: frozenset[str] = frozenset()
    types: frozenset[HypervisorType] = frozenset()

    def of(self, report: "NodeReport") -> "NodeReport":
        """The report without what is not wanted."""
        return replace(
            report,
            processes=tuple(
                it for it in report.processes if self._wants(it.vmm, it.vm, it.verdict)
            ),
            vmis=tuple(it for it in report.vmis if self._wants(it.vmm, it.vm, it.verdict)),
        )

    def _wants(self, vmm: VmmId | None, vm: "VmName | None", verdict: "Verdict") -> bool:
        return (
            (not self.tgids or (vmm is not None and vmm.tgid in self.tgids))
            and (not self.namespaces or (vm is not None and vm.namespace in self.namespaces))
            and (not self.types or verdict.type in self.types)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveOptions:
    """What was asked of the live view."""

    interval_s: float = 1.0
    once: bool = False
    json: bool = False
    reasons: bool = False
    selection: Selection = field(default_factory=Selection)
