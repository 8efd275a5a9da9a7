# SPDX-License-Identifier: Apache-2.0
"""Decides which process is which VM. Pure.

Owns the rules for naming: by libvirt's domain name without a cluster, by pod with one. Must not
judge accelerators: verdicts serve only to prefer, among several processes that could be the same
VM, the one about which the kernel knows most. Of everything that a tenant can set on a VMI, only
its name counts.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from probes.host.cgroup import PodUid
from probes.host.hypervisors import HypervisorType
from probes.host.process import VmmId
from probes.host.procfs import qemu_architecture
from probes.judge.reasons import Reason
from probes.judge.tracked import TrackedProcess
from probes.vmi.model import Vmi, VmiIndex, VmiPhase

_NAMESPACE = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")
"""A DNS label (RFC 1123), as Kubernetes requires of a namespace's name."""
_NAME = re.compile(r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*")
"""A DNS subdomain (RFC 1123), as Kubernetes requires of an object's name; at most 253
characters."""
_NAME_MAX = 253

_MACHINES: Mapping[str, str] = {"amd64": "x86_64", "arm64": "aarch64"}
"""Go's names of architectures that ``uname -m`` names differently (s390x is s390x in both)."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class VmName:
    """Namespace and name of a VirtualMachineInstance."""

    namespace: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Preference:
    """Orders processes that could be the same VM: the first field that differs decides.

    A process whose vCPUs the kernel knows is preferred to one whose threads are only named like
    TCG, and proof to inference. A forked child of another candidate is a copy, so its parent is
    preferred, unless only the child runs the guest. Among the others the youngest process wins.
    """

    proven_to_run: bool = False
    """Whether an accelerator is proven to run its guest."""
    proven_or_holds_vcpus: bool = False
    """Whether its verdict is proven or it has vCPUs of an accelerator."""
    holds_vcpus: bool = False
    """Whether it has vCPUs of an accelerator."""
    type_known: bool
    parent_elsewhere: bool = False
    """Whether it is no child of another candidate."""
    start_ticks: int
    tgid: int = 0

    @classmethod
    def of(cls, process: TrackedProcess, *, rivals: Collection[int]) -> "Preference":
        """Make the preference for one process; rivals holds the tgids of all candidates."""
        verdict = process.verdict
        return cls(
            proven_to_run=verdict.verified and verdict.type.accelerated,
            proven_or_holds_vcpus=verdict.verified or verdict.type.accelerated,
            holds_vcpus=verdict.type.accelerated,
            type_known=verdict.type is not HypervisorType.UNKNOWN,
            parent_elsewhere=process.parent_tgid not in rivals,
            start_ticks=process.vmm.start_ticks,
            tgid=process.vmm.tgid,
        )

    @classmethod
    def between_pods(cls, guest: TrackedProcess) -> "Preference":
        """Make the preference for the guest of one pod among several pods of the same VM."""
        return cls(
            type_known=guest.verdict.type is not HypervisorType.UNKNOWN,
            start_ticks=guest.vmm.start_ticks,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """A VM of this node and its process."""

    vm: VmName
    vmm: VmmId | None
    """Its process; None: none was found."""
    architecture: str | None
    """Architecture of the guest, in ``uname -m`` words; None: the node's."""
    unattributed_reason: Reason | None = None
    """Why it has no process; None: it has one."""
    pods: tuple[PodUid, ...] = ()
    """Its pods on this node, by the API server; empty: it has none here, or standalone."""
    uid: str | None = None
    """The uid of its VMI; None: standalone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attributions:
    """Which process is which VM, in both directions. Build it with ``Attributions.of``."""

    vms: tuple[Attribution, ...]
    """Every VM, sorted by namespace and name."""
    names: Mapping[VmmId, VmName]
    """The names of processes that are VMs; other processes are absent."""

    @classmethod
    def of(cls, attributions: Mapping[VmName, Attribution]) -> "Attributions":
        """Sort the results of by_guest_name or by_pod."""
        vms = sorted(attributions.values(), key=lambda found: (found.vm.namespace, found.vm.name))
        return cls(
            vms=tuple(vms), names={found.vmm: found.vm for found in vms if found.vmm is not None}
        )


def vm_name(guest_name: str | None) -> VmName | None:
    """Return the VMI after which KubeVirt named a libvirt domain: ``<namespace>_<name>``.

    Neither part may contain an underscore, so the first one separates them. None: it is no such
    name.
    """
    namespace, underscore, name = (guest_name or "").partition("_")
    return valid_vm_name(namespace, name) if underscore else None


def valid_vm_name(namespace: str, name: str) -> VmName | None:
    """Return the name of a VMI; None: Kubernetes permits no VMI of this namespace and name."""
    if len(name) > _NAME_MAX:
        return None
    if not _NAMESPACE.fullmatch(namespace) or not _NAME.fullmatch(name):
        return None
    return VmName(namespace=namespace, name=name)


def by_guest_name(candidates: Iterable[TrackedProcess]) -> Mapping[VmName, Attribution]:
    """Name VMs by their domain names, in standalone mode, which has no other source of names.

    Of several processes with the same name, the one about which the kernel knows most is the VM.
    Among equals a parent is preferred to its forked child, and then the youngest.
    """
    bearers: dict[VmName, list[TrackedProcess]] = {}
    for candidate in candidates:
        vm = vm_name(candidate.guest_name)
        if vm is not None and candidate.named_like_qemu and not candidate.capability_probe:
            bearers.setdefault(vm, []).append(candidate)
    chosen = {vm: _best(equals) for vm, equals in bearers.items()}
    return {
        vm: Attribution(vm=vm, vmm=candidate.vmm, architecture=qemu_architecture(candidate.program))
        for vm, candidate in chosen.items()
    }


def _best(candidates: Sequence[TrackedProcess]) -> TrackedProcess:
    """Return the best of the candidates, of which there is at least one."""
    rivals = {candidate.vmm.tgid for candidate in candidates}
    return max(candidates, key=lambda candidate: Preference.of(candidate, rivals=rivals))


def by_pod(
    candidates: Iterable[TrackedProcess], index: VmiIndex, *, node: str
) -> Mapping[VmName, Attribution]:
    """Name VMs as the API server does: process → pod (its cgroup) → VMI (status.activePods).

    Every VMI that runs on this node is named, with or without a process, and no other. During a
    live migration the source node keeps reporting the VM until status.nodeName changes.
    """
    in_pod: dict[PodUid, list[TrackedProcess]] = {}
    for candidate in candidates:
        if candidate.pod is not None and _may_be_guest(candidate):
            in_pod.setdefault(candidate.pod.uid, []).append(candidate)
    attributions = (
        _attribution(vmi, index, in_pod, node=node)
        for vmi in index.vmis.values()
        if vmi.phase is VmiPhase.RUNNING and vmi.node_name == node
    )
    return {attribution.vm: attribution for attribution in attributions}


def _may_be_guest(candidate: TrackedProcess) -> bool:
    """Whether a process of a launcher pod can be its guest at all.

    The pod also holds CRI-O's monitor, libvirt's capability probes, and perhaps sidecars. A process
    that is not named like a guest counts only if the kernel knows its type.
    """
    if candidate.capability_probe or (candidate.pod is not None and candidate.pod.conmon):
        return False
    known = candidate.verdict.type is not HypervisorType.UNKNOWN
    return known or candidate.named_like_qemu or vm_name(candidate.guest_name) is not None


def _attribution(
    vmi: Vmi, index: VmiIndex, in_pod: Mapping[PodUid, Sequence[TrackedProcess]], *, node: str
) -> Attribution:
    """Find the process of one VMI of this node.

    If the VM has returned from a migration while its old pod is still ending, two of its pods are
    on the node. The guest is then in the pod of the younger process.
    """
    vm = VmName(namespace=vmi.namespace, name=vmi.name)
    architecture = _MACHINES.get(vmi.architecture or "", vmi.architecture)
    pods = [uid for uid, pod_node in vmi.active_pods if pod_node == node]
    named = [uid for uid in pods if uid not in index.contested_pods]
    guests = [_guest_of_pod(in_pod[uid], vm) for uid in named if uid in in_pod]
    found = [guest for guest in guests if guest is not None]
    if found:
        guest = max(found, key=Preference.between_pods)
        return Attribution(
            vm=vm,
            vmm=guest.vmm,
            architecture=architecture or qemu_architecture(guest.program),
            pods=tuple(pods),
            uid=vmi.uid,
        )
    unattributed_reason = Reason.NO_PROCESS
    if not pods:
        unattributed_reason = Reason.NO_POD
    elif not named:
        unattributed_reason = Reason.POD_CONTESTED
    elif guests:
        unattributed_reason = Reason.SEVERAL_PROCESSES
    return Attribution(
        vm=vm,
        vmm=None,
        architecture=architecture,
        unattributed_reason=unattributed_reason,
        pods=tuple(pods),
        uid=vmi.uid,
    )


def _guest_of_pod(candidates: Sequence[TrackedProcess], vm: VmName) -> TrackedProcess | None:
    """Find the guest among the processes of one pod; None: it cannot be determined.

    If processes have the VM's domain name, the guest is one of them. A process whose command line
    is unreadable may have that name, so next to such a process no other one is the guest. A process
    that is named like QEMU may have an empty command line, so it is preferred to sidecars.
    """
    direct = [process for process in candidates if process.pod and not process.pod.nested]
    eligible = direct or candidates
    domain = f"{vm.namespace}_{vm.name}"
    bearers = [process for process in eligible if process.guest_name == domain]
    if bearers:
        return _best(bearers)
    qemus = [process for process in eligible if process.named_like_qemu]
    hidden = [process for process in qemus if process.command_line_unread]
    if hidden:
        return hidden[0] if len(eligible) == 1 else None
    return _best(qemus or eligible)
