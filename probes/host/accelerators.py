# SPDX-License-Identifier: Apache-2.0
"""EDGE: finds out what the accelerators of this node can do, and which modules provide them.

Owns the trial of an accelerator (/dev/kvm, /dev/mshv). Must not know any process or VMI. A trial
opens the device, creates an empty VM, and closes it at once. On an idle node this enables
virtualization for a moment. Therefore the caller tries rarely, and never while running VMs already
prove that the accelerator works.

A trial that fails says something about the node only if the driver refused it. A trial that fails
because of hvprobe itself (its rights, its limits, the files in its container) says nothing. Then
the registration decides, because a driver registers its device only after it has checked the
hardware. Since Linux 2b0128127373 ("KVM: Register /dev/kvm as the _very_ last thing during
initialization") (v6.3) that is the last step of KVM's initialization.

========================  =====================================================================
error                     meaning
========================  =====================================================================
ENOENT, ENOTDIR           no file here: hvprobe's container has none, or the node has none
ENOTTY, EISDIR, ELOOP     another file of that name, such as the folder that a hostPath mount made
EACCES, EPERM             hvprobe's rights: mode, device cgroup, seccomp filter, security module
EMFILE, ENFILE, ENOMEM,   hvprobe's limits, or a moment at which the node was short of something
EINTR, EAGAIN
ENODEV, ENXIO             a file that the node made in advance, and no driver behind it: unusable
EBUSY                     another hypervisor holds the CPU's extensions: unusable
all others                the driver cannot create a VM: unusable
========================  =====================================================================
"""

import contextlib
import errno
import fcntl
import os
from pathlib import Path

from probes.host.hypervisors import HYPERVISORS, Hypervisor, Trial
from probes.host.node import Accelerator, Cause, NodeVirtualization, Problem

_NO_DEVICE_HERE = frozenset({errno.ENOENT, errno.ENOTDIR})
_ANOTHER_FILE = frozenset({errno.ENOTTY, errno.EISDIR, errno.ELOOP})
_DENIED = frozenset({errno.EACCES, errno.EPERM})
_SHORT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.EAGAIN})
_NO_DRIVER = frozenset({errno.ENODEV, errno.ENXIO})
_UNTRIED = frozenset({Cause.ACCESS_DENIED, Cause.DEVICE_NOT_MOUNTED, Cause.OUT_OF_RESOURCES})
"""Causes that say nothing about the node."""
_REGISTERED = "the kernel has registered it, which it does only after it has checked the hardware"


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
        """Open a hypervisor's device and create an empty VM, or look whether it is registered.

        Return None for a rare hypervisor that this node does not have.
        """
        device = self._dev / hypervisor.driver.device
        try:
            _create_empty_vm(device, hypervisor.trial)
        except OSError as err:
            registered = self._registered(hypervisor)
            cause = _cause(err.errno or 0, registered=registered)
            if cause is Cause.DEVICE_ABSENT and not hypervisor.expected:
                return None
            available = registered if cause in _UNTRIED else False
            detail = f"{device}: {os.strerror(err.errno or 0)}"
            return Accelerator(
                type=hypervisor.type,
                available=available,
                problem=_problem(hypervisor, cause, detail, err, available=available),
            )
        return Accelerator(type=hypervisor.type, available=True)

    def virtualization(self) -> NodeVirtualization:
        """Return modules and nesting, as read from sysfs and /proc/cpuinfo."""
        flags = self._cpu_flags()
        modules = ((hypervisor.type, self._module(hypervisor, flags)) for hypervisor in HYPERVISORS)
        return NodeVirtualization(
            modules={kind: module for kind, module in modules if module is not None},
            nested=None if flags is None else "hypervisor" in flags,
        )

    def _registered(self, hypervisor: Hypervisor) -> bool | None:
        """Return whether the kernel has registered the device; None: sysfs cannot be read.

        Every kernel has the folder class/misc.
        """
        folder = self._sys / "class/misc"
        try:
            (folder / hypervisor.driver.device).stat()
        except FileNotFoundError:
            return False if folder.is_dir() else None
        except OSError:
            return None
        return True

    def _module(self, hypervisor: Hypervisor, flags: frozenset[str] | None) -> str | None:
        with contextlib.suppress(OSError):
            module = self._loaded_module(hypervisor, flags or frozenset())
            if module is not None:
                return module
        registered = self._registered(hypervisor)
        if registered is None:
            registered = (self._dev / hypervisor.driver.device).exists()
        return "builtin" if registered else None

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


def _cause(number: int, *, registered: bool | None) -> Cause:
    """Return what the error of a trial means. registered is None where sysfs cannot be read."""
    if number in _ANOTHER_FILE:
        return Cause.TRIAL_FAILED if registered is False else Cause.DEVICE_NOT_MOUNTED
    if number in _NO_DRIVER:
        return Cause.TRIAL_FAILED if registered else Cause.DEVICE_ABSENT
    untried = {
        **dict.fromkeys(_NO_DEVICE_HERE, Cause.DEVICE_NOT_MOUNTED),
        **dict.fromkeys(_DENIED, Cause.ACCESS_DENIED),
        **dict.fromkeys(_SHORT, Cause.OUT_OF_RESOURCES),
    }
    if number not in untried:
        return Cause.TRIAL_FAILED
    return Cause.DEVICE_ABSENT if registered is False else untried[number]


def _problem(
    hypervisor: Hypervisor, cause: Cause, detail: str, err: OSError, *, available: bool | None
) -> Problem:
    """Describe a failed trial. available is what the registration says if hvprobe could not try."""
    remedy: str | None = None
    if available:
        detail = f"{_REGISTERED}; not tried, because of {detail}"
    elif available is None:
        detail = f"{detail}, and its registration in sysfs cannot be read"
        remedy = "pass the path of the host's /sys with --sys"
    elif cause is Cause.DEVICE_ABSENT:
        remedy = hypervisor.remedy_if_absent
    elif err.errno == errno.EBUSY:
        remedy = "unload the other hypervisor's module, which holds the CPU's extensions"
    return Problem(cause=cause, detail=detail, remedy=remedy)


def _create_empty_vm(device: Path, trial: Trial) -> None:
    fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    try:
        argument = bytearray(trial.argument_bytes) if trial.argument_bytes else 0
        os.close(fcntl.ioctl(fd, trial.request, argument))
    finally:
        os.close(fd)
