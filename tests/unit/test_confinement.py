# SPDX-License-Identifier: Apache-2.0
"""What confines a process, from the label that a security module gives it."""

from pathlib import Path

import pytest

from ebpf.confinement import confinement
from ebpf.privileges import Privileges

CONTAINER = "system_u:system_r:container_t:s0:c281,c745\0"
PRIVILEGED = "system_u:system_r:spc_t:s0\0"


def phrase(**texts: str) -> str | None:
    found = confinement(**{"apparmor": "", "current": "", "enforce": "", **texts})
    return None if found is None else found.phrase


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ({}, None),
        ({"current": "unconfined\n"}, None),
        ({"current": "_\0"}, None),
        ({"current": "docker-default (enforce)\n"}, "the AppArmor profile docker-default"),
        (
            {"apparmor": "cri-containerd.apparmor.d (enforce)\n", "current": CONTAINER},
            "the AppArmor profile cri-containerd.apparmor.d",
        ),
        ({"current": "a profile//&b (mixed)\n"}, "the AppArmor profile a profile//&b"),
        ({"current": "cri-containerd.apparmor.d (complain)\n"}, None),
        (
            {"apparmor": "unconfined\n", "current": CONTAINER},
            "SELinux (type container_t)",
        ),
        ({"current": CONTAINER}, "SELinux (type container_t)"),
        ({"current": CONTAINER, "enforce": "1"}, "SELinux (type container_t)"),
        ({"current": CONTAINER, "enforce": "0"}, None),
        ({"current": "system_u:system_r:spc_t\n"}, "SELinux (type spc_t)"),
    ],
)
def test_label(texts: dict[str, str], expected: str | None) -> None:
    """Profiles that complain and a permissive SELinux deny nothing, and are not named."""
    assert phrase(**texts) == expected


def test_remedies() -> None:
    """A container's SELinux type is to be exchanged; spc_t is the right one already."""
    remedies = [
        found.remedy
        for label in (CONTAINER, PRIVILEGED)
        if (found := confinement(apparmor="", current=label, enforce=""))
    ]
    assert ["spc_t" in remedy for remedy in remedies] == [True, False]
    assert all("audit log" in remedy for remedy in remedies)


def test_refusals_name_it(tmp_path: Path) -> None:
    """A refused call names the profile, and lockdown is read of process 1 where /sys has none."""
    proc = tmp_path / "proc"
    for file, text in (
        ("self/status", f"CapEff:\t{(1 << 41) - 1:016x}\nSeccomp:\t0\n"),
        ("self/attr/current", "docker-default (enforce)\n"),
        ("1/root/sys/kernel/security/lockdown", "none integrity [confidentiality]\n"),
    ):
        (proc / file).parent.mkdir(parents=True, exist_ok=True)
        (proc / file).write_text(text)
    given = Privileges(proc_root=proc, sys_root=tmp_path / "sys")
    assert "the AppArmor profile docker-default denies bpf" in given.why_no_bpf()
    assert given.lockdown() == "confidentiality"
    assert given.why_no_perf_event().startswith("lockdown=confidentiality")


def test_a_container_reads_whether_the_node_enforces(tmp_path: Path) -> None:
    """A container has no selinuxfs, so the node's says that SELinux denies nothing."""
    proc = tmp_path / "proc"
    enforce = proc / "1/root/sys/fs/selinux/enforce"
    for file in (proc / "self/attr/current", enforce):
        file.parent.mkdir(parents=True)
    (proc / "self/attr/current").write_text(CONTAINER)
    given = Privileges(proc_root=proc, sys_root=tmp_path / "sys")
    for text, named in (("0", False), ("1", True)):
        enforce.write_text(text)
        assert (given.confinement() is not None) == named
