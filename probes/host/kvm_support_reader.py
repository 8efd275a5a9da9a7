# SPDX-License-Identifier: Apache-2.0
"""EDGE: finds out what explains that a node has no KVM, for ``hvprobe doctor``.

Owns which file says what, and how much is read of it. Must not judge (judge/accelerator_absence.py)
nor change anything: no module is loaded, and no device is opened.
"""

import functools
import platform
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from ebpf.privileges import in_initial_pid_namespace
from probes.host.emulation import Finding, unknown
from probes.host.host_files import FileMissingError, FileUnreadableError, HostFiles
from probes.host.kernel_log import read_kernel_log, read_syslog
from probes.host.kvm_support import (
    Cpu,
    KvmSupport,
    ModuleRule,
    is_of_kvm,
    parse_cpu,
    parse_modules,
    parse_options,
    parse_rules,
)

_SMALL_BYTES = 64 << 10
_CONFIG_BYTES = 1 << 20
_LISTING_BYTES = 8 << 20
_GZIP = 16 + zlib.MAX_WBITS
_MODULE_FOLDERS = ("/lib/modules", "/usr/lib/modules")
_RULE_FOLDERS = (
    "/etc/modprobe.d",
    "/run/modprobe.d",
    "/usr/local/lib/modprobe.d",
    "/usr/lib/modprobe.d",
    "/lib/modprobe.d",
)
"""Folders of modprobe. A file hides those of the same name in later folders."""

_T = TypeVar("_T")


class KvmSupportReader:
    """The node to which the given /proc, /sys and /dev belong."""

    def __init__(
        self,
        *,
        proc_root: Path = Path("/proc"),
        sys_root: Path = Path("/sys"),
        dev_root: Path = Path("/dev"),
        syslog: Callable[[], bytes] = read_syslog,
        sees_host: bool | None = None,
        machine: str | None = None,
        release: str | None = None,
    ) -> None:
        """Name the node.

        sees_host says whether process 1 in proc_root is the node's; by default it is looked up.
        machine and release are those of the running kernel unless they are given.
        """
        self._proc = HostFiles(proc_root, shown="/proc")
        self._sys = HostFiles(sys_root, shown="/sys")
        self._node = HostFiles(proc_root / "1/root")
        self._logs = (dev_root / "kmsg", proc_root / "1/root/dev/kmsg")
        self._syslog = syslog
        self._sees_host = in_initial_pid_namespace(proc_root) if sees_host is None else sees_host
        self._machine = machine or platform.machine()
        self._release = release or platform.release()

    def read(self) -> KvmSupport:
        """Return what could be read. No file is waited for."""
        return KvmSupport(
            machine=self._machine,
            release=self._release,
            cpu=self._cpu(),
            options=self._options(),
            log=read_kernel_log(self._logs, syslog=self._syslog),
            command_line=self._command_line(),
            loaded=self._loaded(),
            installed=self._installed(),
            rules=self._rules(),
        )

    def unread(self, why: str) -> KvmSupport:
        """Return the facts of this node if nothing could be read."""
        return KvmSupport.unread(self._machine, self._release, why)

    def _cpu(self) -> Finding[Cpu]:
        try:
            text = _text(self._proc.read("/cpuinfo", limit=_SMALL_BYTES, begin_only=True))
        except FileUnreadableError as err:
            return unknown(f"the CPU's flags cannot be read ({err})")
        return _parsed(parse_cpu(text), "/proc/cpuinfo", "names no CPU flags")

    def _command_line(self) -> Finding[tuple[str, ...]]:
        try:
            text = _text(self._proc.read("/cmdline", limit=_SMALL_BYTES))
        except FileUnreadableError as err:
            return unknown(f"the kernel's command line cannot be read ({err})")
        return Finding(value=tuple(text.split()), text="/proc/cmdline was read")

    def _loaded(self) -> Finding[frozenset[str]]:
        try:
            names = self._sys.names("/module")
        except FileUnreadableError as err:
            return unknown(f"the loaded modules cannot be read ({err})")
        return Finding(value=frozenset(filter(is_of_kvm, names)), text="/sys/module was read")

    def _options(self) -> Finding[Mapping[str, bool]]:
        """Read the kernel's configuration from the first place that has it."""
        places: list[tuple[str, Callable[[], bytes]]] = [
            (
                "/proc/config.gz",
                lambda: _unzipped(self._proc.read("/config.gz", limit=_CONFIG_BYTES)),
            )
        ]
        files = [f"/boot/config-{self._release}"]
        files += [f"{folder}/{self._release}/config" for folder in _MODULE_FOLDERS]
        places += [(file, functools.partial(self._of_node, file, _CONFIG_BYTES)) for file in files]
        failed: list[FileUnreadableError] = []
        for place, read in places:
            try:
                options = parse_options(_text(read()))
            except FileUnreadableError as err:
                failed.append(err)
                continue
            return _parsed(options, place, "is no configuration of a kernel")
        return unknown(f"the kernel's configuration cannot be read ({_most_telling(failed)})")

    def _installed(self) -> Finding[frozenset[str]]:
        """Read which modules of KVM this kernel has, as files and built in."""
        found: set[str] = set()
        failed: list[FileUnreadableError] = []
        for folder in _MODULE_FOLDERS:
            here = f"{folder}/{self._release}"
            try:
                for name in ("modules.dep", "modules.builtin"):
                    modules = parse_modules(_text(self._of_node(f"{here}/{name}", _LISTING_BYTES)))
                    if modules is None:
                        raise FileUnreadableError(f"{here}/{name} is no list of modules")
                    found |= modules
            except FileUnreadableError as err:
                failed.append(err)
                continue
            return Finding(value=frozenset(found), text=f"{here} was read")
        return unknown(f"the installed modules cannot be read ({_most_telling(failed)})")

    def _rules(self) -> Finding[tuple[ModuleRule, ...]]:
        """Read the lines about KVM in modprobe.d.

        A file that cannot be read matters only if no line was found elsewhere.
        """
        rules: list[ModuleRule] = []
        seen: set[str] = set()
        failed: list[str] = []
        for folder in _RULE_FOLDERS:
            for name in self._rule_files(folder, failed):
                if name in seen:
                    continue
                seen.add(name)
                file = f"{folder}/{name}"
                try:
                    rules += parse_rules(_text(self._of_node(file, _SMALL_BYTES)), file)
                except FileUnreadableError as err:
                    failed.append(str(err))
        if failed and not rules:
            return unknown(f"modprobe's configuration cannot be read ({failed[0]})")
        return Finding(value=tuple(rules), text="modprobe's configuration was read")

    def _rule_files(self, folder: str, failed: list[str]) -> Iterator[str]:
        """Yield the names of the files that modprobe reads. A missing folder has none."""
        try:
            self._check_node()
            yield from (name for name in self._node.names(folder) if name.endswith(".conf"))
        except FileMissingError:
            return
        except FileUnreadableError as err:
            failed.append(str(err))

    def _of_node(self, path: str, limit: int) -> bytes:
        """Return a file of the node. Raises FileUnreadableError when it cannot be read."""
        self._check_node()
        return self._node.read(path, limit=limit)

    def _check_node(self) -> None:
        """Raise FileUnreadableError if the node's root directory cannot be reached."""
        if not self._sees_host:
            raise FileUnreadableError("hvprobe runs in a PID namespace of its own")
        try:
            self._node.names("/")
        except FileUnreadableError as err:
            why = str(err).removeprefix("/: ")
            raise FileUnreadableError(f"the root directory of process 1: {why}") from err


def _text(content: bytes) -> str:
    return content.decode(errors="replace")


def _most_telling(errors: Sequence[FileUnreadableError]) -> FileUnreadableError:
    """Return the first error of a file that is there, or else the first."""
    there = (err for err in errors if not isinstance(err, FileMissingError))
    return next(there, errors[0])


def _unzipped(packed: bytes) -> bytes:
    """Return unpacked text. Raises FileUnreadableError when it is malformed or too long."""
    unpacker = zlib.decompressobj(_GZIP)
    try:
        content = unpacker.decompress(packed, _CONFIG_BYTES)
    except zlib.error as err:
        raise FileUnreadableError("/proc/config.gz is malformed") from err
    if not unpacker.eof:
        raise FileUnreadableError("/proc/config.gz is malformed or too long")
    return content


def _parsed(value: _T | None, place: str, otherwise: str) -> Finding[_T]:
    """Make the finding of a file that was read; None: it has not the format that it should have."""
    return Finding(value=value, text=f"{place} {otherwise if value is None else 'was read'}")
