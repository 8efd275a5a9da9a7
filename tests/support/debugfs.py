# SPDX-License-Identifier: Apache-2.0
"""KVM's counters in debugfs, which are independent of hvprobe.

debugfs is mounted at no place for this, so that a test that is killed leaves no mount behind:
fsmount(2) makes a mount that only the process's descriptor holds (since Linux v5.2).
"""

import ctypes
import functools
import os
from pathlib import Path

_SYSCALL = ctypes.CDLL(None, use_errno=True).syscall
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
"""System call numbers, the same on every architecture."""
_FSCONFIG_CMD_CREATE = 6
_CLOEXEC = 1


@functools.cache
def _root() -> Path | None:
    """KVM's directory in debugfs; None: the kernel has no debugfs, or does not let it be read."""
    try:
        context = _call(_FSOPEN, b"debugfs", _CLOEXEC)
        try:
            _call(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
            mount = _call(_FSMOUNT, context, _CLOEXEC, 0)
        finally:
            os.close(context)
        root = Path(f"/proc/self/fd/{mount}/kvm")
        next(root.iterdir())
    except OSError:
        return None
    return root


def _call(number: int, *arguments: int | bytes | None) -> int:
    result: int = _SYSCALL(number, *arguments)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def kvm_exits(tgid: int) -> int | None:
    """Return KVM's own count of the VM exits of a process; None: it cannot be read here."""
    return kvm_statistic(tgid, "exits")


def kvm_statistic(tgid: int, name: str) -> int | None:
    """Return a statistic, added up over all vCPUs of a process.

    None: it cannot be read here, or this kernel has no such statistic.
    """
    root = _root()
    try:
        found = [int((vm / name).read_text()) for vm in root.glob(f"{tgid}-*")] if root else []
    except (FileNotFoundError, PermissionError):  # the latter: lockdown
        return None
    return sum(found) if found else None


def kvm_vms(tgid: int) -> int | None:
    """Return how many VMs of a process exist in the kernel, even if it has ended.

    None: that cannot be read here.
    """
    root = _root()
    return None if root is None else len(list(root.glob(f"{tgid}-*")))
