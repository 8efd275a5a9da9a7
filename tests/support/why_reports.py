# SPDX-License-Identifier: Apache-2.0
"""Reports of a node whose VMs were judged by the evidence that a test gives, for ``why``."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from probes.host.cgroup import PodCgroup, PodUid
from probes.host.hypervisors import HypervisorType
from probes.host.process import VmmId
from probes.judge.cause import CauseFound
from probes.judge.evidence import Evidence
from probes.judge.exit_counts import ExitSource
from probes.judge.verdict import judge
from probes.report.model import NodeReport, ProcessReport, ProcessState, VmiReport
from probes.vmi.attribution import VmName
from probes.vmi.model import WatchStatus
from tests.support.facts import counted, entry, evidence, health, tracked
from tests.support.rich_report import ALLOWED, MEASURED, process, rich_report

POD = PodUid("7b4c2f1e-93d5-4a60-8e17-c0ffee12ab34")
SECOND_POD = PodUid("0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0")
WATCH = WatchStatus(
    up=True, synced=True, last_sync_unix_s=1.5, restarts=0, error=None, malformed_total=0
)
KVM_EVIDENCE = evidence(
    asked_for=("kvm",),
    claimed=frozenset({HypervisorType.KVM}),
    kvm_held=True,
    kvm_vcpus=2,
    kvm_vcpus_in_run=1,
    kvm_statistics=2,
    kvm_stats_exits=81_000,
    guest_ticks=8650,
    ledger=entry(runs=310, userspace_exits=300, exits=0),
)
"""A guest of two vCPUs on KVM, whose exits KVM's statistics count."""
PAUSED_EVIDENCE = evidence(kvm_held=True, kvm_vcpus=2, threads_seen=True)
"""A guest that holds vCPUs of KVM and was not seen to run them."""
TCG_EVIDENCE = evidence(asked_for=("tcg",), tcg_threads=2, tcg_cpu_ticks=40)
MSHV_EVIDENCE = evidence(mshv_held=True, mshv_vcpus=1, mshv_vcpus_in_run=1)
HIDDEN_EVIDENCE = evidence(fds_complete=False)
"""A QEMU whose descriptors cannot be read."""
PROBE_EVIDENCE = evidence(capability_probe=True)


def seen(
    tgid: int,
    found: Evidence,
    *,
    name: str | None = None,
    guest_name: str | None = None,
    pod: PodUid | None = None,
    **changes: Any,  # noqa: ANN401 - any field
) -> ProcessReport:
    """A process with the verdict that its evidence leads to; with a name it is that VM."""
    verdict = judge(found)
    plain = process(tgid, verdict, name=name)
    remembered = tracked(
        plain.vmm,
        verdict=verdict,
        evidence=found,
        pod=PodCgroup(uid=pod, conmon=False) if pod is not None else None,
    )
    state = ProcessState.ATTRIBUTED if name else ProcessState.UNATTRIBUTED
    named = plain._replace(tracked=remembered, guest_name=guest_name or plain.guest_name)
    return named._replace(**{"state": state, "vcpus": 2, **changes})


def vm_of(process: ProcessReport, **changes: Any) -> VmiReport:  # noqa: ANN401 - any field
    """The VM that a process runs."""
    assert process.vm is not None
    plain = VmiReport(
        vm=process.vm,
        verdict=process.verdict,
        fallback=process.cause is not None,
        vmm=process.vmm,
        counters=process.counters,
        exits_source=process.exits_source,
        vcpu_statistics=process.vcpu_statistics,
        cause=process.cause,
    )
    return plain._replace(**changes)


def node(
    *processes: ProcessReport, vmis: Iterable[VmiReport] | None = None, in_cluster: bool = False
) -> NodeReport:
    """A node with these processes; its VMs are those of the processes unless others are given."""
    if vmis is None:
        vmis = [vm_of(each) for each in processes if each.vm is not None]
    return replace(
        rich_report(),
        taken_unix_s=1700004910.5,
        processes=processes,
        vmis=tuple(vmis),
        health=health(vmi_watch=WATCH if in_cluster else None),
    )


ALPHA = seen(
    4711,
    KVM_EVIDENCE,
    name="alpha",
    exits_source=ExitSource.KVM_STATISTICS,
    counters=counted(exits=81_234, userspace_exits=301, runs=311),
    vcpu_statistics=MEASURED,
)


def emulated(cause: CauseFound = ALLOWED) -> ProcessReport:
    """An emulated VM with this cause."""
    return seen(4800, TCG_EVIDENCE, name="beta", pod=POD, counters={}, cause=cause)


def standalone_node() -> NodeReport:
    """A node without a cluster, with VMs on KVM."""
    return node(ALPHA)


def cluster_node() -> NodeReport:
    """A node of a cluster with an emulated VM, in whose pod a capability probe runs."""
    beta = emulated()
    probe = seen(4805, PROBE_EVIDENCE, pod=POD, state=ProcessState.PROBE, counters={}, vcpus=None)
    lost = VmiReport(
        vm=VmName(namespace="lab", name="lost"),
        verdict=rich_report().vmis[-1].verdict,
        fallback=False,
        vmm=None,
        counters={},
        pods=(SECOND_POD,),
    )
    return node(beta, probe, vmis=[vm_of(beta, pods=(POD,)), lost], in_cluster=True)


def of_number(tgid: int) -> VmmId:
    """The identity that ``process`` gives to a number."""
    return VmmId(tgid=tgid, start_ticks=6000)
