# SPDX-License-Identifier: Apache-2.0
"""EDGE: holds the /proc directory of one process open and reads from it.

Owns reading its files, links and directories within bounds. Must not parse what it reads. All reads
of a process go through one descriptor of its directory, which shows that process or nothing: a
reused PID gets a new directory.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Self

MAX_FILE_BYTES = 64 * 1024
"""The most that is read of one file, because a process can make ``cmdline`` any size."""
_CHUNK_BYTES = 4096
"""More than the size of a stat, comm or syscall file, so one read gets all of it."""


class ProcessFolder:
    """The open directory of a process. Names are relative to it. Use it as a context manager.

    What cannot be read, for any reason, is None; that applies to everything once the process has
    ended. Before each step, which may never return, ``at`` is called with the name of what is read
    next.
    """

    def __init__(self, path: str, at: Callable[[str], None]) -> None:
        self._path = path
        self.at = at
        self._fd: int | None = None
        self.denied = False
        """Whether the kernel denied reading one of its files, which ending does not cause."""

    def __enter__(self) -> Self:
        self.at("its folder")
        with contextlib.suppress(OSError):
            self._fd = os.open(self._path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return self

    def __exit__(self, *_: object) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def read(self, name: str) -> bytes | None:
        """Return the first MAX_FILE_BYTES of a file; None: it cannot be read."""
        self.at(name)
        if self._fd is None:
            return None
        try:
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._fd)
        except PermissionError:
            self.denied = True
            return None
        except OSError:
            return None
        try:
            raw = os.read(fd, _CHUNK_BYTES)
            return raw if len(raw) < _CHUNK_BYTES else raw + _rest(fd, MAX_FILE_BYTES - len(raw))
        except OSError:
            return None
        finally:
            os.close(fd)

    def names(self, name: str) -> Iterator[str]:
        """Iterate over the entries of a subdirectory. Raises OSError when it cannot be read."""
        self.at(name)
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._folder(name))
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    yield entry.name
        finally:
            os.close(fd)

    def directory(self, name: str) -> int:
        """Return a new descriptor of a subdirectory, which the caller closes.

        It can be used to look at the subdirectory, but not to read it. Raises OSError when there is
        no such subdirectory.
        """
        self.at(name)
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        return os.open(name, flags, dir_fd=self._folder(name))

    def target(self, name: str) -> str:
        """Return the target of a link. Raises OSError when it cannot be read."""
        self.at(name)
        return os.readlink(name, dir_fd=self._folder(name))

    def _folder(self, name: str) -> int:
        if self._fd is None:
            raise FileNotFoundError(name)
        return self._fd


def _rest(fd: int, left: int) -> bytes:
    """Read a file to its end, but at most ``left`` bytes."""
    chunks: list[bytes] = []
    while left > 0 and (chunk := os.read(fd, left)):
        chunks.append(chunk)
        left -= len(chunk)
    return b"".join(chunks)
