"""EDGE: why the kernel permits BPF or a hook to this process or not, by name.

Owns the capabilities that bpf() and perf_event_open() ask for, and what else answers EPERM in their
stead: a seccomp filter, kernel.perf_event_paranoid, lockdown, a security module. Reads its own
/proc/self/status, /proc/sys and securityfs. Must not know BCC nor which programs there are.

Sources: include/uapi/linux/capability.h; Documentation/admin-guide/sysctl/kernel.rst
(perf_event_paranoid; values above 2 are Debian's and Ubuntu's); kernel/bpf/syscall.c; until Linux
5.11 kernel/bpf/syscall.c bpf_charge_memlock.
"""

import contextlib
import re
from pathlib import Path

_SYS_ADMIN = 21
_SYS_RESOURCE = 24
_PERFMON = 38
_BPF = 39
_NAMES = {_BPF: "CAP_BPF", _PERFMON: "CAP_PERFMON"}
_HIGHEST_FOR_PERFMON = 2
"""Of kernel.perf_event_paranoid: above it Debian's and Ubuntu's kernels want CAP_SYS_ADMIN."""
_FILTER = "2"
"""Of the line Seccomp: in /proc/self/status: a filter is in force (SECCOMP_MODE_FILTER)."""


def why_no_bpf() -> str:
    """One clause after bpf() was refused: what is missing and what to do."""
    return bpf_refusal(_read("/proc/self/status"))


def why_no_perf_event() -> str:
    """The same after perf_event_open() was refused, or an ioctl that attaches to its event."""
    return perf_event_refusal(
        _read("/proc/self/status"),
        paranoid=_read("/proc/sys/kernel/perf_event_paranoid"),
        lockdown=_read("/sys/kernel/security/lockdown"),
    )


def bpf_refusal(status: str) -> str:
    """Pure: from the text of /proc/self/status."""
    missing = _missing(status)
    if missing:
        return _give(missing)
    if _has(status, _SYS_RESOURCE):
        return _others(status, "bpf")
    return (
        "CAP_SYS_RESOURCE is missing, which Linux before 5.11 needs to hold BPF tables: "
        f"add it; otherwise {_others(status, 'bpf')}"
    )


def perf_event_refusal(status: str, *, paranoid: str, lockdown: str) -> str:
    """Pure: from the texts of those files; paranoid is kernel.perf_event_paranoid's."""
    missing = _missing(status)
    if missing:
        return _give(missing)
    level = int(paranoid) if re.fullmatch(r"-?\d+\n?", paranoid) else 0
    if level > _HIGHEST_FOR_PERFMON and not _has(status, _SYS_ADMIN):
        return (
            f"CAP_SYS_ADMIN is missing, which kernel.perf_event_paranoid={level} asks for: "
            f"set that to {_HIGHEST_FOR_PERFMON} on the node, or run privileged"
        )
    if "[confidentiality]" in lockdown:
        return "lockdown=confidentiality forbids it: nothing but a boot without it helps"
    hidden = "" if lockdown else ", or lockdown=confidentiality, which cannot be seen from here"
    return _others(status, "perf_event_open") + hidden


def _missing(status: str) -> list[str]:
    if _has(status, _SYS_ADMIN):
        return []
    return [name for number, name in _NAMES.items() if not _has(status, number)]


def _give(missing: list[str]) -> str:
    verb = "is" if len(missing) == 1 else "are"
    return (
        f"{' and '.join(missing)} {verb} missing: "
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


def _has(status: str, capability: int) -> bool:
    found = re.search(r"^CapEff:\s*(\w+)$", status, re.MULTILINE)
    return bool(found and int(found[1], 16) >> capability & 1)


def _filtered(status: str) -> bool:
    found = re.search(r"^Seccomp:\s*(\d+)$", status, re.MULTILINE)
    return bool(found and found[1] == _FILTER)


def _read(path: str) -> str:
    """Empty where it cannot be read: securityfs is often not mounted in a container."""
    with contextlib.suppress(OSError):
        return Path(path).read_text()
    return ""
