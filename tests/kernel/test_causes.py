# SPDX-License-Identifier: Apache-2.0
"""Every cause of emulation made for real, in worlds that are shaped like a KubeVirt pod."""

import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from probes.host.accelerators import Accelerators
from probes.host.device_age import DeviceAge
from probes.host.emulation import EmulationFacts
from probes.host.emulation_facts import EmulationReader
from probes.host.hypervisors import BY_TYPE, HypervisorType
from probes.host.reader import Host
from probes.judge.cause import Cause
from tests.support.kernel_pods import (
    ANOTHER_DEVICE,
    FOREIGN_QEMU,
    FUSE_WITHOUT_A_SERVER,
    KVM_REFUSES,
    LINK,
    NO_DEVICE,
    QEMU_USER_OF_GROUP,
    ROOT_OF_A_NAMESPACE,
    Pod,
    World,
    device,
    start_s,
    why,
)
from tests.support.kernel_world import wait_for

pytestmark = pytest.mark.host_only

KVM = BY_TYPE[HypervisorType.KVM]
ALLOWED = ("--name", "vm", "--allow-emulation")
KVM_THEN_TCG = ("-accel", "kvm", "-accel", "tcg")
OPEN_TO_ALL = device("666")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A world, and why its guest is emulated."""

    world: World
    cause: Cause
    detail: str
    """What the cause's detail says, among other things."""
    everywhere: bool = False
    """Whether the brief choice of a guest of another architecture has it."""


CASES = {
    "foreign": Case(
        world=World(dev=OPEN_TO_ALL, qemu=FOREIGN_QEMU),
        cause=Cause.CROSS_ARCHITECTURE,
        detail=f"QEMU's program is {FOREIGN_QEMU}, the node is {platform.machine()}",
        everywhere=True,
    ),
    "allowed": Case(
        world=World(dev=NO_DEVICE, options=ALLOWED),
        cause=Cause.EMULATION_ALLOWED,
        detail="was started with --allow-emulation",
        everywhere=True,
    ),
    "missing": Case(
        world=World(dev=NO_DEVICE),
        cause=Cause.DEVICE_MISSING_IN_POD,
        detail="the pod has no /dev/kvm",
    ),
    "another-device": Case(
        world=World(dev=ANOTHER_DEVICE),
        cause=Cause.DEVICE_MISSING_IN_POD,
        detail="is not the accelerator's device",
    ),
    "root-only": Case(
        world=World(dev=device("600")),
        cause=Cause.DEVICE_INACCESSIBLE,
        detail="mode 0600, user 0 and group 0; QEMU runs as user 107, group 107",
        everywhere=True,
    ),
    "root-only-and-tried": Case(
        world=World(dev=device("600"), request=KVM_THEN_TCG),
        cause=Cause.DEVICE_INACCESSIBLE,
        detail="mode 0600",
    ),
    "another-group": Case(
        world=World(dev=device("660", "0:37"), run_as=QEMU_USER_OF_GROUP),
        cause=Cause.DEVICE_INACCESSIBLE,
        detail="QEMU runs as user 107, groups 36, 107",
    ),
    "own-user-is-no-other": Case(
        world=World(dev=device("066", "107:0")),
        cause=Cause.DEVICE_INACCESSIBLE,
        detail="mode 0066, user 107",
    ),
    "closed-folder": Case(
        world=World(dev=device("666", folder="700")),
        cause=Cause.DEVICE_INACCESSIBLE,
        detail="a folder on the way is closed to QEMU",
    ),
    "nodev": Case(
        world=World(dev=device("666", options=",nodev")),
        cause=Cause.DEVICE_INACCESSIBLE,
        detail="on a mount without devices",
    ),
    "capability-of-a-namespace": Case(
        world=World(dev=device("600"), run_as=ROOT_OF_A_NAMESPACE),
        cause=Cause.DEVICE_INACCESSIBLE,
        detail="mode 0600",
    ),
    "refused": Case(
        world=World(dev=OPEN_TO_ALL, run_as=KVM_REFUSES, request=KVM_THEN_TCG),
        cause=Cause.ACCELERATOR_REFUSED,
        detail="QEMU was asked for kvm, tcg",
        everywhere=True,
    ),
    "refused-in-one-list": Case(
        world=World(dev=OPEN_TO_ALL, run_as=KVM_REFUSES, request=("-machine", "accel=kvm:tcg")),
        cause=Cause.ACCELERATOR_REFUSED,
        detail="QEMU was asked for kvm, tcg",
    ),
    "requested": Case(
        world=World(dev=OPEN_TO_ALL),
        cause=Cause.REQUESTED_BY_DOMAIN,
        detail="QEMU was asked for tcg",
        everywhere=True,
    ),
    "requested-by-default": Case(
        world=World(dev=device("660", "0:36"), run_as=QEMU_USER_OF_GROUP, request=()),
        cause=Cause.REQUESTED_BY_DOMAIN,
        detail="QEMU was asked for tcg",
    ),
    "requested-where-allowed": Case(
        world=World(dev=device("600", "107:0"), options=ALLOWED),
        cause=Cause.REQUESTED_BY_DOMAIN,
        detail="QEMU was asked for tcg",
    ),
    "requested-as-root": Case(
        world=World(dev=device("000", "5:5"), run_as=("env",)),
        cause=Cause.REQUESTED_BY_DOMAIN,
        detail="QEMU was asked for tcg",
    ),
    "link": Case(
        world=World(dev=LINK),
        cause=Cause.UNKNOWN,
        detail="/dev/kvm in the pod is a symbolic link",
    ),
}


@pytest.fixture(scope="module")
def age() -> DeviceAge:
    """The age of this node's device, observed before any guest starts."""
    observed = DeviceAge(KVM)
    observed.observe()
    return observed


def read(pod: Pod) -> EmulationFacts:
    """What is read of a guest, as soon as a busy machine leaves time for it."""
    reader = EmulationReader()

    def in_time() -> EmulationFacts | None:
        facts = reader.read([pod.vmm])[pod.vmm]
        return None if "time" in facts.device_in_pod.text else facts

    return wait_for(in_time, "there is time to read the guest")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.every_architecture if case.everywhere else ())
        for name, case in CASES.items()
    ],
)
def test_cause(name: str, age: DeviceAge, tmp_path: Path) -> None:
    """The cause is the one that was made, and access is what a program with QEMU's rights has."""
    case = CASES[name]
    if shutil.which(case.world.qemu) is None:
        pytest.skip(f"this needs {case.world.qemu}")
    with Pod(case.world, tmp_path) as pod:
        facts = read(pod)
        found = why(pod.vmm, facts, age.observe())
    assert found.cause is case.cause, found
    assert case.detail in found.detail
    if facts.device_in_pod.value:
        assert facts.device_accessible.value is pod.opened, facts.device_accessible


def test_node_without_accelerator(tmp_path: Path) -> None:
    """A node whose /dev and /sys have no accelerator explains every guest of its architecture."""
    for name in ("dev", "sys/class/misc", "proc"):
        (tmp_path / name).mkdir(parents=True)
    bare = Accelerators(
        dev_root=tmp_path / "dev", sys_root=tmp_path / "sys", proc_root=tmp_path / "proc"
    )
    registered = DeviceAge(KVM, sys_root=tmp_path / "sys").observe()
    with Pod(World(dev=NO_DEVICE, options=ALLOWED), tmp_path) as pod:
        found = why(pod.vmm, read(pod), registered, accelerators=bare)
    assert found.cause is Cause.NODE_WITHOUT_ACCELERATOR


def test_accelerator_added_later(tmp_path: Path) -> None:
    """A registration that appears while the guest runs is younger than the guest."""
    registration = tmp_path / "sys/class/misc/kvm"
    age = DeviceAge(KVM, sys_root=tmp_path / "sys")
    with Pod(World(dev=OPEN_TO_ALL), tmp_path) as pod:
        assert age.observe() is None
        registration.mkdir(parents=True)
        found = why(pod.vmm, read(pod), age.observe())
        assert found.cause is Cause.ACCELERATOR_ADDED_LATER
    with Pod(World(dev=OPEN_TO_ALL), tmp_path) as pod:
        assert why(pod.vmm, read(pod), age.observe()).cause is Cause.REQUESTED_BY_DOMAIN


def test_agent_that_starts_later(tmp_path: Path) -> None:
    """An agent younger than the guest names a cause only if it knows how old the device is."""
    with Pod(World(dev=OPEN_TO_ALL), tmp_path) as pod:
        registered = DeviceAge(KVM).observe()
        found = why(pod.vmm, read(pod), registered)
        started_s = start_s(pod.vmm)
    assert registered is not None
    assert registered.by_s is not None
    known = registered.by_s <= started_s
    assert found.cause is (Cause.REQUESTED_BY_DOMAIN if known else Cause.UNKNOWN)
    assert registered.after_s is None or registered.after_s < started_s


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[Pod]:
    """A guest in whose /dev no look-up returns."""
    if not Path("/dev/fuse").exists():
        pytest.skip("this needs /dev/fuse")
    with Pod(World(dev=FUSE_WITHOUT_A_SERVER), tmp_path, try_device=False) as pod:
        yield pod


def test_pod_that_blocks_its_readers(silent: Pod, tmp_path: Path) -> None:
    """Its cause is unknown; its verdict, and the causes of other pods, are read as usual."""
    reader = EmulationReader()
    with Pod(World(dev=NO_DEVICE), tmp_path) as other:
        for _ in range(2):
            found = reader.read([silent.vmm, other.vmm])
            assert found[other.vmm].device_in_pod.value is False, found
            assert found[silent.vmm].device_in_pod.text == (
                "a read of its pod's files does not return"
            )
        inspected = Host().inspect([silent.vmm]).processes[silent.vmm]
        assert inspected.unread is None
        assert inspected.command_line.accelerators == ("tcg",)


def test_the_device_is_not_opened(tmp_path: Path) -> None:
    """Reading leaves no descriptor behind."""

    def descriptors() -> set[str]:
        return {link.name for link in Path("/proc/self/fd").iterdir()}

    with Pod(World(dev=OPEN_TO_ALL), tmp_path) as pod:
        before = descriptors()
        assert read(pod).device_in_pod.value is True
        assert descriptors() == before
