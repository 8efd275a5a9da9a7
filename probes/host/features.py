# SPDX-License-Identifier: Apache-2.0
"""EDGE: finds out what the kernel and this process's privileges permit, for ``hvprobe doctor``.

Must not try anything that changes the node, nor judge what the findings mean.
"""

import contextlib
from pathlib import Path

from ebpf.privileges import Privileges, in_initial_pid_namespace
from ebpf.tracefs import Tracefs
from probes.host.node import KernelFeatures


def find_features(*, proc_root: Path, sys_root: Path) -> KernelFeatures:
    """Read sysfs, and /proc of this process.

    The capabilities are always those of this process, even if proc_root is the host's /proc.
    """
    tracefs, privileges = Tracefs(sys_root), Privileges(sys_root=sys_root)
    return KernelFeatures(
        kprobes=_exists(sys_root / "bus/event_source/devices/kprobe")
        or tracefs.has("kprobe_events"),
        btf=_exists(sys_root / "kernel/btf/vmlinux"),
        tracefs=tracefs.mounted,
        kvm_device=_exists(sys_root / "class/misc/kvm"),
        lockdown=privileges.lockdown(),
        capabilities_missing=privileges.missing(),
        initial_pid_namespace=in_initial_pid_namespace(proc_root),
        ptrace_scope=_number(proc_root / "sys/kernel/yama/ptrace_scope"),
        confinement=privileges.confinement(),
    )


def _number(file: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int(file.read_text())
    return None


def _exists(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return path.exists()
    return False
