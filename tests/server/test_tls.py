# SPDX-License-Identifier: Apache-2.0
"""TLS with real certificates: which clients get access, and how certificates are replaced."""

import http.client
import logging
import resource
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from probes.serve import tls_files
from probes.serve.limits import Limits
from probes.serve.listen import TlsFiles, TlsState
from probes.serve.tls_files import RETRY_S, Certificates, TlsFilesError
from tests.support.certificates import Authority, MountedSecret
from tests.support.serving import DEADLINE_S, LOG, Peer, Serving, text

LONG = bytes(range(256)) * 10_000

NOT_A_CA = "cannot use TLS client CA"

ROUTES = {"/": text("hello"), "/long": text(LONG), "/healthz": text("alive")}


def ask(serving: Serving, context: ssl.SSLContext) -> bytes:
    """GET / on a new connection, and return the certificate that the server showed, in DER."""
    with Peer(serving.port, tls=context) as peer:
        peer.get("/")
        assert peer.answer().body == b"hello"
        assert isinstance(peer.sock, ssl.SSLSocket)
        shown = peer.sock.getpeercert(binary_form=True)
    assert shown is not None
    return shown


def status(serving: Serving, context: ssl.SSLContext, path: str = "/") -> int:
    """The status of the answer on a new connection."""
    with Peer(serving.port, tls=context) as peer:
        peer.get(path)
        return peer.answer().status


def is_served(serving: Serving, context: ssl.SSLContext) -> bool:
    """Whether a client gets an answer. With TLS 1.3 it learns of a refusal only when it reads."""
    try:
        ask(serving, context)
    except (ssl.SSLError, ConnectionError):
        return False
    return True


def is_served_resumed(
    serving: Serving, context: ssl.SSLContext, session: ssl.SSLSession | None
) -> bool:
    """Whether a client that offers to resume a session gets an answer."""
    try:
        with (
            socket.create_connection(("127.0.0.1", serving.port), DEADLINE_S) as sock,
            context.wrap_socket(sock, server_hostname="127.0.0.1", session=session) as resumed,
        ):
            resumed.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return resumed.recv(1) != b""
    except (ssl.SSLError, ConnectionError):
        return False


def expiry(cert: Path) -> float:
    """The Unix time at which a certificate expires, by the openssl command."""
    command = ["openssl", "x509", "-noout", "-enddate", "-in", str(cert)]
    end = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(ssl.cert_time_to_seconds(end.strip().removeprefix("notAfter=")))


def der(cert: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert(cert.read_text())


def test_https(authority: Authority) -> None:
    """A client that checks certificate and host name gets answers of any size, in order."""
    with Serving(ROUTES, tls=authority.server_files()) as serving:
        client = http.client.HTTPSConnection(
            "127.0.0.1", serving.port, context=authority.client_context(), timeout=DEADLINE_S
        )
        for path, body in (("/", b"hello"), ("/long", LONG), ("/", b"hello")):
            client.request("GET", path)
            assert client.getresponse().read() == body
        client.close()


def test_curl(authority: Authority) -> None:
    """The curl command, which prefers HTTP/2, gets its answers over one connection."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    pair = authority.issue("curl")
    with Serving(ROUTES, tls=authority.server_files(client_ca=authority.cert)) as serving:
        url = f"https://127.0.0.1:{serving.port}/"
        files = ["--cacert", str(authority.cert), "--cert", str(pair.cert), "--key", str(pair.key)]
        command = ["curl", "-sS", "-m", "20", *files, "-w", "%{num_connects}", url, url]
        assert subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout == (
            b"hello1hello0"
        )


@pytest.mark.parametrize(
    ("version", "served"),
    [
        (ssl.TLSVersion.TLSv1, False),
        (ssl.TLSVersion.TLSv1_1, False),
        (ssl.TLSVersion.TLSv1_2, True),
        (ssl.TLSVersion.TLSv1_3, True),
    ],
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_versions(
    authority: Authority,
    version: ssl.TLSVersion,
    served: bool,
) -> None:
    """The server speaks TLS 1.2 and 1.3, and refuses older versions with the reason."""
    context = authority.client_context()
    context.set_ciphers("DEFAULT@SECLEVEL=0")  # otherwise the client itself refuses
    context.minimum_version = context.maximum_version = version
    with Serving(ROUTES, tls=authority.server_files()) as serving:
        if served:
            assert ask(serving, context)
        else:
            with pytest.raises(ssl.SSLError) as caught:
                ask(serving, context)
            assert caught.value.reason == "TLSV1_ALERT_PROTOCOL_VERSION"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_client_certificates(
    authority: Authority, stranger: Authority, version: ssl.TLSVersion
) -> None:
    """With a client CA, a certificate of another CA is refused, and no certificate means 403.

    Paths that are open to all need none, because kubelet has none. Kubelet checks no certificate.
    """
    foreign = authority.client_context(stranger.issue("prometheus"))
    without = authority.client_context()
    known = authority.client_context(authority.issue("prometheus"))
    kubelet = ssl.create_default_context()
    kubelet.check_hostname = False
    kubelet.verify_mode = ssl.CERT_NONE
    for context in (foreign, without, known, kubelet):
        context.maximum_version = version
    files = authority.server_files(client_ca=authority.cert)
    with Serving(ROUTES, tls=files, open_to_all={"/healthz"}) as serving:
        assert not is_served(serving, foreign)
        assert is_served(serving, known)
        assert status(serving, known, "/nowhere") == 404
        for context in (without, kubelet):
            assert status(serving, context, "/healthz") == 200
            for path in ("/", "/long", "/nowhere", "/healthz/", "//healthz", "/healthz%2f.."):
                assert status(serving, context, path) == 403
        with Peer(serving.port, tls=kubelet) as peer:
            peer.get("/healthz")
            assert peer.answer().body == b"alive"
            peer.get("https://127.0.0.1/?x=/healthz")
            answer = peer.answer()
            assert (answer.status, answer.body) == (403, b"a client certificate is required\n")


def test_clients_without_a_client_ca(authority: Authority) -> None:
    """Without a client CA, every path is served to clients without a certificate."""
    with Serving(ROUTES, tls=authority.server_files(), open_to_all={"/healthz"}) as serving:
        assert status(serving, authority.client_context()) == 200
    with Serving(ROUTES, open_to_all={"/healthz"}) as serving, Peer(serving.port) as peer:
        peer.get("/")
        assert peer.answer().status == 200


def test_plain_http(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    """A plain HTTP request to the TLS port gets 400 with the remedy. Garbage does no harm."""
    with Serving(ROUTES, tls=authority.server_files()) as serving:
        with Peer(serving.port) as peer:
            peer.get("/")
            reply = b"".join(iter(lambda: peer.sock.recv(4096), b""))
        assert reply.startswith(b"HTTP/1.0 400 ")
        assert reply.endswith(b"\r\n\r\nthis port speaks HTTPS: use https://\n")
        for garbage in (b"\x00" * 100, b"\x16\x03\x01\x00\x02xx", b"\xff" * 70_000, b""):
            with Peer(serving.port) as peer:
                try:
                    peer.send(garbage)
                    peer.sock.shutdown(socket.SHUT_WR)
                    while peer.sock.recv(4096):
                        pass
                except (BrokenPipeError, ConnectionResetError):
                    pass  # a reset while sending is fine, too
        with Peer(serving.port, tls=authority.client_context()) as peer:
            socket.socket.send(peer.sock, b"not a TLS record")
            with pytest.raises(ssl.SSLError):
                peer.last()
        assert is_served(serving, authority.client_context())
    assert caplog.records == []


def test_handshake_deadline(authority: Authority) -> None:
    """A peer that does not complete the handshake in time is disconnected."""
    limits = Limits(header_deadline_s=0.1)
    with Serving(ROUTES, tls=authority.server_files(), limits=limits) as serving:
        with Peer(serving.port) as silent, Peer(serving.port) as slow:
            slow.send(b"\x16\x03\x01")
            assert silent.ended()
            assert slow.ended()
        assert is_served(serving, authority.client_context())


def test_close_notify_is_sent(authority: Authority) -> None:
    """The server ends with close_notify, so a client can distinguish the end from a cut."""
    with (
        Serving(ROUTES, tls=authority.server_files()) as serving,
        Peer(serving.port, tls=authority.client_context()) as peer,
    ):
        peer.get("/", "Connection: close")
        assert peer.answer().body == b"hello"
        assert peer.ended()


def test_certificate_is_replaced(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A Secret that kubelet replaces by its symlink swap is used for the next connection.

    A connection opened before gets one more answer, with ``Connection: close``.
    """
    secret = MountedSecret(tmp_path / "mount")
    first, second = authority.issue("first"), authority.issue("second")
    client = authority.client_context(authority.issue("client"))
    files = secret.publish(first, authority.cert)
    with Serving(ROUTES, tls=files) as serving:
        assert ask(serving, client) == der(first.cert)
        with Peer(serving.port, tls=client) as kept:
            kept.get("/")
            assert "connection" not in kept.answer().headers
            secret.publish(second, authority.cert)
            assert ask(serving, client) == der(second.cert)
            kept.get("/")
            answer = kept.answer()
            assert (answer.body, answer.headers["connection"]) == (b"hello", "close")
            assert kept.ended()
        assert ask(serving, client) == der(second.cert)
    assert [r.getMessage() for r in caplog.records] == [
        f"TLS certificates re-read from {files.cert}"
    ]


def _half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda files, new: shutil.copyfile(new.cert, files.cert), "key values mismatch"),
        (lambda files, new: _half(files.cert), "cannot use TLS certificate"),
        (lambda files, new: _half(files.key), "cannot use TLS certificate"),
        (lambda files, new: files.cert.write_bytes(b""), "cannot use TLS certificate"),
        (lambda files, new: files.key.unlink(), "No such file or directory"),
        (
            lambda files, new: files.client_ca.write_text("soon"),
            NOT_A_CA,
        ),
        (lambda files, new: files.client_ca.write_text(""), NOT_A_CA),
    ],
)
def test_half_written_files(
    authority: Authority,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[TlsFiles, TlsFiles], object],
    why: str,
) -> None:
    """Unusable files are logged in one line, and the old pair is served until usable ones come."""
    old, new = authority.server_files("old"), authority.server_files("new")
    client_ca = tmp_path / "ca.crt"
    files = TlsFiles(cert=tmp_path / "tls.crt", key=tmp_path / "tls.key", client_ca=client_ca)

    def write(source: TlsFiles) -> None:
        shutil.copyfile(source.cert, files.cert)
        shutil.copyfile(source.key, files.key)
        shutil.copyfile(authority.cert, client_ca)

    write(old)
    client = authority.client_context(authority.issue("client"))
    with Serving(ROUTES, tls=files) as serving:
        damage(files, new)
        for _ in range(3):
            assert ask(serving, client) == der(old.cert)
        write(new)
        assert ask(serving, client) == der(new.cert)
    lines = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(lines) == 1
    assert "\n" not in lines[0]
    assert lines[0].endswith("; keeping the certificates loaded before")
    assert str(tmp_path) in lines[0]
    assert why in lines[0]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_client_ca_is_replaced(
    authority: Authority, stranger: Authority, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    """Clients of a removed CA are refused at once, on new, kept and resumed connections."""
    secret = MountedSecret(tmp_path / "mount")
    pair = authority.issue("server")
    old = authority.client_context(authority.issue("old"))
    new = authority.client_context(stranger.issue("new"))
    old.maximum_version = new.maximum_version = version
    with Serving(ROUTES, tls=secret.publish(pair, authority.cert)) as serving:
        assert not is_served(serving, new)
        with Peer(serving.port, tls=old) as kept:
            kept.get("/")
            assert kept.answer().status == 200
            assert isinstance(kept.sock, ssl.SSLSocket)
            session = kept.sock.session
            assert is_served_resumed(serving, old, session)
            secret.publish(pair, stranger.cert)
            kept.get("/")
            assert kept.ended()
        assert is_served(serving, new)
        assert not is_served(serving, old)
        assert not is_served_resumed(serving, old, session)


def test_both_cas_during_a_rotation(
    authority: Authority, stranger: Authority, tmp_path: Path
) -> None:
    """A client CA file with two CAs accepts the clients of both."""
    both = tmp_path / "both.crt"
    both.write_text(f"# old \u2192 new\n{authority.cert.read_text()}{stranger.cert.read_text()}")
    with Serving(ROUTES, tls=authority.server_files(client_ca=both)) as serving:
        for issuer in (authority, stranger):
            assert is_served(serving, authority.client_context(issuer.issue("client")))


def test_failed_read_is_tried_again(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """New files that cannot be read for lack of descriptors are read again later; one log line."""
    files = TlsFiles(cert=tmp_path / "tls.crt", key=tmp_path / "tls.key")
    old, new = authority.issue("a"), authority.issue("b")
    now_s = 0.0
    shutil.copyfile(old.cert, files.cert)
    shutil.copyfile(old.key, files.key)
    certificates = Certificates(files, log=LOG, clock_s=lambda: now_s)
    before = certificates.current()
    shutil.copyfile(new.cert, files.cert)
    shutil.copyfile(new.key, files.key)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        for _ in range(3):
            now_s += RETRY_S
            assert certificates.current() is before
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert certificates.current() is before
    now_s += RETRY_S
    after = certificates.current()
    assert after is not before
    assert [r.levelno for r in caplog.records] == [logging.WARNING, logging.INFO]
    assert certificates.current() is after


PAST, FUTURE, NOW = (-7200, -3600), (3600, 7200), (-3600, 7200)


@pytest.mark.parametrize("dates", [PAST, FUTURE])
def test_an_invalid_certificate_replaces_no_valid_one(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture, dates: tuple[int, int]
) -> None:
    """A certificate that is expired or not yet valid is logged and not served; the next one is."""
    secret = MountedSecret(tmp_path / "mount")
    good, bad = authority.issue("good", valid_s=NOW), authority.issue("bad", valid_s=dates)
    better = authority.issue("better", valid_s=NOW)
    client = authority.client_context(authority.issue("client"))
    files = secret.publish(good, authority.cert)
    with Serving(ROUTES, tls=files) as serving:
        assert serving.server.tls_state == TlsState(
            reload_failed=False, expiry_unix_s=expiry(good.cert)
        )
        secret.publish(bad, authority.cert)
        for _ in range(3):
            assert ask(serving, client) == der(good.cert)
        assert serving.server.tls_state == TlsState(
            reload_failed=True, expiry_unix_s=expiry(good.cert)
        )
        secret.publish(better, authority.cert)
        assert ask(serving, client) == der(better.cert)
        assert serving.server.tls_state == TlsState(
            reload_failed=False, expiry_unix_s=expiry(better.cert)
        )
    (line,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    what = "expired at" if dates is PAST else "not valid before"
    assert line.startswith(f"TLS certificate {files.cert} is {what} 20")
    assert line.endswith("; keeping the certificates loaded before")


@pytest.mark.parametrize("dates", [PAST, FUTURE])
def test_start_with_an_invalid_certificate(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture, dates: tuple[int, int]
) -> None:
    """An invalid certificate at the start is served and logged, because there is no better one.

    Clients that check it refuse it themselves.
    """
    secret = MountedSecret(tmp_path / "mount")
    bad, good = authority.issue("bad", valid_s=dates), authority.issue("good", valid_s=NOW)
    worse = authority.issue("worse", valid_s=PAST)
    client = authority.client_context(authority.issue("client"))
    careless = authority.client_context(authority.issue("careless"))
    careless.check_hostname, careless.verify_mode = False, ssl.CERT_NONE
    with Serving(ROUTES, tls=secret.publish(bad, authority.cert)) as serving:
        with pytest.raises(ssl.SSLCertVerificationError):
            ask(serving, client)
        assert ask(serving, careless) == der(bad.cert)
        assert serving.server.tls_state.expiry_unix_s == expiry(bad.cert)
        secret.publish(worse, authority.cert)
        assert ask(serving, careless) == der(worse.cert)
        secret.publish(good, authority.cert)
        assert ask(serving, client) == der(good.cert)
    (line,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert line.endswith("; using it anyway")


def test_a_certificate_that_becomes_valid(authority: Authority, tmp_path: Path) -> None:
    """Although no file changes, a new certificate is loaded once the old one is no longer valid."""
    secret = MountedSecret(tmp_path / "mount")
    old = authority.issue("old", valid_s=(-3600, 600))
    new = authority.issue("new", valid_s=(1200, 3600))
    files = secret.publish(old, authority.cert)
    now_s = skew_s = 0.0
    certificates = Certificates(
        files, log=LOG, clock_s=lambda: now_s, unix_s=lambda: time.time() + skew_s
    )
    first = certificates.current()
    secret.publish(new, authority.cert)
    for _ in range(2):
        now_s += RETRY_S
        assert certificates.current() is first
        assert certificates.state.reload_failed
    skew_s = 700.0  # both are invalid, so the newer files are used
    now_s += RETRY_S
    assert certificates.current() is not first
    assert not certificates.state.reload_failed
    assert certificates.state.expiry_unix_s == expiry(new.cert)


def test_files_that_change_while_they_are_read(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that are swapped between check and loading are judged as loaded, and read again."""
    secret = MountedSecret(tmp_path / "mount")
    first, second = authority.issue("first"), authority.issue("second")
    bad = authority.issue("bad", valid_s=PAST)
    now_s = 0.0
    certificates = Certificates(
        secret.publish(first, authority.cert), log=LOG, clock_s=lambda: now_s
    )
    used = certificates.current()
    secret.publish(second, authority.cert)
    load = tls_files._load

    def swapped(files: TlsFiles) -> tls_files.Credentials:
        secret.publish(bad, authority.cert)
        return load(files)

    with monkeypatch.context() as patched:
        patched.setattr(tls_files, "_load", swapped)
        assert certificates.current() is used
    now_s += RETRY_S
    assert certificates.current() is used
    secret.publish(second, authority.cert)
    assert certificates.current() is not used
    assert certificates.state.expiry_unix_s == expiry(second.cert)


@pytest.mark.parametrize(
    ("damage", "file", "why"),
    [
        (lambda files: files.cert.unlink(), "tls.crt", "No such file or directory"),
        (lambda files: files.key.unlink(), "tls.key", "No such file or directory"),
        (lambda files: files.client_ca.unlink(), "ca.crt", "No such file or directory"),
        (lambda files: files.cert.write_text("x"), "tls.crt", "cannot use TLS certificate"),
        (
            lambda files: files.client_ca.write_text(""),
            "ca.crt",
            NOT_A_CA,
        ),
    ],
)
def test_start_with_unusable_files(
    authority: Authority,
    tmp_path: Path,
    damage: Callable[[TlsFiles], object],
    file: str,
    why: str,
) -> None:
    """The server does not start. Its error is one line with the file, the fault and the remedy."""
    pair = authority.issue("server")
    files = MountedSecret(tmp_path / "mount").publish(pair, authority.cert)
    damage(files)
    with pytest.raises(TlsFilesError) as caught, Serving(ROUTES, tls=files):
        pass
    line = str(caught.value)
    assert line.startswith("cannot ")
    assert file in line
    assert why in line
    assert "; " in line
    assert "\n" not in line


def test_encrypted_key(authority: Authority, tmp_path: Path) -> None:
    """A key with a password is an error. The server does not ask for the password."""
    pair = authority.issue("server")
    key = tmp_path / "encrypted.key"
    command = ["openssl", "pkey", "-in", str(pair.key), "-aes256", "-passout", "pass:x"]
    subprocess.run([*command, "-out", str(key)], check=True, stdin=subprocess.DEVNULL)
    tls = TlsFiles(cert=pair.cert, key=key)
    with pytest.raises(TlsFilesError, match="the key unencrypted"), Serving(ROUTES, tls=tls):
        pass
