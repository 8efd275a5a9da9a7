# SPDX-License-Identifier: Apache-2.0
"""Emulated QEMU guests in worlds that are shaped like a KubeVirt pod.

A world is a mount namespace with a /dev of its own and a PID namespace whose first process is a
shell under the name virt-launcher. The kernel kills everything in it with that process, which dies
with the test (PR_SET_PDEATHSIG), so a killed run leaves nothing behind.
"""

import contextlib
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

from probes.host.accelerators import Accelerators
from probes.host.emulation import EmulationFacts, RegisteredBetween
from probes.host.hypervisors import BY_TYPE, HypervisorType
from probes.host.process import VmmId
from probes.host.procfs import parse_stat
from probes.judge.cause import CauseFound, cause_facts, cause_of
from tests.support.kernel_world import QEMU, Started, machine_arguments, wait_for

QEMU_USER = ("setpriv", "--reuid=107", "--regid=107", "--clear-groups")
"""QEMU's user in a KubeVirt pod."""
QEMU_USER_OF_GROUP = ("setpriv", "--reuid=107", "--regid=107", "--groups=36")
ROOT_OF_A_NAMESPACE = (*QEMU_USER, "unshare", "--user", "--map-root-user")
"""Has all capabilities, in a user namespace that does not map the node's root."""
FOREIGN_QEMU = {"x86_64": "qemu-system-aarch64", "aarch64": "qemu-system-x86_64"}[
    platform.machine()
]

_KVM = "mknod /dev/kvm c 10 232; chown {owner} /dev/kvm; chmod {mode} /dev/kvm"
_TMPFS = "mount -t tmpfs -o mode=755{options} tmpfs /dev"
_STANDARD = "mknod -m 666 /dev/null c 1 3; mknod -m 666 /dev/zero c 1 5"
NO_DEVICE = f"{_TMPFS.format(options='')}; {_STANDARD}"
ANOTHER_DEVICE = f"{NO_DEVICE}; mknod -m 666 /dev/kvm c 1 3"
LINK = f"{NO_DEVICE}; mknod -m 666 /dev/other c 10 232; ln -s other /dev/kvm"
FUSE_WITHOUT_A_SERVER = """exec 9<>/dev/fuse
mount -i -t fuse -o fd=9,rootmode=40000,user_id=0,group_id=0 silent /dev"""
"""A /dev in which no look-up returns until the world ends."""

REFUSE_VMS = """
import ctypes, os, struct, sys
IOCTL = {"x86_64": 16, "aarch64": 29}[os.uname().machine]
LOAD, UNLESS, RETURN, ALLOW, REFUSE = 0x20, 0x15, 0x06, 0x7FFF0000, 0x00050001
program = b"".join(struct.pack("=HBBI", *step) for step in (
    (LOAD, 0, 0, 0), (UNLESS, 0, 3, IOCTL),        # seccomp_data.nr
    (LOAD, 0, 0, 24), (UNLESS, 0, 1, 0xAE01),      # its args[1]: KVM_CREATE_VM
    (RETURN, 0, 0, REFUSE), (RETURN, 0, 0, ALLOW),
))
code = ctypes.create_string_buffer(program)
filter = struct.pack("=H6xQ", len(program) // 8, ctypes.addressof(code))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0, "PR_SET_NO_NEW_PRIVS"
assert libc.prctl(22, 2, filter, 0, 0) == 0, "PR_SET_SECCOMP, SECCOMP_MODE_FILTER"
os.execvp(sys.argv[1], sys.argv[1:])
"""
KVM_REFUSES = (*QEMU_USER, sys.executable, "-c", REFUSE_VMS)
"""Lets its program open the device, but not create a VM."""


def device(mode: str, owner: str = "0:0", *, options: str = "", folder: str = "755") -> str:
    """Make a /dev with the node's accelerator, which has this mode and owner."""
    steps = (_TMPFS.format(options=options), _STANDARD, _KVM.format(mode=mode, owner=owner))
    return "; ".join((*steps, f"chmod {folder} /dev"))


@dataclass(frozen=True, kw_only=True)
class World:
    """What a pod is like, and how QEMU is started in it."""

    dev: str
    """Shell commands that make its /dev."""
    options: tuple[str, ...] = ("--name", "vm")
    """Options of virt-launcher."""
    run_as: tuple[str, ...] = QEMU_USER
    """Command that starts QEMU as its user."""
    qemu: str = QEMU
    request: tuple[str, ...] = ("-accel", "tcg")


# The shell must neither become QEMU, which it would if QEMU came last, nor open /dev/null, which it
# would for a process in the background.
_LAUNCH = """set -e
{dev}
set +e
if {run_as} sh -c 'exec 3<>/dev/kvm' 2>&-; then echo open; else echo closed; fi
{run_as} {qemu}
:
"""


class Pod(Started):
    """A world with an emulated guest in it."""

    def __init__(self, world: World, folder: Path, *, try_device: bool = True) -> None:
        launcher = folder / "virt-launcher"
        shell = shutil.which("sh")
        assert shell
        if not launcher.exists():  # another pod of the test may run it
            shutil.copy(shell, launcher)
        launch = _LAUNCH if try_device else _LAUNCH.replace("if {run_as}", "if false && {run_as}")
        script = launch.format(
            dev=world.dev,
            run_as=" ".join(_quoted(word) for word in world.run_as),
            qemu=" ".join((world.qemu, *world.request, *_arguments(world.qemu))),
        )
        space = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        super().__init__(
            [*space, launcher, "-c", script, "virt-launcher", *world.options], stderr=None
        )
        self.opened = False
        """Whether a program with QEMU's rights could open the device."""
        self.vmm = VmmId(tgid=0, start_ticks=0)
        self._qemu = world.qemu

    def __enter__(self) -> Self:
        try:
            self.opened = {"open\n": True, "closed\n": False}[self.line()]
            self.vmm = wait_for(self._emulating, "QEMU emulates")
        except BaseException:
            self.kill()
            raise
        return self

    def _emulating(self) -> VmmId | None:
        """The identity of QEMU, once one of its threads emulates."""
        psutil.PROCFS_PATH = "/proc"  # a unit test may have left another one
        with contextlib.suppress(psutil.Error, OSError):
            for child in psutil.Process(self.tgid).children(recursive=True):
                folder = Path(f"/proc/{child.pid}")
                threads = [comm.read_text() for comm in folder.glob("task/*/comm")]
                is_qemu = (folder / "exe").readlink().name == self._qemu
                if is_qemu and any("/TCG" in comm for comm in threads):
                    stat = parse_stat((folder / "stat").read_text())
                    return VmmId(tgid=child.pid, start_ticks=stat.start_ticks)
        return None


def start_s(vmm: VmmId) -> float:
    """When a process started, on CLOCK_BOOTTIME, rounded down to clock ticks."""
    return vmm.start_ticks / os.sysconf("SC_CLK_TCK")


def why(
    vmm: VmmId,
    facts: EmulationFacts,
    registered: RegisteredBetween | None,
    *,
    accelerators: Accelerators | None = None,
) -> CauseFound:
    """Why a process emulates, with the availability that a trial of this node shows."""
    tried = (accelerators or Accelerators()).try_hypervisor(BY_TYPE[HypervisorType.KVM])
    return cause_of(
        cause_facts(
            facts,
            machine=platform.machine(),
            vmi_architecture=None,
            accelerator_available=tried.available if tried else None,
            registered=registered,
            start_s=start_s(vmm),
        )
    )


def _arguments(qemu: str) -> list[str]:
    machine = machine_arguments("tcg") if qemu == QEMU else ["-machine", "virt"]
    if qemu == "qemu-system-x86_64" != QEMU:
        machine = []
    display = ["-display", "none", "-nodefaults", "-m", "64"]
    return ["-name", "guest=lab_vm,debug-threads=on", *machine, *display]


def _quoted(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'"
