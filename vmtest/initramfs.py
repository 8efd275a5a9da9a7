# SPDX-License-Identifier: Apache-2.0
"""EDGE: kernel modules in load order, and the initramfs that carries them.

Owns the calls of kmod and cpio. Must not know packages, suites or QEMU.
"""

import lzma
from collections.abc import Iterable
from pathlib import Path

from vmtest.apt import BuildError, run
from vmtest.kernels import Transport

BOOT_MODULES = {
    Transport.P9: ("virtio_pci", "9pnet_virtio", "9p", "overlay"),
    Transport.VIRTIOFS: ("virtio_pci", "virtiofs", "overlay"),
}
"""What the initramfs needs to reach the root file system."""
_MACHINE_IGNORED = ("--config", "/dev/null")
"""The settings in /etc/modprobe.d and /etc/depmod.d are for this machine's own kernel."""


def index_modules(root: Path, release: str) -> None:
    """Find what the modules in `root`/lib/modules/RELEASE depend on, as their package would."""
    depmod: list[str | Path] = ["depmod", *_MACHINE_IGNORED, "--basedir", root, release]
    run(depmod, what=f"dependencies of the modules of {release}")


def load_order(root: Path, release: str, names: Iterable[str]) -> list[str]:
    """The files of these modules and of all that they need, each after what it depends on.

    The paths are below `root`/lib/modules/RELEASE. Built-in modules have none.
    """
    modprobe: list[str | Path] = ["modprobe", *_MACHINE_IGNORED, "--dirname", root]
    modprobe += ["--set-version", release, "--show-depends"]
    directory = root / "lib/modules" / release
    files: dict[str, None] = {}
    for name in names:
        for line in run([*modprobe, name], what=f"the module {name}").splitlines():
            verb, _, path = line.strip().partition(" ")
            if verb == "insmod":
                files[str(Path(path).relative_to(directory))] = None
    return list(files)


def copy_module(source: Path, directory: Path, file: str) -> str:
    """Copy a module of load_order() to another directory, and give its path there.

    It is decompressed, because busybox, which loads modules in the initramfs, does not do that.
    """
    content = (source / file).read_bytes()
    if file.endswith(".ko.xz"):
        content = lzma.decompress(content)
    elif not file.endswith(".ko"):
        raise BuildError(f"module {file} is compressed in a way this bench cannot undo")
    target = directory / file.removesuffix(".xz")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    return str(target.relative_to(directory))


def pack(tree: Path, archive: Path) -> None:
    """Write the archive of a directory that the kernel unpacks as its first root."""
    names = "".join(f"{path.relative_to(tree)}\0" for path in sorted(tree.rglob("*")))
    cpio: list[str | Path] = ["env", "-C", tree, "cpio", "--create", "--format=newc", "--null"]
    cpio += ["--owner=root:root", "--reproducible", "--quiet", "--file", archive.absolute()]
    run(cpio, what="the initramfs", stdin=names)
