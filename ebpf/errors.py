# SPDX-License-Identifier: Apache-2.0
"""Errors of the ebpf room. Each message is one line: what failed, on what, why, what to do."""

from enum import StrEnum


class EbpfError(Exception):
    """Base of everything this room raises on purpose."""


class BpfUnavailableError(EbpfError):
    """No BPF program can be used at all: not compiled, not permitted, or no BPF on this kernel."""

    def __init__(self, message: str, *, refused: bool = False) -> None:
        """Say whether the kernel refused it for want of a permission."""
        super().__init__(message)
        self.refused = refused


class AttachCause(StrEnum):
    """Why a program cannot be attached at a point."""

    NO_KPROBES = "no_kprobes"
    """The kernel is built without kprobes."""
    NO_TRACEFS = "no_tracefs"
    """Tracepoints have numbers only where tracefs is mounted."""
    NOT_THERE = "not_there"
    """The kernel has no such function or tracepoint now; its module may be unloaded."""
    NOT_PERMITTED = "not_permitted"
    """The kernel refuses it to this process."""
    FIELDS_MOVED = "fields_moved"
    """Fields of the tracepoint's record are not where the program was compiled to read them."""
    FAILED = "failed"
    """Another error of the kernel or of its verifier."""


class AttachError(EbpfError):
    """A program cannot be attached at one point."""

    def __init__(
        self, target: str, cause: AttachCause, detail: str, *, remedy: str | None = None
    ) -> None:
        """target: backend and attach point. remedy: what to do, where detail does not say it."""
        super().__init__(f"{target}: {detail}" + (f"; {remedy}" if remedy else ""))
        self.cause = cause
        self.detail = detail
        self.remedy = remedy

    @property
    def refused(self) -> bool:
        """Whether the kernel refused it for want of a permission (EPERM or EACCES)."""
        return self.cause is AttachCause.NOT_PERMITTED


class LedgerReadError(EbpfError):
    """The kernel table could not be read."""
