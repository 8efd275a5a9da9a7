# SPDX-License-Identifier: Apache-2.0
"""What goes between hvprobe and its loader: one request, one answer with descriptors. EDGE.

Owns the form of both messages on a SOCK_SEQPACKET socket. Must not know what is loaded.
"""

import json
import os
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Self

_MESSAGE_BYTES = 1 << 16
_DESCRIPTORS = 64

Loadable = tuple[str, str]
"""A function of the text and the kind of program (hooks.Backend) to load it as."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to compile and load."""

    files: Sequence[str]
    """Files of package ebpf, joined in this order."""
    flags: Sequence[str]
    """Of the compiler."""
    maps: Sequence[str]
    programs: Sequence[Loadable]

    def send(self, peer: socket.socket) -> None:
        """Send it; OSError."""
        peer.send(
            json.dumps([[*self.files], [*self.flags], [*self.maps], [*self.programs]]).encode()
        )

    @classmethod
    def received(cls, peer: socket.socket) -> Self:
        """Wait for it; OSError, or ValueError when there is none."""
        files, flags, maps, programs = json.loads(peer.recv(_MESSAGE_BYTES))
        return cls(
            files=files, flags=flags, maps=maps, programs=[(name, kind) for name, kind in programs]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why something could not be loaded."""

    detail: str
    """What says most of the compiler's, the verifier's or the library's words: one short line."""
    code: int
    """errno; 0: none was set."""


@dataclass(slots=True, kw_only=True)
class Loaded:
    """What came of a request. The descriptors belong to whoever holds this object."""

    bcc_version: str = ""
    error: Failure | None = None
    """Why there is nothing at all."""
    maps: dict[str, int] = field(default_factory=dict)
    programs: dict[Loadable, int] = field(default_factory=dict)
    failures: dict[Loadable, Failure] = field(default_factory=dict)

    def send(self, peer: socket.socket) -> None:
        """Send it with copies of its descriptors; OSError."""
        head = {
            "bcc_version": self.bcc_version,
            "error": asdict(self.error) if self.error else None,
            "maps": [*self.maps],
            "programs": [*self.programs],
            "failures": [[*key, asdict(it)] for key, it in self.failures.items()],
        }
        descriptors = [*self.maps.values(), *self.programs.values()]
        socket.send_fds(peer, [json.dumps(head).encode()], descriptors)

    @classmethod
    def received(cls, peer: socket.socket) -> Self:
        """Wait for it; OSError (timeouts, too), or EOFError when the peer has ended without."""
        # Closed at exec from the first moment (recv_fds passes the flag to recvmsg).
        data, descriptors, flags, _ = socket.recv_fds(
            peer, _MESSAGE_BYTES, _DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
        )
        if not data:
            raise EOFError
        head = json.loads(data)
        maps, programs = head["maps"], [tuple(it) for it in head["programs"]]
        if flags & socket.MSG_CTRUNC or len(descriptors) != len(maps) + len(programs):
            for fd in descriptors:
                os.close(fd)
            raise OSError(f"{len(descriptors)} descriptors came, {len(maps) + len(programs)} sent")
        return cls(
            bcc_version=head["bcc_version"],
            error=Failure(**head["error"]) if head["error"] else None,
            maps=dict(zip(maps, descriptors, strict=False)),
            programs=dict(zip(programs, descriptors[len(maps) :], strict=True)),
            failures={(name, kind): Failure(**it) for name, kind, it in head["failures"]},
        )

    def close(self) -> None:
        """Close all descriptors. May be called again."""
        for fd in [*self.maps.values(), *self.programs.values()]:
            os.close(fd)
        self.maps.clear()
        self.programs.clear()
