# SPDX-License-Identifier: Apache-2.0
"""Turns a report into rows, one per process, that can be searched and sorted. Pure.

Owns the ways to search and sort; severity and names come from vocabulary.py. Must not know columns,
widths or keys. The text of a row is still foreign text: the module that shows it calls visible().
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from probes.host.process import VmmId
from probes.judge.cause import CauseFound
from probes.judge.reasons import Severity
from probes.judge.verdict import Verdict
from probes.render.live.history import History, Rates, ReasonRate, most_telling
from probes.report.model import NodeReport, ProcessReport, VcpuStatistics, VmiReport
from probes.report.vocabulary import cause_parts, subject_of_process, subject_of_vmi
from probes.vmi.attribution import VmName


class Order(StrEnum):
    """How rows are sorted; equal rows are sorted by name."""

    SEVERITY = "severity"
    EXITS = "exits"
    TYPE = "type"
    NAME = "name"
    VCPUS = "vCPUs"
    AGE = "age"


RowKey = VmmId | VmName
"""What a row is about, from frame to frame: a process, or a VM without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A process that uses an accelerator or is a QEMU, or a VM without a process."""

    key: RowKey
    vmm: VmmId | None
    """The process; None: none was found."""
    command: str
    name: str
    """namespace/name, otherwise the guest's name, otherwise ``-``."""
    verdict: Verdict
    severity: Severity
    vcpus: int | None
    age_s: float | None
    rates: Rates
    reasons: tuple[ReasonRate, ...]
    cause: CauseFound | None = None
    """Why it is emulated; None: its type is not tcg."""
    statistics: VcpuStatistics | None = None
    """What was read of the process on request; None: nothing."""
    statistics_rates: Rates = field(default_factory=dict)
    """Its rates, also of GUEST_CPU."""

    @property
    def tgid(self) -> int | None:
        """The number of the process; None: none was found."""
        return None if self.vmm is None else self.vmm.tgid

    def matches(self, words: str) -> bool:
        """Whether the row shows every one of the words, in upper or lower case."""
        if not words:
            return True
        shown = " ".join(
            (
                str(self.tgid),
                self.command,
                self.name,
                self.verdict.type.value,
                *(reason.sentence for reason in self.verdict.reasons),
                self.severity.label,
                *(words for _, words in (cause_parts(self.cause) if self.cause else ())),
            )
        ).casefold()
        return all(word in shown for word in words.casefold().split())


def rows_of(report: NodeReport, history: History) -> tuple[Row, ...]:
    """Return a row for every process of the report and for every VM without one."""
    by_vmm = {vmi.vmm: vmi for vmi in report.vmis if vmi.vmm is not None}
    orphans = (vmi for vmi in report.vmis if vmi.vmm is None)
    return (
        *(_row(process, by_vmm.get(process.vmm), report, history) for process in report.processes),
        *(_orphan(vmi) for vmi in orphans),
    )


def ordered(rows: Iterable[Row], order: Order) -> tuple[Row, ...]:
    """Sort rows. The order of equal rows does not change from frame to frame."""
    return tuple(sorted(rows, key=_KEYS[order]))


def _row(
    process: ProcessReport, vmi: VmiReport | None, report: NodeReport, history: History
) -> Row:
    subject = subject_of_process(process, vmi)
    return Row(
        key=process.vmm,
        vmm=process.vmm,
        command=process.comm,
        name=subject.name,
        verdict=process.verdict,
        severity=subject.severity,
        vcpus=process.vcpus,
        age_s=max(report.taken_unix_s - process.started_unix_s, 0.0),
        rates=history.rates(process.vmm),
        reasons=history.reasons(process.vmm.tgid),
        cause=process.cause,
        statistics=process.vcpu_statistics,
        statistics_rates=history.statistics_rates(process.vmm),
    )


def _orphan(vmi: VmiReport) -> Row:
    subject = subject_of_vmi(vmi)
    return Row(
        key=vmi.vm,
        vmm=None,
        command="-",
        name=subject.name,
        verdict=vmi.verdict,
        severity=subject.severity,
        vcpus=None,
        age_s=None,
        rates={},
        reasons=(),
    )


def _by_name(row: Row) -> tuple[str, tuple[VmmId, ...]]:
    return row.name, () if row.vmm is None else (row.vmm,)


def _activity(row: Row) -> float:
    name = most_telling(row.rates)
    return row.rates[name] if name is not None else 0.0


_KEYS: Mapping[Order, Callable[[Row], tuple[object, ...]]] = {
    Order.SEVERITY: lambda row: (row.severity, *_by_name(row)),
    Order.EXITS: lambda row: (-_activity(row), *_by_name(row)),
    Order.TYPE: lambda row: (row.verdict.type.value, row.verdict.verified, *_by_name(row)),
    Order.NAME: _by_name,
    Order.VCPUS: lambda row: (-(row.vcpus or 0), *_by_name(row)),
    Order.AGE: lambda row: (row.age_s is None, row.age_s or 0.0, *_by_name(row)),
}
