# SPDX-License-Identifier: Apache-2.0
"""EDGE: the folder of one process below /proc, held open.

Owns reading its files, links and folders within bounds. Must not parse what it reads. A process is
read through one descriptor of its folder, which shows that process or nothing: the number's next
owner has a folder of its own.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Self

MAX_FILE_BYTES = 64 * 1024
"""Of one file, ``cmdline`` included, no more is read: a process can make that of any size."""
_CHUNK_BYTES = 4096
"""More than a stat, comm or syscall file has: one read gets it whole."""


class ProcessFolder:
    """Names are relative to the folder. Use as a context manager.

    What cannot be read, for whatever reason, is None: of a process that is gone, everything. Before
    each step, which may never return, ``at`` is called with what is about to be read.
    """

    def __init__(self, path: str, at: Callable[[str], None]) -> None:
        self._path = path
        self.at = at
        self._fd: int | None = None

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
        """A file's first MAX_FILE_BYTES."""
        self.at(name)
        if self._fd is None:
            return None
        try:
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._fd)
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
        """What is in a folder of it, one after another, however many there are; OSError."""
        self.at(name)
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._folder(name))
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    yield entry.name
        finally:
            os.close(fd)

    def target(self, name: str) -> str:
        """Where a link leads; OSError."""
        self.at(name)
        return os.readlink(name, dir_fd=self._folder(name))

    def _folder(self, name: str) -> int:
        if self._fd is None:
            raise FileNotFoundError(name)
        return self._fd


def _rest(fd: int, left: int) -> bytes:
    """To its end, or so many bytes."""
    chunks: list[bytes] = []
    while left > 0 and (chunk := os.read(fd, left)):
        chunks.append(chunk)
        left -= len(chunk)
    return b"".join(chunks)
