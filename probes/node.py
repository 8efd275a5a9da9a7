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


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelAbilities:
    """What the running kernel, and this process's privileges, let hvprobe do."""

    kprobes: bool
    """Built with kprobes."""
    btf: bool
    """Describes its own types (/sys/kernel/btf); hvprobe does not need it."""
    tracefs: bool
    """Its tracefs can be read here."""
    kvm_device: bool
    """A KVM vendor module, or KVM built in, has registered its device."""
    lockdown: str | None
    """Lockdown mode: none, integrity, confidentiality; None: not told."""
    capabilities_missing: tuple[str, ...]
    """Capabilities that hvprobe uses and this process has not."""
    initial_pid_namespace: bool
    """Whether this process sees the kernel's own process numbers."""
