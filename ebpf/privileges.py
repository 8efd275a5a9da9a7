# SPDX-License-Identifier: Apache-2.0
"""EDGE: finds out what this process is permitted to do, and why the kernel refuses BPF or a hook.

Owns the capabilities that hvprobe uses, and the other causes of EPERM: a seccomp filter,
kernel.perf_event_paranoid, lockdown, a security module. Reads /proc/self, /proc/sys and securityfs.
Must not know BCC, nor which programs there are.

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

from ebpf.confinement import CONFIDENTIALITY, Confinement, confinement

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
"""For some of these, a greater capability that includes them."""
_MAX_PARANOID_FOR_PERFMON = 2
"""The highest kernel.perf_event_paranoid at which CAP_PERFMON is enough.

Above it Debian's and Ubuntu's kernels require CAP_SYS_ADMIN.
"""
_FILTER = "2"
"""Value of ``Seccomp:`` in /proc/self/status while a filter is in force (SECCOMP_MODE_FILTER)."""


class Privileges:
    """What this process is permitted to do."""

    def __init__(self, *, proc_root: Path = Path("/proc"), sys_root: Path = Path("/sys")) -> None:
        """proc_root is a /proc whose ``self`` is this process."""
        self._proc_root = proc_root
        self._sys_root = sys_root
        self._status = proc_root / "self/status"
        self._paranoid = proc_root / "sys/kernel/perf_event_paranoid"

    def missing(self) -> tuple[str, ...]:
        """Name the capabilities that hvprobe uses and this process lacks."""
        return tuple(
            capability.name for capability in missing_capabilities(_read(self._status), NEEDED)
        )

    def lockdown(self) -> str | None:
        """Return the lockdown mode: none, integrity or confidentiality; None: it cannot be read."""
        return lockdown_mode(self._lockdown())

    def why_no_bpf(self) -> str:
        """Explain in one clause why the kernel refused bpf(), and what to do."""
        return bpf_refusal(_read(self._status), self.confinement())

    def why_bpf_is_absent(self) -> str:
        """Explain in one clause why bpf() is not implemented (ENOSYS), and what to do."""
        return bpf_absence(_read(self._status))

    def why_no_perf_event(self) -> str:
        """Explain in one clause why perf_event_open() or an ioctl on its event was refused."""
        return perf_event_refusal(
            _read(self._status),
            self.confinement(),
            paranoid=_read(self._paranoid),
            lockdown=self._lockdown(),
        )

    def confinement(self) -> Confinement | None:
        """Return which security module confines this process; None: none that is known."""
        attributes = self._proc_root / "self/attr"
        return confinement(
            apparmor=_read(attributes / "apparmor/current"),
            current=_read(attributes / "current"),
            enforce=self._of_node("fs/selinux/enforce"),
        )

    def _lockdown(self) -> str:
        """Return the text of securityfs's file, which is empty if it cannot be read."""
        return self._of_node("kernel/security/lockdown")

    def _of_node(self, file: str) -> str:
        """Return the text of a file in /sys that belongs to a file system of its own.

        A container's /sys has none of those; that of the node's process 1 has.
        """
        return _read(self._sys_root / file) or _read(self._proc_root / "1/root/sys" / file)


def in_initial_pid_namespace(proc_root: Path = Path("/proc")) -> bool:
    """Whether BPF and this process number processes alike; False where /proc does not say.

    proc_root is a /proc whose ``self`` is this process.
    """
    with contextlib.suppress(OSError):
        # The link's text, because SELinux lets a container_t read that, and not what it leads to.
        return str((proc_root / "self/ns/pid").readlink()) == f"pid:[{INIT_PID_NAMESPACE_INODE}]"
    return False


def missing_capabilities(status: str, wanted: Collection[Capability]) -> list[Capability]:
    """Return the wanted capabilities that a process lacks, given the text of its ``status``. Pure.

    A text without a CapEff line means that the process has none.
    """
    found = re.search(r"^CapEff:\s*(\w+)$", status, re.MULTILINE)
    effective = int(found[1], 16) if found else 0
    return [
        capability
        for capability in wanted
        if not effective & (1 << capability | 1 << _INCLUDED_IN.get(capability, capability))
    ]


def lockdown_mode(text: str) -> str | None:
    """Return the mode in brackets: ``none [integrity] confidentiality``. Pure."""
    found = re.search(r"\[(\w+)\]", text)
    return found[1] if found else None


def bpf_refusal(status: str, confined: Confinement | None = None) -> str:
    """Explain why bpf() was refused, given the text of /proc/self/status. Pure."""
    missing = missing_capabilities(status, _NEEDED_FOR_BPF)
    if missing:
        return _missing_clause(missing)
    if not missing_capabilities(status, [Capability.CAP_SYS_RESOURCE]):
        return _denied_by(status, "bpf", confined)
    return (
        "CAP_SYS_RESOURCE is missing, which Linux before 5.11 needs to hold BPF tables: "
        f"add it; otherwise {_denied_by(status, 'bpf', confined)}"
    )


def bpf_absence(status: str) -> str:
    """Explain ENOSYS of bpf(), given the text of /proc/self/status. Pure.

    A seccomp filter may answer so as well.
    """
    if _filtered(status):
        return (
            "this kernel is built without it (CONFIG_BPF_SYSCALL), or the seccomp filter in force "
            "hides it: run with seccompProfile Unconfined"
        )
    return "this kernel is built without it (CONFIG_BPF_SYSCALL): only another kernel helps"


def perf_event_refusal(
    status: str, confined: Confinement | None = None, *, paranoid: str, lockdown: str
) -> str:
    """Explain why perf_event_open() was refused, given the texts of three files. Pure.

    status is /proc/self/status, paranoid is kernel.perf_event_paranoid, lockdown is securityfs's.
    """
    missing = missing_capabilities(status, _NEEDED_FOR_BPF)
    if missing:
        return _missing_clause(missing)
    if lockdown_mode(lockdown) == CONFIDENTIALITY:
        return "lockdown=confidentiality forbids it; only a boot without lockdown helps"
    level = int(paranoid) if re.fullmatch(r"-?\d+\n?", paranoid) else 0
    if level > _MAX_PARANOID_FOR_PERFMON and missing_capabilities(
        status, [Capability.CAP_SYS_ADMIN]
    ):
        return (
            f"CAP_SYS_ADMIN is missing, which kernel.perf_event_paranoid={level} asks for: "
            f"set that to {_MAX_PARANOID_FOR_PERFMON} on the node, or run privileged"
        )
    hidden = "" if lockdown else ", or lockdown=confidentiality, which hvprobe cannot check here"
    return _denied_by(status, "perf_event_open", confined) + hidden


def _missing_clause(missing: Collection[Capability]) -> str:
    verb = "is" if len(missing) == 1 else "are"
    return (
        f"{' and '.join(capability.name for capability in missing)} {verb} missing: "
        "run as root, in a container add what is named or run privileged"
    )


def _denied_by(status: str, call: str, confined: Confinement | None) -> str:
    """Name what else may deny a call: the seccomp filter in force, or a security module."""
    if _filtered(status):
        return (
            f"the seccomp filter in force denies {call}: "
            "run with seccompProfile Unconfined or with one that allows it"
        )
    if confined is not None:
        return f"{confined.phrase} denies {call}: {confined.remedy}"
    return (
        f"a security module (SELinux, AppArmor) denies {call}: "
        "the audit log of the node names the denial"
    )


def _filtered(status: str) -> bool:
    found = re.search(r"^Seccomp:\s*(\d+)$", status, re.MULTILINE)
    return bool(found and found[1] == _FILTER)


def _read(file: Path) -> str:
    """Return the text of a file, or an empty text if it is unreadable.

    Containers often have no securityfs.
    """
    with contextlib.suppress(OSError):
        return file.read_text()
    return ""
