# SPDX-License-Identifier: Apache-2.0
"""EDGE: the messages between hvprobe and its loader: a request, an answer with descriptors.

Owns the form of both messages on a SOCK_SEQPACKET socket. Must not know what is loaded.
"""

import json
import os
import socket
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, field
from typing import NamedTuple, Self

_MESSAGE_BYTES = 1 << 16
_DESCRIPTORS = 64

Loadable = tuple[str, str]
"""A function of the text, and the kind of program to load it as: hooks.Backend, or ITERATOR."""
ITERATOR = "iterator"
"""The kind of a program that the kernel runs for each element of something, when it is asked to."""


class Member(NamedTuple):
    """A member of a structure of the kernel, whose offset the text has to know."""

    macro: str
    """What the text calls the offset."""
    structure: str
    path: str
    """Name of the member, or of a member of a member (``a.b``)."""


class KernelFunction(NamedTuple):
    """A function of the kernel that the text calls."""

    macro: str
    """What the text calls the number that stands for the function until the program is loaded."""
    name: str


class KernelParts(NamedTuple):
    """What the text needs of the kernel's own types."""

    members: Sequence[Member] = ()
    functions: Sequence[KernelFunction] = ()
    module: str | None = None
    """The module that may have the structures of the members; else vmlinux has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to compile and load."""

    files: Sequence[str]
    """Files of package ``ebpf``, joined in this order."""
    flags: Sequence[str]
    """Compiler flags."""
    maps: Sequence[str]
    programs: Sequence[Loadable]
    kernel: KernelParts = field(default_factory=KernelParts)

    def send(self, peer: socket.socket) -> None:
        """Send the request. Raises OSError when the peer has gone."""
        peer.send(json.dumps(astuple(self)).encode())

    @classmethod
    def received(cls, peer: socket.socket) -> Self | None:
        """Wait for a request; None: the peer has none left.

        Raises OSError when reading fails, ValueError when the peer sent no request.
        """
        data = peer.recv(_MESSAGE_BYTES)
        if not data:
            return None
        files, flags, maps, programs, kernel = json.loads(data)
        members, functions, module = kernel
        return cls(
            files=files,
            flags=flags,
            maps=maps,
            programs=[(name, kind) for name, kind in programs],
            kernel=KernelParts(
                members=[Member(*each) for each in members],
                functions=[KernelFunction(*each) for each in functions],
                module=module,
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why something could not be loaded."""

    detail: str
    """The most informative line of compiler, verifier or library output."""
    code: int
    """The errno; 0: none was set."""


@dataclass(slots=True, kw_only=True)
class Loaded:
    """The answer to a request. Its owner owns the descriptors."""

    bcc_version: str = ""
    error: Failure | None = None
    """Why nothing could be loaded; None: the text was compiled."""
    maps: dict[str, int] = field(default_factory=dict)
    programs: dict[Loadable, int] = field(default_factory=dict)
    failures: dict[Loadable, Failure] = field(default_factory=dict)

    def send(self, peer: socket.socket) -> None:
        """Send the answer with copies of its descriptors. Raises OSError when the peer has gone."""
        head = {
            "bcc_version": self.bcc_version,
            "error": asdict(self.error) if self.error else None,
            "maps": [*self.maps],
            "programs": [*self.programs],
            "failures": [[*key, asdict(failure)] for key, failure in self.failures.items()],
        }
        descriptors = [*self.maps.values(), *self.programs.values()]
        socket.send_fds(peer, [json.dumps(head).encode()], descriptors)

    @classmethod
    def received(cls, peer: socket.socket) -> Self:
        """Wait for an answer.

        Raises OSError when reading fails or times out, EOFError when the peer ended without an
        answer.
        """
        # The flag makes the descriptors close-on-exec from the start (recv_fds passes it to
        # recvmsg).
        data, descriptors, flags, _ = socket.recv_fds(
            peer, _MESSAGE_BYTES, _DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
        )
        if not data:
            raise EOFError
        head = json.loads(data)
        maps, programs = head["maps"], [tuple(program) for program in head["programs"]]
        if flags & socket.MSG_CTRUNC or len(descriptors) != len(maps) + len(programs):
            for fd in descriptors:
                os.close(fd)
            raise OSError(f"{len(descriptors)} descriptors came, {len(maps) + len(programs)} sent")
        return cls(
            bcc_version=head["bcc_version"],
            error=Failure(**head["error"]) if head["error"] else None,
            maps=dict(zip(maps, descriptors, strict=False)),
            programs=dict(zip(programs, descriptors[len(maps) :], strict=True)),
            failures={(name, kind): Failure(**failure) for name, kind, failure in head["failures"]},
        )

    def close(self) -> None:
        """Close all descriptors. May be called again."""
        for fd in [*self.maps.values(), *self.programs.values()]:
            os.close(fd)
        self.maps.clear()
        self.programs.clear()
