# SPDX-License-Identifier: Apache-2.0
"""EDGE: reads files of the node from wherever hvprobe runs.

Owns the way into the node's root directory and what a file may be. Must not know what a file
means.

A container does not see the node's files, but the root directory of the node's process 1. Symbolic
links lead on within that root, as they do on the node. Only regular files are opened, without
waiting, and no more than the caller's limit is read.
"""

import errno
import itertools
import os
import stat
from pathlib import Path, PurePosixPath

MAX_LINKS = 40
"""The most symbolic links on the way to a file, as in the kernel (MAXSYMLINKS)."""
MAX_NAMES = 1024
"""The most names of a folder that are read."""

_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY


class FileUnreadableError(Exception):
    """A file or folder cannot be read.

    The message is one line: which, and why.
    """


class FileMissingError(FileUnreadableError):
    """There is no such file or folder."""


class HostFiles:
    """The files below a root directory, which errors call ``shown``."""

    def __init__(self, root: Path, *, shown: str = "") -> None:
        self._root = root
        self._shown = shown

    def read(self, path: str, *, limit: int, begin_only: bool = False) -> bytes:
        """Return the content of a file.

        begin_only returns the beginning of a file that is larger than limit. Raises
        FileUnreadableError when the file cannot be read or is larger, FileMissingError when there
        is none.
        """
        try:
            content = _read_regular(self._resolved(path), limit + 1)
        except OSError as err:
            raise self._failed(path, err) from err
        if content is None:
            raise FileUnreadableError(f"{self._shown}{path} is not a regular file")
        if len(content) > limit and not begin_only:
            raise FileUnreadableError(f"{self._shown}{path} has more than {limit >> 10} KiB")
        return content[:limit]

    def names(self, path: str) -> list[str]:
        """Return the sorted names in a folder.

        Raises FileUnreadableError when it cannot be read or has too many, FileMissingError when
        there is none.
        """
        try:
            with os.scandir(self._resolved(path)) as entries:
                found = [entry.name for entry in itertools.islice(entries, MAX_NAMES + 1)]
        except OSError as err:
            raise self._failed(path, err) from err
        if len(found) > MAX_NAMES:
            raise FileUnreadableError(f"{self._shown}{path} has more than {MAX_NAMES} names")
        return sorted(found)

    def _failed(self, path: str, err: OSError) -> FileUnreadableError:
        if isinstance(err, FileNotFoundError):
            return FileMissingError(f"there is no {self._shown}{path}")
        return FileUnreadableError(f"{self._shown}{path}: {os.strerror(err.errno or 0)}")

    def _resolved(self, path: str) -> Path:
        """Return where a path leads to, links followed below the root.

        Raises OSError when there are too many.
        """
        way: list[str] = []
        left = list(reversed(PurePosixPath(path).parts))
        links = 0
        while left:
            step = left.pop()
            if step in ("/", ".."):
                way = [] if step == "/" else way[:-1]
                continue
            here = self._root.joinpath(*way, step)
            if not here.is_symlink():
                way.append(step)
                continue
            links += 1
            if links > MAX_LINKS:
                raise OSError(errno.ELOOP, "too many links")
            left += reversed(PurePosixPath(here.readlink()).parts)
        return self._root.joinpath(*way)


def _read_regular(file: Path, limit: int) -> bytes | None:
    """Return up to limit bytes of a regular file; None: it is none. Raises OSError."""
    # A device may do something when it is opened, so it is not even opened.
    if not stat.S_ISREG(file.lstat().st_mode):
        return None
    fd = os.open(file, _FLAGS)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        parts: list[bytes] = []
        while limit > 0 and (part := os.read(fd, min(limit, 1 << 16))):
            parts.append(part)
            limit -= len(part)
        return b"".join(parts)
    finally:
        os.close(fd)
