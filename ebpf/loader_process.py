# SPDX-License-Identifier: Apache-2.0
"""EDGE: runs the loader (loader.py) as a process that answers requests until it is closed.

Owns how the process is started and what its end means. Must not know what is loaded. All texts of
a command are compiled by one process: a second one would read the compiler's files a second time,
and the kernel then counts them as used recently, as part of what the agent needs.
"""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Self

from ebpf.errors import BpfUnavailableError
from ebpf.loader_protocol import Loaded, Request

LOADING_S = 300.0
"""How long compiling and loading may take. It is far more than they need, even on an emulated
CPU."""
_MAIN = """
import sys
from importlib.machinery import PathFinder
class Tree:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return PathFinder.find_spec(name, [sys.argv[3]]) if name == "ebpf" else None
sys.meta_path.insert(0, Tree)
from ebpf.loader import main
main(int(sys.argv[1]), int(sys.argv[2]))
"""
"""The loader imports package ``ebpf`` from where this file is. Everything else, including bcc,
comes from the interpreter's installation and nothing from the environment, the working directory or
sys.path."""


class LoaderProcess:
    """The process. It begins with the first request. Use it as a context manager."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._peer: socket.socket | None = None
        self._words = -1
        """What the process writes to stdout and stderr, a file in memory."""
        self._failed: BpfUnavailableError | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def load(self, request: Request) -> Loaded:
        """Have the process answer a request.

        Raises BpfUnavailableError when it gives no answer, now or before.
        """
        if self._failed is not None:
            raise self._failed
        try:
            peer = self._peer or self._started()
            request.send(peer)
            return Loaded.received(peer)
        except (EOFError, ConnectionError) as err:  # the process has ended or is about to
            self._failed = BpfUnavailableError(self._why_ended())
            raise self._failed from err
        except (OSError, ValueError) as err:
            if self._process is not None:
                self._process.kill()
            detail = f"within {LOADING_S:g} s" if isinstance(err, TimeoutError) else str(err)
            self._failed = BpfUnavailableError(
                f"cannot prepare the BPF programs: no answer from the process that compiles "
                f"them: {detail}; restart hvprobe"
            )
            raise self._failed from err

    def close(self) -> None:
        """End the process, which has nothing left to do, and wait for its end."""
        if self._peer is not None:
            self._peer.close()
        if self._process is not None:
            self._process.wait()
            self._process = None
        if self._words >= 0:
            os.close(self._words)
            self._words = -1

    def _started(self) -> socket.socket:
        """Start the process; return the socket to it."""
        isolated = ("-I", "-B") if sys.dont_write_bytecode else ("-I",)
        tree = str(Path(__file__).parents[1])
        self._peer, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._peer.settimeout(LOADING_S)
        with its:
            self._words = os.memfd_create("bpf-loader-stderr", os.MFD_CLOEXEC)
            self._process = subprocess.Popen(
                [
                    *(sys.executable, *isolated, "-c", _MAIN),
                    *(str(its.fileno()), str(os.getpid()), tree),
                ],
                pass_fds=(its.fileno(),),
                # This process's directory may be deleted or writable by others, and the compiler
                # reads it.
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=self._words,
                stderr=self._words,
            )
        return self._peer

    def _why_ended(self) -> str:
        status = 0 if self._process is None else self._process.wait()
        if status == -signal.SIGKILL:
            how = "was killed: out of memory? The kernel's log says so; then raise the memory limit"
        elif status < 0:
            how = f"was ended by {signal.Signals(-status).name}"
        else:
            try:
                said = (
                    os.pread(self._words, 1 << 16, 0).decode(errors="replace").strip().splitlines()
                )
            except OSError as err:  # a security module denies it
                said = [f"its output cannot be read: {err.strerror}"]
            how = f"ended with status {status}: {said[-1][:300] if said else 'no output'}"
        return f"cannot prepare the BPF programs: the process that compiles them {how}"
