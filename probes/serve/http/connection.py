# SPDX-License-Identifier: Apache-2.0
"""EDGE: one client's connection: which requests are accepted, and how long each step may take.

Tornado reads and writes messages. Must not know how many connections there are (see ``server``).
"""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from tornado import httputil
from tornado.iostream import IOStream, SSLIOStream, StreamClosedError

from probes.serve.limits import Limits
from probes.serve.routes import (
    Message,
    Request,
    Response,
    Routes,
    message,
    plain_text,
    unavailable,
)
from probes.serve.tls_files import Certificates, Credentials
from probes.vmi.agent_token import AGENT_HEADER

READ_BYTES = 8 * 1024
"""The most bytes read from a socket at once."""

_NOT_HTTPS = b"HTTP/1.0 400 Bad Request\r\n\r\nthis port speaks HTTPS: use https://\n"
_LINGER_NONE = struct.pack("ii", 1, 0)  # struct linger {on, 0 s}: close() sends a reset


class Stream(IOStream):
    """A client's socket. Whatever the peer does to it ends it without a log line."""

    def _is_connreset(self, exc: BaseException) -> bool:
        return isinstance(exc, OSError)

    def finish(self) -> None:
        """Tell the peer that nothing more follows."""
        with contextlib.suppress(OSError):  # the peer may have gone already
            self.socket.shutdown(socket.SHUT_WR)

    def close(self, exc_info: Any = False) -> None:  # noqa: ANN401 - as declared by Tornado
        """Close the socket. What the peer has not read yet is dropped, not kept by the kernel."""
        if not self.closed():
            if self.writing():
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
            else:
                self.finish()
        super().close(exc_info)


class TlsStream(Stream, SSLIOStream):
    """A client's socket with TLS."""

    def finish(self) -> None:
        """Send close_notify, by which the peer can tell the end from a lost connection."""
        with contextlib.suppress(OSError, ValueError):  # ValueError: there is no session
            self.socket.unwrap()
        super().finish()

    def close(self, exc_info: Any = False) -> None:  # noqa: ANN401 - as declared by Tornado
        """Close the socket. A peer that speaks plain HTTP gets an answer first."""
        if getattr(exc_info, "reason", None) == "HTTP_REQUEST" and not self.closed():
            with contextlib.suppress(OSError):
                socket.socket.recv(self.socket, READ_BYTES)  # unread bytes would cause a reset
                socket.socket.send(self.socket, _NOT_HTTPS)
        super().close(exc_info)


def open_stream(sock: socket.socket, credentials: Credentials | None) -> Stream:
    """Make a client's stream. Raises OSError when the client has gone already."""
    sizes = {"max_buffer_size": 8 * READ_BYTES, "read_chunk_size": READ_BYTES}
    if credentials is None:
        return Stream(sock, **sizes)
    sock.setblocking(False)
    context = credentials.context
    secured = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
    return TlsStream(secured, ssl_options=context, **sizes)


class Connection(httputil.HTTPServerConnectionDelegate, httputil.HTTPMessageDelegate):
    """One client's connection, whose requests Tornado delivers one after another."""

    _http: httputil.HTTPConnection
    """What answers the request that Tornado reads."""

    def __init__(
        self,
        stream: Stream,
        *,
        routes: Routes,
        limits: Limits,
        certificates: Certificates | None,
        credentials: Credentials | None,
        refused: bool,
        ended: Callable[["Connection"], None],
    ) -> None:
        """credentials are those of the stream; None: no TLS. refused: all requests get 503."""
        self.stream = stream
        self.refused = refused
        self.last = False
        """Whether the next answer ends the connection."""
        self.busy = False
        """Whether it has a request that is not answered."""
        self.task: asyncio.Task[None] | None = None
        """What serves it, once there was a request."""
        self._routes = routes
        self._limits = limits
        self._certificates = certificates
        self._credentials = credentials
        self._ended = ended
        self._deadline: asyncio.TimerHandle | None = None
        self._begin(limits.header_deadline_s)

    def start_request(
        self, _: object, request_conn: httputil.HTTPConnection
    ) -> httputil.HTTPMessageDelegate:
        """Expect the next request."""
        self._http = request_conn
        return self

    def on_close(self, _: object) -> None:
        """End with the last request."""
        self.stream.close()
        self._begin(None)
        self._ended(self)

    async def headers_received(
        self,
        start_line: httputil.RequestStartLine | httputil.ResponseStartLine,
        headers: httputil.HTTPHeaders,
    ) -> None:
        """Answer a request. Raises HTTPInputError when it is malformed: Tornado answers 400."""
        assert isinstance(start_line, httputil.RequestStartLine)  # noqa: S101 - this is a server
        self.task = asyncio.current_task()
        try:
            await self._exchange(start_line, headers)
        except StreamClosedError:  # the peer has gone, or had to make room
            return
        except asyncio.CancelledError:  # the server stops
            self.stream.close()

    def finish(self) -> None:
        """End the answer, after Tornado has read the complete request."""
        self._http.finish()

    async def _exchange(
        self, line: httputil.RequestStartLine, headers: httputil.HTTPHeaders
    ) -> None:
        httputil.HTTPServerRequest(start_line=line, headers=headers)  # checks the host
        headers.pop("Expect", None)  # there is no body to continue with
        if not self._still_admitted():
            self.stream.close()
            return
        self._begin(None, busy=True)
        refusal = _refusal(line, headers)
        if refusal is None and self.refused:
            refusal = unavailable("too many connections")
        if refusal is not None:
            self.last = True
            await self._write(message(refusal), bodiless=line.method == "HEAD")
            self.stream.finish()
            self._begin(self._limits.linger_deadline_s)
            while await self.stream.read_bytes(READ_BYTES, partial=True):
                await asyncio.sleep(0)  # otherwise a fast peer would occupy the loop
        request = Request(
            path=_path(line.path) or "",
            query=line.path.partition("?")[2],
            accept=headers.get("Accept"),
            accept_encoding=headers.get("Accept-Encoding"),
            authorization=headers.get("Authorization"),
            agent_token=headers.get(AGENT_HEADER),
            certified=self._certified(),
            certificate_wanted=self._certificate_wanted,
        )
        answer = await self._routes.answer(request)
        await self._write(answer, bodiless=line.method == "HEAD")
        self._begin(self._limits.idle_deadline_s)
        if self.last:
            self.stream.close()

    async def _write(self, answer: Message, *, bodiless: bool) -> None:
        start_line, headers, body = answer
        if self.last:
            headers["Connection"] = "close"
        self._begin(self._limits.write_deadline_s, busy=True)
        self._http.write_headers(start_line, headers)
        if body and not bodiless:
            self._http.write(body)  # not joined to the head: slow readers hold no copy
        await self.stream.write(b"")  # done when all before it is

    def _still_admitted(self) -> bool:
        """Whether the TLS files still admit this peer.

        If they were renewed, the next answer ends the connection, so that the peer reconnects.
        """
        if self._certificates is None or self._credentials is None:
            return True
        newest = self._certificates.current()
        self.last = self.last or newest is not self._credentials
        return newest.client_ca == self._credentials.client_ca

    @property
    def _certificate_wanted(self) -> bool:
        """Whether clients are asked for a certificate."""
        return self._credentials is not None and self._credentials.client_ca is not None

    def _certified(self) -> bool:
        """Whether the client has shown a certificate, which the handshake has then verified."""
        if not self._certificate_wanted:
            return False
        secured = self.stream.socket
        return isinstance(secured, ssl.SSLSocket) and bool(secured.getpeercert(binary_form=True))

    def _begin(self, deadline_s: float | None, *, busy: bool = False) -> None:
        """Begin a step, at whose deadline the connection ends. Slow bytes do not change it."""
        loop = asyncio.get_running_loop()
        self.busy, self.since_s = busy, loop.time()
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = loop.call_later(deadline_s, self.stream.close) if deadline_s else None


def _refusal(line: httputil.RequestStartLine, headers: httputil.HTTPHeaders) -> Response | None:
    """Return the refusal of an invalid request, which ends the connection; None: it is valid.

    Raises HTTPInputError when the request is malformed.
    """
    if line.method not in ("GET", "HEAD"):
        text, allow = "only GET and HEAD are allowed", ("Allow", "GET, HEAD")
        return plain_text(HTTPStatus.METHOD_NOT_ALLOWED, text, allow)
    length = headers.get("Content-Length", "0")
    if _path(line.path) is None or not length.isdecimal():
        raise httputil.HTTPInputError("wrong form of request target or Content-Length")
    if int(length) > 0 or "Transfer-Encoding" in headers:
        return plain_text(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "requests must not have a body")
    return None


def _path(target: str) -> str | None:
    """Return the path of a request target without the query; None: GET may not have this form.

    The allowed forms are a path and, through proxies, http://host/path (RFC 9112, 3.2.1 and 3.2.2).
    """
    if not target.startswith("/"):
        scheme, separator, rest = target.partition("://")
        if not separator or scheme.lower() not in ("http", "https"):
            return None
        target = "/" + rest.partition("/")[2]
    return target.partition("?")[0] if target.isascii() else None
