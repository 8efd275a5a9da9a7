"""Which process is which VM? Pure.

Owns the naming rules. Must not judge accelerators: it is given verdicts only to prefer, among
several processes that could be the same VM, the one the kernel knows most about.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from probes.procfs import qemu_architecture
from probes.verdict import Verdict
from probes.vmm import HypervisorType, VmmId

_NAMESPACE = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")
"""DNS label (RFC 1123), as Kubernetes wants a namespace's name."""
_NAME = re.compile(r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*")
"""DNS subdomain (RFC 1123), as Kubernetes wants an object's name; at most 253 characters."""
_NAME_MAX = 253


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class VmName:
    """Namespace and name of a VirtualMachineInstance."""

    namespace: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A process that may be a VM, as far as naming it goes."""

    vmm: VmmId
    named_like_qemu: bool
    program: str | None
    """Base name of its executable."""
    guest_name: str | None
    """libvirt's domain name on its command line: its own word."""
    capability_probe: bool
    """Started without a machine: never a VM."""
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """A VM of this node and the process that is it."""

    vm: VmName
    vmm: VmmId | None
    """None: no process was found for it."""
    architecture: str | None
    """The guest's, in ``uname -m`` words; None: the node's."""


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


def by_guest_name(candidates: Iterable[Candidate]) -> Mapping[VmName, Attribution]:
    """Name VMs by their domain name: standalone mode, where there is nobody else to ask.

    Of several processes with the same name the one the kernel knows most about is the VM, and of
    equals the youngest.
    """
    chosen: dict[VmName, Candidate] = {}
    for candidate in candidates:
        vm = vm_name(candidate.guest_name)
        if vm is None or not candidate.named_like_qemu or candidate.capability_probe:
            continue
        if vm not in chosen or rank(candidate) > rank(chosen[vm]):
            chosen[vm] = candidate
    return {
        vm: Attribution(vm=vm, vmm=candidate.vmm, architecture=qemu_architecture(candidate.program))
        for vm, candidate in chosen.items()
    }


def rank(candidate: Candidate) -> tuple[bool, bool, int, int]:
    """Order among processes that could be the same VM: proof first, then youth."""
    return (
        candidate.verdict.verified,
        candidate.verdict.type is not HypervisorType.UNKNOWN,
        candidate.vmm.start_ticks,
        candidate.vmm.tgid,
    )
