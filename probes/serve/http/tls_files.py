# SPDX-License-Identifier: Apache-2.0
"""EDGE: loads the certificate files of TLS, and reloads them when they change.

Must not know sockets, nor what is served.
"""

import logging
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from probes.serve.http.certificate import Validity, validity
from probes.serve.http.listen import TlsFiles

RETRY_S = 1.0
"""Pause before files that could not be loaded are tried again although they look unchanged."""

FileMark = tuple[int, int, int, int, int]
"""(device, inode, bytes, mtime_ns, ctime_ns). ctime shows a rename or chmod that mtime does not."""


class TlsFilesError(Exception):
    """The TLS files cannot be used.

    The message is one line: what, which file, why, what to do.
    """


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Credentials:
    """One state of the TLS files, as used by the connections opened with it."""

    context: ssl.SSLContext
    validity: Validity
    """When the server's own certificate is valid."""
    client_ca: bytes | None
    """Content of the client CA file, which distinguishes a changed set of clients from a renewed
    pair."""


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

        A certificate that is not valid now is loaded nevertheless, with a warning: there is no
        better one, clients that check it refuse it themselves, and a running agent keeps its
        counters, shows the problem and picks up the renewed certificate without a restart. On a
        node whose clock is not set yet, the certificate becomes valid later.
        """
        self._files = files
        self._log = log
        self._clock_s = clock_s
        self._unix_s = unix_s
        self._marks = self._read_marks()
        self._credentials = self._load()
        wrong = self._credentials.validity.wrong_at(unix_s())
        if wrong is not None:
            log.warning("TLS certificate %s is %s; using it anyway", files.cert, wrong)
        self._failure: str | None = None
        self._tried_s = clock_s()

    @property
    def reload_failed(self) -> bool:
        """Whether the newest files could not be used when they were last read."""
        return self._failure is not None

    @property
    def expiry_unix_s(self) -> float:
        """When the certificate in use expires."""
        return self._credentials.validity.until_unix_s

    def current(self) -> Credentials:
        """Return the credentials for a connection that is opened now.

        This costs one stat of each file. Files that changed are loaded into a new context, never
        into the one in use: a context keeps every CA that it was ever given and the keys of the
        session tickets that it issued, so a client of a removed CA could continue. If the new files
        cannot be used, for example because only half of a pair has been written, the old ones stay
        in use and one line is logged. The same happens if the new certificate is expired or not yet
        valid while the old one is valid.
        """
        marks = self._read_marks()
        now_s = self._clock_s()
        waiting = self._failure is not None and now_s - self._tried_s >= RETRY_S
        if marks == self._marks and not waiting:
            return self._credentials
        self._tried_s = now_s
        # The marks are older than what is loaded, so a change in between is loaded the next time.
        self._marks = marks
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
        """Load the files. Raises TlsFilesError also when those in use are better."""
        new = self._load()
        now_s = self._unix_s()
        wrong = new.validity.wrong_at(now_s)
        if wrong is not None and self._credentials.validity.wrong_at(now_s) is None:
            raise TlsFilesError(
                f"TLS certificate {self._files.cert} is {wrong}; renew it, or set this node's clock"
            )
        return new

    def _load(self) -> Credentials:
        before = self._read_marks()
        new = _load(self._files)
        if self._read_marks() != before:
            raise TlsFilesError(
                f"TLS file {self._files.cert} or one that belongs to it changed while it was read; "
                "no action is needed if this does not repeat"
            )
        return new

    def _read_marks(self) -> tuple[FileMark | None, ...]:
        return tuple(
            _mark(path)
            for path in (self._files.cert, self._files.key, self._files.client_ca)
            if path is not None
        )


def _mark(path: Path) -> FileMark | None:
    """Return a mark that changes with a file's content; None: there is no file.

    The content itself is not read.
    """
    try:
        stat = path.stat()
    except OSError:
        return None
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
    try:
        # Read them here too, for an error that names the file, which OpenSSL's does not.
        cert = (path := files.cert).read_bytes()
        (path := files.key).read_bytes()
        _add_pair(context, files)
        path = files.cert
        valid = validity(cert)
        if files.client_ca is not None:
            path = files.client_ca
            client_ca = path.read_bytes()
            _request_client_certificates(context, client_ca, path)
    except OSError as err:
        remedy = "check the path and that this user may read it"
        raise TlsFilesError(f"cannot read TLS file {path}: {err.strerror}; {remedy}") from err
    except ValueError as err:
        raise TlsFilesError(f"cannot use TLS certificate {path}: {err}; give PEM") from err
    return Credentials(context=context, validity=valid, client_ca=client_ca)


def _add_pair(context: ssl.SSLContext, files: TlsFiles) -> None:
    try:
        # With an empty password an encrypted key is an error, not a question on the terminal.
        context.load_cert_chain(files.cert, files.key, password="")
    except ssl.SSLError as err:
        why = (err.reason or "not PEM").lower().replace("_", " ")
        raise TlsFilesError(
            f"cannot use TLS certificate {files.cert} with key {files.key}: {why}; "
            "give whole PEM files, the key unencrypted and the certificate's own"
        ) from err


def _request_client_certificates(context: ssl.SSLContext, client_ca: bytes, path: Path) -> None:
    try:
        context.load_verify_locations(cadata=client_ca.decode("ascii", "ignore"))
    except (ssl.SSLError, ValueError) as err:  # ValueError: empty
        raise TlsFilesError(
            f"cannot use TLS client CA {path}: not one or more whole certificates; give PEM"
        ) from err
    # Requested, not required: a certificate of another CA ends the handshake, while a client
    # without one gets what is open to all (routes). kubelet's probes have none.
    context.verify_mode = ssl.CERT_OPTIONAL
