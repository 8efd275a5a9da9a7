# SPDX-License-Identifier: Apache-2.0
"""EDGE: root file systems of guests, unpacked from Debian packages and cached.

Owns what user space of a guest consists of. No step needs root privilege, and no package script
runs: packages are unpacked, and the few things that scripts would have done are done here. That is
enough to run programs, works for another architecture and takes a tenth of the time.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from vmtest.apt import apt_tree, download_closure, download_only, forget, run, unpack
from vmtest.cache import made_once, say
from vmtest.kernels import Architecture, Suite

_RECIPE = "1"
"""Raise it when the way a root is made changes: else its package list alone is the cache's key."""

_BASE = (
    "base-files base-passwd bash busybox-static coreutils dash diffutils findutils gawk grep "
    "hostname iproute2 kmod libc-bin mount procps sed util-linux"
).split()
_PYTHON = "python3 python3-bpfcc python3-psutil".split()
"""What is bound to the interpreter; for pure Python packages see packages.py."""
_QEMU = {
    Architecture.AMD64: ("qemu-system-x86",),
    # The second is for a guest that is emulated because it is of another architecture.
    Architecture.ARM64: ("qemu-system-arm", "qemu-system-x86"),
}
_MERGED_INTO_USR = ("bin", "sbin", "lib", "lib64")
_MOUNT_POINTS = (
    "dev etc packages proc repo results root run sys tmp var/tmp usr/lib/modules"
).split()


def build_root(
    suite: Suite,
    architecture: Architecture,
    *,
    extra: Sequence[str] = (),
    alone: Sequence[str] = (),
) -> Path:
    """A root file system with the programs that the project and its kernel tests need.

    extra names further packages, and alone those that come without what they depend on.
    """
    name = f"root-{suite.value}-{architecture.value}"
    packages = [*_BASE, *_PYTHON, *_QEMU[architecture], *extra]
    # Byte code is the same on every architecture: the Python of the suite's amd64 root makes it.
    amd64 = Architecture.AMD64
    python_root = None if architecture is amd64 else build_root(suite, amd64)

    def make(directory: Path) -> None:
        with apt_tree(suite, architecture) as tree:
            say(f"{name}: downloading")
            archives = download_closure(tree, packages)
            if alone:
                archives += download_only(tree, alone)
            say(f"{name}: unpacking {len(archives)} packages")
            for merged in _MERGED_INTO_USR:
                (directory / "usr" / merged).mkdir(parents=True, exist_ok=True)
                (directory / merged).symlink_to(f"usr/{merged}")
            unpack(archives, directory)
            forget(archives)
        _settle(directory)
        say(f"{name}: compiling Python modules to byte code")
        for library in sorted((directory / "usr/lib").glob("python3*")):
            shown_as = f"/usr/lib/{library.name}"
            byte_compile(python_root or directory, library, shown_as=shown_as)

    return made_once(name, [_RECIPE, *packages, *(f"alone: {package}" for package in alone)], make)


def _settle(root: Path) -> None:
    """What the packages' scripts would have done and a program could miss."""
    for point in _MOUNT_POINTS:
        (root / point).mkdir(parents=True, exist_ok=True)
    for table in ("passwd", "group"):
        shutil.copy(root / "usr/share/base-passwd" / f"{table}.master", root / "etc" / table)
    (root / "etc/hosts").write_text("127.0.0.1 localhost guest\n::1 localhost\n")
    (root / "etc/nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\n")
    awk = root / "usr/bin/awk"
    if not awk.is_symlink():
        awk.symlink_to("gawk")


def byte_compile(python_root: Path, directory: Path, *, shown_as: str) -> None:
    """Compile the Python modules of a directory, so that not every boot has to.

    The interpreter of `python_root`, an amd64 root, runs by its own loader and libraries: no
    chroot is needed. `shown_as` is the path that tracebacks give for the directory's root.
    """
    libraries = python_root / "usr/lib/x86_64-linux-gnu"
    interpreter = (python_root / "usr/bin/python3").readlink()
    command: list[str | Path] = [
        # Only this: the byte code must not depend on PYTHONPATH, PYTHONPYCACHEPREFIX and the like.
        *("env", "-i", f"PYTHONHOME={python_root / 'usr'}"),
        # Not lib64/…: that is an absolute link, to the loader of this machine.
        *(libraries / "ld-linux-x86-64.so.2", "--library-path", libraries),
        *(python_root / "usr/bin" / interpreter, "-m", "compileall", "-q"),
        *("-s", directory, "-p", shown_as, directory),
    ]
    run(command, what=f"byte code of {directory.name}")
