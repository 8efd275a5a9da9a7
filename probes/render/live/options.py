# SPDX-License-Identifier: Apache-2.0
"""Defines the options of the live view. Pure, and light: the command line's grammar imports it.

Owns the options, what a selection keeps of a report, and the cost of ``--reasons``.
"""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from probes.host.hypervisors import HypervisorType
from probes.host.process import VmmId

if TYPE_CHECKING:
    from probes.judge.verdict import Verdict
    from probes.report.model import NodeReport
    from probes.vmi.attribution import VmName

REASONS_COST = "adds about 0.3 µs to each exit of a displayed VM and 0.15 µs to others"
"""The cost of --reasons: CPU time of a vCPU thread with and without it, on kernel 6.18 in a VM."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The processes and VMs to show; an empty set selects all."""

    tgids: frozenset[int] = frozenset()
    namespaces: frozenset[str] = frozenset()
    types: frozenset[HypervisorType] = frozenset()

    def of(self, report: "NodeReport") -> "NodeReport":
        """Return the report reduced to what is selected."""
        return replace(
            report,
            processes=tuple(
                process
                for process in report.processes
                if self._wants(process.vmm, process.vm, process.verdict)
            ),
            vmis=tuple(vmi for vmi in report.vmis if self._wants(vmi.vmm, vmi.vm, vmi.verdict)),
        )

    def _wants(self, vmm: VmmId | None, vm: "VmName | None", verdict: "Verdict") -> bool:
        return (
            (not self.tgids or (vmm is not None and vmm.tgid in self.tgids))
            and (not self.namespaces or (vm is not None and vm.namespace in self.namespaces))
            and (not self.types or verdict.type in self.types)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveOptions:
    """The options that the user gave."""

    interval_s: float = 1.0
    once: bool = False
    json: bool = False
    reasons: bool = False
    selection: Selection = field(default_factory=Selection)
