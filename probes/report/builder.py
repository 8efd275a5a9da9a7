# SPDX-License-Identifier: Apache-2.0
"""Everything that one refresh of a node found out → NodeReport. Pure.

Owns what a counter's silence means and what counts as a fallback. Must not read anything, and
must not judge: verdicts arrive finished, each process with the record that is its own.
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
"""Userspace exits without a single VM exit after which the VM exit hook is called blind.

On real hardware a return to user space follows a VM exit but for the rare call that is interrupted
before it enters the guest; a hundred in a row without one is no accident.
"""


FiredHook = tuple[Question, int]
"""A hook that has counted something, and how often it was attached by then."""

_COUNTERS: Mapping[Question, Callable[[LedgerEntry], int]] = {
    Question.USERSPACE_EXITS: attrgetter("userspace_exits"),
    Question.EXITS: attrgetter("exits"),
}
"""What each hook whose silence has to be explained counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterTrusts:
    """What is known of each counter's hook, for those who check the node."""

    userspace_exits: CounterTrust
    exits: CounterTrust


@dataclass(frozen=True, slots=True, kw_only=True)
class HookHistory:
    """What hooks were seen to do so far: by that, and not by being attached, they are believed."""

    fired: frozenset[FiredHook] = frozenset()
    """Hooks that have counted anything."""
    exits_missed: bool = False
    """Whether guests ran without the VM exit hook noticing."""

    def after(self, kernel: KernelSnapshot) -> "HookHistory":
        """What is known once this reading of the ledger is added."""
        return HookHistory(
            fired=self.fired | _hooks_fired(kernel),
            exits_missed=self.exits_missed or _exits_missed(kernel),
        )

    def trusts(self, kernel: KernelSnapshot) -> CounterTrusts:
        """Judge the hooks by what they have done since they were attached last."""
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
    """Whether processes ran guests so often that VM exits must have been among them."""
    return sum(entry.completed_runs for entry in kernel.entries.values()) >= BLIND_AFTER


def _hooks_fired(kernel: KernelSnapshot) -> frozenset[FiredHook]:
    """Hooks that have counted anything for a process since they were attached last.

    A record that began before that may have been counted by the same hook under another module.
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
    """Of hvprobe."""
    node: str
    kernel: str
    """Kernel release."""
    machine: str
    """Node architecture, ``uname -m``."""
    taken_unix_s: float
    ledger: KernelSnapshot
    bcc_version: str | None
    trusts: CounterTrusts
    tracking: Tracking
    naming: Attributions
    accelerators: tuple[Accelerator, ...]
    virtualization: NodeVirtualization
    vmi_watch: WatchStatus | None
    """None: standalone."""
    proc_readable: bool
    errors_total: Mapping[Source, int]


def node_report(refresh: NodeRefresh) -> NodeReport:
    """Make the report of a refresh."""
    ledger = refresh.ledger
    processes = process_reports(refresh.tracking, names=refresh.naming.names)
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
            refresh.naming.vms,
            processes,
            accelerators=refresh.accelerators,
            machine=refresh.machine,
            pending=refresh.tracking.pending,
        ),
    )


def process_reports(
    tracking: Tracking, *, names: Mapping[VmmId, VmName]
) -> tuple[ProcessReport, ...]:
    """Every VMM process, in the order given, with its counters; names: the VMs that they are."""
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
    """Every VM that has a name on this node, in the order given.

    machine: the node's architecture, ``uname -m``. pending: processes not read yet, one of which
    may be a VM that has none.
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
    """What was counted was counted. A 0 proves nothing: the hook may never see this process."""
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
        reason = attribution.missing or Reason.NO_PROCESS
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
    """Emulated for no reason? None: emulated, and not known whether the node could do better."""
    if verdict.type is not HypervisorType.TCG or not native:
        return False
    known = [tried.available for tried in accelerators if tried.available is not None]
    return any(known) if known else None
