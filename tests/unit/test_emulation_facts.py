# SPDX-License-Identifier: Apache-2.0
"""What is read of processes that emulate, from trees of files and with real device files.

A device file cannot be made without privileges, so where one is needed the root directory of the
process is this machine's own and the accelerator's device is /dev/zero.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from probes.host.emulation import EmulationFacts
from probes.host.emulation_facts import MAX_ANCESTORS, EmulationReader
from probes.host.hypervisors import BY_TYPE, HypervisorType
from probes.host.process import VmmId
from probes.host.process_folder import MAX_FILE_BYTES

KVM = BY_TYPE[HypervisorType.KVM]
ZERO = replace(KVM, driver=replace(KVM.driver, device="zero"))
"""A hypervisor whose device every machine has."""
EVERYBODY = "0 0 4294967295\n"
QEMU = 4711


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A made-up /proc and /sys."""

    proc: Path
    sys: Path

    def process(
        self,
        tgid: int = QEMU,
        *,
        parent: int = 1,
        exe: str | None = "/usr/bin/qemu-system-x86_64",
        arguments: str = "qemu-system-x86_64 -accel tcg",
        numbers: str = "4711\t42",
        user: int = 107,
        started: int = 5000,
    ) -> VmmId:
        folder = self.proc / str(tgid)
        (folder / "root").mkdir(parents=True)
        fields = ["S", str(parent), *["0"] * 15, "1", "0", str(started), *["0"] * 30]
        (folder / "stat").write_text(f"{tgid} (qemu) {' '.join(fields)}\n")
        (folder / "comm").write_text("qemu\n")
        (folder / "cmdline").write_text(arguments.replace(" ", "\0") + "\0")
        (folder / "status").write_text(
            f"Name:\tqemu\nUid:\t{user}\t{user}\t{user}\t{user}\nGid:\t107\t107\t107\t107\n"
            f"Groups:\t \nNSpid:\t{numbers}\nCapEff:\t0000000000000000\n"
        )
        for name in ("uid_map", "gid_map"):
            (folder / name).write_text(EVERYBODY)
        if exe is not None:
            (folder / "exe").symlink_to(exe)
        return VmmId(tgid=tgid, start_ticks=started)

    def launcher(self, options: str, *, tgid: int = 500, name: str = "virt-launcher") -> None:
        """Plant a virt-launcher that is PID 1 of its container."""
        self.process(
            tgid,
            exe=f"/usr/bin/{name}",
            arguments=f"/usr/bin/{name} {options}".strip(),
            numbers=f"{tgid}\t1",
            started=4000,
        )

    def shares_root(self, tgid: int = QEMU) -> None:
        """Give a process this machine's own root directory."""
        (self.proc / str(tgid) / "root").rmdir()
        (self.proc / str(tgid) / "root").symlink_to("/")

    def read(self, vmm: VmmId, *, with_device: bool = False) -> EmulationFacts:
        hypervisor = ZERO if with_device else KVM
        reader = EmulationReader(hypervisor=hypervisor, proc_root=self.proc, sys_root=self.sys)
        return reader.read([vmm])[vmm]


@pytest.fixture
def tree(proc: Path, tmp_path: Path) -> Tree:
    """A node with its first process, and an accelerator that has the number of /dev/zero."""
    registered = tmp_path / "sys/class/misc/zero"
    registered.mkdir(parents=True)
    (registered / "dev").write_text("1:5\n")
    found = Tree(proc=proc, sys=tmp_path / "sys")
    found.process(1, parent=0, exe="/usr/lib/systemd/systemd", numbers="1", started=1)
    return found


def open_descriptors() -> set[str]:
    return {link.name for link in Path("/proc/self/fd").iterdir()}


# program and request


@pytest.mark.parametrize(
    ("exe", "architecture", "text"),
    [
        ("/usr/bin/qemu-system-aarch64", "aarch64", "QEMU's program is qemu-system-aarch64"),
        ("/usr/bin/qemu-system-x86_64 (deleted)", "x86_64", "program is qemu-system-x86_64"),
        ("/usr/libexec/qemu-kvm", "", "QEMU's program is qemu-kvm"),
        ("/opt/my\nvmm", None, "QEMU's program is my?vmm, which names no architecture"),
        (None, None, "QEMU's program cannot be read"),
    ],
)
def test_architecture(tree: Tree, exe: str | None, architecture: str | None, text: str) -> None:
    """The name of QEMU's program says which guests it emulates."""
    found = tree.read(tree.process(exe=exe)).architecture
    assert found.value == architecture
    assert text in found.text


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ("qemu-system-x86_64 -accel kvm -accel tcg", ("kvm", "tcg")),
        ("qemu-system-x86_64 -machine q35,accel=tcg", ("tcg",)),
        ("/usr/libexec/qemu-kvm -m 64", ("kvm", "tcg")),
    ],
)
def test_what_was_asked_for(tree: Tree, arguments: str, names: tuple[str, ...]) -> None:
    """The list of accelerators is that of the command line, or QEMU's default."""
    found = tree.read(tree.process(arguments=arguments)).asked_for
    assert found.value == names
    assert found.text == f"QEMU was asked for {', '.join(names)}"


def test_unreadable_command_line(tree: Tree) -> None:
    """Without a command line it is unknown what QEMU was asked for, not its default."""
    vmm = tree.process()
    (tree.proc / str(QEMU) / "cmdline").write_text("")
    assert tree.read(vmm).asked_for.text == "QEMU's command line cannot be read"
    (tree.proc / str(QEMU) / "cmdline").write_bytes(b"x" * (MAX_FILE_BYTES + 1))
    found = tree.read(vmm).asked_for
    assert (found.value, found.text) == (None, "QEMU's command line is too long")


# virt-launcher


@pytest.mark.parametrize("name", ["virt-launcher", "virt-launcher-monitor"])
@pytest.mark.parametrize(
    ("options", "allowed"),
    [("--name vm --allow-emulation", True), ("--name vm", False)],
)
def test_launcher(tree: Tree, name: str, options: str, allowed: bool) -> None:
    """The container's first process says whether emulation is allowed."""
    tree.launcher(options, name=name)
    found = tree.read(tree.process(parent=500)).emulation_allowed
    assert found.value is allowed
    word = "with" if allowed else "without"
    assert found.text == f"{name} (process 500) was started {word} --allow-emulation"


def test_launcher_is_a_distant_ancestor(tree: Tree) -> None:
    """libvirt's daemon may stand between virt-launcher and QEMU."""
    tree.launcher("--allow-emulation")
    tree.process(600, parent=500, exe="/usr/sbin/virtqemud", numbers="600\t12", started=4500)
    assert tree.read(tree.process(parent=600)).emulation_allowed.value is True


def test_no_launcher(tree: Tree) -> None:
    """No ancestor up to PID 1 is virt-launcher: KubeVirt allowed nothing."""
    found = tree.read(tree.process()).emulation_allowed
    assert (found.value, found.text) == (False, "no virt-launcher started the process")


def test_the_search_ends_at_the_container(tree: Tree) -> None:
    """A virt-launcher outside of the container is another VM's."""
    tree.launcher("--allow-emulation")
    tree.process(600, parent=500, exe="/bin/sh", numbers="600\t1", started=4500)
    assert tree.read(tree.process(parent=600)).emulation_allowed.value is False


def test_qemu_is_the_first_process_of_its_container(tree: Tree) -> None:
    """No process of the container started it."""
    tree.launcher("--allow-emulation")
    vmm = tree.process(parent=500, numbers="4711\t1")
    assert tree.read(vmm).emulation_allowed.value is False


def test_unreadable_ancestor(tree: Tree) -> None:
    """An ancestor without a readable program could be virt-launcher."""
    tree.process(600, exe=None, numbers="600\t12", started=4500)
    found = tree.read(tree.process(parent=600)).emulation_allowed
    assert found.value is None
    assert "the program of its ancestor 600 cannot be read" in found.text


def test_unreadable_launcher(tree: Tree) -> None:
    """A virt-launcher whose command line cannot be read decides nothing."""
    tree.launcher("--allow-emulation")
    (tree.proc / "500/cmdline").write_text("")
    found = tree.read(tree.process(parent=500)).emulation_allowed
    assert found.value is None
    assert found.text == "the command line of virt-launcher (process 500) cannot be read"


def test_a_parent_that_is_gone(tree: Tree) -> None:
    """A parent that has ended leaves the launcher unknown."""
    assert tree.read(tree.process(parent=600)).emulation_allowed.value is None


def test_a_parent_younger_than_its_child(tree: Tree) -> None:
    """A process that took the number of the parent is not the parent."""
    tree.launcher("--allow-emulation")
    vmm = tree.process(parent=500, started=3000)
    assert tree.read(vmm).emulation_allowed.value is None


@pytest.mark.parametrize(("between", "known"), [(-1, True), (0, False)])
def test_many_ancestors(tree: Tree, between: int, known: bool) -> None:
    """The search has an end, after which the launcher is unknown."""
    tree.launcher("--allow-emulation")
    parent = 500
    for number in range(600, 600 + MAX_ANCESTORS + between):
        tree.process(number, parent=parent, exe="/bin/sh", numbers=f"{number}\t7", started=4500)
        parent = number
    found = tree.read(tree.process(parent=parent)).emulation_allowed
    assert found.value is (True if known else None)


# the device


def test_pod_without_a_device(tree: Tree) -> None:
    """Neither a /dev nor a file in it: the pod has no device."""
    vmm = tree.process()
    for folder in (None, "dev"):
        if folder:
            (tree.proc / str(QEMU) / "root" / folder).mkdir()
        found = tree.read(vmm)
        assert (found.device_in_pod.value, found.device_accessible.value) == (False, None)
        assert found.device_in_pod.text == "the pod has no /dev/kvm"


def test_file_that_is_no_device(tree: Tree) -> None:
    """A file of the device's name does not count."""
    vmm = tree.process()
    (tree.proc / str(QEMU) / "root/dev").mkdir()
    (tree.proc / str(QEMU) / "root/dev/kvm").write_text("")
    found = tree.read(vmm).device_in_pod
    assert (found.value, found.text) == (
        False,
        "/dev/kvm in the pod is not the accelerator's device",
    )


def test_links_are_not_followed(tree: Tree, tmp_path: Path) -> None:
    """A link, be it the folder or the file, leads nowhere and decides nothing."""
    vmm = tree.process()
    root = tree.proc / str(QEMU) / "root"
    (root / "dev").symlink_to("/dev")
    found = tree.read(vmm, with_device=True)
    assert found.device_in_pod.value is None
    assert "symbolic link" in found.device_in_pod.text
    (root / "dev").unlink()
    (root / "dev").mkdir()
    (root / "dev/zero").symlink_to("/dev/zero")
    found = tree.read(vmm, with_device=True)
    assert (found.device_in_pod.value, found.device_accessible.value) == (None, None)
    assert "symbolic link" in found.device_in_pod.text


def test_device(tree: Tree) -> None:
    """A device of the accelerator's number is there, and its mode lets everybody open it."""
    zero = Path("/dev/zero").stat()
    if (zero.st_uid, zero.st_gid, zero.st_mode & 0o777) != (0, 0, 0o666):
        pytest.skip("a user namespace hides the owner of /dev/zero")
    vmm = tree.process()
    tree.shares_root()
    found = tree.read(vmm, with_device=True)
    assert found.device_in_pod.value is True
    assert found.device_accessible.value is True
    assert found.device_accessible.text == (
        "/dev/zero in the pod has mode 0666, user 0 and group 0; QEMU runs as user 107, group 107"
    )


def test_device_of_another_number(tree: Tree) -> None:
    """A device of another driver is not the accelerator's."""
    vmm = tree.process()
    tree.shares_root()
    (tree.sys / "class/misc/zero/dev").write_text("1:3\n")
    assert tree.read(vmm, with_device=True).device_in_pod.value is False


def test_without_a_registration_the_number_is_kvms(tree: Tree) -> None:
    """KVM's number is fixed, so /dev/zero is not its device."""
    vmm = tree.process()
    tree.shares_root()
    (tree.sys / "class/misc/zero/dev").unlink()
    assert tree.read(vmm, with_device=True).device_in_pod.value is False


def test_unreadable_credentials(tree: Tree) -> None:
    """Without QEMU's user it is unknown whether it may open the device."""
    vmm = tree.process()
    tree.shares_root()
    (tree.proc / str(QEMU) / "uid_map").write_text("nonsense here\n")
    found = tree.read(vmm, with_device=True)
    assert found.device_in_pod.value is True
    assert found.device_accessible.text == "QEMU's user and groups cannot be read"


def test_no_descriptor_is_left(tree: Tree) -> None:
    """Every descriptor of the way is closed."""
    vmm = tree.process()
    tree.shares_root()
    before = open_descriptors()
    for with_device in (True, False):
        tree.read(vmm, with_device=with_device)
    assert open_descriptors() == before


# lives


def test_ended_process_is_left_out(tree: Tree) -> None:
    """No facts are reported of a process that has ended, nor of the next with its number."""
    reader = EmulationReader(proc_root=tree.proc, sys_root=tree.sys)
    vmm = tree.process()
    other = vmm._replace(start_ticks=vmm.start_ticks + 1)
    gone = VmmId(tgid=9999, start_ticks=1)
    assert reader.read([other, gone]) == {}
    assert set(reader.read([vmm, gone])) == {vmm}
    assert reader.read([]) == {}


@pytest.fixture
def fifo(tree: Tree) -> Iterator[Path]:
    """QEMU's command line, which blocks its reader until the test is over."""
    path = tree.proc / str(QEMU) / "cmdline"
    yield path
    end = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    for _ in range(8):
        os.write(end, b"x\0" * 16)
    os.close(end)


def test_blocked_process_costs_only_itself(
    tree: Tree, fifo: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What was read before the step that blocks is kept, and other processes are read."""
    reader = EmulationReader(proc_root=tree.proc, sys_root=tree.sys)
    blocker, bystander = tree.process(), tree.process(4712)
    fifo.unlink()
    os.mkfifo(fifo)
    found = reader.read([blocker, bystander])
    assert found[bystander].asked_for.value == ("tcg",)
    assert found[blocker].architecture.value == "x86_64"
    for name in ("asked_for", "emulation_allowed", "device_in_pod", "device_accessible"):
        assert getattr(found[blocker], name).text == "a read of its pod's files does not return"
    again = reader.read([blocker])
    assert again[blocker] == EmulationFacts.unread("a read of its pod's files does not return")
    assert again[blocker].architecture.value is None
    (message,) = caplog.messages
    assert "reading cmdline of it does not return. Why it is emulated stays unknown" in message
