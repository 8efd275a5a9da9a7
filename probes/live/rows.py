"""One line a process: a report → rows, searched and ordered. Pure.

Owns what counts as trouble, what a row is called, and the ways to search and sort. Must not know
columns, widths or keys. Text of a row is still foreign text: who shows it makes it visible().
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum

from probes.live.history import History, Rates, ReasonRate
from probes.report import NodeReport, ProcessReport, ProcessState, VmiReport
from probes.verdict import Reason, Verdict
from probes.vmm import HypervisorType, VmmId

_CONTRADICTIONS = frozenset(
    {
        Reason.CLAIMS_WITHOUT_FDS,
        Reason.GUEST_TIME_WITHOUT_FDS,
        Reason.CONTRADICTS_THREAD_NAMES,
        Reason.CONTRADICTS_COMMAND_LINE,
    }
)


class Trouble(IntEnum):
    """What a person should look at, worst first."""

    CONTRADICTION = 0
    """It says one thing of itself and the kernel says another."""
    FALLBACK = 1
    """Emulated although this node could accelerate it."""
    UNKNOWN = 2
    NONE = 3


class Order(StrEnum):
    """How rows are sorted; equals by name."""

    TROUBLE = "trouble"
    EXITS = "exits"
    TYPE = "type"
    NAME = "name"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A process that uses an accelerator or is a QEMU, or a VM whose process was not found."""

    vmm: VmmId | None
    """The process; None: not found."""
    command: str
    name: str
    """namespace/name, else the guest's name, else ``-``."""
    verdict: Verdict
    trouble: Trouble
    vcpus: int | None
    age_s: float | None
    rates: Rates
    reasons: tuple[ReasonRate, ...]

    @property
    def tgid(self) -> int | None:
        """Its number; None: not found."""
        return None if self.vmm is None else self.vmm.tgid

    def matches(self, words: str) -> bool:
        """Whether each of the words is found in what the row shows, in either case."""
        shown = " ".join(
            (
                str(self.tgid),
                self.command,
                self.name,
                self.verdict.type.value,
                *(reason.value for reason in self.verdict.reasons),
                self.trouble.name.lower(),
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
    return Row(
        vmm=process.vmm,
        command=process.comm,
        name=f"{process.vm.namespace}/{process.vm.name}"
        if process.vm
        else process.guest_name or "-",
        verdict=process.verdict,
        trouble=_trouble(process.verdict, vmi, probe=process.state is ProcessState.PROBE),
        vcpus=process.vcpus,
        age_s=max(report.taken_unix_s - process.started_unix_s, 0.0),
        rates=history.rates(process.vmm),
        reasons=history.reasons(process.vmm.tgid),
    )


def _orphan(vmi: VmiReport) -> Row:
    return Row(
        vmm=None,
        command="-",
        name=f"{vmi.vm.namespace}/{vmi.vm.name}",
        verdict=vmi.verdict,
        trouble=_trouble(vmi.verdict, vmi, probe=False),
        vcpus=None,
        age_s=None,
        rates=Rates(),
        reasons=(),
    )


def _trouble(verdict: Verdict, vmi: VmiReport | None, *, probe: bool) -> Trouble:
    if _CONTRADICTIONS & set(verdict.reasons):
        return Trouble.CONTRADICTION
    if vmi is not None and vmi.fallback:
        return Trouble.FALLBACK
    if verdict.type is HypervisorType.UNKNOWN and not probe:
        return Trouble.UNKNOWN
    return Trouble.NONE


def _by_name(row: Row) -> tuple[str, tuple[VmmId, ...]]:
    return row.name, () if row.vmm is None else (row.vmm,)


def _activity(row: Row) -> float:
    if row.rates.exits is not None:
        return row.rates.exits
    return row.rates.userspace_exits or 0.0


_KEYS: Mapping[Order, Callable[[Row], tuple[object, ...]]] = {
    Order.TROUBLE: lambda row: (row.trouble, *_by_name(row)),
    Order.EXITS: lambda row: (-_activity(row), *_by_name(row)),
    Order.TYPE: lambda row: (row.verdict.type.value, row.verdict.verified, *_by_name(row)),
    Order.NAME: _by_name,
}
