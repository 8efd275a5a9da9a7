# SPDX-License-Identifier: Apache-2.0
"""EDGE: the only importer of bcc. A short-lived process that compiles, loads, hands over and ends.

The compiler (LLVM) takes more memory than all the rest of hvprobe and is needed once. So it runs
here: this process gets one request by its socket, answers with one message that carries the
descriptors of all maps and programs (SCM_RIGHTS), and ends. From then on they live with whoever
received them, and end with it.

Owns the library's manners: it reports nearly every failure as a bare ``Exception`` (or ends the
process), the compiler's and verifier's words go to file descriptor 2, and headers of the running
kernel are wanted that need not be there. Must not know which programs there are, nor what for.
"""

import ctypes
import importlib
import os
import signal
import socket
import sys
from importlib import resources
from typing import Any

from ebpf.errors import BpfUnavailableError
from ebpf.loader_protocol import Failure, Loaded, Request

_PR_SET_PDEATHSIG = 1
_KINDS = {"kprobe": "KPROBE", "raw_tracepoint": "RAW_TRACEPOINT", "tracepoint": "TRACEPOINT"}


def main(socket_fd: int, parent: int) -> None:
    """Answer the one request; ends this process."""
    # Whoever asked has ended: nobody wants the answer. Not a race: the check comes after.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)
    with socket.socket(fileno=socket_fd) as peer:
        request = Request.received(peer)
        try:
            loaded = load(request)
        except (Exception, SystemExit) as err:
            loaded = Loaded(error=_failure(err))
        loaded.send(peer)
    # Without the library's own farewell: what is loaded is no longer ours to remove.
    os._exit(0)


def load(request: Request) -> Loaded:
    """Compile the text and load each program as each kind wanted."""
    bcc = load_bcc()
    source = resources.files("ebpf")
    os.environ["BCC_KERNEL_SOURCE"] = str(source)
    text = "".join(
        f'#line 1 "{name}"\n{source.joinpath(name).read_text()}\n' for name in request.files
    )
    bpf = bcc.BPF(text=text.encode(), cflags=[f"-I{source}", *request.flags])
    loaded = Loaded(bcc_version=str(bcc.__version__))
    for name in request.maps:
        loaded.maps[name] = int(bpf.get_table(name.encode()).map_fd)
    for program, kind in request.programs:
        # The library keeps one program a function: it must not know of the one before.
        bpf.funcs.pop(program.encode(), None)
        _forget_said()
        try:
            function = bpf.load_func(program.encode(), getattr(bcc.BPF, _KINDS[kind]))
        except (Exception, SystemExit) as err:
            loaded.failures[program, kind] = _failure(err)
        else:
            loaded.programs[program, kind] = int(function.fd)
    return loaded


def load_bcc() -> Any:  # noqa: ANN401 - bcc has no types
    """The distribution's bcc. The package of that name on the Python index is another thing."""
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
    sys.stderr.flush()
    said = os.pread(2, 1 << 20, 0).decode(errors="replace")
    detail = _one_line(said) or _one_line(str(err)) or type(err).__name__
    return Failure(detail=detail, code=code)


def _forget_said() -> None:
    """Truncate stderr, which is a file of the parent process."""
    sys.stderr.flush()
    os.lseek(2, 0, os.SEEK_SET)
    os.ftruncate(2, 0)


def _one_line(text: str) -> str:
    """The line of a tool's output that says most: its first error, else its first line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower() and "modprobe" not in line]
    return (errors or lines or [""])[0][:300]
