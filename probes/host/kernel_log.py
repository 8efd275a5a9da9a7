# SPDX-License-Identifier: Apache-2.0
"""EDGE: reads the kernel's log.

Owns the ways to the log: /dev/kmsg where hvprobe runs, that of the node, and syslog(2). Must not
know what a message means.

A container has no /dev/kmsg unless it is privileged. syslog(2) needs no file. Both need CAP_SYSLOG
where the sysctl kernel.dmesg_restrict is 1. No read waits for a message, and what is read has a
bound in bytes and in time.
"""

import ctypes
import errno
import os
import stat
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from probes.host.emulation import Finding, unknown
from probes.host.kvm_support import KernelLog, parse_kmsg, parse_syslog

MAX_BYTES = 8 << 20
"""The most that is read of the log."""
DEADLINE_S = 1.0
_RECORD_BYTES = 8192
"""The most bytes of one record (PRINTKRB_RECORD_MAX and what /dev/kmsg puts before it)."""
_READ_ALL = 3
"""SYSLOG_ACTION_READ_ALL (include/linux/syslog.h)."""
_SIZE_OF_BUFFER = 10


def read_kernel_log(
    files: Sequence[Path], *, syslog: Callable[[], bytes] | None = None
) -> Finding[KernelLog]:
    """Return the messages about KVM from the first of these files that can be read.

    syslog reads the log without a file, which is the last resort.
    """
    failed: list[str] = []
    for file in files:
        try:
            records, read_all = _records(file)
        except OSError as err:
            failed.append(f"{file}: {os.strerror(err.errno or 0)}")
        else:
            log = parse_kmsg(records.decode(errors="replace"), read_all=read_all)
            return Finding(value=log, text=f"{file} was read")
    if syslog is not None:
        try:
            log = parse_syslog(syslog().decode(errors="replace"))
        except OSError as err:
            failed.append(f"syslog(2): {os.strerror(err.errno or 0)}")
        else:
            return Finding(value=log, text="syslog(2) was read")
    return unknown(f"the kernel's log cannot be read ({', '.join(failed)})")


def read_syslog() -> bytes:
    """Return the kernel's log by syslog(2). Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    size = min(_checked(libc.klogctl(_SIZE_OF_BUFFER, None, 0)), MAX_BYTES)
    buffer = ctypes.create_string_buffer(size)
    return buffer.raw[: _checked(libc.klogctl(_READ_ALL, buffer, size))]


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), "klogctl")
    return result


def _records(file: Path) -> tuple[bytes, bool]:
    """Return the records of /dev/kmsg, and whether these are all. Raises OSError.

    Each read returns one record. EPIPE means that the next record has been overwritten.
    """
    kind = file.stat().st_mode
    if not stat.S_ISCHR(kind) and not stat.S_ISREG(kind):
        raise OSError(errno.ENODEV, "not a log")
    fd = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        parts: list[bytes] = []
        left = MAX_BYTES
        end_s = time.monotonic() + DEADLINE_S
        while left > 0 and time.monotonic() < end_s:
            try:
                part = os.read(fd, _RECORD_BYTES)
            except BlockingIOError:
                return b"".join(parts), True
            except BrokenPipeError:
                continue
            if not part:
                return b"".join(parts), True
            parts.append(part)
            left -= len(part)
        return b"".join(parts), False
    finally:
        os.close(fd)
