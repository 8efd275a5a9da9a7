# SPDX-License-Identifier: Apache-2.0
"""What a platform is, and what an agent is to report of it. Pure types.

Must not know which platforms there are (platforms.py), nor how one is set up.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from vmtest.kernels import GuestKernel


class Variant(enum.Enum):
    """How the agent's container is run, by its DaemonSet."""

    PRIVILEGED = "privileged"
    CAPABILITIES = "capabilities"


ABSENT = "not seen"
"""Of a VM: no process of it can be read, so the agent does not report it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What an agent is to report of a platform."""

    kvm: str = "kvm, verified"
    """Of a QEMU on KVM whose guest exits."""
    halted: str = "kvm, verified"
    """Of a VM on KVM whose only vCPU is halted and never exits. It began before the agent."""
    tcg: str = "tcg, verified"
    """Of a QEMU that emulates."""
    cause: str = "requested_by_domain"
    """Why that emulates; empty: its type is not tcg."""
    exits: str = "kvm_statistics"
    """What counts the exits of the VM whose statistics are held open; empty: nothing does."""
    ability: str = "verified"
    """The doctor's summary: verified, inferred, nothing."""
    doctor: tuple[str, ...] = ()
    """What the doctor's lines say, among other things: finding and remedy."""
    log: str | None = None
    """What a warning of the agent's log says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """How the agent's container differs from what its manifest specifies."""

    apparmor: str | None = None
    """AppArmor profile that the runtime puts it under."""
    selinux: str | None = None
    """SELinux type that the runtime gives it; None: that of the manifest."""
    denied: Mapping[str, str] = field(default_factory=dict)
    """System calls that a seccomp filter denies, each with the error."""
    hidden: tuple[str, ...] = ()
    """Folders over which an empty file system is mounted."""
    without_tracefs: bool = False
    """Whether the node's tracefs is not mounted into it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """One row: what is set up, and what an agent of each variant is to report."""

    name: str
    title: str
    """As the document shows it."""
    how: str
    """How it was made, as the document shows it."""
    expected: Mapping[Variant, Expected]
    enter: tuple[str, ...] = ()
    """Shell commands that set it up."""
    leave: tuple[str, ...] = ()
    """Shell commands that undo it; a platform that cannot be undone is the last one of its boot."""
    vms_confined: bool = False
    """Whether the VMs run under containerd's AppArmor profile, as virt-launcher's do. Where SELinux
    is enforced, they always run in the types that libvirt gives them."""
    pod: Pod = field(default_factory=Pod)


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """A guest that runs several platforms one after the other."""

    name: str
    kernel: GuestKernel
    platforms: tuple[Platform, ...]
    kernel_arguments: str = ""
    selinux: bool = False
    """Whether the guest loads the policy of vmtest/selinux.py."""
