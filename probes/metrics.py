"""NodeReport → Prometheus metric families. Pure renderer.

Owns the metrics' names, labels and help texts (the product's public face). Must not judge: a value
that the report does not know makes no sample. Per-VM series carry exactly node, namespace, name.
"""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from probes.report import NodeReport, ProcessState, VmiReport
from probes.vmi import WatchStatus

_VM = ("node", "namespace", "name")


def families(report: NodeReport) -> Iterator[Metric]:
    """All metric families of a report, in a fixed order."""
    yield from _vmi_gauges(report)
    yield from _vmi_counters(report)
    yield from _node(report)
    yield from _processes(report)
    yield from health_families(report)


def _labels(report: NodeReport, vmi: VmiReport) -> tuple[str, str, str]:
    return report.node, vmi.vm.namespace, vmi.vm.name


def _vmi_gauges(report: NodeReport) -> Iterator[Metric]:
    info = GaugeMetricFamily(
        "kubevirt_vmi_hypervisor_info",
        "Always 1. hypervisor_type is what really executes the VM's instructions: kvm (hardware), "
        "tcg (software emulation, about ten times slower), mshv, or unknown.",
        labels=(*_VM, "hypervisor_type"),
    )
    verified = GaugeMetricFamily(
        "kubevirt_vmi_hypervisor_verified",
        "1: the kernel itself was seen running this VM so, or provably not accelerating it while "
        "it computes. 0: inferred; run hvprobe live on the node to see why.",
        labels=_VM,
    )
    fallback = GaugeMetricFamily(
        "kubevirt_vmi_hypervisor_fallback",
        "1: software emulation although this node has a usable accelerator for this guest: look "
        "at useEmulation in the KubeVirt resource, then restart the VM.",
        labels=_VM,
    )
    for vmi in report.vmis:
        labels = _labels(report, vmi)
        info.add_metric((*labels, vmi.verdict.type.value), 1)
        verified.add_metric(labels, vmi.verdict.verified)
        if vmi.fallback is not None:
            fallback.add_metric(labels, vmi.fallback)
    yield from (info, verified, fallback)


def _vmi_counters(report: NodeReport) -> Iterator[Metric]:
    exits = CounterMetricFamily(
        "kubevirt_vmi_vcpu_exits",
        "VM exits the kernel counted since the VM's process started, or since hvprobe attached if "
        "that was later. Absent where this kernel cannot tell and for VMs not accelerated.",
        labels=_VM,
    )
    userspace_exits = CounterMetricFamily(
        "kubevirt_vmi_vcpu_userspace_exits",
        "Returns from KVM_RUN to QEMU, the expensive kind of exit; same rules as "
        "kubevirt_vmi_vcpu_exits_total.",
        labels=_VM,
    )
    for vmi in report.vmis:
        if vmi.exits is not None:
            exits.add_metric(_labels(report, vmi), vmi.exits)
        if vmi.userspace_exits is not None:
            userspace_exits.add_metric(_labels(report, vmi), vmi.userspace_exits)
    yield from (exits, userspace_exits)


def _node(report: NodeReport) -> Iterator[Metric]:
    available = GaugeMetricFamily(
        "kubevirt_node_hypervisor_available",
        "1: the accelerator opens and creates an empty VM on this node. 0: it does not; run "
        "hvprobe doctor there. Absent where hvprobe may not try.",
        labels=("node", "hypervisor_type"),
    )
    for accelerator in report.accelerators:
        if accelerator.available is not None:
            available.add_metric((report.node, accelerator.type.value), accelerator.available)
    yield available
    info = GaugeMetricFamily(
        "kubevirt_node_hypervisor_info",
        "Always 1. module provides KVM on this node; nested is true when the node is itself a VM, "
        "false on bare hardware, unknown where the CPU does not say.",
        labels=("node", "hypervisor_type", "module", "nested"),
    )
    if report.virtualization.module is not None:
        nested = report.virtualization.nested
        words = {True: "true", False: "false", None: "unknown"}
        info.add_metric((report.node, "kvm", report.virtualization.module, words[nested]), 1)
    yield info


def _processes(report: NodeReport) -> Iterator[Metric]:
    processes = GaugeMetricFamily(
        "hvprobe_processes",
        "VMM processes by what they are: attributed to a VM; unattributed, without a VM's name "
        "(hvprobe live shows them); probe, libvirt asking QEMU what it can do.",
        labels=("state",),
    )
    for state in ProcessState:
        processes.add_metric((state.value,), sum(it.state is state for it in report.processes))
    yield processes


def health_families(report: NodeReport) -> Iterator[Metric]:
    """Those of hvprobe itself alone: for a report too old to speak of VMs and the node."""
    health = report.health
    build = GaugeMetricFamily(
        "hvprobe_build_info",
        "Always 1. Versions of hvprobe, of the bcc library (empty: none usable) and of the kernel; "
        "more than one version among the nodes is a rollout that has not ended.",
        labels=("version", "bcc_version", "kernel"),
    )
    build.add_metric((report.version, health.bcc_version or "", report.kernel), 1)
    yield build
    hooks = GaugeMetricFamily(
        "hvprobe_hook_attached",
        "1: the kernel hook is attached by this backend. 0 with backend none: it is not, and what "
        "it would prove is inferred or missing; run hvprobe doctor for the reason.",
        labels=("hook", "backend"),
    )
    for status in health.hooks:
        hooks.add_metric((status.hook.name, status.backend.value), status.attached)
    yield hooks
    yield GaugeMetricFamily(
        "hvprobe_ledger_entries",
        "Processes in the kernel table; at hvprobe_ledger_capacity it drops events.",
        value=health.ledger_entries,
    )
    yield GaugeMetricFamily(
        "hvprobe_ledger_capacity",
        "Processes the kernel table has room for; 0: there is no table.",
        value=health.ledger_capacity,
    )
    yield CounterMetricFamily(
        "hvprobe_ledger_dropped",
        "Events the kernel table had no room for. While it rises, counters are too low and "
        "verdicts of new VMs inferred: more processes than hvprobe_ledger_capacity use KVM.",
        value=health.ledger_dropped_total,
    )
    if health.vmi_watch is not None:
        yield from _vmi_watch(health.vmi_watch)
    errors = CounterMetricFamily(
        "hvprobe_refresh_errors",
        "Refreshes in which a source could not be read: ebpf (kernel table), proc, kube. What it "
        "would have told is missing or last known; hvprobe doctor and the agent's log say why.",
        labels=("source",),
    )
    for source, count in health.errors_total.items():
        errors.add_metric((source.value,), count)
    yield errors


def _vmi_watch(watch: WatchStatus) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "hvprobe_vmi_watch_up",
        "1: the API server tells of this node's VMIs as they change. 0: it does not, and the last "
        "known VMIs are shown; the agent's log and hvprobe doctor say why.",
        value=watch.up,
    )
    last_sync = GaugeMetricFamily(
        "hvprobe_vmi_watch_last_sync_timestamp_seconds",
        "When the API server last confirmed the VMIs known here; absent until it first did. Its "
        "age grows while the API server is lost, and by up to a minute otherwise.",
    )
    if watch.last_sync_unix_s is not None:
        last_sync.add_metric((), watch.last_sync_unix_s)
    yield last_sync
    yield CounterMetricFamily(
        "hvprobe_vmi_watch_restarts",
        "Times the watch of VMIs was opened again after it broke. Rising steadily: look at the "
        "network to the API server, and at the agent's log.",
        value=watch.restarts,
    )
    yield CounterMetricFamily(
        "hvprobe_vmi_watch_malformed",
        "Objects of the API server that cannot be VMIs and were left out; the agent's log names "
        "them. Above 0: their VMs have no series, update hvprobe to this version of KubeVirt.",
        value=watch.malformed_total,
    )
