# SPDX-License-Identifier: Apache-2.0
"""BPF programs that another process loaded: opened by id, attached, and timed by the kernel.

Owns the calls of bpf(2) that the measurements make. Must not know which process loaded a program.
A program opened by its id is the loader's own, with the loader's tables. It stays loaded while
the descriptor is open, even after the loader has ended.

Facts: include/uapi/linux/bpf.h (commands, struct bpf_prog_info).
"""

import contextlib
import ctypes
import os
import platform
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ebpf.bpf_syscall import open_raw_tracepoint, open_tracepoint
from tests.support.kernel_agent import program_ids

_SYS_BPF = {"x86_64": 321, "aarch64": 280}[platform.machine()]
_BPF_PROG_TEST_RUN = 10
_BPF_PROG_GET_FD_BY_ID = 13
_BPF_OBJ_GET_INFO_BY_FD = 15
_BPF_ENABLE_STATS = 32
_TEST_RUN_BYTES = 80
_ARGUMENTS = 12
"""The most arguments that a tracepoint can have (include/linux/bpf.h, MAX_BPF_FUNC_ARGS)."""
_LIBC = ctypes.CDLL(None, use_errno=True)

TRACEPOINT, RAW_TRACEPOINT = 5, 17
"""Program types (enum bpf_prog_type)."""


class _ProgInfo(ctypes.Structure):
    """The fields of struct bpf_prog_info up to run_cnt."""

    _fields_ = [
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("tag", ctypes.c_uint8 * 8),
        ("jited_prog_len", ctypes.c_uint32),
        ("xlated_prog_len", ctypes.c_uint32),
        ("jited_prog_insns", ctypes.c_uint64),
        ("xlated_prog_insns", ctypes.c_uint64),
        ("load_time", ctypes.c_uint64),
        ("created_by_uid", ctypes.c_uint32),
        ("nr_map_ids", ctypes.c_uint32),
        ("map_ids", ctypes.c_uint64),
        ("name", ctypes.c_char * 16),
        ("ifindex", ctypes.c_uint32),
        ("gpl_compatible", ctypes.c_uint32),
        ("netns_dev", ctypes.c_uint64),
        ("netns_ino", ctypes.c_uint64),
        ("nr_jited_ksyms", ctypes.c_uint32),
        ("nr_jited_func_lens", ctypes.c_uint32),
        ("jited_ksyms", ctypes.c_uint64),
        ("jited_func_lens", ctypes.c_uint64),
        ("btf_id", ctypes.c_uint32),
        ("func_info_rec_size", ctypes.c_uint32),
        ("func_info", ctypes.c_uint64),
        ("nr_func_info", ctypes.c_uint32),
        ("nr_line_info", ctypes.c_uint32),
        ("line_info", ctypes.c_uint64),
        ("jited_line_info", ctypes.c_uint64),
        ("nr_jited_line_info", ctypes.c_uint32),
        ("line_info_rec_size", ctypes.c_uint32),
        ("jited_line_info_rec_size", ctypes.c_uint32),
        ("nr_prog_tags", ctypes.c_uint32),
        ("prog_tags", ctypes.c_uint64),
        ("run_time_ns", ctypes.c_uint64),
        ("run_cnt", ctypes.c_uint64),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """How often and how long a program ran while the kernel's run statistics were enabled."""

    count: int
    time_ns: int


class Program:
    """One loaded program. Close it, or use it as a context manager."""

    def __init__(self, fd: int) -> None:
        """Take over a program's descriptor."""
        self.fd = fd
        info = self._info()
        self.id = int(info.id)
        self.type = int(info.type)
        self.name = info.name.decode()

    @classmethod
    def of_process(cls, tgid: int, name: str) -> Self:
        """Open the program of a process by its function's name, which the kernel cuts to 15 bytes.

        Raises LookupError when the process holds no such program.
        """
        for program_id in sorted(program_ids(tgid)):
            program = cls(_bpf(_BPF_PROG_GET_FD_BY_ID, ctypes.c_uint32(program_id)))
            if program.name == name[:15]:
                return program
            program.close()
        raise LookupError(f"process {tgid} holds no BPF program named {name}")

    @classmethod
    def only_one_of(cls, tgid: int) -> Self:
        """Open the only program that a process holds."""
        (program_id,) = program_ids(tgid)
        return cls(_bpf(_BPF_PROG_GET_FD_BY_ID, ctypes.c_uint32(program_id)))

    def run_here(self, times: int) -> None:
        """Run the program ``times`` times in this thread; all its arguments are 0.

        Works for raw tracepoint programs only.
        """
        arguments = (ctypes.c_uint64 * _ARGUMENTS)()
        # prog_fd, ..., ctx_size_in, ctx_size_out, ctx_in, ...
        fields = (self.fd, ctypes.sizeof(arguments), 0, ctypes.addressof(arguments))
        packed = struct.pack("=I36xIIQ24x", *fields)
        attributes = ctypes.create_string_buffer(packed, _TEST_RUN_BYTES)
        call = _LIBC.syscall
        for _ in range(times):
            if call(_SYS_BPF, _BPF_PROG_TEST_RUN, attributes, _TEST_RUN_BYTES):
                raise OSError(ctypes.get_errno(), "BPF_PROG_TEST_RUN")

    def runs(self) -> Runs:
        """The kernel's run statistics of this program so far."""
        info = self._info()
        return Runs(count=int(info.run_cnt), time_ns=int(info.run_time_ns))

    @contextlib.contextmanager
    def attached(self, category: str, event: str) -> Iterator[None]:
        """Attach the program to a tracepoint during the block, as the kind it was loaded as."""
        if self.type == RAW_TRACEPOINT:
            link = open_raw_tracepoint(event, self.fd)
        else:
            link = open_tracepoint(_tracepoint_id(category, event), self.fd, cpu=0)
        try:
            yield
        finally:
            os.close(link)

    def close(self) -> None:
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _info(self) -> _ProgInfo:
        info = _ProgInfo()

        class Attributes(ctypes.Structure):
            _fields_ = [
                ("bpf_fd", ctypes.c_uint32),
                ("info_len", ctypes.c_uint32),
                ("info", ctypes.c_uint64),
            ]

        _bpf(
            _BPF_OBJ_GET_INFO_BY_FD,
            Attributes(self.fd, ctypes.sizeof(info), ctypes.addressof(info)),
        )
        return info


@contextlib.contextmanager
def run_statistics() -> Iterator[None]:
    """Let the kernel time all runs of all programs during the block; each run costs a bit more."""
    fd = _bpf(_BPF_ENABLE_STATS, ctypes.c_uint32(0))  # BPF_STATS_RUN_TIME
    try:
        yield
    finally:
        os.close(fd)


def _tracepoint_id(category: str, event: str) -> int:
    for tracefs in ("/sys/kernel/tracing", "/sys/kernel/debug/tracing"):
        with contextlib.suppress(FileNotFoundError):
            return int(Path(tracefs, "events", category, event, "id").read_text())
    raise FileNotFoundError(f"tracefs is not mounted, or there is no tracepoint {category}:{event}")


def _bpf(command: int, attributes: ctypes.Structure | ctypes.c_uint32) -> int:
    # The kernel refuses a union bpf_attr with anything but zeros after the command's own fields.
    padded = (ctypes.c_uint8 * 128)()
    ctypes.memmove(padded, ctypes.addressof(attributes), ctypes.sizeof(attributes))
    return _checked(_LIBC.syscall(_SYS_BPF, command, padded, ctypes.sizeof(padded)))


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(result)
