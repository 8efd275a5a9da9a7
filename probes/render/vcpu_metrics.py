# SPDX-License-Identifier: Apache-2.0
"""Renders what is read of VMs only on request as metric families. Pure.

Owns the labels that identify a VM, and which of the requested values make samples. Names and help
texts of the counts are those of probes.host.vcpu_counts. Must not judge.
"""

from collections.abc import Iterator, Sequence

from probes.host.vcpu_counts import GROUPS, VCPU_COUNTS
from probes.render.exposition import Family, Kind
from probes.report.model import VmiReport

VM_LABELS = ("node", "namespace", "name")

Vms = Sequence[tuple[tuple[str, str, str], VmiReport]]
"""The VMs, each with the values of VM_LABELS."""


def statistics_families(vms: Vms) -> Iterator[Family]:
    """Yield what was read on request; nothing if nothing was."""
    found = [
        (labels, vmi.vcpu_statistics) for labels, vmi in vms if vmi.vcpu_statistics is not None
    ]
    if not found:
        return
    for group in GROUPS:
        counts = [count for count in VCPU_COUNTS if count.group is group]
        yield Family(
            name=group.metric,
            kind=Kind.COUNTER,
            help=group.help,
            labels=(*VM_LABELS, group.label) if group.label else VM_LABELS,
            samples=[
                ((*labels, count.name) if group.label else labels, statistics.counts[count.name])
                for labels, statistics in found
                for count in counts
                if count.name in statistics.counts
            ],
        )
    yield Family(
        name="kubevirt_vmi_guest_cpu_seconds",
        kind=Kind.COUNTER,
        help="CPU time in guest code since the VM started, as the kernel accounts it. Divided by "
        "kubevirt_vmi_cpu_usage_seconds_total it is the share that exits and emulation leave. "
        "Absent for VMs not on KVM and where the kernel does not account it (kvm_pvm).",
        labels=VM_LABELS,
        samples=[
            (labels, statistics.guest_cpu_s)
            for labels, statistics in found
            if statistics.guest_cpu_s is not None
        ],
    )
