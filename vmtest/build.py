# SPDX-License-Identifier: Apache-2.0
"""EDGE: all that one boot needs, from the cache or built now.

Owns the composition: kernel, modules, root file system, Python packages, initramfs.
"""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from vmtest.image import build_kernel
from vmtest.initramfs import pack
from vmtest.kernels import GuestKernel
from vmtest.packages import python_packages
from vmtest.root import build_root

_SCRIPTS = {"init": "guest-init.sh", "guest-start.sh": "guest-start.sh"}

BUILD_S = 900
"""For what is not in the cache yet, over a slow network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltGuest:
    """Where the parts of a guest lie."""

    kernel: GuestKernel
    release: str
    """As `uname -r` will say."""
    image: Path
    modules: Path
    """The directory that becomes /modules in the initramfs."""
    root: Path
    packages: Path
    """The project's Python packages, /packages in the guest."""
    smp: str = "2"
    """Its CPUs, in the form of QEMU's option ``-smp``."""


def build(kernel: GuestKernel) -> BuiltGuest:
    """Everything for this kernel."""
    built = build_kernel(kernel)
    return BuiltGuest(
        kernel=kernel,
        release=(built / "release").read_text(),
        image=built / "vmlinuz",
        modules=built / "modules",
        root=build_root(kernel.root_suite, kernel.architecture),
        packages=python_packages(kernel.root_suite),
    )


def write_initramfs(guest: BuiltGuest, archive: Path) -> None:
    """The archive that the kernel starts from: a busybox, the modules and the two scripts."""
    here = Path(__file__).resolve().parent
    programs = {name: here / script for name, script in _SCRIPTS.items()}
    programs["bin/busybox"] = guest.root / "usr/bin/busybox"
    with tempfile.TemporaryDirectory(dir=archive.parent) as made:
        tree = Path(made)
        shutil.copytree(guest.modules, tree / "modules")
        (tree / "bin").mkdir()
        for name, source in programs.items():
            shutil.copyfile(source, tree / name)
            (tree / name).chmod(0o755)
        pack(tree, archive)
