# SPDX-License-Identifier: Apache-2.0
"""EDGE: runs the HTTP server: its listening sockets, and which clients get a connection.

Must not know what is served. One connection is handled in ``connection``, a request is answered in
``routes``, bytes and TLS are in ``transport``, TLS files in ``tls_files``.

A connection costs a socket and a small task, not a thread. Every way in which a peer can hold a
connection has a deadline. When connections run out, the one that has waited longest makes room for
the new one, so peers that idle, or that read or write slowly, do not prevent a scrape.
"""

import asyncio
import errno
import logging
import os
import resource
import select
import socket
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

from probes.serve.http.connection import Connection, Limits, Phase
from probes.serve.http.listen import Listen, TlsFiles, TlsState
from probes.serve.http.routes import Handler, Routes
from probes.serve.http.tls_files import Certificates
from probes.serve.http.transport import PlainTransport, TlsTransport

BACKLOG = 1024
"""Connections that the kernel queues until they are accepted; it caps this at
net.core.somaxconn."""

SEND_BUFFER_BYTES = 128 * 1024
"""Send buffer per connection. Otherwise the kernel grows it to megabytes for a reader that
stalls."""

ACCEPT_PAUSE_S = 0.1
"""Pause after accept() has failed for lack of descriptors or memory."""

_EVERY_ADDRESS = ("::", "0.0.0.0")  # noqa: S104 - asked for; "::" takes IPv4 too, if it exists
_NO_SUCH_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


class BindError(Exception):
    """The server cannot listen on the address.

    The message is one line: what, which address, why, what to do.
    """


class Server:
    """One HTTP or HTTPS server. It runs entirely on the event loop on which it is started."""

    def __init__(
        self,
        *,
        listen: Listen,
        tls: TlsFiles | None,
        limits: Limits,
        log: logging.Logger,
    ) -> None:
        self._listen = listen
        self._tls = tls
        self._limits = limits
        self._log = log
        self._certificates: Certificates | None = None
        self._listeners: list[socket.socket] = []
        self._acceptors: list[asyncio.Task[None]] = []
        self._served: dict[Connection, asyncio.Task[None]] = {}
        self._refused: dict[Connection, asyncio.Task[None]] = {}
        self._full = False

    async def start(
        self, routes: Mapping[str, Handler], *, open_to_all: Collection[str] = ()
    ) -> None:
        """Listen and serve.

        open_to_all lists the paths that need no client certificate even if others do. Raises
        BindError when the address cannot be used, TlsFilesError when the files cannot.
        """
        if self._tls is not None:
            self._certificates = Certificates(self._tls, log=self._log)
        self._listeners = _bind(self._listen)
        limits = self._limits.within(_descriptors_left())
        if limits != self._limits:
            self._log.warning(
                "the limit of open files (RLIMIT_NOFILE) leaves room for %d connections at once "
                "instead of %d; raise it if scrapes are refused",
                limits.connections_max,
                self._limits.connections_max,
            )
            self._limits = limits
        served = Routes(
            handlers=routes,
            open_to_all=open_to_all,
            deadline_s=limits.handler_deadline_s,
            log=self._log,
        )
        self._acceptors = [
            asyncio.create_task(self._accept(listener, served)) for listener in self._listeners
        ]

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """(host, port) of each listening socket, with the actual port if 0 was requested."""
        return [listener.getsockname()[:2] for listener in self._listeners]

    @property
    def tls_state(self) -> TlsState:
        """The state of the TLS files in use. The server must have been started with TLS."""
        assert self._certificates is not None  # noqa: S101 - started with TLS
        return TlsState(
            reload_failed=self._certificates.reload_failed,
            expiry_unix_s=self._certificates.expiry_unix_s,
        )

    async def stop(self) -> None:
        """Accept no more connections, give requests in flight the grace time, then close all."""
        for acceptor in self._acceptors:
            acceptor.cancel()
        await asyncio.gather(*self._acceptors, return_exceptions=True)
        for listener in self._listeners:
            listener.close()
        connections = self._served | self._refused
        for connection, task in connections.items():
            connection.last = True
            if connection.phase is Phase.WAITING:
                connection.finish()
                task.cancel()
        if connections:
            _, late = await asyncio.wait(connections.values(), timeout=self._limits.stop_grace_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _accept(self, listener: socket.socket, routes: Routes) -> None:
        loop = asyncio.get_running_loop()
        reported = failed = False
        while True:
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError as err:
                if err.errno == errno.ECONNABORTED:  # the peer has already given up
                    continue
                if not reported:
                    self._log.error("cannot accept connections: %s", os.strerror(err.errno or 0))
                reported = failed = True
                # Without a free descriptor accept() fails even if no connection is pending.
                if _pending(listener):
                    self._evict(self._served)  # frees a descriptor
                await asyncio.sleep(ACCEPT_PAUSE_S)
                continue
            # One success may be due to an eviction, so only the second one ends the outage.
            reported, failed = failed, False
            self._admit(sock, routes)
            # sock_accept does not wait while connections are pending. Without this, a flood of them
            # would evict a connection before its request was read.
            await asyncio.sleep(0)

    def _admit(self, sock: socket.socket, routes: Routes) -> None:
        """Serve a new connection, if necessary in place of another one, or refuse it."""
        full = len(self._served) >= self._limits.connections_max
        if full and not self._full:
            self._log.warning(
                "%d connections: from now on the longest idle one is closed for a new one",
                len(self._served),
            )
        self._full = full
        refused = full and not self._evict(self._served)
        if (
            refused
            and len(self._refused) >= self._limits.refusals_max
            and not self._evict(self._refused)
        ):
            sock.close()
            return
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        credentials = self._certificates.current() if self._certificates else None
        connection = Connection(
            transport=TlsTransport(sock, credentials.context)
            if credentials
            else PlainTransport(sock),
            routes=routes,
            limits=self._limits,
            certificates=self._certificates,
            credentials=credentials,
            refused=refused,
            log=self._log,
        )
        task = asyncio.create_task(connection.serve())
        (self._refused if refused else self._served)[connection] = task
        task.add_done_callback(lambda ended: self._ended(connection, ended))

    def _evict(self, among: dict[Connection, asyncio.Task[None]]) -> bool:
        """End the connection that has waited longest for its peer. Returns False if none waits.

        Slow readers go first. Otherwise slow readers could hold all places but one, and new
        connections would only evict each other.
        """
        now_s = asyncio.get_running_loop().time()
        grace_s = self._limits.write_grace_s
        waiting = [
            connection
            for connection in among
            if connection.phase is Phase.WAITING
            or (connection.phase is Phase.WRITING and now_s - connection.since_s >= grace_s)
        ]
        if not waiting:
            return False
        longest = min(
            waiting, key=lambda connection: (connection.phase is Phase.WAITING, connection.since_s)
        )
        longest.finish()
        among.pop(longest).cancel()
        return True

    def _ended(self, connection: Connection, task: asyncio.Task[None]) -> None:
        self._served.pop(connection, None)
        self._refused.pop(connection, None)
        connection.close()  # here: a task cancelled before its first step runs no code
        if not task.cancelled() and task.exception() is not None:  # a bug, on one connection only
            self._log.error("connection failed", exc_info=task.exception())


def _descriptors_left() -> int:
    """Return how many descriptors this process may still open."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:
        most = sys.maxsize
    return max(0, most - len([*Path("/proc/self/fd").iterdir()]))


def _pending(listener: socket.socket) -> bool:
    """Whether a connection waits to be accepted."""
    poll = select.poll()  # select() cannot take descriptors from 1024 on
    poll.register(listener, select.POLLIN)
    return bool(poll.poll(0))


def _bind(listen: Listen) -> list[socket.socket]:
    """Listen on each address of the host. Raises BindError when none of them can be used."""
    sockets: list[socket.socket] = []
    why = "no such address"
    try:
        for host in (listen.host,) if listen.host else _EVERY_ADDRESS:
            found = socket.getaddrinfo(host, listen.port, type=socket.SOCK_STREAM)
            for family, address in dict.fromkeys((entry[0], entry[4]) for entry in found):
                try:
                    sockets.append(_listening(family, address))
                except OSError as err:
                    # "localhost" often includes ::1 even where IPv6 is disabled.
                    if err.errno not in _NO_SUCH_ADDRESS:
                        raise
                    why = err.strerror or why
            if sockets:
                return sockets
    except OSError as err:  # socket.gaierror is one
        for sock in sockets:
            sock.close()
        why = err.strerror or why
        raise BindError(f"cannot listen on {listen}: {why}; choose another with --listen") from err
    raise BindError(f"cannot listen on {listen}: {why}; choose another with --listen")


def _listening(family: socket.AddressFamily, address: tuple[object, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)  # inherited
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address[0] != "::")
        sock.setblocking(False)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock
