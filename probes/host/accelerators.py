# SPDX-License-Identifier: Apache-2.0
"""EDGE: finds out what the accelerators of this node can do, and which modules provide them.

Owns the trial of an accelerator (/dev/kvm, /dev/mshv). Must not know any process or VMI. A trial
opens the device, creates an empty VM, and closes it at once. On an idle node this enables
virtualization for a moment. Therefore the caller tries rarely, and never while running VMs already
prove that the accelerator works.
"""

import contextlib
import errno
import fcntl
import os
from pathlib import Path

from probes.host.hypervisors import HYPERVISORS, Hypervisor, Trial
from probes.host.node import Accelerator, Cause, NodeVirtualization, Problem


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

    def try_hypervisor(self, hypervisor: Hypervisor) -> Accelerator | None:
        """Open a hypervisor's device and create an empty VM.

        Return None for a rare hypervisor that this node does not have.
        """
        device = self._dev / hypervisor.driver.device
        try:
            _create_empty_vm(device, hypervisor.trial)
        except OSError as err:
            cause = self._cause(hypervisor, err)
            if cause is Cause.DEVICE_ABSENT and not hypervisor.expected:
                return None
            return self._failed(hypervisor, device, err, cause)
        return Accelerator(type=hypervisor.type, available=True)

    def virtualization(self) -> NodeVirtualization:
        """Return modules and nesting, as read from sysfs and /proc/cpuinfo."""
        flags = self._cpu_flags()
        modules = ((hypervisor.type, self._module(hypervisor, flags)) for hypervisor in HYPERVISORS)
        return NodeVirtualization(
            modules={kind: module for kind, module in modules if module is not None},
            nested=None if flags is None else "hypervisor" in flags,
        )

    def _failed(
        self, hypervisor: Hypervisor, device: Path, err: OSError, cause: Cause
    ) -> Accelerator:
        """Return the accelerator after a failed trial.

        It is unavailable, or unknown if hvprobe cannot access the device.
        """
        unknown = cause in (Cause.ACCESS_DENIED, Cause.DEVICE_NOT_MOUNTED)
        return Accelerator(
            type=hypervisor.type,
            available=None if unknown else False,
            problem=Problem(
                cause=cause,
                detail=f"{device}: {os.strerror(err.errno or 0)}",
                remedy=_remedy(hypervisor, cause),
            ),
        )

    def _cause(self, hypervisor: Hypervisor, err: OSError) -> Cause:
        if err.errno in (errno.EACCES, errno.EPERM):
            return Cause.ACCESS_DENIED
        if err.errno != errno.ENOENT:
            return Cause.TRIAL_FAILED
        return Cause.DEVICE_NOT_MOUNTED if self._registered(hypervisor) else Cause.DEVICE_ABSENT

    def _registered(self, hypervisor: Hypervisor) -> bool:
        return (self._sys / "class/misc" / hypervisor.driver.device).exists()

    def _module(self, hypervisor: Hypervisor, flags: frozenset[str] | None) -> str | None:
        with contextlib.suppress(OSError):
            module = self._loaded_module(hypervisor, flags or frozenset())
            if module is not None:
                return module
        if self._registered(hypervisor) or (self._dev / hypervisor.driver.device).exists():
            return "builtin"
        return None

    def _loaded_module(self, hypervisor: Hypervisor, flags: frozenset[str]) -> str | None:
        """Return the loaded module that provides a hypervisor; None: there is none.

        If several are loaded, the one whose CPU flag this CPU has provides it.
        """
        folder, driver = self._sys / "module", hypervisor.driver.module
        if hypervisor.vendor_modules is None:
            return driver if (folder / driver).exists() else None
        names = {entry.name for entry in folder.glob(f"{driver}_*")} - hypervisor.no_vendor_modules
        for flag, module in hypervisor.vendor_modules.items():
            if flag in flags and module in names:
                return module
        return min(names - set(hypervisor.vendor_modules.values()), default=None)

    def _cpu_flags(self) -> frozenset[str] | None:
        """Return the CPU flags on x86; None elsewhere, where /proc/cpuinfo has no such line."""
        with contextlib.suppress(OSError), (self._proc / "cpuinfo").open() as cpuinfo:
            for line in cpuinfo:
                name, _, value = line.partition(":")
                if name.strip() == "flags":
                    return frozenset(value.split())
        return None


def _remedy(hypervisor: Hypervisor, cause: Cause) -> str | None:
    device = f"/dev/{hypervisor.driver.device}"
    match cause:
        case Cause.ACCESS_DENIED:
            return "hvprobe cannot try it: give it access to the device"
        case Cause.DEVICE_NOT_MOUNTED:
            return f"the node has {hypervisor.label}: mount its {device} into the container"
        case Cause.DEVICE_ABSENT:
            return hypervisor.remedy_if_absent
        case Cause.TRIAL_FAILED:
            return None


def _create_empty_vm(device: Path, trial: Trial) -> None:
    fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    try:
        argument = bytearray(trial.argument_bytes) if trial.argument_bytes else 0
        os.close(fcntl.ioctl(fd, trial.request, argument))
    finally:
        os.close(fd)
