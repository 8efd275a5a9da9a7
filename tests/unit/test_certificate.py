# SPDX-License-Identifier: Apache-2.0
"""The validity of the server's certificate, as OpenSSL reads it."""

import datetime
import logging
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from probes.serve.listen import TlsFiles
from probes.serve.tls_files import Certificates, Credentials, TlsFilesError

KEY = ec.generate_private_key(ec.SECP256R1())
NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "hvprobe")])
LOG = logging.getLogger("test.certificate")
SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH


def pem(
    begin: datetime.datetime, end: datetime.datetime, purpose: x509.ObjectIdentifier = SERVER
) -> bytes:
    builder = x509.CertificateBuilder(NAME, NAME, KEY.public_key(), 2**150, begin, end)
    builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def utc(
    year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0
) -> datetime.datetime:
    return datetime.datetime(year, month, day, hour, minute, second, tzinfo=datetime.UTC)


FIRST = pem(utc(2026, 1, 2, 3, 4, 5), utc(2049, 12, 31, 23, 59, 59))


def load(folder: Path, cert: bytes) -> Credentials:
    files = TlsFiles(cert=folder / "tls.crt", key=folder / "tls.key")
    files.cert.write_bytes(cert)
    unprotected = serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    files.key.write_bytes(KEY.private_bytes(serialization.Encoding.PEM, form, unprotected))
    return Certificates(files, log=LOG).current()


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        (utc(2026, 1, 2, 3, 4, 5), utc(2026, 3, 1)),
        (utc(1999, 12, 31), utc(2049, 12, 31, 23, 59, 59)),
        (utc(2050, 1, 1), utc(9999, 12, 31, 23, 59, 59)),
    ],
)
def test_dates(begin: datetime.datetime, end: datetime.datetime, tmp_path: Path) -> None:
    """Dates with two-digit and four-digit years, of the past and the future, are read exactly."""
    found = load(tmp_path, pem(begin, end))
    assert (found.from_unix_s, found.until_unix_s) == (begin.timestamp(), end.timestamp())


def test_the_first_of_several_counts(tmp_path: Path) -> None:
    """The first certificate, the server's own, counts; text and intermediates do not."""
    other = pem(utc(2000, 1, 1), utc(2001, 1, 1))
    found = load(tmp_path, b"subject=CN = x\r\n" + FIRST + other)
    assert found.until_unix_s == utc(2049, 12, 31, 23, 59, 59).timestamp()


def test_a_certificate_outside_its_validity() -> None:
    """The message gives the time of the start or the end. Both bounds are valid."""
    valid = Credentials(
        context=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER),
        from_unix_s=100.0,
        until_unix_s=200.0,
        client_ca=None,
    )
    assert valid.wrong_at(99) == "not valid before 1970-01-01T00:01:40Z"
    assert valid.wrong_at(100) is None
    assert valid.wrong_at(200) is None
    assert valid.wrong_at(201) == "expired at 1970-01-01T00:03:20Z"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"soon",
        FIRST[:100],
        FIRST.replace(b"MII", b"AAA", 1),
        pem(utc(2026, 1, 1), utc(2049, 1, 1), CLIENT),
    ],
)
def test_no_certificate_of_a_server(text: bytes, tmp_path: Path) -> None:
    """Text that is no certificate, or one that no client would accept, is an error of one line."""
    with pytest.raises(TlsFilesError, match=r"^cannot use TLS certificate .*; give ") as caught:
        load(tmp_path, text)
    assert "\n" not in str(caught.value)
