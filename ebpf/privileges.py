# SPDX-License-Identifier: Apache-2.0
"""EDGE: what this process is permitted to do, and why the kernel refuses BPF or a hook, by name.

Owns the capabilities that hvprobe uses, and what else answers EPERM in their stead: a seccomp
filter, kernel.perf_event_paranoid, lockdown, a security module. Reads /proc/self, /proc/sys and
securityfs. Must not know BCC, nor which programs there are.

Sources: include/uapi/linux/capability.h; include/linux/proc_ns.h; security/lockdown/lockdown.c;
Documentation/admin-guide/sysctl/kernel.rst (perf_event_paranoid; values above 2 are Debian's and
Ubuntu's); kernel/bpf/syscall.c. Maps count against RLIMIT_MEMLOCK, and CAP_SYS_RESOURCE raises it,
before Linux 80ee81e0403c ("bpf: Eliminate rlimit-based memory accounting infra for bpf maps")
(v5.11).
"""

import contextlib
import re
from collections.abc import Collection
from enum import IntEnum
from pathlib import Path

INIT_PID_NAMESPACE_INODE = 0xEFFFFFFC
"""Inode of the initial PID namespace (include/linux/proc_ns.h, PROC_PID_INIT_INO)."""


class Capability(IntEnum):
    """Capabilities by number."""

    CAP_DAC_OVERRIDE = 1
    CAP_DAC_READ_SEARCH = 2
    CAP_SYS_PTRACE = 19
    CAP_SYS_ADMIN = 21
    CAP_SYS_RESOURCE = 24
    CAP_PERFMON = 38
    CAP_BPF = 39


NEEDED = (
    Capability.CAP_DAC_READ_SEARCH,
    Capability.CAP_SYS_PTRACE,
    Capability.CAP_PERFMON,
    Capability.CAP_BPF,
)
"""All capabilities that hvprobe uses."""
_NEEDED_FOR_BPF = (Capability.CAP_BPF, Capability.CAP_PERFMON)
_INCLUDED_IN = {
    Capability.CAP_DAC_READ_SEARCH: Capability.CAP_DAC_OVERRIDE,
    Capability.CAP_PERFMON: Capability.CAP_SYS_ADMIN,
    Capability.CAP_BPF: Capability.CAP_SYS_ADMIN,
}
"""A greater capability that includes one of those."""
_HIGHEST_FOR_PERFMON = 2
"""Of kernel.perf_event_paranoid: above it Debian's and Ubuntu's kernels want CAP_SYS_ADMIN."""
_FILTER = "2"
"""Of the line Seccomp: in /proc/self/status: a filter is in force (SECCOMP_MODE_FILTER)."""


class Privileges:
    """What this process is permitted to do."""

    def __init__(self, *, proc_root: Path = Path("/proc"), sys_root: Path = Path("/sys")) -> None:
        """proc_root: a /proc whose ``self`` is this process."""
        self._status = proc_root / "self/status"
        self._paranoid = proc_root / "sys/kernel/perf_event_paranoid"
        self._lockdown = sys_root / "kernel/security/lockdown"

    def missing(self) -> tuple[str, ...]:
        """The capabilities by name that hvprobe uses and this process has not."""
        return tuple(it.name for it in missing_capabilities(_read(self._status), NEEDED))

    def lockdown(self) -> str | None:
        """The mode: none, integrity or confidentiality; None: it cannot be read."""
        return lockdown_mode(_read(self._lockdown))

    def why_no_bpf(self) -> str:
        """One clause after bpf() was refused: what is missing and what to do."""
        return bpf_refusal(_read(self._status))

    def why_no_perf_event(self) -> str:
        """The same after perf_event_open() was refused, or an ioctl that attaches to its event."""
        return perf_event_refusal(
            _read(self._status), paranoid=_read(self._paranoid), lockdown=_read(self._lockdown)
        )


def in_initial_pid_namespace(proc_root: Path = Path("/proc")) -> bool:
    """Whether the tgids that BPF gives are the ones this process sees; False where /proc is silent.

    proc_root: a /proc whose ``self`` is this process.
    """
    with contextlib.suppress(OSError):
        return (proc_root / "self/ns/pid").stat().st_ino == INIT_PID_NAMESPACE_INODE
    return False


def missing_capabilities(status: str, wanted: Collection[Capability]) -> list[Capability]:
    """Those that a process has not, from the text of its ``status``. Pure.

    A text without a line CapEff means that it has none.
    """
    found = re.search(r"^CapEff:\s*(\w+)$", status, re.MULTILINE)
    effective = int(found[1], 16) if found else 0
    return [it for it in wanted if not effective & (1 << it | 1 << _INCLUDED_IN.get(it, it))]


def lockdown_mode(text: str) -> str | None:
    """The mode in brackets: ``none [integrity] confidentiality``. Pure."""
    found = re.search(r"\[(\w+)\]", text)
    return found[1] if found else None


def bpf_refusal(status: str) -> str:
    """Pure: from the text of /proc/self/status."""
    missing = missing_capabilities(status, _NEEDED_FOR_BPF)
    if missing:
        return _give(missing)
    if not missing_capabilities(status, [Capability.CAP_SYS_RESOURCE]):
        return _others(status, "bpf")
    return (
        "CAP_SYS_RESOURCE is missing, which Linux before 5.11 needs to hold BPF tables: "
        f"add it; otherwise {_others(status, 'bpf')}"
    )


def perf_event_refusal(status: str, *, paranoid: str, lockdown: str) -> str:
    """Pure: from the texts of those files; paranoid is kernel.perf_event_paranoid's."""
    missing = missing_capabilities(status, _NEEDED_FOR_BPF)
    if missing:
        return _give(missing)
    level = int(paranoid) if re.fullmatch(r"-?\d+\n?", paranoid) else 0
    if level > _HIGHEST_FOR_PERFMON and missing_capabilities(status, [Capability.CAP_SYS_ADMIN]):
        return (
            f"CAP_SYS_ADMIN is missing, which kernel.perf_event_paranoid={level} asks for: "
            f"set that to {_HIGHEST_FOR_PERFMON} on the node, or run privileged"
        )
    if lockdown_mode(lockdown) == "confidentiality":
        return "lockdown=confidentiality forbids it: nothing but a boot without it helps"
    hidden = "" if lockdown else ", or lockdown=confidentiality, which cannot be seen from here"
    return _others(status, "perf_event_open") + hidden


def _give(missing: Collection[Capability]) -> str:
    verb = "is" if len(missing) == 1 else "are"
    return (
        f"{' and '.join(it.name for it in missing)} {verb} missing: "
        "run as root, in a container add what is named or run privileged"
    )


def _others(status: str, call: str) -> str:
    """Who else refuses a call."""
    if _filtered(status):
        return (
            f"the seccomp filter in force denies {call}: "
            "run with seccompProfile Unconfined or with one that allows it"
        )
    return (
        f"a security module (SELinux, AppArmor) denies {call}: "
        "the audit log of the node names the denial"
    )


def _filtered(status: str) -> bool:
    found = re.search(r"^Seccomp:\s*(\d+)$", status, re.MULTILINE)
    return bool(found and found[1] == _FILTER)


def _read(file: Path) -> str:
    """Empty where it cannot be read: securityfs is often not mounted in a container."""
    with contextlib.suppress(OSError):
        return file.read_text()
    return ""
