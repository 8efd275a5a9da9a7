# SPDX-License-Identifier: Apache-2.0
"""EDGE: all that one boot needs, from the cache or built now.

Owns the composition: kernel, modules, root file system, Python packages, initramfs.
"""

from dataclasses import dataclass
from pathlib import Path

from vmtest.image import build_kernel
from vmtest.initramfs import cpio
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


def initramfs(guest: BuiltGuest) -> bytes:
    """The archive that the kernel starts from: a busybox, the modules and the two scripts."""
    here = Path(__file__).resolve().parent
    files = {name: (0o100755, (here / script).read_bytes()) for name, script in _SCRIPTS.items()}
    files["bin/busybox"] = (0o100755, (guest.root / "usr/bin/busybox").read_bytes())
    for path in sorted(guest.modules.rglob("*")):
        if path.is_file():
            relative = path.relative_to(guest.modules)
            files[f"modules/{relative}"] = (0o100644, path.read_bytes())
    return cpio(files)
