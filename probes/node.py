"""What is known of the node itself. Pure types."""

from dataclasses import dataclass

from probes.vmm import HypervisorType


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """One accelerator of this node."""

    type: HypervisorType
    available: bool | None
    """Whether the device opens and creates an empty VM; None: not allowed to try."""
    reason: str | None
    """Why it is not available or could not be tried, one line; None: it is available."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeVirtualization:
    """What provides KVM on this node."""

    module: str | None
    """Vendor module (kvm_intel, kvm_amd, kvm_pvm, …), ``builtin``, or None: there is no KVM."""
    nested: bool | None
    """Whether the node is itself a VM; None: this architecture does not say."""
