# SPDX-License-Identifier: Apache-2.0
"""EDGE: loads the certificate files of TLS, and reloads them when they change."""

import contextlib
import logging
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from probes.serve.listen import TlsFiles, TlsState

RETRY_S = 1.0
"""Pause before files that could not be loaded are tried again although they look unchanged."""

_VERIFY_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME, which the ssl module does not name


class TlsFilesError(Exception):
    """The TLS files cannot be used. The message is one line: what, which file, why, what to do."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Credentials:
    """One state of the TLS files, as used by the connections opened with it."""

    context: ssl.SSLContext
    from_unix_s: float
    until_unix_s: float
    """The server's own certificate is valid from one of these times to the other."""
    client_ca: bytes | None
    """Content of the client CA file, by which a changed set of clients shows."""

    def wrong_at(self, unix_s: float) -> str | None:
        """Say why the certificate is not valid at a time; None: it is valid."""
        if unix_s < self.from_unix_s:
            return f"not valid before {_shown(self.from_unix_s)}"
        return f"expired at {_shown(self.until_unix_s)}" if unix_s > self.until_unix_s else None


class Certificates:
    """The newest TLS files that fit together. ``current`` notices changes."""

    def __init__(
        self,
        files: TlsFiles,
        *,
        log: logging.Logger,
        clock_s: Callable[[], float] = time.monotonic,
        unix_s: Callable[[], float] = time.time,
    ) -> None:
        """Load the files. Raises TlsFilesError when they cannot be used.

        A certificate that is not valid now is used with a warning: clients that check it refuse it
        themselves, and the agent shows the problem and picks up the next one without a restart.
        """
        self._files = files
        self._paths = [path for path in (files.cert, files.key, files.client_ca) if path]
        self._log = log
        self._clock_s = clock_s
        self._unix_s = unix_s
        self._failure: str | None = None
        self._tried_s = clock_s()
        self._marks = self._read_marks()
        self._credentials = _load(files)
        wrong = self._credentials.wrong_at(unix_s())
        if wrong is not None:
            log.warning("TLS certificate %s is %s; using it anyway", files.cert, wrong)

    @property
    def state(self) -> TlsState:
        """The state of the files in use."""
        expiry_unix_s = self._credentials.until_unix_s
        return TlsState(reload_failed=self._failure is not None, expiry_unix_s=expiry_unix_s)

    def current(self) -> Credentials:
        """Return the credentials for a connection that is opened now, at one stat of each file.

        Files that changed are loaded into a new context, never into the one in use: a context keeps
        every CA that it was ever given and the keys of the session tickets that it issued, so a
        client of a removed CA could continue. If the new files cannot be used, or their certificate
        is not valid now while the old one is, the old ones stay in use and one line is logged.
        """
        marks = self._read_marks()
        now_s = self._clock_s()
        waiting = self._failure is not None and now_s - self._tried_s >= RETRY_S
        if marks == self._marks and not waiting:
            return self._credentials
        # The marks are older than what is loaded, so a change in between is loaded the next time.
        self._marks, self._tried_s = marks, now_s
        try:
            self._credentials = self._better()
        except TlsFilesError as err:
            if str(err) != self._failure:
                self._log.warning("%s; keeping the certificates loaded before", err)
            self._failure = str(err)
        else:
            self._failure = None
            self._log.info("TLS certificates re-read from %s", self._files.cert)
        return self._credentials

    def _better(self) -> Credentials:
        new, now_s = _load(self._files), self._unix_s()
        wrong = new.wrong_at(now_s)
        if wrong is not None and self._credentials.wrong_at(now_s) is None:
            remedy = "renew it, or set this node's clock"
            raise TlsFilesError(f"TLS certificate {self._files.cert} is {wrong}; {remedy}")
        return new

    def _read_marks(self) -> list[tuple[int, ...] | None]:
        return [_mark(path) for path in self._paths]


def _mark(path: Path) -> tuple[int, ...] | None:
    """Return what changes with a file's content, without reading it; None: there is no file."""
    try:
        stat = path.stat()
    except OSError:
        return None
    # ctime shows a rename or chmod that mtime does not.
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _load(files: TlsFiles) -> Credentials:
    """Make a new context from the files. Raises TlsFilesError when they cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_alpn_protocols(["http/1.1"])
    # No session tickets in TLS 1.3: scrapers keep their connection, and a resumed session would not
    # verify the client's certificate again.
    context.num_tickets = 0
    client_ca = None
    path = files.cert
    pair = f"TLS certificate {files.cert} with key {files.key}"
    remedy = "give whole PEM files, the key unencrypted and the certificate's own"
    try:
        for path in (files.cert, files.key):  # for an error that names the file; OpenSSL's does not
            path.read_bytes()
        # With an empty password an encrypted key is an error, not a question on the terminal.
        context.load_cert_chain(files.cert, files.key, password="")
        begin, end = _validity(context, files.cert)
        if files.client_ca is not None:
            path, pair, remedy = files.client_ca, f"TLS client CA {files.client_ca}", "give PEM"
            client_ca = path.read_bytes()
            context.load_verify_locations(cadata=client_ca.decode("ascii", "ignore"))
            # Requested, not required: a certificate of another CA ends the handshake, while a
            # client without one gets what is open to all (routes). kubelet's probes have none.
            context.verify_mode = ssl.CERT_OPTIONAL
    except ssl.SSLError as err:
        why = (err.reason or "not PEM").lower().replace("_", " ")
        raise TlsFilesError(f"cannot use {pair}: {why}; {remedy}") from err
    except ValueError as err:  # no certificate at all
        raise TlsFilesError(f"cannot use {pair}: not PEM; {remedy}") from err
    except OSError as err:
        remedy = "check the path and that this user may read it"
        raise TlsFilesError(f"cannot read TLS file {path}: {err.strerror}; {remedy}") from err
    return Credentials(context=context, from_unix_s=begin, until_unix_s=end, client_ca=client_ca)


def _validity(context: ssl.SSLContext, cert: Path) -> tuple[float, float]:
    """Return begin and end of the certificate in a server's context, in Unix seconds.

    The ssl module shows a certificate's fields to the peer only, so a client in memory connects.
    Raises ssl.SSLError when the server could not serve with these files.
    """
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | _VERIFY_NO_CHECK_TIME
    trusting.load_verify_locations(cert)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting.wrap_bio(down, up)
    server = context.wrap_bio(up, down, server_side=True)
    for side in (client, server) * 3:
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    shown = client.getpeercert() or {}
    begin, end = (ssl.cert_time_to_seconds(str(shown[key])) for key in ("notBefore", "notAfter"))
    return begin, end


def _shown(unix_s: float) -> str:
    return f"{datetime.fromtimestamp(unix_s, UTC):%Y-%m-%dT%H:%M:%SZ}"
