# SPDX-License-Identifier: Apache-2.0
"""When an accelerator's device was registered, from what was observed and from file times."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from probes.host.device_age import CLOCK_TOLERANCE_S, DeviceAge, birth_unix_s
from probes.host.emulation import RegisteredBetween
from probes.host.hypervisors import BY_TYPE, HypervisorType

DEVTMPFS = "24 27 0:6 / /dev rw,relatime shared:2 - devtmpfs devtmpfs rw,size=1k\n"
EARLIER = "20 1 0:5 / / rw - ext4 /dev/vda rw\n20 1 0:5 / /dev rw - tmpfs tmpfs rw\n"
NOTHING = RegisteredBetween(after_s=None, by_s=None)


def boot_clock_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(kw_only=True)
class Node:
    """A made-up node with its own births of files."""

    root: Path
    births: dict[str, float] = field(default_factory=dict)
    """Seconds since boot, by path below /proc/1/root."""
    clock_set_by_s: float = 0.0
    """By how much the clock was set forward after the files were made."""

    def __post_init__(self) -> None:
        (self.root / "proc/1").mkdir(parents=True)
        (self.root / "sys/class/misc").mkdir(parents=True)
        self.mounts(EARLIER + DEVTMPFS)
        self.age = DeviceAge(
            BY_TYPE[HypervisorType.KVM],
            proc_root=self.root / "proc",
            sys_root=self.root / "sys",
            birth_unix_s=self._birth_unix_s,
        )

    def mounts(self, text: str) -> None:
        (self.root / "proc/1/mountinfo").write_text(text)

    @property
    def registration(self) -> Path:
        return self.root / "sys/class/misc/kvm"

    def register(self, sysfs_s: float | None = None) -> None:
        """Register the device; its directory in sysfs shows this time since boot."""
        self.registration.mkdir()
        if sysfs_s is not None:
            at = time.time() - boot_clock_s() + sysfs_s
            os.utime(self.registration, (at, at))

    def _birth_unix_s(self, path: Path) -> float | None:
        since_boot_s = self.births.get(str(path.relative_to(self.root / "proc/1/root")))
        if since_boot_s is None:
            return None
        return time.time() - boot_clock_s() + since_boot_s - self.clock_set_by_s


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """A node without an accelerator, whose devtmpfs was made half a second after its boot."""
    return Node(root=tmp_path, births={"dev": 0.5})


def observed(node: Node) -> RegisteredBetween:
    found = node.age.observe()
    assert found is not None
    return found


# what is built in


def modules(node: Node, *names: str, loaded: tuple[str, ...] = ()) -> None:
    for name in (*names, *loaded):
        (node.root / "sys/module" / name).mkdir(parents=True)
    for name in loaded:
        (node.root / "sys/module" / name / "initstate").write_text("live\n")


def test_built_in_driver(node: Node) -> None:
    """The kernel registers the device of its own driver before it starts a process."""
    modules(node, "kvm", "kvm_pvm", "ext4", loaded=("tun",))
    node.register(500.0)
    assert observed(node) == RegisteredBetween(after_s=None, by_s=0.0)


@pytest.mark.parametrize("loaded", [("kvm", "kvm_intel"), ("kvm",), ("kvm_pvm",)])
def test_driver_that_was_loaded(node: Node, loaded: tuple[str, ...]) -> None:
    """If a part of the driver is a module, file times limit the registration."""
    modules(node, loaded=loaded)
    node.register(500.0)
    assert observed(node).by_s != 0.0


def test_modules_that_cannot_be_listed(node: Node) -> None:
    """Without a list of modules the driver is not taken for built in."""
    node.register(500.0)
    assert observed(node).by_s != 0.0


def test_what_was_observed_counts_more(node: Node) -> None:
    """A device that was seen to be absent was not registered at boot, whatever the modules are."""
    modules(node, "kvm")
    assert node.age.observe() is None
    node.register(500.0)
    assert observed(node).after_s is not None


# what was observed


def test_no_registration(node: Node) -> None:
    """A node without the accelerator has no registration."""
    assert node.age.observe() is None


def test_registered_before_the_first_observation(node: Node) -> None:
    """It was there by then, and this limit does not move later."""
    before_s = boot_clock_s()
    node.register()
    node.births.clear()
    found = observed(node)
    assert found.after_s is None
    assert found.by_s is not None
    assert before_s <= found.by_s <= boot_clock_s()
    assert observed(node) == found


def test_registered_between_two_observations(node: Node) -> None:
    """Both limits are known exactly."""
    begin_s = boot_clock_s()
    node.age.observe()
    middle_s = boot_clock_s()
    node.register()
    found = observed(node)
    assert found.after_s is not None
    assert found.by_s is not None
    assert begin_s <= found.after_s <= middle_s <= found.by_s <= boot_clock_s()
    assert observed(node) == found


def test_registered_again(node: Node) -> None:
    """Another registration in place of the observed one is as young as the observation."""
    node.register()
    first = observed(node)
    middle_s = boot_clock_s()
    second = node.registration.with_name("other")
    second.mkdir()  # while the first is there, so that its inode is another
    node.registration.rmdir()
    second.rename(node.registration)
    found = observed(node)
    assert found.after_s is not None
    assert found.by_s is not None
    assert first.by_s is not None
    assert first.by_s - 1 <= found.after_s <= middle_s <= found.by_s
    assert found != first


def test_unreadable_registration(tmp_path: Path) -> None:
    """A registration that cannot be looked at is unknown, not absent."""
    node = Node(root=tmp_path)
    node.registration.symlink_to("kvm")
    assert node.age.observe() == NOTHING


# file times


def test_file_times(node: Node) -> None:
    """The device file is no younger, and the directory in sysfs no older, than the registration."""
    node.births["dev/kvm"] = 30.0
    node.register(sysfs_s=31.0)
    found = observed(node)
    assert found.after_s == pytest.approx(30.0 - CLOCK_TOLERANCE_S, abs=0.1)
    assert found.by_s == pytest.approx(31.0 + CLOCK_TOLERANCE_S, abs=0.1)


def test_file_that_is_older_than_the_registration(node: Node) -> None:
    """A file made at boot says little, so what was observed decides."""
    node.births["dev/kvm"] = 1.0
    begin_s = boot_clock_s()
    node.age.observe()
    node.register()
    found = observed(node)
    assert found.after_s is not None
    assert found.after_s >= begin_s


def test_device_file_without_birth(node: Node) -> None:
    """Without the device file only sysfs limits the time."""
    node.register(sysfs_s=31.0)
    found = observed(node)
    assert found.after_s is None
    assert found.by_s == pytest.approx(31.0 + CLOCK_TOLERANCE_S, abs=0.1)


@pytest.mark.parametrize(
    ("births", "clock_set_by_s", "mounts"),
    [
        ({"dev": 0.5, "dev/kvm": 30.0}, 3600.0, DEVTMPFS),
        ({"dev": 0.5, "dev/kvm": 30.0}, -3600.0, DEVTMPFS),
        ({"dev": 0.5, "dev/kvm": 30.0}, 0.0, DEVTMPFS + EARLIER),
        ({"dev": 0.5, "dev/kvm": 30.0}, 0.0, "- / /dev\nnonsense\n"),
        ({"dev": 0.5, "dev/kvm": 30.0}, 0.0, "1 2 3 / /dev rw without a separator\n"),
        ({"dev/kvm": 30.0}, 0.0, DEVTMPFS),
        ({"dev": CLOCK_TOLERANCE_S + 5, "dev/kvm": 30.0}, 0.0, DEVTMPFS),
    ],
    ids="forward back tmpfs nonsense malformed no-birth late".split(),
)
def test_file_times_that_are_not_trusted(
    tmp_path: Path, births: Mapping[str, float], clock_set_by_s: float, mounts: str
) -> None:
    """If the clock was set since the boot, or /dev is no devtmpfs, only observations count."""
    node = Node(root=tmp_path, births=dict(births), clock_set_by_s=clock_set_by_s)
    node.mounts(mounts)
    node.register(sysfs_s=31.0)
    before_s = boot_clock_s()
    found = observed(node)
    assert found.after_s is None
    assert found.by_s is not None
    assert found.by_s >= before_s


def test_no_mounts(node: Node) -> None:
    """Where process 1 cannot be read, only observations count."""
    (node.root / "proc/1/mountinfo").unlink()
    node.births["dev/kvm"] = 30.0
    node.register(sysfs_s=31.0)
    assert observed(node).after_s is None


# the birth of a file


def test_birth_of_a_file(tmp_path: Path) -> None:
    """The birth lies between the times before and after the file was made, and never changes."""
    before = time.time()
    path = tmp_path / "file"
    path.write_text("")
    born = birth_unix_s(path)
    if born is None:
        pytest.skip("the file system records no births")
    assert before - 0.1 <= born <= time.time()
    os.utime(path, (1.0, 1.0))
    path.chmod(0o600)
    assert birth_unix_s(path) == born
    link = tmp_path / "link"
    link.symlink_to(path)
    assert birth_unix_s(link) != born


def test_birth_of_nothing(tmp_path: Path) -> None:
    """A missing file and a file system without births have none."""
    assert birth_unix_s(tmp_path / "none") is None
    assert birth_unix_s(Path("/proc/self/stat")) is None
