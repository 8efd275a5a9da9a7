# SPDX-License-Identifier: Apache-2.0
"""Builds a NodeReport from everything that one refresh of a node found out. Pure.

Owns which counters a process has and what counts as a fallback. Must not read anything, and must
not judge: verdicts arrive complete, each process with the record that is its own.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ebpf import counters
from ebpf.counters import EXITS
from ebpf.ledger import PLACES, KernelSnapshot, LedgerEntry
from probes.host.hypervisors import HYPERVISORS, Hypervisor, HypervisorType
from probes.host.node import Accelerator, NodeVirtualization
from probes.host.process import VmmId
from probes.host.vcpu_counts import counts_of
from probes.judge.cause import Cause, CauseFound
from probes.judge.emulation_tracker import KnownEmulation
from probes.judge.exit_counts import ExitAccount, ExitSource
from probes.judge.guest_time import GuestTime
from probes.judge.reasons import Reason
from probes.judge.tracked import TrackedProcess, Tracking
from probes.judge.verdict import Verdict
from probes.report.causes import causes_of, is_any_available
from probes.report.model import (
    CounterTrust,
    NodeReport,
    ProbeHealth,
    ProcessReport,
    ProcessState,
    Source,
    VcpuStatistics,
    VmiReport,
)
from probes.vmi.attribution import Attribution, Attributions, VmName
from probes.vmi.model import WatchStatus


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
    trusts: Mapping[str, CounterTrust]
    tracking: Tracking
    accounts: Mapping[int, ExitAccount]
    """Accounts of exits by tgid, of processes that are tracked."""
    guest_times: Mapping[int, GuestTime]
    """CPU time in guest code by tgid, of processes that are tracked; empty: it was not wanted."""
    emulation: KnownEmulation
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
    processes = process_reports(
        refresh.tracking,
        refresh.accounts,
        names=refresh.attributions.names,
        guest_times=refresh.guest_times,
        causes=causes_of(
            refresh.tracking.processes,
            refresh.emulation,
            refresh.attributions.vms,
            accelerators=refresh.accelerators,
            machine=refresh.machine,
        ),
    )
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
            trusts=refresh.trusts,
            ledger_entries=len(ledger.entries),
            ledger_capacity=ledger.capacity,
            ledger_dropped_total=ledger.dropped_total,
            ledger_error=ledger.error,
            bcc_version=refresh.bcc_version,
            errors_total=refresh.errors_total,
            vmi_watch=refresh.vmi_watch,
            processes_pending=refresh.tracking.pending,
            processes_denied=refresh.tracking.denied,
        ),
        proc_readable=refresh.proc_readable,
        processes=processes,
        vmis=vmi_reports(
            refresh.attributions.vms,
            processes,
            accelerators=refresh.accelerators,
            pending=refresh.tracking.pending,
        ),
    )


def process_reports(
    tracking: Tracking,
    accounts: Mapping[int, ExitAccount],
    *,
    names: Mapping[VmmId, VmName],
    guest_times: Mapping[int, GuestTime] = {},
    causes: Mapping[VmmId, CauseFound] = {},
) -> tuple[ProcessReport, ...]:
    """Return the report of each VMM process, in the given order.

    accounts holds the accounts of exits of these processes by tgid, and guest_times their CPU time
    in guest code. names maps processes to the VMs that they are, and causes holds why those of them
    that emulate do.
    """
    reported = {hypervisor.type: _reported(hypervisor) for hypervisor in HYPERVISORS}
    records = tracking.records
    found: list[ProcessReport] = []
    for process in tracking.processes:
        vmm = process.vmm
        tgid = vmm.tgid
        # Arguments are positional because keywords would double the time that each report takes.
        found.append(
            _process_report(
                process,
                _counted(process.verdict.type, records.get(tgid), reported),
                accounts.get(tgid),
                guest_times.get(tgid) if guest_times else None,
                names.get(vmm),
                causes.get(vmm) if causes else None,
            )
        )
    return tuple(found)


def vmi_reports(
    vms: Sequence[Attribution],
    processes: Iterable[ProcessReport],
    *,
    accelerators: tuple[Accelerator, ...],
    pending: int,
) -> tuple[VmiReport, ...]:
    """Report every VM that has a name on this node, in the given order.

    pending is the number of processes that are not read yet, one of which may be the process of a
    VM without one.
    """
    by_vmm: dict[VmmId | None, ProcessReport] = {process.vmm: process for process in processes}
    return tuple(
        _vmi_report(vm, by_vmm.get(vm.vmm), accelerators=accelerators, pending=pending)
        for vm in vms
    )


def _process_report(
    process: TrackedProcess,
    counted: dict[str, int],
    account: ExitAccount | None,
    guest_time: GuestTime | None,
    vm: VmName | None,
    cause: CauseFound | None,
) -> ProcessReport:
    state = ProcessState.UNATTRIBUTED if vm is None else ProcessState.ATTRIBUTED
    if process.capability_probe:
        state = ProcessState.PROBE
    source = statistics = None
    if process.verdict.type is HypervisorType.KVM:
        statistics = _statistics(account, guest_time)
        source = None if account is None else account.source
    if source is not ExitSource.TRACEPOINT:
        counted.pop(EXITS.name, None)
        if account is not None and source is not None and account.totals:
            counted[EXITS.name] = account.totals[0]
    return ProcessReport(
        process.vmm,
        process.comm,
        process.guest_name,
        vm,
        state,
        process.verdict,
        process.vcpus,
        process.started_unix_s,
        counted,
        source,
        statistics,
        cause,
        process,
    )


def _statistics(account: ExitAccount | None, guest_time: GuestTime | None) -> VcpuStatistics | None:
    """Return what was read of a process on KVM on request; None: nothing."""
    if guest_time is None and (account is None or len(account.measures) <= 1):
        return None
    counts: Mapping[str, float] = {}
    if account is not None and len(account.measures) > 1:
        counts = counts_of(account.measures, account.totals)
    guest_cpu_s = guest_time.now_s if guest_time is not None else None
    if not counts and guest_cpu_s is None:
        return None
    return VcpuStatistics(counts=counts, guest_cpu_s=guest_cpu_s)


def _counted(
    kind: HypervisorType,
    entry: LedgerEntry | None,
    reported: Mapping[HypervisorType, Sequence[tuple[str, int]]],
) -> dict[str, int]:
    """Return the hooks' counters of a process with this verdict that have counted.

    reported holds, for each hypervisor, the names and indexes of the counters that reports show. A
    count is a fact, but a 0 proves nothing, however often the hook has fired for other processes,
    because it may never fire for this one: the exits of an Arm realm do not pass kvm_exit.
    """
    if entry is None:
        return {}
    counts = entry.counts
    return {name: counts[place] for name, place in reported.get(kind, ()) if counts[place]}


def _reported(hypervisor: Hypervisor) -> Sequence[tuple[str, int]]:
    """Return name and index of each counter that reports show for a hypervisor's VMs."""
    return [
        (counter.name, PLACES[counter.name])
        for counter in counters.COUNTERS
        if counter.json is not None and counter.hook.driver in (None, hypervisor.driver)
    ]


def _vmi_report(
    attribution: Attribution,
    process: ProcessReport | None,
    *,
    accelerators: tuple[Accelerator, ...],
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
            counters={},
            pods=attribution.pods,
            uid=attribution.uid,
        )
    return VmiReport(  # positional for the same reason as above
        attribution.vm,
        process.verdict,
        _fallback(process, accelerators),
        process.vmm,
        process.counters,
        process.exits_source,
        process.vcpu_statistics,
        process.cause,
        attribution.pods,
        attribution.uid,
    )


def _fallback(process: ProcessReport, accelerators: tuple[Accelerator, ...]) -> bool | None:
    """Whether the guest is emulated although the node could accelerate it.

    None: it is emulated, and it is unknown whether the node could do better. A guest of another
    architecture is no fallback, and its cause is decided before all others.
    """
    if process.verdict.type is not HypervisorType.TCG:
        return False
    if process.cause is not None and process.cause.cause is Cause.CROSS_ARCHITECTURE:
        return False
    return is_any_available(accelerators)
