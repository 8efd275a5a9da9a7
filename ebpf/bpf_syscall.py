# SPDX-License-Identifier: Apache-2.0
"""EDGE: makes the system calls bpf(2), perf_event_open(2) and membarrier(2).

Owns their arguments, as far as hvprobe uses them (include/uapi/linux/bpf.h, perf_event.h,
membarrier.h). Must not know any program or table.

libbpf.so.1, which contains no compiler, offers the same calls. hvprobe does not use it because it
would save nothing: the structures of its functions would have to be declared here as well, and the
agent would hold 0.4 MiB more. Every failure is an OSError with the kernel's errno.
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
"""System call numbers of bpf, perf_event_open and membarrier by machine (``uname -m``).

hvprobe uses BPF on these machines only: include/uapi/linux/ptrace.h defines their registers.
"""

_SYSCALL = ctypes.CDLL(None, use_errno=True).syscall
_SYSCALL.restype = ctypes.c_long


class Command(IntEnum):
    """Mirrors the commands of ``enum bpf_cmd`` that hvprobe uses."""

    MAP_CREATE = 0
    MAP_LOOKUP_ELEM = 1
    MAP_UPDATE_ELEM = 2
    MAP_DELETE_ELEM = 3
    RAW_TRACEPOINT_OPEN = 17
    OBJ_GET_INFO_BY_FD = 15
    MAP_LOOKUP_BATCH = 24
    LINK_CREATE = 28
    ITER_CREATE = 33


class Update(IntEnum):
    """Mirrors the flags of MAP_UPDATE_ELEM."""

    ANY = 0
    NOEXIST = 1


_NO_COMMAND = 0x7FFFFFFF
_MEMBARRIER_CMD_GLOBAL = 1
_GRACE_S = 0.1
"""Wait that replaces membarrier(2) where the kernel refuses it. No BPF program runs nearly as
long."""
_PERF_ATTR_SIZE = 112  # PERF_ATTR_SIZE_VER5
_PERF_FLAG_FD_CLOEXEC = 8
_PERF_EVENT_IOC_ENABLE = 0x2400
_PERF_EVENT_IOC_SET_BPF = 0x40042408
_PERF_TYPE_TRACEPOINT = 2
TRACE_KPROBE_MULTI = 42
"""BPF_TRACE_KPROBE_MULTI (``enum bpf_attach_type``)."""
_TRACE_ITER = 28
"""BPF_TRACE_ITER (``enum bpf_attach_type``)."""


def bpf(command: int, attributes: ctypes.Structure | ctypes.Array[ctypes.c_char]) -> int:
    """Make the system call and return its result; the kernel may write into the attributes.

    command is one of ``enum bpf_cmd``; Command lists those that hvprobe uses.
    """
    return _call(0, int(command), ctypes.byref(attributes), ctypes.sizeof(attributes))


def bpf_exists() -> bool:
    """Whether this kernel has bpf(2), which it may still refuse to this process."""
    try:
        bpf(_NO_COMMAND, _packed("=Q", 0))
    except OSError as err:
        return err.errno != errno.ENOSYS
    return True


def bpf_is_refused() -> bool:
    """Whether this process may not even make a map of one number."""
    array, key_bytes, value_bytes, entries, no_flags = 2, 4, 4, 1, 0  # BPF_MAP_TYPE_ARRAY
    try:
        made = bpf(
            Command.MAP_CREATE,
            _packed("=IIIII", array, key_bytes, value_bytes, entries, no_flags),
        )
    except OSError as err:
        return err.errno in (errno.EPERM, errno.EACCES)
    os.close(made)
    return False


def map_element(command: int, fd: int, key: int, value: int, flags: int = 0) -> int:
    """Make a call on one element of a map; key and value are memory addresses."""
    return bpf(command, _packed("=IIQQQ", fd, 0, key, value, flags))


def wait_for_running_programs() -> None:
    """Wait until every BPF program that is running now, on any CPU, has ended.

    BPF programs run in RCU read-side sections, and MEMBARRIER_CMD_GLOBAL is synchronize_rcu()
    (kernel/sched/membarrier.c). Kernels with nohz_full refuse that command.
    """
    try:
        _call(2, _MEMBARRIER_CMD_GLOBAL, 0, 0)
    except OSError:
        time.sleep(_GRACE_S)


def open_raw_tracepoint(name: str, program_fd: int) -> int:
    """Attach a program to a raw tracepoint; closing the returned descriptor detaches it."""
    text = ctypes.create_string_buffer(name.encode())
    attributes = _packed("=QIIQ", ctypes.addressof(text), program_fd, 0, 0)
    return bpf(Command.RAW_TRACEPOINT_OPEN, attributes)


def open_kprobe_link(function: str, program_fd: int) -> int:
    """Attach a program to the entry of a kernel function by a link of type kprobe_multi.

    The program must be loaded for BPF_TRACE_KPROBE_MULTI. Closing the descriptor detaches it. Until
    then the function's module cannot be unloaded.
    """
    name = ctypes.create_string_buffer(function.encode())
    names = (ctypes.c_uint64 * 1)(ctypes.addressof(name))
    # prog_fd, target_fd, attach_type, flags; then flags, cnt, syms, addrs, cookies of kprobe_multi
    fields = (program_fd, 0, TRACE_KPROBE_MULTI, 0, 0, len(names), ctypes.addressof(names), 0, 0)
    return bpf(Command.LINK_CREATE, _packed("=IIIIIIQQQ", *fields))


def missed_by_kprobe_link(link_fd: int) -> int:
    """Return how often a link of type kprobe_multi could not call its program.

    0 before Linux e2b2cd592adb ("bpf: Add missed value to kprobe_multi link info") (v6.7).
    """
    info = _packed("=IIIIQIIQQ", *[0] * 9)
    bpf(Command.OBJ_GET_INFO_BY_FD, _packed("=IIQ", link_fd, len(info), ctypes.addressof(info)))
    # struct bpf_link_info: type, id, prog_id; then addrs, count, flags, missed of kprobe_multi
    return int(struct.unpack_from("=IIIIQIIQ", info)[-1])


def open_iterator(program_fd: int, map_fd: int) -> int:
    """Make a link by which a program can be run for each element of a map.

    The program's function must be named bpf_iter__bpf_map_elem. Since Linux a5cbe05a6673 ("bpf:
    Implement bpf iterator for map elements") (v5.9).
    """
    info = _packed("=I", map_fd)  # union bpf_iter_link_info
    # prog_fd, target_fd, attach_type, flags; then iter_info and its length
    fields = (program_fd, 0, _TRACE_ITER, 0, ctypes.addressof(info), len(info))
    return bpf(Command.LINK_CREATE, _packed("=IIIIQI", *fields))


def run_iterator(link_fd: int, size: int) -> bytes:
    """Run an iterator's program once for each element; return what it writes, up to this size.

    The program is not run for further elements once it has written so much.
    """
    run = bpf(Command.ITER_CREATE, _packed("=II", link_fd, 0))
    try:
        return os.read(run, size)
    finally:
        os.close(run)


def open_tracepoint(event_id: int, program_fd: int, *, cpu: int) -> int:
    """Attach a program to the tracepoint with this tracefs id.

    Closing the descriptor detaches the program.
    """
    return _open_event(_PERF_TYPE_TRACEPOINT, event_id, 0, program_fd, cpu)


def open_kprobe(event_type: int, function: str, program_fd: int, *, cpu: int) -> int:
    """Attach a program to the entry of a kernel function.

    event_type is the type number of the kprobe event source. Closing the descriptor detaches the
    program.
    """
    text = ctypes.create_string_buffer(function.encode())
    return _open_event(event_type, 0, ctypes.addressof(text), program_fd, cpu)


def _open_event(event_type: int, config: int, config1: int, program_fd: int, cpu: int) -> int:
    """Open a perf event for all processes and give it a program.

    The program belongs to the event's kind, not to the CPU on which the event is opened: it runs on
    all CPUs (kernel/trace/trace_event_perf.c), even after that CPU has gone offline.
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
    """Pack attributes into memory that the kernel may write to, without a terminating zero."""
    packed = struct.pack(layout, *fields)
    return ctypes.create_string_buffer(packed, len(packed))


def _call(which: int, *arguments: object) -> int:
    numbers = _NUMBERS.get(platform.machine())
    if numbers is None:
        raise OSError(
            errno.ENOSYS,
            f"hvprobe has no BPF on {platform.machine()}, only on {' and '.join(_NUMBERS)}",
        )
    words = [
        ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments
    ]
    result = int(_SYSCALL(ctypes.c_long(numbers[which]), *words))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
