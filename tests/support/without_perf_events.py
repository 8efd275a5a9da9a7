# SPDX-License-Identifier: Apache-2.0
"""Runs a program to which perf_event_open(2) is denied, as a container runtime's filter denies it.

    python3 without_perf_events.py PROGRAM [ARGUMENT...]

The filter answers EPERM. It is in force for this process, which becomes the program, and for that
program's children. The machine and its other processes are as they were.
"""

import ctypes
import errno
import os
import platform
import struct
import sys

PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}[platform.machine()]
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_RET_ALLOW, _RET_ERRNO = 0x7FFF0000, 0x00050000
_LOAD_NUMBER, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
"""BPF_LD | BPF_W | BPF_ABS at offset 0 of struct seccomp_data, BPF_JMP | BPF_JEQ, BPF_RET."""


class Program(ctypes.Structure):
    """Mirrors ``struct sock_fprog``."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def deny() -> None:
    """Deny the call to this process from now on."""
    instructions = [
        (_LOAD_NUMBER, 0, 0, 0),
        (_JUMP_IF_EQUAL, 0, 1, PERF_EVENT_OPEN),
        (_RETURN, 0, 0, _RET_ERRNO | errno.EPERM),
        (_RETURN, 0, 0, _RET_ALLOW),
    ]
    packed = b"".join(struct.pack("=HBBI", *each) for each in instructions)
    text = ctypes.create_string_buffer(packed, len(packed))
    program = Program(length=len(instructions), instructions=ctypes.addressof(text))
    libc = ctypes.CDLL(None, use_errno=True)
    for call in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0),
    ):
        if libc.prctl(*call):
            raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    deny()
    os.execv(sys.argv[1], sys.argv[1:])  # noqa: S606 - no shell is wanted
