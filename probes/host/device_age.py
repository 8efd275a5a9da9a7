# SPDX-License-Identifier: Apache-2.0
"""EDGE: finds out between which moments the node's accelerator was registered.

Owns the sources of that time, and what was observed of the device before. Must not know any
process. All moments are on CLOCK_BOOTTIME, the clock of the start times in /proc.

The kernel records nowhere when it registered a device. Four things limit that moment:

- What hvprobe observed: at one refresh the device was absent, or another registration of it was
  there, and at a later refresh this one. A registration is known by the inode number of its
  directory in sysfs, which is new each time.
- Whether its driver is part of the kernel itself, which then registers it before it starts any
  process.
- The birth of its file in devtmpfs. The kernel makes that file when it registers the device, but
  keeps one that exists already: systemd makes /dev/kvm at boot, before any module is loaded. So the
  registration is not older than the file.
- The times of its directory in sysfs. sysfs makes the inode at the first look-up, or makes it again
  after memory was short, and sets its times then. So the registration is not younger than they are.

The last two are times of a clock that can be set. They count only if devtmpfs itself, which is made
at boot, was born when the clock now says that the boot was.
"""

import contextlib
import ctypes
import os
import time
from collections.abc import Callable
from pathlib import Path

from probes.host.emulation import RegisteredBetween
from probes.host.hypervisors import Hypervisor

CLOCK_TOLERANCE_S = 10.0
"""How long after the boot began devtmpfs may be born, and how exact file times are taken to be."""

_AT_FDCWD = -100
_AT_SYMLINK_NOFOLLOW = 0x100
_STATX_BTIME = 0x800
_STATX_BYTES = 256
_BTIME_AT = 80
"""Offset of stx_btime in struct statx (include/uapi/linux/stat.h); stx_mask comes first."""


def birth_unix_s(path: Path) -> float | None:
    """Return when a file was made; None: it is missing, or its file system does not record that.

    A link at the end of the path is not followed.
    """
    statx = getattr(ctypes.CDLL(None, use_errno=True), "statx", None)
    if statx is None:
        return None
    answer = ctypes.create_string_buffer(_STATX_BYTES)
    if statx(_AT_FDCWD, os.fsencode(path), _AT_SYMLINK_NOFOLLOW, _STATX_BTIME, answer) != 0:
        return None
    if not ctypes.c_uint32.from_buffer(answer).value & _STATX_BTIME:
        return None
    seconds = ctypes.c_int64.from_buffer(answer, _BTIME_AT).value
    return seconds + ctypes.c_uint32.from_buffer(answer, _BTIME_AT + 8).value / 1e9


class DeviceAge:
    """Remembers what was observed of one accelerator's device.

    Processes that start after it was made can be compared with the device exactly.
    """

    def __init__(
        self,
        hypervisor: Hypervisor,
        *,
        proc_root: Path = Path("/proc"),
        sys_root: Path = Path("/sys"),
        birth_unix_s: Callable[[Path], float | None] = birth_unix_s,
    ) -> None:
        self._init = proc_root / "1"
        """Process 1 of the node, whose /dev is the node's."""
        self._device = hypervisor.driver.device
        self._registration = sys_root / "class/misc" / self._device
        self._modules = sys_root / "module"
        self._driver = hypervisor.driver.module
        self._birth_unix_s = birth_unix_s
        self._known: tuple[int, int] | None = None
        """File system and inode of the registration that was observed last; None: none was."""
        self._between = RegisteredBetween(after_s=None, by_s=None)
        self._observed_s: float | None = None
        """When the device was observed last."""

    def observe(self) -> RegisteredBetween | None:
        """Look at the device. Returns when it was registered; None: it is not registered."""
        now_s = _boot_clock_s()
        try:
            found = self._registration.stat()
        except FileNotFoundError:
            self._known, self._observed_s = None, now_s
            return None
        except OSError:
            return RegisteredBetween(after_s=None, by_s=None)
        registration = (found.st_dev, found.st_ino)
        if registration != self._known:
            self._between = self._limits(found.st_mtime)
        self._known, self._observed_s = registration, now_s
        return self._between

    def _limits(self, sysfs_unix_s: float) -> RegisteredBetween:
        """Limit the moment of a registration that was not there at the last observation."""
        after_s, by_s = self._observed_s, _boot_clock_s()
        if after_s is None and self._is_built_in():
            return RegisteredBetween(after_s=None, by_s=0.0)
        booted_unix_s = self._booted_unix_s()
        if booted_unix_s is not None:
            by_s = min(by_s, sysfs_unix_s - booted_unix_s + CLOCK_TOLERANCE_S)
            born_unix_s = self._birth_unix_s(self._init / "root/dev" / self._device)
            if born_unix_s is not None:
                born_s = born_unix_s - booted_unix_s - CLOCK_TOLERANCE_S
                after_s = born_s if after_s is None else max(after_s, born_s)
        return RegisteredBetween(after_s=after_s, by_s=by_s)

    def _is_built_in(self) -> bool:
        """Whether no part of the driver was loaded as a module.

        Only a loaded module has a file ``initstate`` (kernel/module/main.c, modinfo_initstate);
        built-in code has a folder at most for its parameters (kernel/params.c).
        """
        try:
            folders = [*self._modules.iterdir()]
        except OSError:
            return False
        return not any(
            (folder / "initstate").exists()
            for folder in folders
            if folder.name.startswith(self._driver)
        )

    def _booted_unix_s(self) -> float | None:
        """Return when the node booted; None: the clock was set since, or devtmpfs cannot be read.

        In a time namespace with another boot time the result is None as well.
        """
        if not self._has_devtmpfs():
            return None
        made_unix_s = self._birth_unix_s(self._init / "root/dev")
        booted_unix_s = time.time() - _boot_clock_s()
        if made_unix_s is None or abs(made_unix_s - booted_unix_s) > CLOCK_TOLERANCE_S:
            return None
        return booted_unix_s

    def _has_devtmpfs(self) -> bool:
        """Whether the node's /dev is a devtmpfs. The last mount on a folder hides the others."""
        kind = ""
        with contextlib.suppress(OSError, ValueError):
            for line in (self._init / "mountinfo").read_text(errors="replace").splitlines():
                fields = line.split()
                if fields[4:5] == ["/dev"]:
                    kind = fields[fields.index("-") + 1]
        return kind == "devtmpfs"


def _boot_clock_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
