# SPDX-License-Identifier: Apache-2.0
"""Kernel modules in load order, and the initramfs that carries them.

Owns the resolution of module names to files and the newc archive format. Pure but for reading
the unpacked kernel packages. Must not know packages, suites or QEMU.
"""

import lzma
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vmtest.apt import BuildError

BOOT_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay")
"""What the initramfs needs to reach the root file system."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """A loadable kernel module, decompressed."""

    name: str
    """As lsmod shows it, with underscores."""
    path: str
    """Below /lib/modules/RELEASE, without a compression suffix."""
    content: bytes


def module_name(file_name: str) -> str:
    """`kvm-amd.ko.xz` → `kvm_amd`."""
    return file_name.split(".ko", 1)[0].replace("-", "_")


class ModuleTree:
    """The modules of one unpacked kernel, by name."""

    def __init__(self, directory: Path) -> None:
        """`directory` is …/lib/modules/RELEASE."""
        self._directory = directory
        self._paths = {module_name(path.name): path for path in directory.rglob("*.ko*")}
        builtin = (directory / "modules.builtin").read_text().split()
        self._builtin = {module_name(Path(line).name) for line in builtin}

    def in_load_order(self, names: Iterable[str]) -> list[Module]:
        """The modules of these names and all that they need, each after what it depends on."""
        ordered: dict[str, Module] = {}
        for name in names:
            self._add(name, ordered)
        return list(ordered.values())

    def _add(self, name: str, ordered: dict[str, Module]) -> None:
        if name in ordered or name in self._builtin:
            return
        path = self._paths.get(name)
        if path is None:
            raise BuildError(f"this kernel has no module {name} in {self._directory.name}")
        content = _decompressed(path)
        for needed in depends(content):
            self._add(needed, ordered)
        relative = str(path.relative_to(self._directory)).removesuffix(".xz")
        ordered[name] = Module(name=name, path=relative, content=content)


def depends(module: bytes) -> list[str]:
    """The names in the module's `depends=` entry (.modinfo section: NUL-separated key=value)."""
    found = re.search(rb"(?<![a-z_])depends=([^\0]*)\0", module)
    names = found.group(1).decode("ascii").split(",") if found else []
    return [name.replace("-", "_") for name in names if name]


def _decompressed(path: Path) -> bytes:
    if path.name.endswith(".ko"):
        return path.read_bytes()
    if path.name.endswith(".ko.xz"):
        return lzma.decompress(path.read_bytes())
    raise BuildError(f"module {path.name} is compressed in a way this bench cannot undo")


def cpio(files: Mapping[str, tuple[int, bytes]]) -> bytes:
    """A newc archive (kernel: Documentation/driver-api/early-userspace/buffer-format.rst).

    `files` maps a path without leading slash to (mode, content). Parent directories are made.
    """
    entries: dict[str, tuple[int, bytes]] = {}
    for path, entry in files.items():
        for parent in reversed(Path(path).parents[:-1]):
            entries.setdefault(str(parent), (0o040755, b""))
        entries[path] = entry
    entries["TRAILER!!!"] = (0, b"")
    archive = bytearray()
    for inode, (path, (mode, content)) in enumerate(entries.items(), start=1):
        name = path.encode() + b"\0"
        # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name), 0)
        archive += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        archive += bytes(-len(archive) % 4) + content
        archive += bytes(-len(archive) % 4)
    return bytes(archive)
