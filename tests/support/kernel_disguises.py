# SPDX-License-Identifier: Apache-2.0
"""QEMU under other names: what a launcher of VMs, or a tenant, may have made of its program."""

import platform
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.support.kernel_world import QEMU, machine_arguments

EMULATED_GUEST = ["-accel", "tcg", *machine_arguments("tcg"), "-display", "none", "-nodefaults"]
EMULATED_GUEST += ["-L", "/usr/share/qemu", "-L", "/usr/share/seabios"]
LOADER = {
    "x86_64": "/lib64/ld-linux-x86-64.so.2",
    "aarch64": "/lib/ld-linux-aarch64.so.1",
}[platform.machine()]

FROM_MEMORY = """
import os, sys
fd = os.memfd_create("vm")
with open(sys.argv[1], "rb") as program:
    while chunk := program.read(1 << 20):
        os.write(fd, chunk)
os.execve(fd, ["vm", *sys.argv[2:]], os.environ)
"""


def linked(folder: Path) -> list[str]:
    (folder / "kvm").symlink_to(program())
    return [str(folder / "kvm"), *EMULATED_GUEST]


def copied(folder: Path) -> list[str]:
    shutil.copy(program(), folder / "vm")
    return [str(folder / "vm"), *EMULATED_GUEST]


def loaded(folder: Path) -> list[str]:
    return [LOADER, program(), *EMULATED_GUEST]


def from_memory(folder: Path) -> list[str]:
    return [sys.executable, "-c", FROM_MEMORY, program(), *EMULATED_GUEST]


def renamed(folder: Path) -> list[str]:
    return [program(), "-name", "guest=lab_vm,process=x", *EMULATED_GUEST]


def program() -> str:
    found = shutil.which(QEMU)
    assert found
    return found


Disguise = Callable[[Path], Sequence[str]]
"""The command of an emulated guest, given a folder for what it needs; QEMU's options come last."""
DISGUISES: tuple[Disguise, ...] = (linked, copied, loaded, from_memory, renamed)
# QEMU looks for its parts beside its executable file.
ENVIRONMENT = {"QEMU_MODULE_DIR": f"/usr/lib/{platform.machine()}-linux-gnu/qemu"}
