# SPDX-License-Identifier: Apache-2.0
"""What a node's accelerator can do, tried on device files and read from sysfs trees."""

import fcntl
import os
from pathlib import Path

import pytest

from probes.host.accelerators import Accelerators
from probes.host.hypervisors import BY_TYPE, HypervisorType
from probes.host.node import Accelerator, Cause


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """An empty node: folders dev, sys and proc, with what every kernel has in sysfs."""
    for name in ("dev", "sys/module", "sys/class/misc", "proc"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def accelerators(node: Path) -> Accelerators:
    return Accelerators(dev_root=node / "dev", sys_root=node / "sys", proc_root=node / "proc")


def tried(on: Accelerators, kind: HypervisorType = HypervisorType.KVM) -> Accelerator:
    found = on.try_hypervisor(BY_TYPE[kind])
    assert found is not None
    return found


def has_kvm(node: Path) -> None:
    (node / "sys/class/misc/kvm").mkdir(parents=True)


def open_descriptors() -> set[str]:
    return {link.name for link in Path("/proc/self/fd").iterdir()}


# the trial


def test_no_device_no_kvm(node: Path) -> None:
    """Neither device nor driver: the node has no KVM, and the problem has a remedy."""
    found = tried(accelerators(node))
    assert (found.type, found.available) == (HypervisorType.KVM, False)
    assert found.problem is not None
    assert found.problem.cause is Cause.DEVICE_ABSENT
    assert "No such file" in found.problem.detail
    assert "kvm_intel" in (found.problem.remedy or "")


def test_no_device_in_this_container(node: Path) -> None:
    """With a driver and no device file here KVM works, because the driver has checked the CPU."""
    has_kvm(node)
    found = tried(accelerators(node))
    assert found.available is True
    assert found.problem is not None
    assert found.problem.cause is Cause.DEVICE_NOT_MOUNTED
    assert found.problem.text == (
        "the kernel has registered it, which it does only after it has checked the hardware; "
        f"not tried, because of {node}/dev/kvm: No such file or directory"
    )


def test_no_device_and_no_sysfs(tmp_path: Path) -> None:
    """Without a device file and without sysfs it is unknown whether KVM works."""
    found = tried(accelerators(tmp_path))
    assert found.available is None
    assert found.problem is not None
    assert found.problem.cause is Cause.DEVICE_NOT_MOUNTED
    assert "No such file or directory, and its registration in sysfs" in found.problem.detail
    assert found.problem.text == f"{found.problem.detail}; {found.problem.remedy}"


@pytest.mark.parametrize("registered", [False, True])
def test_device_that_may_not_be_opened(node: Path, *, registered: bool) -> None:
    """Without access to the device its registration decides whether the accelerator works."""
    # A read-only attribute of sysfs cannot be opened for writing by any user.
    (node / "dev/kvm").symlink_to("/sys/kernel/uevent_seqnum")
    if registered:
        has_kvm(node)
    found = tried(accelerators(node))
    assert found.available is registered
    assert found.problem is not None
    assert found.problem.cause is (Cause.ACCESS_DENIED if registered else Cause.DEVICE_ABSENT)
    assert "Permission denied" in found.problem.detail


@pytest.mark.parametrize("kind", ["file", "null", "folder"])
def test_device_that_is_none(node: Path, kind: str) -> None:
    """A device that cannot be opened or creates no VM is no accelerator; the text is one line."""
    device = node / "dev/kvm"
    match kind:
        case "file":
            device.write_bytes(b"")
        case "null":
            device.symlink_to("/dev/null")
        case _:
            device.mkdir()
    found = tried(accelerators(node))
    assert found.available is False
    assert found.problem is not None
    assert found.problem.cause is Cause.TRIAL_FAILED
    assert str(device) in found.problem.text
    assert "\n" not in found.problem.text


def test_trial_leaves_no_descriptor(node: Path) -> None:
    """A failed trial closes the device again."""
    (node / "dev/kvm").write_bytes(b"")
    before = open_descriptors()
    tried(accelerators(node))
    assert open_descriptors() == before


def test_the_real_device() -> None:
    """On this very machine the answer is known, and without a problem if a VM was created."""
    before = len(open_descriptors())
    found = tried(Accelerators())
    assert found.available or found.problem is not None
    if os.access("/dev/kvm", os.R_OK | os.W_OK):
        assert found.available is not None
        assert (found.problem is None) == (found.available is True)
    assert len(open_descriptors()) == before


# whose modules


@pytest.mark.parametrize(
    ("modules", "flags", "kvm", "module"),
    [
        (("kvm", "kvm_intel", "irqbypass"), "fpu vmx", True, "kvm_intel"),
        (("kvm", "kvm_amd"), "fpu svm hypervisor", True, "kvm_amd"),
        # Both are built in; the CPU decides which one is in use.
        (("kvm_amd", "kvm_intel"), "svm", True, "kvm_amd"),
        (("kvm_amd", "kvm_intel"), "vmx", True, "kvm_intel"),
        (("kvm", "kvm_pvm"), "fpu hypervisor", True, "kvm_pvm"),
        # Built in and unusable: the CPU has neither extension.
        (("kvm_intel", "kvm_amd", "kvm_pvm"), "fpu hypervisor", True, "kvm_pvm"),
        (("kvm", "kvm_hv"), None, True, "kvm_hv"),
        (("kvm",), None, True, "builtin"),
        ((), None, True, "builtin"),
        ((), "fpu", False, None),
        # Only the guest side: this node is a VM on another host's KVM.
        (("kvm_guest",), "fpu hypervisor", False, None),
    ],
)
def test_vendor_module(
    node: Path, modules: tuple[str, ...], flags: str | None, module: str | None, *, kvm: bool
) -> None:
    """The module that provides KVM here: the one whose CPU extension is there."""
    for name in modules:
        (node / "sys/module" / name).mkdir()
    if flags is not None:
        (node / "proc/cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    if kvm:
        has_kvm(node)
    assert accelerators(node).virtualization().modules.get(HypervisorType.KVM) == module


def test_device_without_sysfs(tmp_path: Path) -> None:
    """Without sysfs, a device file alone shows that the node has KVM."""
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/kvm").write_bytes(b"")
    assert accelerators(tmp_path).virtualization().modules.get(HypervisorType.KVM) == "builtin"


def test_device_without_a_driver(node: Path) -> None:
    """A device file that was made in advance shows no module, because nothing is registered."""
    (node / "dev/kvm").write_bytes(b"")
    assert accelerators(node).virtualization().modules == {}


@pytest.mark.parametrize(
    ("cpuinfo", "nested"),
    [
        ("processor\t: 0\nflags\t\t: fpu vmx hypervisor\n", True),
        ("processor\t: 0\nflags\t\t: fpu vmx\n", False),
        ("processor\t: 0\nflags\t\t: fpu hypervisors\n", False),
        ("processor\t: 0\nmodel name\t: hypervisor\nflags\t\t:\n", False),
        # arm64 and s390x: no such line, or another word for it.
        ("processor\t: 0\nFeatures\t: fp asimd\n", None),
        ("", None),
        (None, None),
    ],
)
def test_nesting(node: Path, cpuinfo: str | None, *, nested: bool | None) -> None:
    """On x86 the CPU flag ``hypervisor`` marks a VM; without flags, nesting is unknown."""
    if cpuinfo is not None:
        (node / "proc/cpuinfo").write_text(cpuinfo)
    assert accelerators(node).virtualization().nested is nested


# the Microsoft hypervisor

MSHV = HypervisorType.MSHV


def test_a_node_without_the_rare_hypervisor(node: Path) -> None:
    """A rare hypervisor is not reported on a node that has neither its device nor its driver."""
    assert accelerators(node).try_hypervisor(BY_TYPE[MSHV]) is None
    assert MSHV not in accelerators(node).virtualization().modules


def test_its_device_not_in_this_container(node: Path) -> None:
    """With a driver and no device file, the hypervisor works, as KVM does."""
    (node / "sys/class/misc/mshv").mkdir(parents=True)
    found = tried(accelerators(node), MSHV)
    assert (found.type, found.available) == (MSHV, True)
    assert found.problem is not None
    assert found.problem.cause is Cause.DEVICE_NOT_MOUNTED
    assert found.problem.remedy is None
    assert accelerators(node).virtualization().modules[MSHV] == "builtin"
    (node / "sys/module/mshv_root").mkdir()
    assert accelerators(node).virtualization().modules[MSHV] == "mshv_root"


def test_its_device_that_makes_no_partition(node: Path) -> None:
    """A device that refuses the call does not work as an accelerator."""
    (node / "dev/mshv").write_bytes(b"")
    found = tried(accelerators(node), MSHV)
    assert (found.type, found.available) == (MSHV, False)
    assert found.problem is not None
    assert found.problem.cause is Cause.TRIAL_FAILED


def test_its_trial_makes_an_empty_partition(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial calls MSHV_CREATE_PARTITION with a zeroed structure and closes the partition."""
    (node / "dev/mshv").write_bytes(b"")
    calls: list[tuple[int, object]] = []

    def ioctl(fd: int, request: int, argument: object) -> int:
        assert Path(f"/proc/self/fd/{fd}").readlink() == node / "dev/mshv"
        calls.append((request, argument))
        return os.dup(fd)

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    before = open_descriptors()
    found = tried(accelerators(node), MSHV)
    assert (found.type, found.available, found.problem) == (MSHV, True, None)
    write, size, family, number = 1 << 30, 16 << 16, 0xB8 << 8, 0
    assert calls == [(write | size | family | number, bytearray(16))]
    assert open_descriptors() == before
