"""EDGE: what the kernel and this process's privileges permit, for ``hvprobe doctor``.

Owns the finding out. Must not try anything that changes the node, nor judge what it means.
"""

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path

from probes.node import KernelAbilities

_CAPABILITIES: Mapping[str, int] = {
    "CAP_DAC_READ_SEARCH": 2,
    "CAP_SYS_PTRACE": 19,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
}
"""Capabilities used, by number (include/uapi/linux/capability.h)."""
_STANDS_FOR: Mapping[str, int] = {
    "CAP_DAC_READ_SEARCH": 1,  # CAP_DAC_OVERRIDE
    "CAP_PERFMON": 21,  # CAP_SYS_ADMIN
    "CAP_BPF": 21,
}
"""A greater capability that includes one of those."""
_INIT_PID_NAMESPACE_INODE = 0xEFFFFFFC


def find_abilities(*, proc_root: Path, sys_root: Path) -> KernelAbilities:
    """Ask sysfs, and /proc of this process."""
    return KernelAbilities(
        kprobes=_any_exists(
            sys_root,
            "bus/event_source/devices/kprobe",
            "kernel/tracing/kprobe_events",
            "kernel/debug/tracing/kprobe_events",
        ),
        btf=_any_exists(sys_root, "kernel/btf/vmlinux"),
        tracefs=_any_exists(sys_root, "kernel/tracing/events", "kernel/debug/tracing/events"),
        kvm_device=_any_exists(sys_root, "class/misc/kvm"),
        lockdown=_lockdown(sys_root),
        capabilities_missing=_capabilities_missing(),
        initial_pid_namespace=_in_initial_pid_namespace(proc_root),
    )


def _any_exists(root: Path, *places: str) -> bool:
    for place in places:
        with contextlib.suppress(OSError):
            if (root / place).exists():
                return True
    return False


def _lockdown(sys_root: Path) -> str | None:
    """The mode in brackets: ``none [integrity] confidentiality``."""
    with contextlib.suppress(OSError):
        found = re.search(r"\[(\w+)\]", (sys_root / "kernel/security/lockdown").read_text())
        return found[1] if found else None
    return None


def _capabilities_missing() -> tuple[str, ...]:
    """Of this very process, whatever /proc the host's is."""
    with contextlib.suppress(OSError):
        found = re.search(r"^CapEff:\s*(\w+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
        effective = int(found[1], 16) if found else 0
        return tuple(
            name
            for name, number in _CAPABILITIES.items()
            if not effective & (1 << number | 1 << _STANDS_FOR.get(name, number))
        )
    return tuple(_CAPABILITIES)


def _in_initial_pid_namespace(proc_root: Path) -> bool:
    with contextlib.suppress(OSError):
        return (proc_root / "self/ns/pid").stat().st_ino == _INIT_PID_NAMESPACE_INODE
    return False
