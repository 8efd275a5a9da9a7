# SPDX-License-Identifier: Apache-2.0
"""EDGE: reads from tracefs the numbers of tracepoints and the fields of their records.

Owns where tracefs is mounted and the form of its files (kernel/trace/trace_events.c, f_show). Must
not know which tracepoints are wanted, nor what their fields mean.
"""

import contextlib
import errno
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_MOUNTS = ("kernel/tracing", "kernel/debug/tracing")
FIELD_BYTES = 4
"""Size of each field that a program of hvprobe reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """The contents of a tracepoint's file ``format``."""

    file: Path
    offsets: Mapping[str, int]
    """Offset in the record, in bytes, of each field whose size is FIELD_BYTES."""


class Tracefs:
    """The tracefs of one node."""

    def __init__(self, sys_root: Path) -> None:
        """sys_root is the node's /sys."""
        self._roots = [sys_root / mount for mount in _MOUNTS]
        self._events = [root / "events" for root in self._roots]

    @property
    def mounted(self) -> bool:
        """Whether a readable tracefs is mounted."""
        return self.has("events")

    def has(self, name: str) -> bool:
        """Whether the top directory of tracefs has a file or directory of this name."""
        for root in self._roots:
            with contextlib.suppress(OSError):
                if (root / name).exists():
                    return True
        return False

    def event_id(self, target: str) -> int:
        """Return the number of tracepoint ``category:event``.

        Raises FileNotFoundError when tracefs does not list it.
        """
        for events in self._events:
            with contextlib.suppress(FileNotFoundError):
                return int((events / target.replace(":", "/") / "id").read_text())
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    def offsets(self, target: str, fields: Sequence[str]) -> tuple[int, ...] | None:
        """Return the offset of each field in the record of a tracepoint, in bytes.

        None: the description is unreadable, or a field of 4 bytes is missing in it.
        """
        description = self.description(target)
        if description is None or any(field not in description.offsets for field in fields):
            return None
        return tuple(description.offsets[field] for field in fields)

    def description(self, target: str) -> Description | None:
        """Return the description of tracepoint ``category:event``; None: it is unreadable."""
        for events in self._events:
            with contextlib.suppress(OSError):
                file = events / target.replace(":", "/") / "format"
                return Description(file=file, offsets=offsets_from(file.read_text()))
        return None


def offsets_from(description: str) -> dict[str, int]:
    """Parse the text of ``format`` and return the offset of each field of FIELD_BYTES. Pure."""
    return {
        name: int(offset)
        for name, offset, size in re.findall(
            r"field:[^;]*\b(\w+);\s*offset:(\d+);\s*size:(\d+);", description
        )
        if int(size) == FIELD_BYTES
    }
