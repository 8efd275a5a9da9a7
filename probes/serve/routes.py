# SPDX-License-Identifier: Apache-2.0
"""EDGE: turns a request into an answer by its route, and compresses the answer if the client can.

Must not know sockets, TLS or how messages are written (see ``http``), nor what a handler says: a
route is a path and an async function. A handler that fails or hangs does not harm the server.
"""

import asyncio
import gzip
import logging
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from http import HTTPStatus
from weakref import WeakKeyDictionary

from tornado.httputil import HTTPHeaders, ResponseStartLine

GZIP_LEVEL = 3
"""The level with the best ratio at almost no cost.

Measured on 57 kB of metrics (110 VMs): level 1 gives 5.4 kB in 0.07 ms, 3 gives 4.7 kB in 0.08 ms,
6 gives 4.5 kB in 0.20 ms, 9 gives 4.4 kB in 0.53 ms.
"""

_OPENMETRICS = "application/openmetrics-text"

GZIP_BYTES_MIN = 1024
"""The smallest body that is compressed. A smaller one fits into one packet anyway."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A GET or HEAD request, as far as a handler needs it."""

    path: str
    """The path as sent, not percent-decoded, without the query."""
    query: str = ""
    """What follows the question mark, as sent; empty: nothing. It decides neither the route nor
    who is admitted."""
    accept: str | None = None
    accept_encoding: str | None = None
    authorization: str | None = field(default=None, repr=False)
    agent_token: str | None = field(default=None, repr=False)
    """What the headers ``Authorization`` and ``X-Hvprobe-Token`` hold."""
    certified: bool = False
    """Whether the client has shown a certificate of a CA that admits clients."""
    certificate_wanted: bool = False
    """Whether there is such a CA."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, weakref_slot=True)
class Response:
    """An answer. Length, date, compression and connection headers are added when it is sent.

    A handler may return the same answer to many requests; its body is then compressed once.
    """

    status: HTTPStatus = HTTPStatus.OK
    content_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    """Further headers as (name, value)."""


Handler = Callable[[Request], Awaitable[Response]]
"""Answers one request. A HEAD request is answered like GET; its body is then not sent."""

Gate = Callable[[Request], Awaitable[Response | None]]
"""Decides by a request's token whether it is answered: the refusal, or None. Never raises."""

Message = tuple[ResponseStartLine, HTTPHeaders, bytes]
"""An answer as it is sent: status line, headers and body."""

BELOW = "/*"
"""End of a route for all paths below a folder: ``/vmi/*`` for ``/vmi/default/alpha``."""


def accepts_gzip(accept_encoding: str | None) -> bool:
    """Whether the client accepts gzip and does not prefer no encoding (RFC 9110, 12.5.3)."""
    weights = {name: weight for name, _, weight in _weighted(accept_encoding)}
    wanted = weights.get("gzip", weights.get("x-gzip", weights.get("*", 0.0)))
    return wanted > 0 and wanted >= weights.get("identity", 0.0)


def prefers_openmetrics(accept: str | None) -> bool:
    """Whether the client accepts OpenMetrics 1 and does not prefer the text format.

    prometheus_client's ``choose_encoder`` raises for a version that is no number, and ignores the
    weights.
    """
    weights: dict[str, float] = {}
    for name, version, weight in _weighted(accept):
        if name != _OPENMETRICS or version in ("", "1.0.0"):
            weights[name] = max(weight, weights.get(name, 0.0))
    wanted = weights.get(_OPENMETRICS, 0.0)
    return wanted > 0 and wanted >= weights.get("text/plain", 0.0)


def _weighted(header: str | None) -> Iterator[tuple[str, str, float]]:
    """Yield (value, version, weight) of each item of an Accept header (RFC 9110, 12.4.2).

    A missing version is empty and a missing weight 1; a weight that is no number is 0.
    """
    for item in (header or "").lower().split(","):
        name, *rest = (part.strip() for part in item.split(";"))
        pairs = (parameter.partition("=") for parameter in rest)
        parameters = {key.strip(): value for key, _, value in pairs}
        try:
            weight = float(parameters.get("q", "1"))
        except ValueError:
            weight = 0.0
        yield name, parameters.get("version", ""), weight


def plain_text(status: HTTPStatus, line: str, *headers: tuple[str, str]) -> Response:
    """Make a one-line answer."""
    return Response(
        status=status,
        content_type="text/plain; charset=utf-8",
        body=f"{line}\n".encode(),
        headers=(("X-Content-Type-Options", "nosniff"), *headers),
    )


def unavailable(line: str) -> Response:
    """Make a 503 answer: the same request may succeed a little later."""
    return plain_text(HTTPStatus.SERVICE_UNAVAILABLE, line, ("Retry-After", "1"))


class Routes:
    """The handlers by path, isolated so that none can harm the server."""

    def __init__(
        self,
        *,
        handlers: Mapping[str, Handler],
        open_to_all: Collection[str],
        deadline_s: float,
        log: logging.Logger,
        gate: Gate | None = None,
    ) -> None:
        """handlers are those of single paths, and of all paths below a folder (BELOW).

        open_to_all lists the paths that clients may request without being admitted. gate decides
        about clients without a certificate; None: tokens are not looked at.
        """
        self._handlers = handlers
        self._open_to_all = open_to_all
        self._deadline_s = deadline_s
        self._log = log
        self._gate = gate
        self._failures: dict[str, str] = {}
        self._compressed: WeakKeyDictionary[Response, bytes] = WeakKeyDictionary()
        """Compressed bodies, each kept as long as its answer exists."""

    async def answer(self, request: Request) -> Message:
        """Return head and body of the answer to a request.

        401, 403: the client is not admitted; 404: there is no such route; 500: the handler failed;
        503: it failed, or there is no decision about the client.
        """
        refusal = await self._refusal(request)
        if refusal is not None:
            return message(refusal)
        route = self._route(request.path)
        handler = self._handlers.get(route)
        if handler is None:
            return message(plain_text(HTTPStatus.NOT_FOUND, "not found"))
        # The handler runs in a task of its own, whose result is always retrieved and which can be
        # left behind if it does not even obey cancellation.
        task = asyncio.create_task(self._work(handler, request))
        try:
            await asyncio.wait({task}, timeout=self._deadline_s)
        finally:
            task.cancel()
        if not task.done() or task.cancelled():
            late = f"no answer within {self._deadline_s:g} s"
            line = late if not task.done() else "the response was abandoned"
            self._note(route, line, None)
            return message(unavailable(line))
        failure = task.exception()
        if failure is not None:
            self._note(route, repr(failure), failure)
            return message(plain_text(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error; see log"))
        self._failures.pop(route, None)
        return task.result()

    async def _refusal(self, request: Request) -> Response | None:
        """Return why the client is not admitted to a path; None: it is.

        A certificate admits to everything. Without one it depends on the token, if tokens count.
        """
        if request.path in self._open_to_all or request.certified:
            return None
        if self._gate is not None:
            return await self._gate(request)
        if request.certificate_wanted:
            return plain_text(HTTPStatus.FORBIDDEN, "a client certificate is required")
        return None

    def _route(self, path: str) -> str:
        """Return the route of a path: itself, or that of the folder it is below."""
        folder, slash, _ = path[1:].partition("/")
        return path if path in self._handlers or not slash else f"/{folder}{BELOW}"

    async def _work(self, handler: Handler, request: Request) -> Message:
        response = await handler(request)
        if len(response.body) < GZIP_BYTES_MIN:
            return message(response)
        headers = (*response.headers, ("Vary", "Accept-Encoding"))
        if not accepts_gzip(request.accept_encoding):
            return message(replace(response, headers=headers))
        body = self._compressed.get(response)
        if body is None:
            # Compress here, not in a thread: many requests share this cost.
            body = gzip.compress(response.body, GZIP_LEVEL, mtime=0)
            self._compressed[response] = body
        headers = (*headers, ("Content-Encoding", "gzip"))
        return message(replace(response, body=body, headers=headers))

    def _note(self, route: str, what: str, failure: BaseException | None) -> None:
        """Log a handler's failure once, until it changes or the handler answers again."""
        if self._failures.get(route) != what:
            self._failures[route] = what
            self._log.error("cannot answer %s: %s", route, what, exc_info=failure)


def message(response: Response) -> Message:
    """Convert a response to the form that is sent. Raises HTTPInputError for a wrong header."""
    headers = HTTPHeaders()
    for name, value in (
        ("Date", formatdate(usegmt=True)),
        ("Content-Type", response.content_type),
        ("Content-Length", str(len(response.body))),
        *response.headers,
    ):
        headers.add(name, value)
    line = ResponseStartLine("HTTP/1.1", response.status, response.status.phrase)
    return line, headers, response.body
