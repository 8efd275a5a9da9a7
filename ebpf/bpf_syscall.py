# SPDX-License-Identifier: Apache-2.0
"""EDGE: the system calls bpf(2), perf_event_open(2) and membarrier(2), as far as they are needed.

Owns their arguments (include/uapi/linux/bpf.h, perf_event.h, membarrier.h). Must not know any
program or table.
They are called directly because a library that could also compile would stay in memory for them.
Every failure is an OSError with the kernel's errno.
"""

import ctypes
import errno
import fcntl
import os
import platform
import struct
import time
from collections.abc import Mapping
from enum import IntEnum

_NUMBERS: Mapping[str, tuple[int, int, int]] = {
    "x86_64": (321, 298, 324),
    "aarch64": (280, 241, 283),
}
"""System call numbers of bpf, perf_event_open and membarrier by machine (uname -m).

These are the machines on which hvprobe uses BPF: include/uapi/linux/ptrace.h has their registers.
"""

_SYSCALL = ctypes.CDLL(None, use_errno=True).syscall
_SYSCALL.restype = ctypes.c_long


class Command(IntEnum):
    """``enum bpf_cmd``."""

    MAP_LOOKUP_ELEM = 1
    MAP_UPDATE_ELEM = 2
    MAP_DELETE_ELEM = 3
    RAW_TRACEPOINT_OPEN = 17
    MAP_LOOKUP_BATCH = 24


class Update(IntEnum):
    """Flags of MAP_UPDATE_ELEM."""

    ANY = 0
    NOEXIST = 1


_MEMBARRIER_CMD_GLOBAL = 1
_GRACE_S = 0.1
"""Stands in for membarrier(2) where the kernel refuses it: far more than a program's run takes."""
_PERF_ATTR_SIZE = 112  # PERF_ATTR_SIZE_VER5
_PERF_FLAG_FD_CLOEXEC = 8
_PERF_EVENT_IOC_ENABLE = 0x2400
_PERF_EVENT_IOC_SET_BPF = 0x40042408
_PERF_TYPE_TRACEPOINT = 2


def bpf(command: int, attributes: ctypes.Structure | ctypes.Array[ctypes.c_char]) -> int:
    """Make the system call and return its result; the kernel may write into the attributes.

    command: of ``enum bpf_cmd``; those that hvprobe uses are in Command.
    """
    return _call(0, int(command), ctypes.byref(attributes), ctypes.sizeof(attributes))


def map_element(command: int, fd: int, key: int, value: int, flags: int = 0) -> int:
    """One of the calls on one element of a map; key and value are addresses."""
    return bpf(command, _packed("=IIQQQ", fd, 0, key, value, flags))


def wait_for_running_programs() -> None:
    """Wait until each BPF program that runs now, on any CPU, has ended.

    They run in RCU read-side sections, and MEMBARRIER_CMD_GLOBAL is synchronize_rcu()
    (kernel/sched/membarrier.c). Kernels with nohz_full refuse it.
    """
    try:
        _call(2, _MEMBARRIER_CMD_GLOBAL, 0, 0)
    except OSError:
        time.sleep(_GRACE_S)


def open_raw_tracepoint(name: str, program_fd: int) -> int:
    """Attach; the descriptor holds the attachment, its closing ends it."""
    text = ctypes.create_string_buffer(name.encode())
    attributes = _packed("=QIIQ", ctypes.addressof(text), program_fd, 0, 0)
    return bpf(Command.RAW_TRACEPOINT_OPEN, attributes)


def open_tracepoint(event_id: int, program_fd: int, *, cpu: int) -> int:
    """Attach to the tracepoint of that number in tracefs; the descriptor holds it, as above."""
    return _open_event(_PERF_TYPE_TRACEPOINT, event_id, 0, program_fd, cpu)


def open_kprobe(event_type: int, function: str, program_fd: int, *, cpu: int) -> int:
    """Attach to a kernel function's entry; event_type is the kprobe event source's number."""
    text = ctypes.create_string_buffer(function.encode())
    return _open_event(event_type, 0, ctypes.addressof(text), program_fd, cpu)


def _open_event(event_type: int, config: int, config1: int, program_fd: int, cpu: int) -> int:
    """A perf event of all processes with a program.

    The program belongs to the event's kind, not to the CPU the event is opened on: it runs on all
    (kernel/trace/trace_event_perf.c), also when that CPU goes offline.
    """
    # type, size, config, sample_period, sample_type, read_format, flags, wakeup, bp_type, config1
    fields = (event_type, _PERF_ATTR_SIZE, config, 1, 0, 0, 0, 1, 0, config1)
    attributes = _packed("=IIQQQQQIIQ48x", *fields)
    fd = _call(1, ctypes.byref(attributes), -1, cpu, -1, _PERF_FLAG_FD_CLOEXEC)
    try:
        fcntl.ioctl(fd, _PERF_EVENT_IOC_SET_BPF, program_fd)
        fcntl.ioctl(fd, _PERF_EVENT_IOC_ENABLE, 0)
    except OSError:
        os.close(fd)
        raise
    return fd


def _packed(layout: str, *fields: int) -> ctypes.Array[ctypes.c_char]:
    """Attributes in memory that the kernel may write to; without a terminating zero."""
    packed = struct.pack(layout, *fields)
    return ctypes.create_string_buffer(packed, len(packed))


def _call(which: int, *arguments: object) -> int:
    numbers = _NUMBERS.get(platform.machine())
    if numbers is None:
        raise OSError(
            errno.ENOSYS,
            f"hvprobe has no BPF on {platform.machine()}, only on {' and '.join(_NUMBERS)}",
        )
    words = [ctypes.c_long(it) if isinstance(it, int) else it for it in arguments]
    result = int(_SYSCALL(ctypes.c_long(numbers[which]), *words))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
