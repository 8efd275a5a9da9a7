# SPDX-License-Identifier: Apache-2.0
"""One line per process: a report → rows, searched and ordered. Pure.

Owns the ways to search and sort; severity and names come from vocabulary.py. Must not know columns,
widths or keys. Text of a row is still foreign text: the module that shows it calls visible().
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from probes.host.process import VmmId
from probes.judge.reasons import Severity
from probes.judge.verdict import Verdict
from probes.render.live.history import History, Rates, ReasonRate
from probes.report.model import NodeReport, ProcessReport, VmiReport
from probes.report.vocabulary import subject_of_process, subject_of_vmi


class Order(StrEnum):
    """How rows are sorted; equals are sorted by name."""

    SEVERITY = "severity"
    EXITS = "exits"
    TYPE = "type"
    NAME = "name"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A process that uses an accelerator or is a QEMU, or a VM without a process."""

    vmm: VmmId | None
    """The process; None: not found."""
    command: str
    name: str
    """namespace/name, else the guest's name, else ``-``."""
    verdict: Verdict
    severity: Severity
    vcpus: int | None
    age_s: float | None
    rates: Rates
    reasons: tuple[ReasonRate, ...]

    @property
    def tgid(self) -> int | None:
        """Its number; None: not found."""
        return None if self.vmm is None else self.vmm.tgid

    def matches(self, words: str) -> bool:
        """Whether the row shows each of the words, in upper or lower case."""
        shown = " ".join(
            (
                str(self.tgid),
                self.command,
                self.name,
                self.verdict.type.value,
                *(reason.sentence for reason in self.verdict.reasons),
                self.severity.label,
            )
        ).casefold()
        return all(word in shown for word in words.casefold().split())


def rows_of(report: NodeReport, history: History) -> tuple[Row, ...]:
    """Every process of the report, and every VM without one."""
    by_vmm = {it.vmm: it for it in report.vmis if it.vmm is not None}
    orphans = (it for it in report.vmis if it.vmm is None)
    return (
        *(_row(it, by_vmm.get(it.vmm), report, history) for it in report.processes),
        *(_orphan(it) for it in orphans),
    )


def ordered(rows: Iterable[Row], order: Order) -> tuple[Row, ...]:
    """Sorted; the order of equals does not change from frame to frame."""
    return tuple(sorted(rows, key=_KEYS[order]))


def _row(
    process: ProcessReport, vmi: VmiReport | None, report: NodeReport, history: History
) -> Row:
    subject = subject_of_process(process, vmi)
    return Row(
        vmm=process.vmm,
        command=process.comm,
        name=subject.name,
        verdict=process.verdict,
        severity=subject.severity,
        vcpus=process.vcpus,
        age_s=max(report.taken_unix_s - process.started_unix_s, 0.0),
        rates=history.rates(process.vmm),
        reasons=history.reasons(process.vmm.tgid),
    )


def _orphan(vmi: VmiReport) -> Row:
    subject = subject_of_vmi(vmi)
    return Row(
        vmm=None,
        command="-",
        name=subject.name,
        verdict=vmi.verdict,
        severity=subject.severity,
        vcpus=None,
        age_s=None,
        rates=Rates(),
        reasons=(),
    )


def _by_name(row: Row) -> tuple[str, tuple[VmmId, ...]]:
    return row.name, () if row.vmm is None else (row.vmm,)


def _activity(row: Row) -> float:
    if row.rates.exits is not None:
        return row.rates.exits
    return row.rates.userspace_exits or 0.0


_KEYS: Mapping[Order, Callable[[Row], tuple[object, ...]]] = {
    Order.SEVERITY: lambda row: (row.severity, *_by_name(row)),
    Order.EXITS: lambda row: (-_activity(row), *_by_name(row)),
    Order.TYPE: lambda row: (row.verdict.type.value, row.verdict.verified, *_by_name(row)),
    Order.NAME: _by_name,
}
