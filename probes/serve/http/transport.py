# SPDX-License-Identifier: Apache-2.0
"""EDGE: moves bytes to and from one client's socket, plain or with TLS.

Must not know HTTP, nor what is served. Deadlines are the caller's: every coroutine here may wait as
long as the peer likes and may be cancelled at any await.

TLS runs over ``ssl.MemoryBIO`` and not over asyncio's TLS transports, for two reasons. Those keep a
256 KiB receive buffer for each connection (``asyncio.sslproto.SSLProtocol.max_size``; measured with
500 idle connections: 280 kB each, against 27 kB here). And they bind one ``SSLContext`` to a
listening socket, although certificates and client CAs change while the server runs.
"""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import Callable
from typing import TypeVar

RECEIVE_BYTES = 8 * 1024
"""The most bytes read from a socket at once."""

RECORD_BYTES = 16 * 1024
"""Bytes encrypted at once, one TLS record, so that a slow reader holds no encrypted copy of all."""

_T = TypeVar("_T")

_LINGER_NONE = struct.pack("ii", 1, 0)  # struct linger {on, 0 s}: close() sends a reset


class PlainTransport:
    """A client's connected, non-blocking socket without TLS.

    Every method raises OSError when the connection is lost.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()

    async def open(self) -> None:
        """Make the connection ready for data."""

    @property
    def certified(self) -> bool:
        """Whether the peer presented a certificate of a client CA."""
        return False

    async def receive(self) -> bytes:
        """Read some bytes from the peer; empty at the end of its stream."""
        data = await self._loop.sock_recv(self._sock, RECEIVE_BYTES)
        # sock_recv does not wait while there are bytes. Without this, one fast peer would occupy
        # the loop.
        await asyncio.sleep(0)
        return data

    async def send(self, data: bytes) -> None:
        """Pass all of ``data`` to the kernel."""
        await self._loop.sock_sendall(self._sock, data)

    def finish(self) -> None:
        """Tell the peer that nothing more follows. Not for use after an incomplete ``send``."""
        with contextlib.suppress(OSError):  # the peer may have gone already
            self._sock.shutdown(socket.SHUT_WR)

    async def drain(self) -> None:
        """Discard what the peer still sends after ``finish``, until it ends its stream.

        Closing a socket with unread bytes in it sends a reset, which can overtake the last answer.
        """
        while await PlainTransport.receive(self):
            pass

    def close(self, *, abort: bool = False) -> None:
        """Close the socket.

        ``abort`` drops what the peer has not read yet, and resets the connection.
        """
        if abort:
            # Otherwise the kernel keeps the send buffer of a reader that does not read.
            with contextlib.suppress(OSError):
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
        self._sock.close()


class TlsTransport(PlainTransport):
    """A client's connected, non-blocking socket with TLS.

    Raises ssl.SSLError, which is an OSError, when the peer violates the protocol.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        super().__init__(sock)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    async def open(self) -> None:
        """Perform the handshake.

        A peer that speaks plain HTTP gets an answer before the error is raised.
        """
        try:
            await self._until_done(self._tls.do_handshake)
        except ssl.SSLError as err:
            if err.reason == "HTTP_REQUEST":
                self._outgoing.read()
                text = b"this port speaks HTTPS: use https://\n"
                head = b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\n\r\n"
                await super().send(head + text)
                super().finish()
            else:
                await self._flush()  # the alert that gives the peer the reason
            raise

    @property
    def certified(self) -> bool:
        """Whether the peer presented a certificate, which the handshake has verified."""
        return self._tls.getpeercert(binary_form=True) is not None

    async def receive(self) -> bytes:
        """Read some decrypted bytes; empty at the end, with or without close_notify."""
        try:
            return await self._until_done(lambda: self._tls.read(RECEIVE_BYTES))
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""

    async def send(self, data: bytes) -> None:
        """Encrypt data and pass it to the kernel, one record at a time."""
        view = memoryview(data)
        for start in range(0, len(view), RECORD_BYTES):
            self._tls.write(view[start : start + RECORD_BYTES])
            await self._flush()

    def finish(self) -> None:
        """Send close_notify, by which the peer can tell the end from a lost connection."""
        # There may be no session yet, or the peer has gone, or it reads nothing.
        with contextlib.suppress(OSError):
            # The peer's close_notify is not waited for.
            with contextlib.suppress(ssl.SSLWantReadError):
                self._tls.unwrap()
            self._sock.send(self._outgoing.read())
        super().finish()

    async def _until_done(self, step: Callable[[], _T]) -> _T:
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                await self._flush()
                data = await super().receive()
                if data:
                    self._incoming.write(data)
                else:
                    self._incoming.write_eof()
            else:
                await self._flush()
                return result

    async def _flush(self) -> None:
        if self._outgoing.pending:
            await super().send(self._outgoing.read())
