# SPDX-License-Identifier: Apache-2.0
"""EDGE: the only importer of bcc: a short-lived process that compiles and loads the programs.

The compiler (LLVM) takes more memory than the rest of hvprobe and is needed only at the start, so
it runs in this process. The process answers each request from its socket with one message that
carries the descriptors of all maps and programs (SCM_RIGHTS), and ends when there are no more. The
maps and programs then live as long as the process that received the descriptors.

Owns BCC's quirks: it reports nearly every failure as a bare ``Exception`` (or ends the process),
the compiler and the verifier write to file descriptor 2, and it asks for headers of the running
kernel that may not be installed. Must not know which programs there are, nor what they are for.
"""

import contextlib
import ctypes
import importlib
import os
import signal
import socket
import struct
import sys
from collections.abc import Mapping
from importlib import resources
from typing import Any

from ebpf.bpf_syscall import TRACE_KPROBE_MULTI
from ebpf.errors import BpfUnavailableError
from ebpf.hooks import KPROBE_MULTI
from ebpf.kernel_types import KernelTypes
from ebpf.loader_protocol import ITERATOR, Failure, KernelParts, Loaded, Request

_PR_SET_PDEATHSIG = 1
_KINDS = {
    ITERATOR: "TRACING",
    "kprobe": "KPROBE",
    KPROBE_MULTI: "KPROBE",
    "raw_tracepoint": "RAW_TRACEPOINT",
    "tracepoint": "TRACEPOINT",
}
_ATTACH_TYPES = {KPROBE_MULTI: {"attach_type": TRACE_KPROBE_MULTI}}
"""For some kinds, how the library is asked to tell the kernel what the program is attached to.

Of an iterator it finds that by the name of the function, which begins with bpf_iter__.
"""
_INSTRUCTION = struct.Struct("<BBhi")
"""``struct bpf_insn``: code, registers, offset, immediate value."""
_CALL = 0x85
"""BPF_JMP | BPF_CALL; the immediate value is the number of a helper."""
_OF_THE_KERNEL = 2 << 4
"""BPF_PSEUDO_KFUNC_CALL as the source register: the immediate value is the number of a type."""
_FIRST_NUMBER = 0x7FFF0000
"""Stands for the first function of the kernel. No helper has such a number."""


def main(socket_fd: int, parent: int) -> None:
    """Answer requests until there are no more, and end this process."""
    # Once the parent has ended, the answer has no reader. This is no race: the check comes after.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)
    with socket.socket(fileno=socket_fd) as peer:
        while (request := Request.received(peer)) is not None:
            ctypes.set_errno(0)
            try:
                loaded = load(request)
            except (Exception, SystemExit) as err:
                loaded = Loaded(error=_failure(err))
            loaded.send(peer)
    # Skip the library's exit handlers: they would remove what the parent now owns.
    os._exit(0)


def load(request: Request) -> Loaded:
    """Compile the text and load each program as each kind of program requested."""
    bcc = load_bcc()
    _empty_stderr()
    source = resources.files("ebpf")
    os.environ["BCC_KERNEL_SOURCE"] = str(source)
    text = "".join(
        f'#line 1 "{name}"\n{source.joinpath(name).read_text()}\n' for name in request.files
    )
    flags, calls = _kernel_flags(request.kernel)
    cflags = [f"-I{source}", *request.flags, *flags]
    bpf = bcc.BPF(text=text.encode(), cflags=cflags)
    loaded = Loaded(bcc_version=str(bcc.__version__))
    for name in request.maps:
        loaded.maps[name] = int(bpf.get_table(name.encode()).map_fd)
    for program, kind in request.programs:
        # The library keeps one program per function, so it has to forget the previous one.
        bpf.funcs.pop(program.encode(), None)
        _empty_stderr()
        _put_kernel_calls(bcc.lib, bpf.module, program.encode(), calls)
        try:
            function = bpf.load_func(
                program.encode(), getattr(bcc.BPF, _KINDS[kind]), **_ATTACH_TYPES.get(kind, {})
            )
        except (Exception, SystemExit) as err:
            loaded.failures[program, kind] = _failure(err)
        else:
            loaded.programs[program, kind] = int(function.fd)
    return loaded


def _kernel_flags(needed: KernelParts) -> tuple[list[str], Mapping[int, int]]:
    """Find what a text needs of the kernel's types.

    Returns compiler flags, and the types of functions by the numbers that stand for them in the
    text. Raises BpfUnavailableError when the kernel lacks something.
    """
    if not needed.members and not needed.functions:
        return [], {}
    try:
        types = KernelTypes(module=needed.module)
        flags = [
            f"-D{each.macro}={types.offset_of(each.structure, each.path)}"
            for each in needed.members
        ]
        functions = dict(enumerate(needed.functions, _FIRST_NUMBER))
        flags += [f"-D{each.macro}={number}" for number, each in functions.items()]
        return flags, {number: types.function(each.name) for number, each in functions.items()}
    except LookupError as err:
        raise BpfUnavailableError(str(err.args[0])) from err


def _put_kernel_calls(
    lib: Any,  # noqa: ANN401 - bcc has no types
    module: object,
    program: bytes,
    calls: Mapping[int, int],
) -> None:
    """Make a compiled program's calls of numbers calls of these functions of the kernel.

    The library knows only calls of helpers.
    """
    size = int(lib.bpf_function_size(module, program)) if calls else 0
    begin = ctypes.cast(lib.bpf_function_start(module, program), ctypes.c_void_p).value or 0
    for at in range(begin, begin + size, _INSTRUCTION.size):
        place = (ctypes.c_char * _INSTRUCTION.size).from_address(at)
        code, _, offset, number = _INSTRUCTION.unpack(place.raw)
        if code == _CALL and number in calls:
            place.raw = _INSTRUCTION.pack(code, _OF_THE_KERNEL, offset, calls[number])


def load_bcc() -> Any:  # noqa: ANN401 - bcc has no types
    """Import the distribution's bcc. The Python index has an unrelated package of that name."""
    try:
        bcc = importlib.import_module("bcc")
    except ImportError as err:
        raise BpfUnavailableError(
            f"cannot import bcc ({err}): install the distribution's package python3-bpfcc"
        ) from err
    if not hasattr(bcc, "BPF"):
        raise BpfUnavailableError(
            f"{bcc.__file__} is not the BPF Compiler Collection: "
            "uninstall it and install the distribution's package python3-bpfcc"
        )
    return bcc


def _failure(err: BaseException) -> Failure:
    code = 0 if isinstance(err, BpfUnavailableError) else ctypes.get_errno()
    said = ""
    with contextlib.suppress(OSError):
        sys.stderr.flush()
        said = os.pread(2, 1 << 20, 0).decode(errors="replace")
    detail = _one_line(said) or _one_line(str(err)) or type(err).__name__
    return Failure(detail=detail, code=code)


def _empty_stderr() -> None:
    """Empty stderr, which is a file of the parent process.

    A security module may deny that, as SELinux does to container_t. Then nothing can be read from
    it either, and the library's own exceptions say less of what went wrong.
    """
    with contextlib.suppress(OSError):
        sys.stderr.flush()
        os.lseek(2, 0, os.SEEK_SET)
        os.ftruncate(2, 0)


def _one_line(text: str) -> str:
    """Return the most informative line of a tool's output: its first error, else its first line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower() and "modprobe" not in line]
    return (errors or lines or [""])[0][:300]
