# SPDX-License-Identifier: Apache-2.0
"""Features of the kernel, from made-up sysfs trees and from this process."""

from pathlib import Path

import pytest

from probes.host.features import find_features


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_distribution_kernel(tmp_path: Path) -> None:
    """Each feature is found where that kernel shows it."""
    sys_root = tree(
        tmp_path,
        {
            "bus/event_source/devices/kprobe/type": "8",
            "kernel/btf/vmlinux": "",
            "kernel/tracing/events/enable": "0",
            "class/misc/kvm/dev": "10:232",
            "kernel/security/lockdown": "none [integrity] confidentiality",
        },
    )
    found = find_features(proc_root=Path("/proc"), sys_root=sys_root)
    assert (found.kprobes, found.btf, found.tracefs, found.kvm_device) == (True,) * 4
    assert found.lockdown == "integrity"


def test_nothing_there(tmp_path: Path) -> None:
    """With an empty sysfs every feature is absent and lockdown is unknown."""
    found = find_features(proc_root=tmp_path, sys_root=tmp_path)
    assert (found.kprobes, found.btf, found.tracefs, found.kvm_device) == (False,) * 4
    assert found.lockdown is None
    assert not found.initial_pid_namespace


@pytest.mark.parametrize("text", ["", "nothing in brackets", "["])
def test_malformed_lockdown(tmp_path: Path, text: str) -> None:
    """Lockdown is unknown when its file is malformed."""
    tree(tmp_path, {"kernel/security/lockdown": text})
    assert find_features(proc_root=tmp_path, sys_root=tmp_path).lockdown is None


def test_tracefs_below_debugfs_counts(tmp_path: Path) -> None:
    """The tracefs that older kernels mount below debugfs is found."""
    tree(tmp_path, {"kernel/debug/tracing/events/enable": "", "kernel/debug/tracing/x": ""})
    assert find_features(proc_root=tmp_path, sys_root=tmp_path).tracefs
