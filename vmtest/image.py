# SPDX-License-Identifier: Apache-2.0
"""EDGE: kernel images and their modules, taken from Debian packages and cached.

Owns which release a line of the table means today and which modules go with it. Must not know how
the kernel is booted.
"""

import re
import shutil
from pathlib import Path

from vmtest.apt import (
    AptTree,
    BuildError,
    apt_tree,
    download_only,
    forget,
    package_names,
    unpack,
)
from vmtest.cache import made_once, say
from vmtest.initramfs import BOOT_MODULES, copy_module, index_modules, load_order
from vmtest.kernels import GuestKernel

_RECIPE = "4"
"""Raise it when the way a kernel is unpacked changes."""


def build_kernel(kernel: GuestKernel) -> Path:
    """A directory with vmlinuz, release, and modules/: those that guests load, and their needs."""

    def make(directory: Path) -> None:
        unpacked = directory / "unpacked"
        # Newer packages have the modules in usr/lib. kmod looks for them in lib.
        (unpacked / "usr/lib").mkdir(parents=True)
        (unpacked / "lib").symlink_to("usr/lib")
        with apt_tree(kernel.kernel_suite, kernel.architecture) as tree:
            release = _newest_release(tree, kernel)
            say(f"kernel {kernel.name}: downloading {release}")
            archives = download_only(tree, _kernel_packages(tree, release))
            unpack(archives, unpacked)
            forget(archives)
        tree_directory = unpacked / "lib/modules" / release
        image = unpacked / "boot" / f"vmlinuz-{release}"
        shutil.copy(image if image.exists() else tree_directory / "vmlinuz", directory / "vmlinuz")
        _pick_modules(unpacked, release, kernel, directory / "modules")
        (directory / "release").write_text(release)
        shutil.rmtree(unpacked)

    recipe = [_RECIPE, repr(kernel), *kernel.test_modules]
    return made_once(f"kernel-{kernel.name}", recipe, make)


def _newest_release(tree: AptTree, kernel: GuestKernel) -> str:
    prefix = "linux-image-"
    offered = [name.removeprefix(prefix) for name in package_names(tree, prefix)]
    matching = [release for release in offered if re.fullmatch(kernel.release, release)]
    if not matching:
        raise BuildError(
            f"kernel {kernel.name}: {tree.suite.value} offers no release that matches "
            f"{kernel.release}: correct the table in kernels.py"
        )
    return max(matching, key=lambda release: [int(n) for n in re.findall(r"\d+", release)])


def _kernel_packages(tree: AptTree, release: str) -> list[str]:
    """Since 7.x Debian splits a kernel into image (empty), binary, modules and base packages."""
    parts = ("image", "binary", "modules", "base")
    offered = set(package_names(tree, "linux-"))
    return [f"linux-{part}-{release}" for part in parts if f"linux-{part}-{release}" in offered]


def _pick_modules(unpacked: Path, release: str, kernel: GuestKernel, target: Path) -> None:
    index_modules(unpacked, release)
    source = unpacked / "lib/modules" / release
    boot = load_order(unpacked, release, BOOT_MODULES[kernel.transport])
    copied = [copy_module(source, target / "tree", file) for file in boot]
    for file in load_order(unpacked, release, kernel.kvm_modules + kernel.test_modules):
        copy_module(source, target / "tree", file)
    (target / "boot-order").write_text("".join(f"tree/{file}\n" for file in copied))
    (target / "kvm").write_text("".join(f"{name}\n" for name in kernel.kvm_modules))
    for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
        shutil.copy(source / name, target / "tree" / name)
