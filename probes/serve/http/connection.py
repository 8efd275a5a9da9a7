# SPDX-License-Identifier: Apache-2.0
"""EDGE: serves one client's HTTP/1.1 connection.

Owns which requests are accepted, what is refused, and how long each step may take. Must not know
what is served (see ``routes``), nor how many connections there are (see ``server``). Bytes and TLS
are in ``transport``, certificates in ``tls_files``; h11 parses messages.
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
files, and connections that are about to be closed to make room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits for a peer, in seconds, bytes and counts."""

    connections_max: int = 256
    """Connections that are served at once. The next one replaces the longest waiting one.

    An idle connection costs 6 kB, with TLS 27 kB (measured with 500 of them).
    """
    refusals_max: int = 16
    """Connections beyond ``connections_max`` that are answered 503 if no connection waits."""
    handshake_deadline_s: float = 10.0
    header_deadline_s: float = 10.0
    """Time for a request's head, from the opening of the connection or the request's first byte."""
    idle_deadline_s: float = 150.0
    """Time from a response to the next request. It exceeds usual scrape intervals."""
    handler_deadline_s: float = 10.0
    """Time for a handler and compression; then the answer is 503.

    Prometheus gives a scrape 10 s by default.
    """
    write_deadline_s: float = 30.0
    write_grace_s: float = 1.0
    """A connection whose response takes longer than this counts as waiting for a slow reader."""
    linger_deadline_s: float = 1.0
    """How long to wait for the end of the peer's stream after the last response."""
    stop_grace_s: float = 1.0
    """How long requests in flight may take when the server stops."""
    header_bytes_max: int = 16 * 1024
    """The longest request head, plus at most one read of a socket."""

    def within(self, descriptors: int) -> Self:
        """Reduce the limits so that enough descriptors are left for refreshes of the node.

        descriptors is how many this process may still open. A small number is shared in equal
        halves.
        """
        room = descriptors - min(DESCRIPTORS_KEPT, descriptors // 2)
        refusals = min(self.refusals_max, room // 8)
        connections = max(1, min(self.connections_max, room - refusals))
        return replace(self, connections_max=connections, refusals_max=refusals)


class Phase(Enum):
    """What a connection is waiting for or doing."""

    WAITING = "for the peer's next bytes"
    HANDLING = "a request"
    WRITING = "a response"


class Connection:
    """One client's connection, which ``serve`` handles until either side ends it."""

    def __init__(
        self,
        *,
        transport: PlainTransport,
        routes: Routes,
        limits: Limits,
        certificates: Certificates | None,
        credentials: Credentials | None,
        refused: bool,
        log: logging.Logger,
    ) -> None:
        """credentials are those of the transport; None: no TLS.

        refused means that every request is answered 503.
        """
        self.phase = Phase.WAITING
        self.since_s = asyncio.get_running_loop().time()
        """When the phase began. Bytes that arrive slowly do not change it."""
        self.last = False
        """Whether the next response is the last one."""
        self._refused = refused
        self._bodiless = False
        self._transport = transport
        self._routes = routes
        self._limits = limits
        self._certificates = certificates
        self._credentials = credentials
        self._log = log
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.header_bytes_max)

    async def serve(self) -> None:
        """Answer requests one after another until the end. The caller then calls ``close``."""
        try:
            await self._open_and_exchange()
            self._transport.finish()
            async with asyncio.timeout(self._limits.linger_deadline_s):
                await self._transport.drain()
        except OSError as err:  # lost, in violation of TLS, or over a deadline (TimeoutError)
            self._log.debug("connection ended: %r", err)

    def finish(self) -> None:
        """Tell the peer that the connection ends here, if this phase allows it."""
        if self.phase is Phase.WAITING:
            self._transport.finish()

    def close(self) -> None:
        """Close the socket. A response that is still being sent is dropped."""
        self._transport.close(abort=self.phase is Phase.WRITING)

    async def _open_and_exchange(self) -> None:
        try:
            async with asyncio.timeout(self._limits.handshake_deadline_s):
                await self._transport.open()
        except ssl.SSLError as err:
            self._log.debug("TLS handshake failed: %s", err)
            return
        wait_s = self._limits.header_deadline_s
        while await self._exchange(wait_s):
            self._http.start_next_cycle()
            wait_s = self._limits.idle_deadline_s

    async def _exchange(self, wait_s: float) -> bool:
        """Handle one request. Returns whether the connection can carry another."""
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
        """Read the next request; None: the peer ends, or sends nothing for ``wait_s``.

        Raises h11.RemoteProtocolError when the request is not HTTP, too long, or not complete in
        time.
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
                    self._http.receive_data(await self._transport.receive())
        except TimeoutError as err:
            if not begun:
                return None
            late = "the request head took too long"
            raise h11.RemoteProtocolError(late, HTTPStatus.REQUEST_TIMEOUT) from err

    def _still_admitted(self) -> bool:
        """Whether the TLS files still admit this peer.

        If they were renewed, the next answer ends the connection, so that the peer reconnects.
        """
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
            query=head.target.decode("ascii").partition("?")[2],
            accept=_header(head, b"accept"),
            accept_encoding=_header(head, b"accept-encoding"),
            admitted=not guarded or self._transport.certified,
        )

    async def _write(self, head: h11.Response, body: bytes, *, last: bool) -> None:
        """Send an answer. last says in it that the connection ends.

        Raises TimeoutError when the peer does not read it in time.
        """
        self._enter(Phase.WRITING)
        if last:
            headers = [*head.headers, (b"Connection", b"close")]
            head = h11.Response(status_code=head.status_code, headers=headers)
        async with asyncio.timeout(self._limits.write_deadline_s):
            await self._transport.send(self._http.send(head) or b"")
            if not self._bodiless:
                # Not joined to the head, so that a slow reader does not hold a separate copy.
                self._http.send_with_data_passthrough(h11.Data(data=body))
                await self._transport.send(body)
        self._http.send(h11.EndOfMessage())
        self._enter(Phase.WAITING)

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self.since_s = asyncio.get_running_loop().time()


def _refusal(head: h11.Request) -> Response | None:
    """Return the refusal of an invalid request, which ends the connection; None: it is valid."""
    if head.http_version not in (b"1.0", b"1.1"):
        return plain_text(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "this server speaks HTTP/1.1")
    if head.method not in (b"GET", b"HEAD"):
        allow = ("Allow", "GET, HEAD")
        return plain_text(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD are allowed", allow)
    if _path(head.target) is None:
        return plain_text(HTTPStatus.BAD_REQUEST, "the request target is neither a path nor a URL")
    for name, value in head.headers:
        if name == b"transfer-encoding" or (name == b"content-length" and int(value) > 0):
            return plain_text(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "requests must not have a body")
    return None


def _path(target: bytes) -> str | None:
    """Return the path of a request target without the query; None: GET may not have this form.

    The allowed forms are a path and, through proxies, http://host/path (RFC 9112, 3.2.1 and 3.2.2).
    """
    text = target.decode("ascii")
    if not text.startswith("/"):
        scheme, separator, rest = text.partition("://")
        if not separator or scheme.lower() not in ("http", "https"):
            return None
        text = "/" + rest.partition("/")[2]
    return text.partition("?")[0]


def _header(head: h11.Request, name: bytes) -> str | None:
    """Return a header's value, its lines joined (RFC 9110, 5.3); None: the header is absent."""
    lines = [value for field, value in head.headers if field == name]
    return b", ".join(lines).decode("latin-1") if lines else None
