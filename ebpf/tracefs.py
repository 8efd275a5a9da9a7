"""EDGE: what tracefs says of this kernel's tracepoints: their numbers and their records' fields.

Owns where tracefs is mounted and the form of its files (kernel/trace/trace_events.c, f_show). Must
not know which tracepoints are wanted.
"""

import contextlib
import errno
import os
import re
from collections.abc import Sequence
from pathlib import Path

_MOUNTS = ("kernel/tracing", "kernel/debug/tracing")
FIELD_BYTES = 4
"""Of each field that a program of hvprobe reads."""


class Tracefs:
    """The tracefs of one node."""

    def __init__(self, sys_root: Path) -> None:
        """Look below a node's /sys."""
        self._events = [sys_root / mount / "events" for mount in _MOUNTS]

    @property
    def mounted(self) -> bool:
        """Whether there is one that can be read."""
        return any(events.is_dir() for events in self._events)

    def event_id(self, target: str) -> int:
        """The number of tracepoint ``category:event``. Raises FileNotFoundError without it."""
        for events in self._events:
            with contextlib.suppress(FileNotFoundError):
                return int((events / target.replace(":", "/") / "id").read_text())
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    def offsets(self, target: str, fields: Sequence[str]) -> tuple[int, ...] | None:
        """Where each field stands in the record of a tracepoint, in bytes.

        None: the description cannot be read, or it has no such field of 4 bytes.
        """
        for events in self._events:
            with contextlib.suppress(OSError):
                return offsets_from(
                    (events / target.replace(":", "/") / "format").read_text(), fields
                )
        return None


def offsets_from(description: str, fields: Sequence[str]) -> tuple[int, ...] | None:
    """Pure: from the text of ``format``."""
    found = {
        name: int(offset)
        for name, offset, size in re.findall(
            r"field:[^;]*\b(\w+);\s*offset:(\d+);\s*size:(\d+);", description
        )
        if int(size) == FIELD_BYTES
    }
    if any(field not in found for field in fields):
        return None
    return tuple(found[field] for field in fields)
