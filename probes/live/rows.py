"""One line a process: a report → rows, chosen and ordered; and what may be asked for. Pure.

Owns what counts as trouble, what a row is called, and the ways to choose and sort. Must not know
columns, widths or keys. Text of a row is still foreign text: who shows it makes it visible().
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum

from probes.identity import VmName
from probes.live.history import History, Rates, ReasonRate
from probes.report import NodeReport, ProcessReport, ProcessState, VmiReport
from probes.verdict import Reason, Verdict
from probes.vmm import HypervisorType, VmmId

REASONS_COST = "an exit of a VM shown costs 0.3 µs more, of another one 0.15 µs"
"""Of --reasons: CPU time of a vCPU thread with and without it, on kernel 6.18 in a VM."""
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
class Selection:
    """Which processes and VMs are wanted; an empty set wants all."""

    tgids: frozenset[int] = frozenset()
    namespaces: frozenset[str] = frozenset()
    types: frozenset[HypervisorType] = frozenset()

    def of(self, report: NodeReport) -> NodeReport:
        """The report without what is not wanted."""
        return replace(
            report,
            processes=tuple(
                it for it in report.processes if self._wants(it.vmm, it.vm, it.verdict)
            ),
            vmis=tuple(it for it in report.vmis if self._wants(it.vmm, it.vm, it.verdict)),
        )

    def _wants(self, vmm: VmmId | None, vm: VmName | None, verdict: Verdict) -> bool:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A process that uses an accelerator or is a QEMU, or a VM whose process was not found."""

    tgid: int | None
    start_ticks: int
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
    def vmm(self) -> VmmId | None:
        """The process; None: not found."""
        if self.tgid is None:
            return None
        return VmmId(tgid=self.tgid, start_ticks=self.start_ticks)

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
        tgid=process.vmm.tgid,
        start_ticks=process.vmm.start_ticks,
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
        tgid=None,
        start_ticks=0,
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


def _by_name(row: Row) -> tuple[str, int, int]:
    return row.name, row.tgid or 0, row.start_ticks


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
