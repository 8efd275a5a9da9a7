# SPDX-License-Identifier: Apache-2.0
"""EDGE: what tracefs says of this kernel's tracepoints: their numbers and their records' fields.

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
"""Of each field that a program of hvprobe reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What the file ``format`` of a tracepoint says."""

    file: Path
    offsets: Mapping[str, int]
    """Place in the record of each field of FIELD_BYTES, in bytes."""


class Tracefs:
    """The tracefs of one node."""

    def __init__(self, sys_root: Path) -> None:
        """Look below a node's /sys."""
        self._roots = [sys_root / mount for mount in _MOUNTS]
        self._events = [root / "events" for root in self._roots]

    @property
    def mounted(self) -> bool:
        """Whether there is one that can be read."""
        return self.has("events")

    def has(self, name: str) -> bool:
        """Whether its top directory shows a file or directory of this name."""
        for root in self._roots:
            with contextlib.suppress(OSError):
                if (root / name).exists():
                    return True
        return False

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
        description = self.description(target)
        if description is None or any(field not in description.offsets for field in fields):
            return None
        return tuple(description.offsets[field] for field in fields)

    def description(self, target: str) -> Description | None:
        """The description of tracepoint ``category:event``; None: it cannot be read."""
        for events in self._events:
            with contextlib.suppress(OSError):
                file = events / target.replace(":", "/") / "format"
                return Description(file=file, offsets=offsets_from(file.read_text()))
        return None


def offsets_from(description: str) -> dict[str, int]:
    """The place of each field of FIELD_BYTES, from the text of ``format``. Pure."""
    return {
        name: int(offset)
        for name, offset, size in re.findall(
            r"field:[^;]*\b(\w+);\s*offset:(\d+);\s*size:(\d+);", description
        )
        if int(size) == FIELD_BYTES
    }
