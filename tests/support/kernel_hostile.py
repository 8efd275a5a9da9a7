# SPDX-License-Identifier: Apache-2.0
"""Processes that make their /proc files huge, many or endless: tests/support/hostile.c."""

import os
import re
from pathlib import Path

from tests.support.kernel_world import Started, compiled

NEED_FUSE = {"fuse-arguments", "fuse-exec", "address-space"}
KERNEL = tuple(int(number) for number in re.findall(r"\d+", os.uname().release)[:2])
LOCKS_BLOCK = KERNEL >= (6, 12)
"""Whether a locked address space blocks all its readers: older kernels take other locks."""


def hostile_program(folder: Path) -> Path:
    """Compile the program into the folder. A guest already has it, beside kvmload."""
    kvmload = os.environ.get("HVPROBE_KVMLOAD")
    return Path(kvmload).with_name("hostile") if kvmload else compiled("hostile", folder)


class Hostile(Started):
    """A running tests/support/hostile.c. The started process may be the hostile one's server."""

    def __init__(self, program: Path, kind: str, number: int, folder: Path) -> None:
        self._hostile: int | None = None
        super().__init__([program, kind, str(number), folder], stderr=None)
        try:
            self._wait_until_ready()
        except BaseException:
            self.kill()
            raise

    def _wait_until_ready(self) -> None:
        while (line := self.line()) != "ready\n":
            assert line, f"hostile ended early with {self.popen.wait()}"
            self._hostile = int(line.removeprefix("hostile "))

    @property
    def tgid(self) -> int:
        return self._hostile or self.popen.pid
