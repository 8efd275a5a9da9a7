# SPDX-License-Identifier: Apache-2.0
"""Holds what is known about the node itself. Pure types."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from ebpf.confinement import Confinement
from probes.host.hypervisors import HypervisorType


class Cause(StrEnum):
    """Why an accelerator cannot be used, or why hvprobe could not try it."""

    ACCESS_DENIED = "access_denied"
    """The kernel does not let hvprobe use the device."""
    DEVICE_NOT_MOUNTED = "device_not_mounted"
    """The device file is absent where hvprobe runs, and the node has the accelerator or may have
    it."""
    OUT_OF_RESOURCES = "out_of_resources"
    """hvprobe lacked memory or descriptors for the trial."""
    DEVICE_ABSENT = "device_absent"
    """No driver has registered the device, whether or not there is a file of its name."""
    TRIAL_FAILED = "trial_failed"
    """The device cannot be opened, or it creates no VM."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A problem and its remedy. Renderers show the parts, or everything as text."""

    cause: Cause
    detail: str
    """What failed, on what and why, one line."""
    remedy: str | None = None
    """What a person can do; None: no remedy is known."""

    @property
    def text(self) -> str:
        """Detail and remedy on one line."""
        return f"{self.detail}; {self.remedy}" if self.remedy else self.detail


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """One accelerator of this node."""

    type: HypervisorType
    available: bool | None
    """Whether VMs can use it. A VM that was seen on it decides, then a trial, then whether the
    kernel has registered the device; None: hvprobe can neither try it nor read that."""
    problem: Problem | None = None
    """Why it is unavailable or could not be tried; None: a VM was seen on it, or could be created.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeVirtualization:
    """The modules that provide the hypervisors of this node, and whether it is a VM."""

    modules: Mapping[HypervisorType, str]
    """Module (kvm_intel, kvm_amd, kvm_pvm, …) or ``builtin``; absent: the node has none."""
    nested: bool | None
    """Whether the node is itself a VM; None: this architecture does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelFeatures:
    """What the running kernel, and this process's privileges, let hvprobe do."""

    kprobes: bool
    """Whether the kernel is built with kprobes."""
    btf: bool
    """Whether the kernel describes its own types (/sys/kernel/btf). hvprobe does not need that."""
    tracefs: bool
    """Whether tracefs can be read here."""
    kvm_device: bool
    """Whether a KVM vendor module, or built-in KVM, has registered its device."""
    lockdown: str | None
    """Lockdown mode: none, integrity, confidentiality; None: unknown."""
    capabilities_missing: tuple[str, ...]
    """Capabilities that hvprobe uses and this process lacks."""
    initial_pid_namespace: bool
    """Whether this process sees the kernel's own process numbers."""
    ptrace_scope: int | None = None
    """kernel.yama.ptrace_scope; None: this kernel has no Yama, or it cannot be read."""
    confinement: Confinement | None = None
    """The security module that confines this process; None: none that is known."""
