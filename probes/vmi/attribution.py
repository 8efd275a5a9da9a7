# SPDX-License-Identifier: Apache-2.0
"""Which process is which VM? Pure.

Owns the naming rules: by libvirt's domain name without a cluster, by pod with one. Must not judge
accelerators: it is given verdicts only to prefer, among several processes that could be the same
VM, the one the kernel knows most about. Nothing that a tenant can set on a VMI but its name counts.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from probes.host.cgroup import PodUid
from probes.host.process import HypervisorType, VmmId
from probes.host.procfs import qemu_architecture
from probes.judge.reasons import Reason
from probes.judge.tracked import TrackedProcess
from probes.vmi.model import Vmi, VmiIndex, VmiPhase

_NAMESPACE = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")
"""DNS label (RFC 1123), as Kubernetes wants a namespace's name."""
_NAME = re.compile(r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*")
"""DNS subdomain (RFC 1123), as Kubernetes wants an object's name; at most 253 characters."""
_NAME_MAX = 253

_MACHINES: Mapping[str, str] = {"amd64": "x86_64", "arm64": "aarch64"}
"""Go's words for architectures where ``uname -m`` has others (s390x is s390x in both)."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class VmName:
    """Namespace and name of a VirtualMachineInstance."""

    namespace: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Preference:
    """Why one process is rather the VM than another: the first field that differs decides.

    vCPUs in the kernel's books go before threads that call themselves TCG, and proof before
    inference. A forked child of another one is a copy, so its parent goes before it, unless only
    the child runs the guest. Youth decides between the others.
    """

    proven_to_run: bool = False
    """An accelerator was proven to run its guest."""
    proven_or_holds_vcpus: bool = False
    """Its verdict is proven, or it has vCPUs of an accelerator."""
    holds_vcpus: bool = False
    """It has vCPUs of an accelerator."""
    type_known: bool
    parent_elsewhere: bool = False
    """It is no child of another process in question."""
    start_ticks: int
    tgid: int = 0

    @classmethod
    def of(cls, process: TrackedProcess, *, rivals: Collection[int]) -> "Preference":
        """Of one process among several that could be the same VM; rivals: the tgids of them all."""
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
        """Of the guest of one pod among several pods of the same VM: the younger one has it."""
        return cls(
            type_known=guest.verdict.type is not HypervisorType.UNKNOWN,
            start_ticks=guest.vmm.start_ticks,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """A VM of this node and the process that is it."""

    vm: VmName
    vmm: VmmId | None
    """None: no process was found for it."""
    architecture: str | None
    """The guest's, in ``uname -m`` words; None: the node's."""
    missing: Reason | None = None
    """Why no process is it; None: one is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attributions:
    """Which process is which VM, both ways round. Build it with `Attributions.of`."""

    vms: tuple[Attribution, ...]
    """Every VM, by namespace and name."""
    names: Mapping[VmmId, VmName]
    """The VM that a process is; processes that are none are not in it."""

    @classmethod
    def of(cls, attributions: Mapping[VmName, Attribution]) -> "Attributions":
        """Put what by_guest_name or by_pod found in order."""
        vms = sorted(attributions.values(), key=lambda found: (found.vm.namespace, found.vm.name))
        return cls(
            vms=tuple(vms), names={found.vmm: found.vm for found in vms if found.vmm is not None}
        )


def vm_name(guest_name: str | None) -> VmName | None:
    """The VMI that KubeVirt named a libvirt domain after: ``<namespace>_<name>``.

    Neither part may hold an underscore, so the first one parts them. None: not such a name.
    """
    namespace, underscore, name = (guest_name or "").partition("_")
    if not underscore or len(name) > _NAME_MAX:
        return None
    if not _NAMESPACE.fullmatch(namespace) or not _NAME.fullmatch(name):
        return None
    return VmName(namespace=namespace, name=name)


def by_guest_name(candidates: Iterable[TrackedProcess]) -> Mapping[VmName, Attribution]:
    """Name VMs by their domain name: standalone mode, which has no other source of names.

    Of several processes with the same name the one the kernel knows most about is the VM. Of equals
    a forked child is not, and the youngest is.
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
    """The process that is the VM among several that could be, at least one."""
    rivals = {candidate.vmm.tgid for candidate in candidates}
    return max(candidates, key=lambda candidate: Preference.of(candidate, rivals=rivals))


def by_pod(
    candidates: Iterable[TrackedProcess], index: VmiIndex, *, node: str
) -> Mapping[VmName, Attribution]:
    """Name VMs as the API server does: process → pod (its cgroup) → VMI (status.activePods).

    Only VMIs that run on this node are named, each of them, whether its process was found or not.
    During a live migration that is the source's business until status.nodeName moves.
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

    The pod also holds CRI-O's monitor, libvirt's capability probes, and perhaps sidecars, which
    are taken for a guest under another name only where the kernel knows a vCPU of theirs.
    """
    if candidate.capability_probe or (candidate.pod is not None and candidate.pod.conmon):
        return False
    known = candidate.verdict.type is not HypervisorType.UNKNOWN
    return known or candidate.named_like_qemu or vm_name(candidate.guest_name) is not None


def _attribution(
    vmi: Vmi, index: VmiIndex, in_pod: Mapping[PodUid, Sequence[TrackedProcess]], *, node: str
) -> Attribution:
    """The process of one VMI of this node.

    Two pods of it are on the node when it came back from a migration and the old pod still ends:
    then its guest is in the pod of the younger process.
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
        )
    missing = Reason.NO_PROCESS
    if not pods:
        missing = Reason.NO_POD
    elif not named:
        missing = Reason.POD_CONTESTED
    elif guests:
        missing = Reason.SEVERAL_PROCESSES
    return Attribution(vm=vm, vmm=None, architecture=architecture, missing=missing)


def _guest_of_pod(candidates: Sequence[TrackedProcess], vm: VmName) -> TrackedProcess | None:
    """The guest among the processes of one pod; None: it cannot be told.

    Where processes bear the VM's domain name, the guest is one of them and never another. A process
    whose command line cannot be read may bear it, so beside one nothing else is the guest either.
    One that is called QEMU may have been given an empty command line, so it goes before sidecars.
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
