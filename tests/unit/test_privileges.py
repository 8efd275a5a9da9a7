# SPDX-License-Identifier: Apache-2.0
"""What this process may do, and why BPF is refused: what is missing is named, and nothing else."""

from pathlib import Path

import pytest

from ebpf.privileges import (
    INIT_PID_NAMESPACE_INODE,
    Privileges,
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
    """One that both calls need is named, whatever else could be a reason, too."""
    given = status(*({BPF, PERFMON} - missing), seccomp=seccomp)
    expected = {NAMES[it] for it in missing}
    assert named(bpf_refusal(given)) == expected
    assert named(perf_event_refusal(given, paranoid="4\n", lockdown="")) == expected


def test_names_sys_resource_when_nothing_else_is_missing() -> None:
    """Only old kernels need it, so it is named last."""
    text = bpf_refusal(status(BPF, PERFMON))
    assert named(text) == {"CAP_SYS_RESOURCE"}
    assert "before 5.11" in text


@pytest.mark.parametrize("call", ["bpf", "perf_event_open"])
def test_names_the_seccomp_filter(call: str) -> None:
    """Every capability is there, and a filter: that is it."""
    given = status(BPF, PERFMON, SYS_RESOURCE, seccomp=FILTERED)
    text = {
        "bpf": bpf_refusal(given),
        "perf_event_open": perf_event_refusal(given, paranoid="2\n", lockdown=""),
    }[call]
    assert f"seccomp filter in force denies {call}" in text
    assert named(text) == set()


def test_names_the_paranoid_sysctl() -> None:
    """Above 2 only SYS_ADMIN helps; at 2 it is not the reason, nor for who has SYS_ADMIN."""
    given = status(BPF, PERFMON)
    strict = perf_event_refusal(given, paranoid="3\n", lockdown="")
    assert named(strict) == {"CAP_SYS_ADMIN"}
    assert "kernel.perf_event_paranoid=3" in strict
    assert "paranoid" not in perf_event_refusal(given, paranoid="2\n", lockdown="")
    assert "paranoid" not in perf_event_refusal(status(SYS_ADMIN), paranoid="3\n", lockdown="")


def test_names_lockdown() -> None:
    """Kprobes are refused under confidentiality; integrity allows them."""
    given = status(BPF, PERFMON)
    refusal = {
        mode: perf_event_refusal(given, paranoid="2\n", lockdown=mode)
        for mode in ("none integrity [confidentiality]\n", "none [integrity] confidentiality\n")
    }
    assert ["lockdown" in it for it in refusal.values()] == [True, False]
    unseen = perf_event_refusal(given, paranoid="2\n", lockdown="")
    assert "lockdown=confidentiality, which cannot be seen" in unseen


def test_names_a_security_module_when_all_is_there() -> None:
    """Nothing of the above: SELinux or AppArmor, whose log tells."""
    assert "SELinux, AppArmor" in bpf_refusal(status(SYS_ADMIN, SYS_RESOURCE))


@pytest.mark.parametrize("text", ["", "CapEff:\n", "Seccomp:\t0\n"])
def test_reads_what_says_nothing_as_missing(text: str) -> None:
    """Without /proc nothing is known to be there."""
    assert named(bpf_refusal(text)) == {"CAP_BPF", "CAP_PERFMON"}


def test_everything_is_read_below_the_given_roots(tmp_path: Path) -> None:
    """Capabilities, the sysctl and lockdown are those of captured trees, not of this machine."""
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
    """CAP_DAC_OVERRIDE and CAP_SYS_ADMIN are enough; CAP_SYS_PTRACE is in neither of them."""
    (tmp_path / "self").mkdir()
    (tmp_path / "self/status").write_text(status(1, SYS_ADMIN))
    given = Privileges(proc_root=tmp_path, sys_root=tmp_path)
    assert given.missing() == ("CAP_SYS_PTRACE",)
    assert given.lockdown() is None


def test_the_pid_namespace_is_that_of_the_given_proc(tmp_path: Path) -> None:
    """A /proc that cannot be read is not taken for the initial namespace's."""
    inode = Path("/proc/self/ns/pid").stat().st_ino
    assert in_initial_pid_namespace() is (inode == INIT_PID_NAMESPACE_INODE)
    assert not in_initial_pid_namespace(tmp_path)
