"""EDGE. Bytes to and from one client's socket, plain or under TLS; the certificate files of TLS.

Must not know HTTP, nor what is served. Deadlines are the caller's: every coroutine here may wait
for as long as the peer likes and may be cancelled at any await.

TLS runs over `ssl.MemoryBIO` and not over asyncio's TLS transports, for two reasons. Those keep a
256 KiB receive buffer for each connection (`asyncio.sslproto.SSLProtocol.max_size`; measured with
500 idle ones: 280 kB each, against 27 kB here). And they bind one `SSLContext` to a listening
socket, while certificates and client CAs change under a running server.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from probes.http.listen import TlsFiles

RECEIVE_BYTES = 8 * 1024
"""Most bytes taken from a socket at once."""

RECORD_BYTES = 16 * 1024
"""Bytes encrypted at once, one TLS record: a slow reader shall hold no encrypted copy of all."""

RETRY_S = 1.0
"""Pause before files that could not be loaded are tried again although they look unchanged."""

_T = TypeVar("_T")

_LINGER_NONE = struct.pack("ii", 1, 0)  # struct linger {on, 0 s}: close() sends a reset

FileMark = tuple[int, int, int, int, int]
"""(device, inode, bytes, mtime_ns, ctime_ns). ctime sees a rename or chmod that mtime does not."""


class TlsFilesError(Exception):
    """The TLS files cannot be used. One line: what, which file, why, what to do."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Credentials:
    """One state of the TLS files, as used by the connections opened under it."""

    context: ssl.SSLContext
    client_ca: bytes | None
    """The client CA file's content: tells a new set of admitted clients from a renewed pair."""


class Certificates:
    """The newest TLS files that fit together. A change is noticed when `current` is asked."""

    def __init__(
        self,
        files: TlsFiles,
        *,
        log: logging.Logger,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Load the files; `TlsFilesError` when they cannot be used."""
        self._files = files
        self._log = log
        self._clock_s = clock_s
        self._marks = self._look()
        self._credentials = _load(files)
        self._failure: str | None = None
        self._tried_s = clock_s()

    @property
    def reload_failed(self) -> bool:
        """Whether the newest files could not be used when they were looked at last."""
        return self._failure is not None

    def current(self) -> Credentials:
        """Give the credentials for a connection opened now.

        Costs a stat of each file. Files that changed are loaded into a new context, never into the
        one in use: a context keeps every CA it was ever given and the keys of the session tickets
        it issued, so a client of a removed CA could go on. When the new files cannot be used, say
        because half of a pair is written yet, the old ones stay and one line is logged.
        """
        marks = self._look()
        now_s = self._clock_s()
        waiting = self._failure is not None and now_s - self._tried_s >= RETRY_S
        if marks == self._marks and not waiting:
            return self._credentials
        self._tried_s = now_s
        # The marks are older than what is loaded: a change in between is loaded the next time.
        self._marks = marks
        try:
            self._credentials = _load(self._files)
        except TlsFilesError as error:
            if str(error) != self._failure:
                self._log.warning("%s; keeping the certificates loaded before", error)
            self._failure = str(error)
        else:
            self._failure = None
            self._log.info("TLS certificates re-read from %s", self._files.cert)
        return self._credentials

    def _look(self) -> tuple[FileMark | None, ...]:
        return tuple(
            _mark(path)
            for path in (self._files.cert, self._files.key, self._files.client_ca)
            if path is not None
        )


def _mark(path: Path) -> FileMark | None:
    """Tell one content of a file from another without reading it; `None`: no such file."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _load(files: TlsFiles) -> Credentials:
    """Make a new context from the files; `TlsFilesError`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_alpn_protocols(["http/1.1"])
    # No session tickets in TLS 1.3: scrapers keep their connection, and a resumed session would
    # not look at the client's certificate again.
    context.num_tickets = 0
    client_ca = None
    path = files.cert
    try:
        for path in (files.cert, files.key):
            path.read_bytes()  # for an error that names the file: OpenSSL's does not
        _add_pair(context, files)
        if files.client_ca is not None:
            path = files.client_ca
            client_ca = path.read_bytes()
            _require_clients_of(context, client_ca, path)
    except OSError as error:
        remedy = "check the path and that this user may read it"
        raise TlsFilesError(f"cannot read TLS file {path}: {error.strerror}; {remedy}") from error
    return Credentials(context=context, client_ca=client_ca)


def _add_pair(context: ssl.SSLContext, files: TlsFiles) -> None:
    try:
        # An empty password: an encrypted key is an error, not a question on the terminal.
        context.load_cert_chain(files.cert, files.key, password="")
    except ssl.SSLError as error:
        why = (error.reason or "not PEM").lower().replace("_", " ")
        raise TlsFilesError(
            f"cannot use TLS certificate {files.cert} with key {files.key}: {why}; "
            "give whole PEM files, the key unencrypted and the certificate's own"
        ) from error


def _require_clients_of(context: ssl.SSLContext, client_ca: bytes, path: Path) -> None:
    try:
        context.load_verify_locations(cadata=client_ca.decode("ascii", "ignore"))
    except (ssl.SSLError, ValueError) as error:  # ValueError: empty
        raise TlsFilesError(
            f"cannot use TLS client CA {path}: not one or more whole certificates; give PEM"
        ) from error
    context.verify_mode = ssl.CERT_REQUIRED


class Wire:
    """A client's connected, non-blocking socket without TLS. `OSError`: the connection is lost."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()

    async def open(self) -> None:
        """Make the connection ready for data."""

    async def receive(self) -> bytes:
        """Take some bytes of the peer; empty at the end of its stream."""
        data = await self._loop.sock_recv(self._sock, RECEIVE_BYTES)
        # sock_recv does not wait while there are bytes: without this, one fast peer gets the loop.
        await asyncio.sleep(0)
        return data

    async def send(self, data: bytes) -> None:
        """Hand all of `data` to the kernel."""
        await self._loop.sock_sendall(self._sock, data)

    def finish(self) -> None:
        """Tell the peer that nothing more comes. Not after a `send` that was cut short."""
        with contextlib.suppress(OSError):  # the peer may be gone already
            self._sock.shutdown(socket.SHUT_WR)

    async def drain(self) -> None:
        """Discard what the peer still sends, after `finish`, until it ends its stream.

        Closing a socket with unread bytes in it sends a reset, which can overtake the last answer.
        """
        while await Wire.receive(self):
            pass

    def close(self, *, abort: bool = False) -> None:
        """Give the socket back. `abort`: drop what the peer has not taken yet, and reset."""
        if abort:
            # Otherwise the kernel keeps the send buffer of a reader that does not read.
            with contextlib.suppress(OSError):
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
        self._sock.close()


class TlsWire(Wire):
    """The same under TLS. `ssl.SSLError`, which is an `OSError`: the peer broke the protocol."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        super().__init__(sock)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    async def open(self) -> None:
        """Shake hands. A peer that speaks plain HTTP is told so before the error goes up."""
        try:
            await self._until_done(self._tls.do_handshake)
        except ssl.SSLError as error:
            if error.reason == "HTTP_REQUEST":
                self._outgoing.read()
                text = b"this port speaks HTTPS: use https://\n"
                head = b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\n\r\n"
                await super().send(head + text)
                super().finish()
            else:
                await self._flush()  # the alert that tells the peer why
            raise

    async def receive(self) -> bytes:
        """Take some decrypted bytes; empty at the end, whether the peer said goodbye or not."""
        try:
            return await self._until_done(lambda: self._tls.read(RECEIVE_BYTES))
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""

    async def send(self, data: bytes) -> None:
        """Encrypt and hand to the kernel, a record at a time."""
        view = memoryview(data)
        for start in range(0, len(view), RECORD_BYTES):
            self._tls.write(view[start : start + RECORD_BYTES])
            await self._flush()

    def finish(self) -> None:
        """Say goodbye (close_notify), so that the peer can tell the end from a cut."""
        with contextlib.suppress(OSError):  # no session yet, peer gone or its buffer full
            with contextlib.suppress(ssl.SSLWantReadError):  # its goodbye is not waited for
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
