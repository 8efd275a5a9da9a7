# SPDX-License-Identifier: Apache-2.0
"""Processes that make their /proc files huge, many or endless: tests/support/hostile.c."""

import os
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from tests.support.kernel_world import DEADLINE_S, Started, compiled

NEED_FUSE = {"fuse-arguments", "fuse-exec", "address-space"}
READER_S = DEADLINE_S / 6
"""A file blocks its readers if one that reads nothing else has not ended after this time."""
READERS = {"stat": "cat", "syscall": "cat", "cmdline": "cat", "exe": "readlink", "fd/0": "readlink"}
"""The files of a process that can block, and the program that reads each."""


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


def blocking_files(tgid: int) -> frozenset[str]:
    """Return the names of the process's files that block their readers on this kernel.

    Programs other than the product read them. Kernels differ in the locks that reading takes and
    in those that an execve holds, and not by their release alone.
    """
    readers = {
        name: subprocess.Popen(
            [program, f"/proc/{tgid}/{name}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for name, program in READERS.items()
    }
    end_s = time.monotonic() + READER_S
    found = set()
    for name, reader in readers.items():
        with suppress(subprocess.TimeoutExpired):
            reader.wait(max(0.0, end_s - time.monotonic()))
        if reader.poll() is None:
            found.add(name)
            reader.kill()
            reader.wait(DEADLINE_S)
    return frozenset(found)
