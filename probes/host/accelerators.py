# SPDX-License-Identifier: Apache-2.0
"""EDGE: finds out what the accelerators of this node can do, and which modules provide them.

Owns the trial of an accelerator (/dev/kvm). Must not know any process or VMI. A trial opens the
device, creates an empty VM and closes it at once. On an idle node that enables virtualization for a
moment, so the caller tries rarely, and never while running VMs already prove the same.
"""

import contextlib
import errno
import fcntl
import os
from collections.abc import Mapping
from pathlib import Path

from ebpf.uapi import KVM_CREATE_VM
from probes.host.node import Accelerator, Cause, NodeVirtualization, Problem
from probes.host.process import HypervisorType

_VENDOR_MODULES: Mapping[str, str] = {"vmx": "kvm_intel", "svm": "kvm_amd"}
"""Vendor modules by the CPU flag in /proc/cpuinfo that each one needs."""
_NOT_VENDORS = frozenset({"kvm", "kvm_guest"})
_REMEDIES: Mapping[Cause, str | None] = {
    Cause.ACCESS_DENIED: "hvprobe cannot try it: give it access to the device",
    Cause.DEVICE_NOT_MOUNTED: "the node has KVM: mount its /dev/kvm into the container",
    Cause.DEVICE_ABSENT: "load kvm_intel or kvm_amd, enable virtualization in firmware",
    Cause.TRIAL_FAILED: None,
}


class Accelerators:
    """The accelerators of the node to which the given /dev, /sys and /proc belong."""

    def __init__(
        self,
        *,
        dev_root: Path = Path("/dev"),
        sys_root: Path = Path("/sys"),
        proc_root: Path = Path("/proc"),
    ) -> None:
        self._dev = dev_root
        self._sys = sys_root
        self._proc = proc_root

    def try_kvm(self) -> Accelerator:
        """Open /dev/kvm, create an empty VM and report whether that worked."""
        device = self._dev / "kvm"
        try:
            _create_empty_vm(device)
        except OSError as err:
            return self._failed(device, err)
        return Accelerator(type=HypervisorType.KVM, available=True)

    def virtualization(self) -> NodeVirtualization:
        """Return the vendor module and whether the node is nested, from sysfs and cpuinfo."""
        flags = self._cpu_flags()
        return NodeVirtualization(
            module=self._module(flags),
            nested=None if flags is None else "hypervisor" in flags,
        )

    def _failed(self, device: Path, err: OSError) -> Accelerator:
        """Report KVM after a failed trial: unavailable, or unknown where hvprobe cannot try it."""
        cause = self._cause(err)
        unknown = cause in (Cause.ACCESS_DENIED, Cause.DEVICE_NOT_MOUNTED)
        return Accelerator(
            type=HypervisorType.KVM,
            available=None if unknown else False,
            problem=Problem(
                cause=cause,
                detail=f"{device}: {os.strerror(err.errno or 0)}",
                remedy=_REMEDIES[cause],
            ),
        )

    def _cause(self, err: OSError) -> Cause:
        if err.errno in (errno.EACCES, errno.EPERM):
            return Cause.ACCESS_DENIED
        if err.errno != errno.ENOENT:
            return Cause.TRIAL_FAILED
        registered = (self._sys / "class/misc/kvm").exists()
        return Cause.DEVICE_NOT_MOUNTED if registered else Cause.DEVICE_ABSENT

    def _module(self, flags: frozenset[str] | None) -> str | None:
        with contextlib.suppress(OSError):
            names = {entry.name for entry in (self._sys / "module").glob("kvm_*")} - _NOT_VENDORS
            for flag, module in _VENDOR_MODULES.items():
                if flag in (flags or ()) and module in names:
                    return module
            others = sorted(names - set(_VENDOR_MODULES.values()))
            if others:
                return others[0]
        if (self._sys / "class/misc/kvm").exists() or (self._dev / "kvm").exists():
            return "builtin"
        return None

    def _cpu_flags(self) -> frozenset[str] | None:
        """Return the CPU flags on x86; None elsewhere, where /proc/cpuinfo has no such line."""
        with contextlib.suppress(OSError), (self._proc / "cpuinfo").open() as cpuinfo:
            for line in cpuinfo:
                name, _, value = line.partition(":")
                if name.strip() == "flags":
                    return frozenset(value.split())
        return None


def _create_empty_vm(device: Path) -> None:
    fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.close(fcntl.ioctl(fd, KVM_CREATE_VM, 0))
    finally:
        os.close(fd)
