# SPDX-License-Identifier: Apache-2.0
"""What explains that a node has no KVM, read from trees that stand for /proc, /sys and /dev."""

import errno
import gzip
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import pytest

from probes.host.emulation import Finding
from probes.host.kvm_support import OPTIONS, KvmSupport
from probes.host.kvm_support_reader import KvmSupportReader

RELEASE = "6.12.0-test"
CONFIG = "CONFIG_SMP=y\nCONFIG_KVM=m\nCONFIG_KVM_INTEL=m\n# CONFIG_KVM_AMD is not set\n"
BUILT_SO = {"CONFIG_KVM": True, "CONFIG_KVM_INTEL": True, "CONFIG_KVM_AMD": False}
MODULES = f"usr/lib/modules/{RELEASE}"
DEP = "kernel/arch/x86/kvm/kvm-intel.ko: kernel/arch/x86/kvm/kvm.ko\n"
UNREAD = ("cpu", "options", "log", "command_line", "loaded", "installed", "rules")


def refused() -> bytes:
    raise OSError(errno.EPERM, "syslog")


class Tree:
    """A node. Process 1 has the root directory ``root``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("dev", "sys/module", "proc/1", "root"):
            (folder / name).mkdir(parents=True)
        (folder / "proc/1/root").symlink_to("../../root")

    def write(self, name: str, content: str | bytes) -> Path:
        """Write a file of the node's root directory, or of proc, sys and dev."""
        top = name.partition("/")[0]
        path = self.folder / ("" if top in ("proc", "sys", "dev") else "root") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def read(self, *, sees_host: bool = True) -> KvmSupport:
        return KvmSupportReader(
            proc_root=self.folder / "proc",
            sys_root=self.folder / "sys",
            dev_root=self.folder / "dev",
            syslog=refused,
            sees_host=sees_host,
            machine="x86_64",
            release=RELEASE,
        ).read()


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def options(tree: Tree) -> Mapping[str, bool] | None:
    return tree.read().options.value


def test_a_complete_node(tree: Tree) -> None:
    """Each fact is found where a distribution keeps it. /lib may be a link to usr/lib."""
    tree.write("proc/cpuinfo", "vendor_id : GenuineIntel\nflags : fpu vmx\n")
    tree.write("proc/cmdline", "root=/dev/sda1 module_blacklist=kvm_intel\n")
    tree.write(f"boot/config-{RELEASE}", CONFIG)
    tree.write(f"{MODULES}/modules.dep", DEP)
    tree.write(f"{MODULES}/modules.builtin", "kernel/arch/x86/kvm/kvm.ko\n")
    (tree.folder / "root/lib").symlink_to("usr/lib")
    tree.write("etc/modprobe.d/a.conf", "blacklist kvm_intel\n")
    tree.write("dev/kmsg", "3,0,0,-;kvm: disabled by bios\n")
    for name in ("kvm", "kvmgt", "ext4"):
        (tree.folder / "sys/module" / name).mkdir()
    found = tree.read()
    assert (found.machine, found.release) == ("x86_64", RELEASE)
    assert found.cpu.value is not None
    assert found.cpu.value.vendor == "GenuineIntel"
    assert found.cpu.value.flags == frozenset({"fpu", "vmx"})
    assert found.command_line.value == ("root=/dev/sda1", "module_blacklist=kvm_intel")
    assert found.options.value == BUILT_SO
    assert found.installed.value == frozenset({"kvm", "kvm_intel"})
    assert found.loaded.value == frozenset({"kvm"})
    assert found.log.value is not None
    assert [message.text for message in found.log.value.messages] == ["kvm: disabled by bios"]
    assert found.rules.value is not None
    assert [(rule.module, rule.file) for rule in found.rules.value] == [
        ("kvm_intel", "/etc/modprobe.d/a.conf")
    ]


def test_an_empty_node(tree: Tree) -> None:
    """Nothing is there: each fact is unknown with one line, but folders without files are known."""
    found = tree.read()
    assert found.loaded.value == frozenset()
    assert found.rules.value == ()
    for name in set(UNREAD) - {"loaded", "rules"}:
        finding = getattr(found, name)
        assert finding.value is None
        assert "\n" not in finding.text
    assert "there is no /proc/cpuinfo" in found.cpu.text
    assert f"there is no /lib/modules/{RELEASE}/modules.dep" in found.installed.text
    assert "there is no /proc/config.gz" in found.options.text


def test_without_the_hosts_process_1(tree: Tree) -> None:
    """In a PID namespace of its own, hvprobe does not take its container's files for the node's."""
    tree.write(f"boot/config-{RELEASE}", CONFIG)
    tree.write(f"{MODULES}/modules.dep", DEP)
    tree.write("etc/modprobe.d/a.conf", "blacklist kvm_intel\n")
    found = tree.read(sees_host=False)
    for finding in (found.options, found.installed, found.rules):
        assert finding.value is None
        assert "PID namespace of its own" in finding.text


def test_without_rights(tree: Tree) -> None:
    """If the root directory of process 1 is not reachable, nothing is said about the node."""
    (tree.folder / "proc/1/root").unlink()
    found = tree.read()
    for finding in (found.options, found.installed):
        assert finding.value is None
    (tree.folder / "proc/1/root").write_text("")
    found = tree.read()
    assert found.rules.value is None
    assert "(the root directory of process 1: Not a directory)" in found.rules.text


# the configuration


@pytest.mark.parametrize(
    "name", [f"boot/config-{RELEASE}", f"{MODULES}/config", f"lib/modules/{RELEASE}/config"]
)
def test_where_the_configuration_is(tree: Tree, name: str) -> None:
    """Distributions keep it in /boot, or beside the modules."""
    tree.write(name, CONFIG)
    assert options(tree) == BUILT_SO


def test_the_kernels_own_configuration(tree: Tree) -> None:
    """/proc/config.gz is the running kernel's, so it comes first."""
    tree.write(f"boot/config-{RELEASE}", "# CONFIG_KVM is not set\n")
    assert options(tree) == dict.fromkeys(OPTIONS, False)
    tree.write("proc/config.gz", gzip.compress(CONFIG.encode()))
    assert options(tree) == BUILT_SO


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        gzip.compress(CONFIG.encode())[:-10],
        gzip.compress(b"\0" * (64 << 20)),
        os.urandom(2 << 20),
    ],
    ids=["empty", "text", "cut", "bomb", "large"],
)
def test_garbage_for_the_configuration(tree: Tree, content: bytes) -> None:
    """A malformed /proc/config.gz is not read, nor one that unpacks to more than a kernel has."""
    tree.write("proc/config.gz", content)
    assert options(tree) is None
    tree.write(f"boot/config-{RELEASE}", CONFIG)
    assert options(tree) == BUILT_SO


# files that are not what they should be


def finding(found: KvmSupport, name: str) -> Finding[object]:
    finding: Finding[object] = getattr(found, name)
    return finding


PLACES = {
    "cpu": "proc/cpuinfo",
    "command_line": "proc/cmdline",
    "options": f"boot/config-{RELEASE}",
    "installed": f"{MODULES}/modules.dep",
    "rules": "etc/modprobe.d/a.conf",
    "log": "dev/kmsg",
}


@pytest.mark.parametrize("fact", PLACES)
@pytest.mark.parametrize("kind", ["fifo", "folder", "circle"])
@pytest.mark.timeout(20)
def test_no_file_is_waited_for(tree: Tree, fact: str, kind: str) -> None:
    """A FIFO, a folder or a link to itself in a file's place makes that fact unknown."""
    path = tree.write(PLACES[fact], "")
    path.unlink()
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case _:
            path.symlink_to(path.name)
    found = finding(tree.read(), fact)
    assert found.value is None
    assert "\n" not in found.text


@pytest.mark.parametrize("fact", sorted(set(PLACES) - {"cpu", "log"}))
def test_no_large_file_is_read(tree: Tree, fact: str) -> None:
    """A file that is larger than any real one makes that fact unknown."""
    with tree.write(PLACES[fact], "").open("wb") as file:
        file.truncate(1 << 40)
    found = finding(tree.read(), fact)
    assert found.value is None
    assert "KiB" in found.text


def test_of_the_cpus_the_first_is_enough(tree: Tree) -> None:
    """/proc/cpuinfo of a thousand CPUs is large, and its beginning is read."""
    cpu = "vendor_id : GenuineIntel\nflags : fpu vmx " + "x " * 500 + "\n\n"
    tree.write("proc/cpuinfo", cpu * 1000)
    assert tree.read().cpu.value is not None


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\0\x80" * 1000, b"\n" * 5000])
def test_garbage(tree: Tree, content: bytes) -> None:
    """No content raises an error, and none makes a fact that is not there."""
    for place in PLACES.values():
        tree.write(place, content)
    found = tree.read()
    assert found.cpu.value is None
    assert found.options.value is None
    assert not found.installed.value
    assert found.rules.value == ()
    assert found.log.value is not None
    assert found.log.value.messages == ()


# modules


def test_a_list_of_modules_that_is_none(tree: Tree) -> None:
    """Garbage in modules.dep does not say that there is no module."""
    tree.write(f"{MODULES}/modules.dep", "garbage\n")
    tree.write(f"{MODULES}/modules.builtin", "")
    assert "is no list of modules" in tree.read().installed.text
    assert tree.read().installed.value is None


def test_a_kernel_without_kvms_modules(tree: Tree) -> None:
    """Lists that do not have them are a fact."""
    tree.write(f"{MODULES}/modules.dep", "kernel/fs/ext4/ext4.ko:\n")
    tree.write(f"{MODULES}/modules.builtin", "kernel/fs/fuse/fuse.ko\n")
    assert tree.read().installed.value == frozenset()


# modprobe.d


def rules(tree: Tree) -> list[str] | None:
    found = tree.read().rules.value
    return None if found is None else [rule.file for rule in found]


def test_a_file_hides_those_of_the_same_name(tree: Tree) -> None:
    """As modprobe reads them: /etc before /run before /usr/lib, and only names in .conf."""
    for folder in ("etc", "run", "usr/lib"):
        tree.write(f"{folder}/modprobe.d/kvm.conf", "blacklist kvm_intel\n")
    tree.write("usr/lib/modprobe.d/other.conf", "install kvm_amd /bin/false\n")
    tree.write("etc/modprobe.d/kvm.conf.bak", "blacklist kvm_amd\n")
    assert rules(tree) == ["/etc/modprobe.d/kvm.conf", "/usr/lib/modprobe.d/other.conf"]
    tree.write("etc/modprobe.d/other.conf", "")
    assert rules(tree) == ["/etc/modprobe.d/kvm.conf"]


def test_a_rule_is_found_beside_a_file_that_cannot_be_read(tree: Tree) -> None:
    """What is unreadable is only reported if no line was found elsewhere."""
    tree.write("etc/modprobe.d/a.conf", "")
    (tree.folder / "root/etc/modprobe.d/fifo.conf").parent.mkdir(exist_ok=True)
    os.mkfifo(tree.folder / "root/etc/modprobe.d/fifo.conf")
    assert "fifo.conf is not a regular file" in tree.read().rules.text
    assert rules(tree) is None
    tree.write("etc/modprobe.d/z.conf", "blacklist kvm_amd\n")
    assert rules(tree) == ["/etc/modprobe.d/z.conf"]


def test_this_node() -> None:
    """Reading the real node ends without an error, and each fact says what was read or why not."""
    found = KvmSupportReader().read()
    facts = [getattr(found, name) for name in UNREAD]
    assert all(fact.text and "\n" not in fact.text for fact in facts)
    assert {field.name for field in fields(found)} == {*UNREAD, "machine", "release"}


def test_nothing_in_time(tree: Tree) -> None:
    """The facts of a node of which nothing was read give the reason for each."""
    found = KvmSupportReader(machine="x86_64", release="6").unread("too late")
    assert (found.machine, found.release) == ("x86_64", "6")
    assert {getattr(found, name).text for name in UNREAD} == {"too late"}
    assert {getattr(found, name).value for name in UNREAD} == {None}
