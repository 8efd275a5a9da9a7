# SPDX-License-Identifier: Apache-2.0
"""Builds a NodeReport from everything that one refresh of a node found out. Pure.

Owns what a counter's silence means and what counts as a fallback. Must not read anything, and must
not judge: verdicts arrive complete, each process with the record that is its own.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

from ebpf.hooks import Question
from ebpf.ledger import KernelSnapshot, LedgerEntry
from probes.host.node import Accelerator, NodeVirtualization
from probes.host.process import HypervisorType, VmmId
from probes.judge.reasons import Reason
from probes.judge.tracked import TrackedProcess, Tracking
from probes.judge.verdict import Verdict
from probes.report.model import (
    CounterTrust,
    NodeReport,
    ProbeHealth,
    ProcessReport,
    ProcessState,
    Source,
    VmiReport,
)
from probes.vmi.attribution import Attribution, Attributions, VmName
from probes.vmi.model import WatchStatus

BLIND_AFTER = 100
"""Userspace exits without a VM exit after which the VM exit hook is considered blind.

On real hardware a VM exit precedes every return to user space, except for a rare call that is
interrupted before it enters the guest. A hundred in a row without one are no coincidence.
"""


FiredHook = tuple[Question, int]
"""A hook that has counted something, and how often it had been attached by then."""

_COUNTERS: Mapping[Question, Callable[[LedgerEntry], int]] = {
    Question.USERSPACE_EXITS: attrgetter("userspace_exits"),
    Question.EXITS: attrgetter("exits"),
}
"""What each hook counts whose silence needs an explanation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterTrusts:
    """How far each counter's hook can be trusted."""

    userspace_exits: CounterTrust
    exits: CounterTrust


@dataclass(frozen=True, slots=True, kw_only=True)
class HookHistory:
    """What hooks have done so far, which alone decides whether they are trusted."""

    fired: frozenset[FiredHook] = frozenset()
    """Hooks that have counted anything."""
    exits_missed: bool = False
    """Whether guests ran while the VM exit hook counted nothing."""

    def after(self, kernel: KernelSnapshot) -> "HookHistory":
        """Return the history after this reading of the ledger."""
        return HookHistory(
            fired=self.fired | _hooks_fired(kernel),
            exits_missed=self.exits_missed or _exits_missed(kernel),
        )

    def trusts(self, kernel: KernelSnapshot) -> CounterTrusts:
        """Judge the hooks by what they have done since they were last attached."""
        exits = self._trust(kernel, Question.EXITS)
        if exits is CounterTrust.UNTRIED and self.exits_missed:
            exits = CounterTrust.BLIND
        return CounterTrusts(
            exits=exits,
            userspace_exits=self._trust(kernel, Question.USERSPACE_EXITS),
        )

    def _trust(self, kernel: KernelSnapshot, question: Question) -> CounterTrust:
        hooks = [hook for hook in kernel.hooks if hook.hook.question is question and hook.attached]
        if not hooks:
            return CounterTrust.MISSING
        if any((question, hook.attached_total) in self.fired for hook in hooks):
            return CounterTrust.PROVEN
        return CounterTrust.UNTRIED


def _exits_missed(kernel: KernelSnapshot) -> bool:
    """Whether processes ran guests so often that VM exits must have occurred."""
    return sum(entry.completed_runs for entry in kernel.entries.values()) >= BLIND_AFTER


def _hooks_fired(kernel: KernelSnapshot) -> frozenset[FiredHook]:
    """Return the hooks that have counted anything for a process since they were last attached.

    A record that began earlier may have been counted by the same hook in another module.
    """
    seen: set[FiredHook] = set()
    for hook in kernel.hooks:
        since_ns = hook.attached_ns
        counter = _COUNTERS.get(hook.hook.question)
        if counter is None or since_ns is None:
            continue
        young = (entry for entry in kernel.entries.values() if entry.first_ns >= since_ns)
        if any(counter(entry) for entry in young):
            seen.add((hook.hook.question, hook.attached_total))
    return frozenset(seen)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRefresh:
    """Everything that one refresh of a node found out."""

    version: str
    """Version of hvprobe."""
    node: str
    kernel: str
    """Kernel release."""
    machine: str
    """Architecture of the node, in ``uname -m`` words."""
    taken_unix_s: float
    ledger: KernelSnapshot
    bcc_version: str | None
    trusts: CounterTrusts
    tracking: Tracking
    attributions: Attributions
    accelerators: tuple[Accelerator, ...]
    virtualization: NodeVirtualization
    vmi_watch: WatchStatus | None
    """State of the watch that names VMIs; None: standalone."""
    proc_readable: bool
    errors_total: Mapping[Source, int]


def node_report(refresh: NodeRefresh) -> NodeReport:
    """Make the report of a refresh."""
    ledger = refresh.ledger
    processes = process_reports(refresh.tracking, names=refresh.attributions.names)
    return NodeReport(
        version=refresh.version,
        node=refresh.node,
        kernel=refresh.kernel,
        machine=refresh.machine,
        taken_unix_s=refresh.taken_unix_s,
        accelerators=refresh.accelerators,
        virtualization=refresh.virtualization,
        health=ProbeHealth(
            hooks=ledger.hooks,
            exits_trust=refresh.trusts.exits,
            userspace_exits_trust=refresh.trusts.userspace_exits,
            ledger_entries=len(ledger.entries),
            ledger_capacity=ledger.capacity,
            ledger_dropped_total=ledger.dropped_total,
            ledger_error=ledger.error,
            bcc_version=refresh.bcc_version,
            errors_total=refresh.errors_total,
            vmi_watch=refresh.vmi_watch,
            processes_pending=refresh.tracking.pending,
        ),
        proc_readable=refresh.proc_readable,
        processes=processes,
        vmis=vmi_reports(
            refresh.attributions.vms,
            processes,
            accelerators=refresh.accelerators,
            machine=refresh.machine,
            pending=refresh.tracking.pending,
        ),
    )


def process_reports(
    tracking: Tracking, *, names: Mapping[VmmId, VmName]
) -> tuple[ProcessReport, ...]:
    """Report every VMM process with its counters, in the given order.

    names holds the VMs that processes are.
    """
    return tuple(
        _process_report(
            process, entry=tracking.records.get(process.vmm.tgid), vm=names.get(process.vmm)
        )
        for process in tracking.processes
    )


def vmi_reports(
    vms: Sequence[Attribution],
    processes: Iterable[ProcessReport],
    *,
    accelerators: tuple[Accelerator, ...],
    machine: str,
    pending: int,
) -> tuple[VmiReport, ...]:
    """Report every VM that has a name on this node, in the given order.

    machine is the node's architecture in ``uname -m`` words. pending is the number of processes
    that are not read yet, one of which may be the process of a VM without one.
    """
    by_vmm: dict[VmmId | None, ProcessReport] = {process.vmm: process for process in processes}
    return tuple(
        _vmi_report(
            vm, by_vmm.get(vm.vmm), accelerators=accelerators, machine=machine, pending=pending
        )
        for vm in vms
    )


def _process_report(
    process: TrackedProcess,
    *,
    entry: LedgerEntry | None,
    vm: VmName | None,
) -> ProcessReport:
    state = ProcessState.ATTRIBUTED if vm else ProcessState.UNATTRIBUTED
    if process.capability_probe:
        state = ProcessState.PROBE
    counted = entry if process.verdict.type.accelerated else None
    return ProcessReport(
        vmm=process.vmm,
        comm=process.comm,
        guest_name=process.guest_name,
        vm=vm,
        state=state,
        verdict=process.verdict,
        vcpus=process.vcpus,
        started_unix_s=process.started_unix_s,
        runs=_counted(counted.runs) if counted else None,
        userspace_exits=_counted(counted.userspace_exits) if counted else None,
        exits=_counted(counted.exits) if counted else None,
    )


def _counted(value: int) -> int | None:
    """Return a non-zero count, which is always valid; None for 0, which proves nothing.

    The hook may never observe this process.
    """
    return value or None


def _vmi_report(
    attribution: Attribution,
    process: ProcessReport | None,
    *,
    accelerators: tuple[Accelerator, ...],
    machine: str,
    pending: int,
) -> VmiReport:
    if process is None:
        reason = attribution.unattributed_reason or Reason.NO_PROCESS
        if reason is Reason.NO_PROCESS and pending:
            reason = Reason.NOT_READ_YET
        verdict = Verdict(type=HypervisorType.UNKNOWN, verified=False, reasons=(reason,))
        return VmiReport(
            vm=attribution.vm,
            verdict=verdict,
            fallback=False,
            vmm=None,
            userspace_exits=None,
            exits=None,
        )
    native = attribution.architecture in (None, machine)
    return VmiReport(
        vm=attribution.vm,
        verdict=process.verdict,
        fallback=_fallback(process.verdict, accelerators, native=native),
        vmm=process.vmm,
        userspace_exits=process.userspace_exits,
        exits=process.exits,
    )


def _fallback(
    verdict: Verdict, accelerators: tuple[Accelerator, ...], *, native: bool
) -> bool | None:
    """Whether the guest is emulated although the node could accelerate it.

    None: it is emulated, and it is unknown whether the node could do better.
    """
    if verdict.type is not HypervisorType.TCG or not native:
        return False
    known = [tried.available for tried in accelerators if tried.available is not None]
    return any(known) if known else None
