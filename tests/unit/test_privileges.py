# SPDX-License-Identifier: Apache-2.0
"""Privileges of this process: the refusal of BPF names exactly what is missing."""

from pathlib import Path

import pytest

from ebpf.privileges import (
    INIT_PID_NAMESPACE_INODE,
    Privileges,
    bpf_absence,
    bpf_refusal,
    in_initial_pid_namespace,
    perf_event_refusal,
)

BPF, PERFMON, SYS_ADMIN, SYS_RESOURCE = 39, 38, 21, 24
NAMES = {
    BPF: "CAP_BPF",
    PERFMON: "CAP_PERFMON",
    SYS_ADMIN: "CAP_SYS_ADMIN",
    SYS_RESOURCE: "CAP_SYS_RESOURCE",
}
FILTERED = 2
"""SECCOMP_MODE_FILTER."""


def status(*capabilities: int, seccomp: int = 0) -> str:
    mask = sum(1 << number for number in capabilities)
    return f"Name:\thvprobe\nCapPrm:\t0\nCapEff:\t{mask:016x}\nSeccomp:\t{seccomp}\n"


def named(text: str) -> set[str]:
    return {name for name in NAMES.values() if name in text}


@pytest.mark.parametrize("missing", [{BPF}, {PERFMON}, {BPF, PERFMON}])
@pytest.mark.parametrize("seccomp", [0, FILTERED])
def test_names_the_capability_alone(missing: set[int], seccomp: int) -> None:
    """A missing capability that both calls need is named alone, whatever else could be a reason."""
    given = status(*({BPF, PERFMON} - missing), seccomp=seccomp)
    expected = {NAMES[number] for number in missing}
    assert named(bpf_refusal(given)) == expected
    assert named(perf_event_refusal(given, paranoid="4\n", lockdown="")) == expected


def test_names_sys_resource_when_nothing_else_is_missing() -> None:
    """CAP_SYS_RESOURCE is named last, because only old kernels need it."""
    text = bpf_refusal(status(BPF, PERFMON))
    assert named(text) == {"CAP_SYS_RESOURCE"}
    assert "before 5.11" in text


@pytest.mark.parametrize("call", ["bpf", "perf_event_open"])
def test_names_the_seccomp_filter(call: str) -> None:
    """If no capability is missing and a seccomp filter is in force, the filter is named."""
    given = status(BPF, PERFMON, SYS_RESOURCE, seccomp=FILTERED)
    text = {
        "bpf": bpf_refusal(given),
        "perf_event_open": perf_event_refusal(given, paranoid="2\n", lockdown=""),
    }[call]
    assert f"seccomp filter in force denies {call}" in text
    assert named(text) == set()


def test_names_the_paranoid_sysctl() -> None:
    """The sysctl is named only above 2 and without CAP_SYS_ADMIN, which overrides it."""
    given = status(BPF, PERFMON)
    strict = perf_event_refusal(given, paranoid="3\n", lockdown="")
    assert named(strict) == {"CAP_SYS_ADMIN"}
    assert "kernel.perf_event_paranoid=3" in strict
    assert "paranoid" not in perf_event_refusal(given, paranoid="2\n", lockdown="")
    assert "paranoid" not in perf_event_refusal(status(SYS_ADMIN), paranoid="3\n", lockdown="")


def test_names_lockdown() -> None:
    """Lockdown is named in confidentiality mode, which refuses kprobes, not in integrity mode."""
    given = status(BPF, PERFMON)
    refusal = {
        mode: perf_event_refusal(given, paranoid="2\n", lockdown=mode)
        for mode in ("none integrity [confidentiality]\n", "none [integrity] confidentiality\n")
    }
    assert ["lockdown" in text for text in refusal.values()] == [True, False]
    strict = perf_event_refusal(given, paranoid="3\n", lockdown="[confidentiality]\n")
    assert "paranoid" not in strict, "lowering it would not help"
    unseen = perf_event_refusal(given, paranoid="2\n", lockdown="")
    assert "lockdown=confidentiality, which hvprobe cannot check" in unseen


def test_absent_bpf_is_the_kernels_or_a_filters() -> None:
    """ENOSYS means a kernel without BPF; where a filter is in force it may be the filter's."""
    assert bpf_absence(status(BPF)).endswith("only another kernel helps")
    assert "seccompProfile Unconfined" in bpf_absence(status(BPF, seccomp=FILTERED))


def test_names_a_security_module_when_all_is_there() -> None:
    """If no other reason applies, SELinux and AppArmor are named."""
    assert "SELinux, AppArmor" in bpf_refusal(status(SYS_ADMIN, SYS_RESOURCE))


@pytest.mark.parametrize("text", ["", "CapEff:\n", "Seccomp:\t0\n"])
def test_unreadable_capabilities_count_as_missing(text: str) -> None:
    """Capabilities count as missing when /proc does not report them."""
    assert named(bpf_refusal(text)) == {"CAP_BPF", "CAP_PERFMON"}


def test_everything_is_read_below_the_given_roots(tmp_path: Path) -> None:
    """Capabilities, the sysctl and lockdown come from the given trees, not from this machine."""
    proc, sysfs = tmp_path / "proc", tmp_path / "sys"
    for file, text in (
        (proc / "self/status", status(BPF, PERFMON, SYS_RESOURCE, seccomp=FILTERED)),
        (proc / "sys/kernel/perf_event_paranoid", "4\n"),
        (sysfs / "kernel/security/lockdown", "none [integrity] confidentiality\n"),
    ):
        file.parent.mkdir(parents=True)
        file.write_text(text)
    given = Privileges(proc_root=proc, sys_root=sysfs)
    assert given.missing() == ("CAP_DAC_READ_SEARCH", "CAP_SYS_PTRACE")
    assert given.lockdown() == "integrity"
    assert "seccomp filter in force denies bpf" in given.why_no_bpf()
    assert "kernel.perf_event_paranoid=4" in given.why_no_perf_event()


def test_a_greater_capability_includes_those_that_are_used(tmp_path: Path) -> None:
    """CAP_DAC_OVERRIDE and CAP_SYS_ADMIN are enough, except for CAP_SYS_PTRACE."""
    (tmp_path / "self").mkdir()
    (tmp_path / "self/status").write_text(status(1, SYS_ADMIN))
    given = Privileges(proc_root=tmp_path, sys_root=tmp_path)
    assert given.missing() == ("CAP_SYS_PTRACE",)
    assert given.lockdown() is None


def test_the_pid_namespace_is_that_of_the_given_proc(tmp_path: Path) -> None:
    """A /proc that cannot be read does not count as that of the initial namespace."""
    inode = Path("/proc/self/ns/pid").stat().st_ino
    assert in_initial_pid_namespace() is (inode == INIT_PID_NAMESPACE_INODE)
    assert not in_initial_pid_namespace(tmp_path)
