# SPDX-License-Identifier: Apache-2.0
"""Whether VMs can use an accelerator: device file, registration and a VM that was seen on it."""

import errno
import fcntl
import itertools
import os
from dataclasses import replace
from pathlib import Path

import pytest

from ebpf.uapi import KVM_CREATE_VM
from probes.host.accelerators import Accelerators
from probes.host.hypervisors import BY_TYPE, HypervisorType
from probes.host.node import Accelerator, Cause
from probes.judge.cause import Cause as CauseOfEmulation
from probes.report.collector import NodeCollector
from probes.report.model import NodeReport
from probes.report.ports import HostEdges
from tests.support.doubles import BETA, Books, Node, Pods
from tests.support.facts import entry, kvm_process, tcg_process

KVM, MSHV = HypervisorType.KVM, HypervisorType.MSHV

BY_REGISTRATION = (
    *("ENOENT", "ENOTDIR", "ENOTTY", "EISDIR", "ELOOP", "EACCES", "EPERM"),
    *("EMFILE", "ENFILE", "ENOMEM", "EINTR", "EAGAIN"),
)
"""Errors that say nothing about the node: its container, its rights, its limits."""
UNUSABLE = (
    *("ENODEV", "ENXIO", "EBUSY", "EINVAL", "EOPNOTSUPP", "EIO", "EFAULT", "EEXIST", "ENOSPC"),
    "ENOSYS",
)
"""Errors of a device that is there and of no use."""


class Refusing:
    """A node whose device answers each step of a trial as the test says."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._root = root
        self.device = "kvm"
        """The device that answers so; there is no other."""
        self.open_error: str | None = None
        self.create_error: str | None = None
        for name in ("dev", "sys/class/misc", "sys/module", "proc"):
            (root / name).mkdir(parents=True)
        self._open = os.open
        monkeypatch.setattr(os, "open", self.open)
        monkeypatch.setattr(fcntl, "ioctl", self.ioctl)

    def register(self, device: str) -> None:
        (self._root / "sys/class/misc" / device).mkdir()

    def open(self, path: Path, flags: int) -> int:
        error = self.open_error if path.name == self.device else "ENOENT"
        if error is not None:
            raise OSError(getattr(errno, error), "open")
        return self._open("/dev/null", flags)

    def ioctl(self, fd: int, request: int, argument: object) -> int:
        if self.create_error is not None:
            raise OSError(getattr(errno, self.create_error), "ioctl")
        return os.dup(fd)

    @property
    def accelerators(self) -> Accelerators:
        return Accelerators(
            dev_root=self._root / "dev",
            sys_root=self._root / "sys",
            proc_root=self._root / "proc",
        )

    def tried(self, kind: HypervisorType = KVM) -> Accelerator:
        found = self.accelerators.try_hypervisor(BY_TYPE[kind])
        assert found is not None
        return found


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refusing:
    return Refusing(tmp_path, monkeypatch)


def expected(error: str | None, *, registered: bool) -> bool:
    if error is None:
        return True
    return registered if error in BY_REGISTRATION else False


@pytest.mark.parametrize("registered", [False, True])
@pytest.mark.parametrize("step", ["open", "create"])
@pytest.mark.parametrize("error", [None, *BY_REGISTRATION, *UNUSABLE])
def test_every_error(node: Refusing, error: str | None, step: str, *, registered: bool) -> None:
    """The error of a trial decides, or the registration where the error says nothing of the node.

    It does not matter which step failed: seccomp filters and security modules refuse either.
    """
    setattr(node, f"{step}_error", error)
    if registered:
        node.register("kvm")
    found = node.tried()
    assert found.available is expected(error, registered=registered)
    assert (found.problem is None) is (error is None)
    if found.problem is not None:
        assert "\n" not in found.problem.text
        assert os.strerror(getattr(errno, error or "")) in found.problem.text
        assert (found.problem.cause is Cause.DEVICE_ABSENT) <= (not registered)


@pytest.mark.parametrize("error", ["EACCES", "EPERM"])
def test_a_denied_call_and_a_refused_one(node: Refusing, error: str) -> None:
    """EPERM of KVM_CREATE_VM is hvprobe's own lack of rights, and EBUSY is the node's state."""
    node.register("kvm")
    node.create_error = error
    assert (node.tried().available, problem(node)) == (True, Cause.ACCESS_DENIED)
    node.create_error = "EBUSY"
    assert (node.tried().available, problem(node)) == (False, Cause.TRIAL_FAILED)
    assert "other hypervisor" in (getattr(node.tried().problem, "remedy", None) or "")


def problem(node: Refusing, kind: HypervisorType = KVM) -> Cause | None:
    found = node.tried(kind).problem
    return found.cause if found else None


@pytest.mark.parametrize(
    ("error", "registered", "cause"),
    [
        ("ENOENT", True, Cause.DEVICE_NOT_MOUNTED),
        ("ENOENT", False, Cause.DEVICE_ABSENT),
        # systemd makes /dev/kvm at boot, before any driver is there.
        ("ENODEV", False, Cause.DEVICE_ABSENT),
        ("ENXIO", False, Cause.DEVICE_ABSENT),
        ("ENODEV", True, Cause.TRIAL_FAILED),
        ("EPERM", False, Cause.DEVICE_ABSENT),
        ("EPERM", True, Cause.ACCESS_DENIED),
        ("EMFILE", True, Cause.OUT_OF_RESOURCES),
        ("EMFILE", False, Cause.DEVICE_ABSENT),
        ("EISDIR", True, Cause.DEVICE_NOT_MOUNTED),
        ("EISDIR", False, Cause.TRIAL_FAILED),
    ],
)
def test_what_an_error_means(node: Refusing, error: str, cause: Cause, *, registered: bool) -> None:
    """A device without a driver is absent, whatever hvprobe's own difficulty with its file is."""
    node.open_error = error
    if registered:
        node.register("kvm")
    assert problem(node) is cause


@pytest.mark.parametrize("error", ["ENOENT", "EPERM", "EISDIR", "EMFILE"])
def test_neither_device_nor_sysfs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    """Where sysfs cannot be read either, it is unknown, and the remedy is the flag for its path."""
    node = Refusing(tmp_path, monkeypatch)
    (tmp_path / "sys/class/misc").rmdir()
    node.open_error = error
    found = node.tried()
    assert found.available is None
    assert found.problem is not None
    assert "--sys" in found.problem.text


@pytest.mark.parametrize("error", ["ENOENT", "EACCES", "ENODEV", "EMFILE"])
def test_a_rare_hypervisor_is_not_there_without_its_driver(node: Refusing, error: str) -> None:
    """A node without the driver of a rare hypervisor does not report it, whatever is in /dev."""
    node.device = "mshv"
    node.open_error = error
    assert node.accelerators.try_hypervisor(BY_TYPE[MSHV]) is None


@pytest.mark.parametrize("error", [None, "ENOENT", "EPERM"])
def test_a_rare_hypervisor_that_is_registered(node: Refusing, error: str | None) -> None:
    """It is available as KVM is: by a trial, or by its registration."""
    node.device = "mshv"
    node.register("mshv")
    node.open_error = error
    assert node.tried(MSHV).available is True


# with VMs


def report_of(node: Refusing, *, runs_on_kvm: bool) -> NodeReport:
    """One refresh of a node with an emulated VM, and one that the kernel saw run on KVM if asked.

    The emulated VM's pod has no device, and KubeVirt allows emulation there.
    """
    beta = replace(tcg_process(BETA), guest_ticks=0)
    processes = (kvm_process(), beta) if runs_on_kvm else (beta,)
    return NodeCollector(
        node="node-1",
        version="1.2.3",
        ledger=Books(*([entry(runs=5, exits=9)] if runs_on_kvm else [])),
        ledger_error=None,
        host=HostEdges(
            processes=Node(*processes),
            virtualization=node.accelerators,
            emulation=Pods(),
            device=Pods(),
        ),
    ).refresh()


@pytest.mark.parametrize("runs_on_kvm", [False, True])
@pytest.mark.parametrize("registered", [False, True])
@pytest.mark.parametrize("error", [None, "ENOENT", "EPERM", "ENXIO", "EBUSY"])
def test_available_and_fallback(
    node: Refusing, error: str | None, *, registered: bool, runs_on_kvm: bool
) -> None:
    """A VM that was seen on KVM decides, then the trial, then the registration.

    An emulated VM of the node's architecture is a fallback where the accelerator is available. Its
    cause is that the node has none exactly where it is not.
    """
    node.open_error = error
    if registered:
        node.register("kvm")
    report = report_of(node, runs_on_kvm=runs_on_kvm)
    available = runs_on_kvm or expected(error, registered=registered)
    (kvm,) = report.accelerators
    assert (kvm.type, kvm.available) == (KVM, available)
    (beta,) = [vmi for vmi in report.vmis if vmi.vm.name == "beta"]
    assert beta.fallback is available
    assert beta.cause is not None
    without = CauseOfEmulation.NODE_WITHOUT_ACCELERATOR
    assert (beta.cause.cause is without) <= (not available)


def test_a_vm_that_was_seen_needs_no_trial(node: Refusing, monkeypatch: pytest.MonkeyPatch) -> None:
    """No empty VM is created beside one that runs."""
    requests: list[int] = []
    answer = node.ioctl

    def ioctl(fd: int, request: int, argument: object) -> int:
        requests.append(request)
        return answer(fd, request, argument)

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    report_of(node, runs_on_kvm=True)
    assert KVM_CREATE_VM not in requests
    report_of(node, runs_on_kvm=False)
    assert requests.count(KVM_CREATE_VM) == 1


def test_each_error_is_in_one_row() -> None:
    """No error is said to be both."""
    assert not set(BY_REGISTRATION) & set(UNUSABLE)
    rows = itertools.chain(BY_REGISTRATION, UNUSABLE)
    assert all(hasattr(errno, name) for name in rows)
