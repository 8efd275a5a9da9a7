# SPDX-License-Identifier: Apache-2.0
"""Defines the errors of the ebpf room.

Each message is one line that says what failed, on what, why, and what to do.
"""

from enum import StrEnum


class EbpfError(Exception):
    """Base class of every error that this room raises on purpose."""


class BpfUnavailableError(EbpfError):
    """No BPF program can be used on this node.

    The programs do not compile, are not permitted, or the kernel has no BPF.
    """

    def __init__(self, message: str, *, refused: bool = False) -> None:
        """refused says whether the kernel denied a permission."""
        super().__init__(message)
        self.refused = refused


class AttachCause(StrEnum):
    """Why a program cannot be attached at a point."""

    NO_KPROBES = "no_kprobes"
    """The kernel is built without kprobes."""
    NO_LINKS = "no_links"
    """The kernel has no links of type kprobe_multi."""
    NO_TRACEFS = "no_tracefs"
    """tracefs, which gives tracepoints their numbers, is not mounted."""
    NOT_THERE = "not_there"
    """The kernel has no such function or tracepoint now; its module may be unloaded."""
    NOT_PERMITTED = "not_permitted"
    """The kernel does not permit this process to attach it."""
    FIELDS_MOVED = "fields_moved"
    """The fields of the tracepoint's record have moved since the program was compiled."""
    FAILED = "failed"
    """The kernel or its verifier reported another error."""


class AttachError(EbpfError):
    """A program cannot be attached at one point."""

    def __init__(
        self, target: str, cause: AttachCause, detail: str, *, remedy: str | None = None
    ) -> None:
        """target is the backend and attach point.

        remedy says what to do, unless detail already does.
        """
        super().__init__(f"{target}: {detail}" + (f"; {remedy}" if remedy else ""))
        self.cause = cause
        self.detail = detail
        self.remedy = remedy

    @property
    def refused(self) -> bool:
        """Whether the kernel denied a permission (EPERM or EACCES)."""
        return self.cause is AttachCause.NOT_PERMITTED


class LedgerReadError(EbpfError):
    """The kernel table could not be read."""
