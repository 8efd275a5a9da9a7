# SPDX-License-Identifier: Apache-2.0
"""Renders NodeReport and the state of the agent itself as metric families. Pure.

Owns the metrics' names, labels and help texts, which are a public interface. Must not judge: a
value that the report does not know makes no sample. Per-VM series have exactly the labels node,
namespace and name. Must not know how a family is written (see ``exposition``).
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from ebpf import counters
from probes.host.hypervisors import HYPERVISORS, HypervisorType
from probes.render.exposition import Family, Histogram, Kind, Sample
from probes.render.vcpu_metrics import VM_LABELS, Vms, statistics_families
from probes.report.model import NodeReport, ProcessState
from probes.report.vocabulary import say
from probes.vmi.model import WatchStatus

_RARE = ", ".join(
    hypervisor.type.value for hypervisor in HYPERVISORS if hypervisor.type is not HypervisorType.KVM
)


def families(report: NodeReport) -> Iterator[Family]:
    """Yield all metric families of a report, in a fixed order."""
    vms = [((report.node, vmi.vm.namespace, vmi.vm.name), vmi) for vmi in report.vmis]
    yield from _vmi_gauges(vms)
    yield from _vmi_counters(vms)
    yield from statistics_families(vms)
    yield from _node(report)
    yield _processes(report)
    yield from health_families(report)


def _gauge(
    name: str, text: str, samples: Sequence[Sample], *, labels: tuple[str, ...] = ()
) -> Family:
    return Family(name=name, kind=Kind.GAUGE, help=text, labels=labels, samples=samples)


def _counter(
    name: str, text: str, samples: Sequence[Sample], *, labels: tuple[str, ...] = ()
) -> Family:
    return Family(name=name, kind=Kind.COUNTER, help=text, labels=labels, samples=samples)


def _single(value: float) -> Sequence[Sample]:
    """Return the only sample of a family without labels."""
    return [((), value)]


def _vmi_gauges(vms: Vms) -> Iterator[Family]:
    yield _gauge(
        "kubevirt_vmi_hypervisor_info",
        "Always 1. hypervisor_type is what actually executes the VM's instructions: kvm "
        "(hardware), "
        f"tcg (software emulation, about ten times slower), {_RARE}, or unknown.",
        [((*labels, vmi.verdict.type.value), 1) for labels, vmi in vms],
        labels=(*VM_LABELS, "hypervisor_type"),
    )
    yield _gauge(
        "kubevirt_vmi_hypervisor_verified",
        "1: the kernel was observed running this VM on this hypervisor, or provably not "
        "accelerating it while it used CPU. 0: inferred; run hvprobe live on the node to see why.",
        [(labels, 1 if vmi.verdict.verified else 0) for labels, vmi in vms],
        labels=VM_LABELS,
    )
    yield _gauge(
        "kubevirt_vmi_hypervisor_fallback",
        "1: software emulation although this node has a usable accelerator for this guest; "
        "kubevirt_vmi_hypervisor_emulation_info says why.",
        [(labels, 1 if vmi.fallback else 0) for labels, vmi in vms if vmi.fallback is not None],
        labels=VM_LABELS,
    )
    yield _gauge(
        "kubevirt_vmi_hypervisor_emulation_info",
        "Always 1. cause is why the VM is emulated; the runbook of KubeVirtVMISoftwareEmulation "
        "has the remedy of each. Absent for VMs whose type is not tcg.",
        [((*labels, vmi.cause.cause.value), 1) for labels, vmi in vms if vmi.cause is not None],
        labels=(*VM_LABELS, "cause"),
    )


def _vmi_counters(vms: Vms) -> Iterator[Family]:
    for counter in counters.ranked():
        if counter.metric is not None:
            name = counter.name
            yield _counter(
                counter.metric.name,
                counter.metric.help,
                [
                    (labels, count)
                    for labels, vmi in vms
                    if (count := vmi.counters.get(name)) is not None
                ],
                labels=VM_LABELS,
            )


def _node(report: NodeReport) -> Iterator[Family]:
    yield _gauge(
        "kubevirt_node_hypervisor_available",
        "1: a VM was seen running on the accelerator, or an empty VM could be created, or, where "
        "hvprobe cannot try it, the kernel has registered its device. 0: it cannot be used. Absent "
        "where hvprobe can neither try it nor read /sys. hvprobe doctor gives the reason.",
        [
            ((report.node, accelerator.type.value), accelerator.available)
            for accelerator in report.accelerators
            if accelerator.available is not None
        ],
        labels=("node", "hypervisor_type"),
    )
    nested = say(report.virtualization.nested, "true", "false", "unknown")
    yield _gauge(
        "kubevirt_node_hypervisor_info",
        "Always 1. module provides the hypervisor on this node; nested is true when the node is "
        "itself a VM, false on bare hardware, unknown where the CPU does not report it.",
        [
            ((report.node, kind.value, module, nested), 1)
            for kind, module in report.virtualization.modules.items()
        ],
        labels=("node", "hypervisor_type", "module", "nested"),
    )


def _processes(report: NodeReport) -> Family:
    found = Counter(process.state for process in report.processes)
    return _gauge(
        "hvprobe_processes",
        "VMM processes by state: attributed to a VM; unattributed, without a VM's name, as other "
        "VMMs are (Firecracker, Kata; hvprobe live shows each by its program); probe, started by "
        "libvirt to learn QEMU's capabilities.",
        [((state.value,), found[state]) for state in ProcessState],
        labels=("state",),
    )


def health_families(report: NodeReport) -> Iterator[Family]:
    """Yield only the families about hvprobe.

    They serve a report that is too old to describe VMs and node.
    """
    health = report.health
    yield _gauge(
        "hvprobe_build_info",
        "Always 1. Versions of hvprobe, of the bcc library (empty: none is usable) and of the "
        "kernel; more than one version across nodes means a rollout is in progress.",
        [((report.version, health.bcc_version or "", report.kernel), 1)],
        labels=("version", "bcc_version", "kernel"),
    )
    yield _gauge(
        "hvprobe_hook_attached",
        "1: the kernel hook is attached with this backend. 0 with backend none: it is not "
        "attached, and what it would prove is inferred, missing, or not needed now (kvm_exit); run "
        "hvprobe doctor for the reason.",
        [((status.hook.name, status.backend.value), status.attached) for status in health.hooks],
        labels=("hook", "backend"),
    )
    yield _counter(
        "hvprobe_hook_missed",
        "Runs of the hook's programs that the kernel skipped. While it rises, counts of this hook "
        "are too low. Absent where this kernel does not count them; see hvprobe doctor.",
        [
            ((status.hook.name,), status.missed_total)
            for status in health.hooks
            if status.missed_total is not None
        ],
        labels=("hook",),
    )
    yield _gauge(
        "hvprobe_ledger_entries",
        "Processes in the kernel table, which drops events when it holds hvprobe_ledger_capacity.",
        _single(health.ledger_entries),
    )
    yield _gauge(
        "hvprobe_ledger_capacity",
        "Number of processes that the kernel table has room for; 0: there is no table.",
        _single(health.ledger_capacity),
    )
    yield _counter(
        "hvprobe_ledger_dropped",
        "Events dropped because the kernel table was full. While it rises, counters are too low "
        "and verdicts of new VMs are inferred: more processes than hvprobe_ledger_capacity use "
        "KVM.",
        _single(health.ledger_dropped_total),
    )
    if health.vmi_watch is not None:
        yield from _vmi_watch(health.vmi_watch)
    yield _counter(
        "hvprobe_refresh_errors",
        "Refreshes in which a source could not be read: ebpf (kernel table), proc, "
        "kvm_statistics (of a VM's vCPUs), kube. Its data is missing or last known; hvprobe "
        "doctor and the agent's log give the reason.",
        [((source.value,), count) for source, count in health.errors_total.items()],
        labels=("source",),
    )


def _vmi_watch(watch: WatchStatus) -> Iterator[Family]:
    yield _gauge(
        "hvprobe_vmi_watch_up",
        "1: the API server reports this node's VMIs as they change. 0: it does not, and the last "
        "known VMIs are shown; the agent's log and hvprobe doctor give the reason.",
        _single(watch.up),
    )
    yield _gauge(
        "hvprobe_vmi_watch_last_sync_timestamp_seconds",
        "When the API server last confirmed the known VMIs, in Unix time; absent before the first "
        "confirmation. It is at most a minute old unless the API server is unreachable.",
        _single(watch.last_sync_unix_s) if watch.last_sync_unix_s is not None else [],
    )
    yield _counter(
        "hvprobe_vmi_watch_restarts",
        "How often the watch of VMIs was reopened after it broke. If it rises steadily, check the "
        "network to the API server and the agent's log.",
        _single(watch.restarts),
    )
    yield _counter(
        "hvprobe_vmi_watch_malformed",
        "Objects from the API server that are not valid VMIs and were skipped; the agent's log "
        "names them. Above 0, their VMs have no series: update hvprobe to match this version of "
        "KubeVirt.",
        _single(watch.malformed_total),
    )


def refresh_families(
    *,
    failed: bool,
    failures: Mapping[str, int],
    durations: Sequence[tuple[float, int]],
    total_s: float,
) -> Iterator[Family | Histogram]:
    """Yield families about the refreshes since the agent started.

    failures holds counts by cause. durations holds pairs of an upper bound in seconds and the
    number of refreshes that took no longer.
    """
    yield Histogram(
        name="hvprobe_refresh_duration_seconds",
        help="Duration of a refresh: reading the kernel table and /proc, judging, naming. Near the "
        "scrape timeout, scrapes will fail: check the load of the node, then raise the timeout.",
        buckets=durations,
        total=total_s,
    )
    yield _gauge(
        "hvprobe_refresh_failed",
        "1: the last refresh failed or has not finished. VM series keep their last known values "
        "for one minute after the first failure, then disappear. See the agent's log; restart it "
        "if this stays.",
        _single(failed),
    )
    yield _counter(
        "hvprobe_refresh_failures",
        "Refreshes that failed. error: a defect in hvprobe, the log has the traceback. deadline: "
        "the refresh did not finish in time, usually because a read of /proc blocks in the kernel.",
        [((cause,), count) for cause, count in failures.items()],
        labels=("cause",),
    )


class TlsState(Protocol):
    """The state of the TLS files in use (probes.serve.listen.TlsState)."""

    @property
    def reload_failed(self) -> bool:
        """Whether the files have changed but cannot be used, so that older ones are in use."""
        ...

    @property
    def expiry_unix_s(self) -> float:
        """When the server's certificate in use expires."""
        ...


def tls_families(state: TlsState) -> Iterator[Family]:
    """Yield families about the TLS files in use."""
    yield _gauge(
        "hvprobe_tls_reload_failed",
        "1: the TLS files have changed but cannot be used, or their certificate is expired or not "
        "valid yet, so the previous ones are still in use; the agent's log gives the reason.",
        _single(state.reload_failed),
    )
    yield _gauge(
        "hvprobe_tls_certificate_expiry_timestamp_seconds",
        "When the certificate in use expires, in Unix time. After that, clients that verify it "
        "refuse the connection; renew the files, which the agent loads without a restart.",
        _single(state.expiry_unix_s),
    )
