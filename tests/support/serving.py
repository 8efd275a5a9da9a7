# SPDX-License-Identifier: Apache-2.0
"""A real server, whose event loop has its own thread, and raw clients that talk to it."""

import asyncio
import logging
import resource
import select
import socket
import ssl
import threading
from collections.abc import Collection, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from probes.serve import routes as serve_routes
from probes.serve.http.server import Server
from probes.serve.limits import Limits
from probes.serve.listen import TlsFiles, parse_listen
from probes.serve.routes import Handler, Request, Response

DEADLINE_S = 20.0
"""The test fails if a condition does not come true within this time."""

LOG = logging.getLogger("test.server")

TEXT = "text/plain; charset=utf-8"


def text(body: bytes | str) -> Handler:
    """Make a handler that always answers with this body."""

    async def handler(request: Request) -> Response:
        return Response(content_type=TEXT, body=body if isinstance(body, bytes) else body.encode())

    return handler


class Gate:
    """A handler that answers no request until it is opened."""

    def __init__(self) -> None:
        self._opened = threading.Event()
        self._entered = threading.Semaphore(0)

    async def handler(self, request: Request) -> Response:
        self._entered.release()
        while not self._opened.is_set():
            await asyncio.sleep(0.005)
        return Response(content_type=TEXT, body=b"through the gate")

    def wait_entered(self, count: int) -> None:
        for _ in range(count):
            assert self._entered.acquire(timeout=DEADLINE_S)

    def open(self) -> None:
        self._opened.set()


class Serving:
    """A started server. It and its thread end with the block."""

    def __init__(
        self,
        routes: Mapping[str, Handler],
        *,
        listen: str = "127.0.0.1:0",
        tls: TlsFiles | None = None,
        limits: Limits | None = None,
        open_to_all: Collection[str] = (),
        gate: serve_routes.Gate | None = None,
    ) -> None:
        """gate runs on the server's event loop."""
        self.server = Server(
            listen=parse_listen(listen),
            tls=tls,
            limits=limits or Limits(),
            log=LOG,
        )
        self._routes = routes
        self._open_to_all = open_to_all
        self._gate = gate
        self._runner = asyncio.Runner()
        self._loop = self._runner.get_loop()
        self._over = asyncio.Event()
        self._thread = threading.Thread(target=lambda: self._runner.run(self._until_over()))

    async def _start(self) -> None:
        await self.server.start(self._routes, open_to_all=self._open_to_all, gate=self._gate)

    async def _until_over(self) -> None:
        await self._over.wait()

    def call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(DEADLINE_S)

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self.call(self._start())
        except BaseException:
            self._end_loop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        err: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.call(self.server.stop())
        self._end_loop()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(DEADLINE_S)
        self._runner.close()

    @property
    def port(self) -> int:
        return self.server.addresses[0][1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The server's answer to one request."""

    status: int
    headers: dict[str, str]
    """Values by name in lower case. Lines with the same name are joined by commas."""
    body: bytes


class Peer:
    """A client that sends exactly the given bytes."""

    def __init__(
        self,
        port: int,
        *,
        host: str = "127.0.0.1",
        tls: ssl.SSLContext | None = None,
        name: str | None = None,
        receive_buffer: int | None = None,
    ) -> None:
        """name is what the server's certificate has to be for; None: the host."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(DEADLINE_S)
        try:
            sock.connect((host, port))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.sock = sock
            if tls is not None:
                # Ragged ends are not suppressed: an end without close_notify is an error.
                self.sock = tls.wrap_socket(
                    sock, server_hostname=name or host, suppress_ragged_eofs=False
                )
        except OSError:
            sock.close()
            raise
        self._read = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        err: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def get(self, path: str, *lines: str, method: str = "GET") -> None:
        head = "\r\n".join((f"{method} {path} HTTP/1.1", "Host: test", *lines))
        self.send(head.encode() + b"\r\n\r\n")

    def answer(self, *, bodiless: bool = False) -> Answer:
        """Read exactly one response."""
        while b"\r\n\r\n" not in self._read:
            self._more()
        head, _, self._read = self._read.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(":")
            name = name.lower()
            headers[name] = (
                f"{headers[name]}, {value.strip()}" if name in headers else value.strip()
            )
        length = 0 if bodiless else int(headers["content-length"])
        while len(self._read) < length:
            self._more()
        body, self._read = self._read[:length], self._read[length:]
        return Answer(status=int(first.split()[1]), headers=headers, body=body)

    def last(self) -> bytes:
        """Read all that the server sends until it ends the connection."""
        return self._read + b"".join(iter(lambda: self.sock.recv(65536), b""))

    def ended(self) -> bool:
        """Whether the server ends the connection in order and in time, and sends nothing before."""
        return not self._read and self.sock.recv(1) == b""

    def cut(self) -> bool:
        """Whether the server resets the connection within the deadline while nothing is read."""
        poll = select.poll()
        poll.register(self.sock, 0)
        return bool(poll.poll(DEADLINE_S * 1000))

    def _more(self) -> None:
        data = self.sock.recv(65536)
        if not data:
            raise ConnectionError(f"ended after {self._read!r}")
        self._read += data


@contextmanager
def descriptors(wanted: int) -> Iterator[None]:
    """Let this process open ``wanted`` files during the block, as far as the hard limit permits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    ceiling = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (ceiling, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
