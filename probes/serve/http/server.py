# SPDX-License-Identifier: Apache-2.0
"""EDGE: runs the HTTP server: its listening sockets, and which clients get a connection.

Tornado speaks HTTP and TLS on a connection (see ``connection``). Must not know what is served.

Every way in which a peer can hold a connection has a deadline. When connections run out, the one
that has waited longest makes room for the new one, so peers that idle, or that read or write
slowly, do not prevent a scrape.
"""

import asyncio
import logging
import os
import resource
import socket
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

from tornado.http1connection import HTTP1ConnectionParameters, HTTP1ServerConnection

from probes.serve.http.connection import READ_BYTES, Connection, open_stream
from probes.serve.limits import Limits
from probes.serve.listen import Listen, TlsFiles, TlsState
from probes.serve.listeners import open_listeners
from probes.serve.routes import Gate, Handler, Routes
from probes.serve.tls_files import Certificates

ACCEPT_PAUSE_S = 0.1
"""Pause after accept() has failed for lack of descriptors or memory."""

REPORT_PAUSE_S = 60.0
"""Time without a failed accept() after which the next one is logged again."""


class Server:
    """One HTTP or HTTPS server. It runs entirely on the event loop on which it is started."""

    def __init__(
        self, *, listen: Listen, tls: TlsFiles | None, limits: Limits, log: logging.Logger
    ) -> None:
        self._listen = listen
        self._tls = tls
        self._limits = limits
        self._log = log
        self._certificates: Certificates | None = None
        self._listeners: list[socket.socket] = []
        self._connections: set[Connection] = set()
        self._full = False
        self._failed_s = float("-inf")

    async def start(
        self,
        routes: Mapping[str, Handler],
        *,
        open_to_all: Collection[str] = (),
        gate: Gate | None = None,
    ) -> None:
        """Listen and serve.

        open_to_all lists the paths that need neither client certificate nor token even if others
        do. gate decides by the token; None: tokens are not looked at. Raises BindError when the
        address cannot be used, TlsFilesError when the files cannot.
        """
        # Tornado logs there what peers do wrong. Its errors, and exceptions, stay visible.
        logging.getLogger("tornado.general").setLevel(logging.ERROR)
        if self._tls is not None:
            self._certificates = Certificates(self._tls, log=self._log)
        self._listeners = open_listeners(self._listen)
        limits = self._limits.within(_descriptors_left())
        if limits != self._limits:
            self._log.warning(
                "the limit of open files (RLIMIT_NOFILE) leaves room for %d connections at once "
                "instead of %d; raise it if scrapes are refused",
                limits.connections_max,
                self._limits.connections_max,
            )
        self._limits = limits
        deadline_s = limits.handler_deadline_s
        self._routes = Routes(
            handlers=routes,
            open_to_all=open_to_all,
            deadline_s=deadline_s,
            log=self._log,
            gate=gate,
        )
        self._parameters = HTTP1ConnectionParameters(
            chunk_size=READ_BYTES, max_header_size=limits.header_bytes_max
        )
        for listener in self._listeners:
            self._watch(listener)

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """(host, port) of each listening socket, with the actual port if 0 was requested."""
        return [listener.getsockname()[:2] for listener in self._listeners]

    @property
    def tls_state(self) -> TlsState:
        """The state of the TLS files in use. The server must have been started with TLS."""
        assert self._certificates is not None  # noqa: S101 - started with TLS
        return self._certificates.state

    async def stop(self) -> None:
        """Accept no more connections, give requests in flight the grace time, then close all."""
        loop = asyncio.get_running_loop()
        while self._listeners:
            loop.remove_reader(self._listeners[-1])
            self._listeners.pop().close()
        for connection in self._connections:
            connection.last = True
            if not connection.busy:
                connection.stream.close()
        late_s = loop.time() + self._limits.stop_grace_s
        while self._connections and loop.time() < late_s:
            await asyncio.sleep(0.01)
        late = [connection.task for connection in self._connections if connection.task]
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    def _watch(self, listener: socket.socket) -> None:
        if listener.fileno() >= 0:  # the server has not stopped in a pause
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        """Accept one connection, so that a flood of them evicts none whose request is there."""
        loop = asyncio.get_running_loop()
        try:
            sock, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):  # the peer has already given up
            return
        except OSError as err:
            if loop.time() - self._failed_s > REPORT_PAUSE_S:
                self._log.error("cannot accept connections: %s", os.strerror(err.errno or 0))
            self._failed_s = loop.time()
            self._make_room(refused=False)  # frees a descriptor
            loop.remove_reader(listener)  # which stays readable
            loop.call_later(ACCEPT_PAUSE_S, self._watch, listener)
            return
        try:
            self._admit(sock)
        except OSError:  # the peer has given up since
            sock.close()

    def _admit(self, sock: socket.socket) -> None:
        """Serve a new connection, if necessary in place of another one, or refuse it."""
        served = sum(not connection.refused for connection in self._connections)
        full = served >= self._limits.connections_max
        if full and not self._full:
            text = "%d connections: from now on the longest idle one is closed for a new one"
            self._log.warning(text, served)
        self._full = full
        refused = full and not self._make_room(refused=False)
        refusals = len(self._connections) - served
        if refused and refusals >= self._limits.refusals_max and not self._make_room(refused=True):
            sock.close()
            return
        credentials = self._certificates.current() if self._certificates else None
        connection = Connection(
            open_stream(sock, credentials),
            routes=self._routes,
            limits=self._limits,
            certificates=self._certificates,
            credentials=credentials,
            refused=refused,
            ended=self._forget,
        )
        self._connections.add(connection)
        HTTP1ServerConnection(connection.stream, self._parameters).start_serving(connection)

    def _forget(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._log.debug("connection ended: %r", connection.stream.error)

    def _make_room(self, *, refused: bool) -> bool:
        """Close the connection that has waited longest for its peer. Returns False if none waits.

        Slow readers go first. Otherwise slow readers could hold all places but one, and new
        connections would only evict each other.
        """
        slow_s = asyncio.get_running_loop().time() - self._limits.write_grace_s
        waiting = []
        for connection in self._connections:
            slow = connection.stream.writing() and connection.since_s <= slow_s
            if connection.refused is refused and (slow or not connection.busy):
                rank = 0 if connection.stream.closed() else 1 if slow else 2
                waiting.append((rank, connection.since_s, connection))
        if waiting:
            *_, longest = min(waiting, key=lambda entry: entry[:2])
            self._connections.remove(longest)
            longest.stream.close()
        return bool(waiting)


def _descriptors_left() -> int:
    """Return how many descriptors this process may still open."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:
        most = sys.maxsize
    return max(0, most - len([*Path("/proc/self/fd").iterdir()]))
