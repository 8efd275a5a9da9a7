# SPDX-License-Identifier: Apache-2.0
"""EDGE: one client's HTTP/1.1 connection: what may be asked, what is refused, how long it may take.

Must not know what is served (see ``routes``), nor how many connections there are (see ``server``).
Bytes and TLS are in ``wire``, certificates in ``tls_files``; the syntax of messages is h11's.
"""

import asyncio
import logging
import ssl
from dataclasses import dataclass, replace
from enum import Enum
from http import HTTPStatus
from typing import Self

import h11

from probes.serve.http.routes import Request, Response, Routes, message, plain_text, unavailable
from probes.serve.http.tls_files import Certificates, Credentials
from probes.serve.http.transport import PlainTransport

DESCRIPTORS_KEPT = 64
"""Descriptors that connections leave to the rest of the agent: files of /proc, the API server, TLS
files, and connections that have made room and are about to end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much a peer may take. Seconds, bytes, counts."""

    connections_max: int = 256
    """Connections served at once. The next one takes the place of the longest waiting one.

    An idle one costs 6 kB, under TLS 27 kB (measured, 500 of them)."""
    refusals_max: int = 16
    """Connections beyond ``connections_max``, when none of those waits, that are answered 503."""
    handshake_deadline_s: float = 10.0
    header_deadline_s: float = 10.0
    """From the opening of the connection, later from a request's first byte, to its head's end."""
    idle_deadline_s: float = 150.0
    """From a response to the next request. Above usual scrape intervals."""
    handler_deadline_s: float = 10.0
    """For a handler and compression; then 503. Prometheus gives a scrape 10 s by default."""
    write_deadline_s: float = 30.0
    write_grace_s: float = 1.0
    """A response that takes longer to write than this counts as waiting for a slow reader."""
    linger_deadline_s: float = 1.0
    """How long the end of the peer's stream is waited for after the last response."""
    stop_grace_s: float = 1.0
    """What requests in flight get when the server stops."""
    header_bytes_max: int = 16 * 1024
    """Longest request head, give or take one read of a socket."""

    def within(self, descriptors: int) -> Self:
        """The same, but for so many connections only as leave descriptors for the node's looks.

        descriptors: how many this process may still open. A small limit is shared half and half.
        """
        room = descriptors - min(DESCRIPTORS_KEPT, descriptors // 2)
        refusals = min(self.refusals_max, room // 8)
        connections = max(1, min(self.connections_max, room - refusals))
        return replace(self, connections_max=connections, refusals_max=refusals)


class Phase(Enum):
    """What a connection is at."""

    WAITING = "for the peer's next bytes"
    HANDLING = "a request"
    WRITING = "a response"


class Connection:
    """One client's connection, served by ``serve`` until either side ends it."""

    def __init__(
        self,
        *,
        wire: PlainTransport,
        routes: Routes,
        limits: Limits,
        certificates: Certificates | None,
        credentials: Credentials | None,
        refused: bool,
        log: logging.Logger,
    ) -> None:
        """credentials: those of ``wire``, None without TLS. refused: all it gets is 503."""
        self.phase = Phase.WAITING
        self.since_s = asyncio.get_running_loop().time()
        """When the phase began. Bytes that trickle in do not change it."""
        self.last = False
        """Whether the next response is to be the last."""
        self._refused = refused
        self._bodiless = False
        self._wire = wire
        self._routes = routes
        self._limits = limits
        self._certificates = certificates
        self._credentials = credentials
        self._log = log
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.header_bytes_max)

    async def serve(self) -> None:
        """Answer requests, one after the other, until the end. ``close`` is left to be called."""
        try:
            await self._open_and_exchange()
            self._wire.finish()
            async with asyncio.timeout(self._limits.linger_deadline_s):
                await self._wire.drain()
        except OSError as err:  # lost, against TLS' rules, or over a deadline (TimeoutError)
            self._log.debug("connection ended: %r", err)

    def finish(self) -> None:
        """Tell the peer that the connection ends here, if that can be said in this phase."""
        if self.phase is Phase.WAITING:
            self._wire.finish()

    def close(self) -> None:
        """Give the socket back. A response that is not through yet is dropped."""
        self._wire.close(abort=self.phase is Phase.WRITING)

    async def _open_and_exchange(self) -> None:
        try:
            async with asyncio.timeout(self._limits.handshake_deadline_s):
                await self._wire.open()
        except ssl.SSLError as err:
            self._log.debug("TLS handshake failed: %s", err)
            return
        wait_s = self._limits.header_deadline_s
        while await self._exchange(wait_s):
            self._http.start_next_cycle()
            wait_s = self._limits.idle_deadline_s

    async def _exchange(self, wait_s: float) -> bool:
        """One request and its answer. Whether the connection can carry another."""
        try:
            head = await self._read_head(wait_s)
        except h11.RemoteProtocolError as err:
            status = HTTPStatus(err.error_status_hint)
            await self._write(*message(plain_text(status, str(err))), last=True)
            return False
        if head is None or not self._still_admitted():
            return False
        self._bodiless = head.method == b"HEAD"
        answer = _refusal(head)
        if answer is None and self._refused:
            answer = unavailable("too many connections")
        if answer is not None:
            await self._write(*message(answer), last=True)
            return False
        self._http.next_event()  # the end of the request, which has no body
        self._enter(Phase.HANDLING)
        await self._write(*await self._routes.answer(self._request(head)), last=self.last)
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    async def _read_head(self, wait_s: float) -> h11.Request | None:
        """Read the next request; None when the peer ends, or sends nothing for ``wait_s``.

        Raises h11.RemoteProtocolError when it is not HTTP, too long, or not complete in time.
        """
        now_s = asyncio.get_running_loop().time
        begun = False
        try:
            async with asyncio.timeout(wait_s) as deadline:
                while True:
                    event = self._http.next_event()
                    if isinstance(event, h11.Request):
                        return event
                    if event is not h11.NEED_DATA:
                        return None
                    if not begun and self._http.trailing_data[0]:
                        begun = True
                        head_s = now_s() + self._limits.header_deadline_s
                        deadline.reschedule(min(deadline.when() or head_s, head_s))
                    self._http.receive_data(await self._wire.receive())
        except TimeoutError as err:
            if not begun:
                return None
            late = "the request head took too long"
            raise h11.RemoteProtocolError(late, HTTPStatus.REQUEST_TIMEOUT) from err

    def _still_admitted(self) -> bool:
        """Whether the TLS files still let this peer in; with renewed ones it shall come again."""
        if self._certificates is None or self._credentials is None:
            return True
        newest = self._certificates.current()
        if newest is not self._credentials:
            self.last = True
        return newest.client_ca == self._credentials.client_ca

    def _request(self, head: h11.Request) -> Request:
        guarded = self._credentials is not None and self._credentials.client_ca is not None
        return Request(
            path=_path(head.target) or "",
            accept=_header(head, b"accept"),
            accept_encoding=_header(head, b"accept-encoding"),
            admitted=not guarded or self._wire.certified,
        )

    async def _write(self, head: h11.Response, body: bytes, *, last: bool) -> None:
        """Send an answer. last: say in it that the connection ends.

        Raises TimeoutError when the peer does not take it in time.
        """
        self._enter(Phase.WRITING)
        if last:
            headers = [*head.headers, (b"Connection", b"close")]
            head = h11.Response(status_code=head.status_code, headers=headers)
        async with asyncio.timeout(self._limits.write_deadline_s):
            await self._wire.send(self._http.send(head) or b"")
            if not self._bodiless:
                # Not joined to the head: a slow reader shall not hold a copy of its own.
                self._http.send_with_data_passthrough(h11.Data(data=body))
                await self._wire.send(body)
        self._http.send(h11.EndOfMessage())
        self._enter(Phase.WAITING)

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self.since_s = asyncio.get_running_loop().time()


def _refusal(head: h11.Request) -> Response | None:
    """Answer a request that is not to be handled. This ends the connection."""
    if head.http_version not in (b"1.0", b"1.1"):
        return plain_text(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "HTTP/1.1 is spoken here")
    if head.method not in (b"GET", b"HEAD"):
        allow = ("Allow", "GET, HEAD")
        return plain_text(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD are allowed", allow)
    if _path(head.target) is None:
        return plain_text(HTTPStatus.BAD_REQUEST, "the request target is no path and no URL")
    for name, value in head.headers:
        if name == b"transfer-encoding" or (name == b"content-length" and int(value) > 0):
            return plain_text(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "a request may have no body")
    return None


def _path(target: bytes) -> str | None:
    """Path of a request target, without the query; None: it is of no form that GET may have.

    Those are the path and, through proxies, http://host/path (RFC 9112, 3.2.1 and 3.2.2).
    """
    text = target.decode("ascii")
    if not text.startswith("/"):
        scheme, separator, rest = text.partition("://")
        if not separator or scheme.lower() not in ("http", "https"):
            return None
        text = "/" + rest.partition("/")[2]
    return text.partition("?")[0]


def _header(head: h11.Request, name: bytes) -> str | None:
    """Find a header's value, its lines joined (RFC 9110, 5.3)."""
    lines = [value for each, value in head.headers if each == name]
    return b", ".join(lines).decode("latin-1") if lines else None
