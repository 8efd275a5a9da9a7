# SPDX-License-Identifier: Apache-2.0
"""Holds the one report behind every output: what this node runs, and how certain that is.

Owns the immutable NodeReport and its JSON form. Must not know how anything was found out, nor how
it is shown.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from ebpf import counters
from ebpf.hook_status import HookStatus
from probes.host.cgroup import PodUid
from probes.host.hypervisors import HypervisorType
from probes.host.node import Accelerator, NodeVirtualization
from probes.host.process import VmmId
from probes.host.vcpu_counts import GROUPS, VCPU_COUNTS
from probes.judge.cause import CauseFound
from probes.judge.exit_counts import ExitSource
from probes.judge.tracked import TrackedProcess
from probes.judge.verdict import Verdict
from probes.vmi.attribution import VmName
from probes.vmi.model import WatchStatus

SCHEMA = "hvprobe/v1"


class ProcessState(StrEnum):
    """The relation of a VMM process to this node (label ``state`` of hvprobe_processes)."""

    ATTRIBUTED = "attributed"
    UNATTRIBUTED = "unattributed"
    PROBE = "probe"


class CounterTrust(StrEnum):
    """Whether a counter's hook can be trusted, judged by observing it."""

    PROVEN = "proven"
    """It has fired on this node since it was attached, so that what it counts is shown. A 0 of one
    process still proves nothing, because some guests never pass the hook."""
    UNTRIED = "untried"
    """It has not fired yet, so that it may never fire here."""
    BLIND = "blind"
    """It never fires although other hooks observed guests running: this kernel does not fire it."""
    MISSING = "missing"
    """It could not be attached."""
    INACTIVE = "inactive"
    """It is detached on purpose: its driver is not loaded, or nothing needs it."""


class Source(StrEnum):
    """The source of a part of the report (label ``source`` of hvprobe_refresh_errors_total)."""

    EBPF = "ebpf"
    PROC = "proc"
    KVM_STATISTICS = "kvm_statistics"
    KUBE = "kube"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeHealth:
    """How well hvprobe itself can observe this node."""

    hooks: tuple[HookStatus, ...]
    trusts: Mapping[str, CounterTrust]
    """Trust in each counter that has a label, by the counter's name."""
    ledger_entries: int
    ledger_capacity: int
    ledger_dropped_total: int
    """Events that were dropped because the ledger was full."""
    ledger_error: str | None
    """Why there is no ledger, in one line; None: there is one."""
    bcc_version: str | None
    errors_total: Mapping[Source, int]
    """Refreshes in which a source failed, by source."""
    vmi_watch: WatchStatus | None = None
    """State of the watch that names VMIs; None: standalone, without an API server."""
    processes_pending: int = 0
    """Processes that could not be read yet, because they block their readers, time ran out, or they
    are denied."""
    processes_denied: int = 0
    """Those of them that the kernel does not let hvprobe identify; VMs among them are not seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VcpuStatistics:
    """What is read of a process on KVM only on request (``--vcpu-stats``)."""

    counts: Mapping[str, float]
    """Counts by name (vcpu_counts.VCPU_COUNTS); absent: this kernel lacks the statistic, or the
    hook counts the exits."""
    guest_cpu_s: float | None
    """CPU time in guest code; None: unreadable, or the kernel does not account it."""


class ProcessReport(NamedTuple):
    """One VMM process.

    This is a tuple, as VmiReport is, because each refresh makes one for every process.
    """

    vmm: VmmId
    comm: str
    guest_name: str | None
    """libvirt's domain name on its command line: hostile text."""
    vm: VmName | None
    """The VM that it runs; None: it runs none that has a name here."""
    state: ProcessState
    verdict: Verdict
    vcpus: int | None
    """Number of its vCPUs, by descriptors or TCG threads; None: unknown."""
    started_unix_s: float
    counters: Mapping[str, int]
    """Totals by the counter's name; absent: it has not counted this process, so that nothing is
    known."""
    exits_source: ExitSource | None = None
    """What counts its VM exits; None: it does not run on KVM, or that is not decided yet."""
    vcpu_statistics: VcpuStatistics | None = None
    """None: it was not read, or nothing is known."""
    cause: CauseFound | None = None
    """Why it emulates its guest; None: its type is not tcg."""
    tracked: TrackedProcess | None = None
    """Everything that is remembered of it, which only an explanation shows; None: unknown."""


class VmiReport(NamedTuple):
    """One VirtualMachineInstance that runs on this node."""

    vm: VmName
    verdict: Verdict
    fallback: bool | None
    """Whether it is emulated although the node could accelerate it; None: unknown."""
    vmm: VmmId | None
    """The process that runs it; None: not found."""
    counters: Mapping[str, int]
    """Totals of its process, by the counter's name."""
    exits_source: ExitSource | None = None
    """What counts the VM exits of its process."""
    vcpu_statistics: VcpuStatistics | None = None
    """What was read of its process on request."""
    cause: CauseFound | None = None
    """Why its process emulates it; None: its type is not tcg."""
    pods: tuple[PodUid, ...] = ()
    """Its pods on this node, by the API server; empty: it has none here, or standalone."""
    uid: str | None = None
    """The uid of its object in the API server; None: standalone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReport:
    """Everything that hvprobe knows about a node at one moment."""

    version: str
    """Version of hvprobe."""
    node: str
    kernel: str
    """Kernel release."""
    machine: str
    """Architecture of the node, in ``uname -m`` words."""
    taken_unix_s: float
    accelerators: tuple[Accelerator, ...]
    virtualization: NodeVirtualization
    health: ProbeHealth
    proc_readable: bool
    """Whether /proc of the host could be read at all."""
    processes: tuple[ProcessReport, ...]
    """VMM processes, sorted by tgid."""
    vmis: tuple[VmiReport, ...]
    """VMs, sorted by namespace and name."""


def to_json(report: NodeReport) -> dict[str, object]:
    """Convert the report to plain JSON values. Keys are a public interface."""
    return {
        "schema": SCHEMA,
        "version": report.version,
        "node": {
            "name": report.node,
            "kernel": report.kernel,
            "machine": report.machine,
            "module": report.virtualization.modules.get(HypervisorType.KVM),
            "nested": report.virtualization.nested,
            "accelerators": [
                {
                    "type": accelerator.type.value,
                    "available": accelerator.available,
                    "reason": accelerator.problem.text if accelerator.problem else None,
                }
                for accelerator in report.accelerators
            ],
        },
        "taken_unix_s": report.taken_unix_s,
        "health": _health_json(report.health),
        "vmis": [vmi_json(vmi) for vmi in report.vmis],
        "processes": [process_json(process) for process in report.processes],
    }


def _health_json(health: ProbeHealth) -> dict[str, object]:
    return {
        "hooks": [
            {
                "hook": status.hook.name,
                "backend": status.backend.value,
                "reason": status.reason,
                "attached_total": status.attached_total,
                "inactive": status.inactive,
                "missed_total": status.missed_total,
            }
            for status in health.hooks
        ],
        "counters": {
            counter.name: health.trusts[counter.name].value for counter in counters.trusted()
        },
        "ledger": {
            "entries": health.ledger_entries,
            "capacity": health.ledger_capacity,
            "dropped_total": health.ledger_dropped_total,
            "error": health.ledger_error,
        },
        "bcc_version": health.bcc_version,
        "errors_total": {source.value: count for source, count in health.errors_total.items()},
        "processes_pending": health.processes_pending,
        "processes_denied": health.processes_denied,
        "vmi_watch": _watch_json(health.vmi_watch) if health.vmi_watch else None,
    }


def _watch_json(watch: WatchStatus) -> dict[str, object]:
    return {
        "up": watch.up,
        "synced": watch.synced,
        "last_sync_unix_s": watch.last_sync_unix_s,
        "restarts_total": watch.restarts,
        "malformed_total": watch.malformed_total,
        "error": watch.error,
    }


def _verdict_json(verdict: Verdict) -> dict[str, object]:
    return {
        "hypervisor_type": verdict.type.value,
        "verified": verdict.verified,
        "reasons": [reason.sentence for reason in verdict.reasons],
        "reason_codes": [reason.value for reason in verdict.reasons],
    }


def vmi_json(vmi: VmiReport) -> dict[str, object]:
    """Convert a VM to plain JSON values."""
    return {
        "namespace": vmi.vm.namespace,
        "name": vmi.vm.name,
        **_verdict_json(vmi.verdict),
        "fallback": vmi.fallback,
        "tgid": vmi.vmm.tgid if vmi.vmm else None,
        **{
            counter.json: vmi.counters.get(counter.name)
            for counter in counters.COUNTERS
            if counter.json is not None and counter.metric is not None
        },
        "vcpu_exits_source": vmi.exits_source.value if vmi.exits_source else None,
        "vcpu_statistics": _statistics_json(vmi.vcpu_statistics),
        **_cause_json(vmi.cause),
    }


def process_json(process: ProcessReport) -> dict[str, object]:
    """Convert a process to plain JSON values."""
    return {
        "tgid": process.vmm.tgid,
        "start_ticks": process.vmm.start_ticks,
        "started_unix_s": process.started_unix_s,
        "comm": process.comm,
        "guest_name": process.guest_name,
        "namespace": process.vm.namespace if process.vm else None,
        "name": process.vm.name if process.vm else None,
        "state": process.state.value,
        **_verdict_json(process.verdict),
        "vcpus": process.vcpus,
        **{
            counter.json: process.counters.get(counter.name)
            for counter in counters.COUNTERS
            if counter.json is not None
        },
        "vcpu_exits_source": process.exits_source.value if process.exits_source else None,
        "vcpu_statistics": _statistics_json(process.vcpu_statistics),
        **_cause_json(process.cause),
    }


def _cause_json(found: CauseFound | None) -> dict[str, object]:
    return {
        "cause": found.cause.value if found else None,
        "cause_detail": found.sentence if found else None,
        "remedy": found.cause.remedy if found else None,
    }


def _statistics_json(statistics: VcpuStatistics | None) -> dict[str, object] | None:
    if statistics is None:
        return None
    found: dict[str, object] = {}
    for group in GROUPS:
        counts = {
            count.name: statistics.counts[count.name]
            for count in VCPU_COUNTS
            if count.group is group and count.name in statistics.counts
        }
        found[group.json] = counts if group.label else next(iter(counts.values()), None)
    return found | {"guest_cpu_seconds_total": statistics.guest_cpu_s}
