# SPDX-License-Identifier: Apache-2.0
"""Real certificates, made by the openssl command."""

import os
import shutil
import ssl
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from probes.serve.http.listen import TlsFiles

_CONFIG = """\
[req]
distinguished_name = name
prompt = no
[name]
CN = {name}
[ca]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[leaf]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
subjectAltName = IP:127.0.0.1, IP:::1, DNS:localhost
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The files of a certificate and its private key."""

    cert: Path
    key: Path


class Authority:
    """A CA that keeps its key and what it issues in a directory of its own."""

    def __init__(self, directory: Path, name: str) -> None:
        directory.mkdir()
        self._directory = directory
        self._name = name
        key = directory / "ca.key"
        self.cert = directory / "ca.crt"
        self._config = directory / "openssl.cnf"
        self._config.write_text(_CONFIG.format(name=name))
        _openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", key)
        request = ("req", "-new", "-x509", "-config", self._config, "-extensions", "ca")
        _openssl(*request, "-key", key, "-days", "2", "-out", self.cert)
        self._key = key

    def issue(self, name: str, *, valid_s: tuple[int, int] | None = None) -> Pair:
        """Issue a certificate.

        valid_s: begin and end of its validity, in seconds from now; None: two days from now.
        """
        key, request = self._directory / f"{name}.key", self._directory / f"{name}.csr"
        cert = self._directory / f"{name}.crt"
        config = self._directory / f"{name}.cnf"
        config.write_text(_CONFIG.format(name=name))
        _openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", key)
        _openssl("req", "-new", "-config", config, "-key", key, "-out", request)
        issuer = ("-CA", self.cert, "-CAkey", self._key, "-CAcreateserial", "-days", "2")
        extensions = ("-extfile", config, "-extensions", "leaf")
        _openssl("x509", "-req", "-in", request, *issuer, *extensions, "-out", cert)
        if valid_s is not None:
            self._date(cert, valid_s)
        return Pair(cert=cert, key=key)

    def _date(self, path: Path, valid_s: tuple[int, int]) -> None:
        """Sign a certificate again with other dates, because `openssl x509` cannot set them."""
        begin, end = (datetime.now(UTC) + timedelta(seconds=offset_s) for offset_s in valid_s)
        old = x509.load_pem_x509_certificate(path.read_bytes())
        builder = x509.CertificateBuilder(extensions=list(old.extensions))
        builder = builder.subject_name(old.subject).issuer_name(old.issuer)
        builder = builder.public_key(old.public_key()).serial_number(old.serial_number)
        builder = builder.not_valid_before(begin).not_valid_after(end)
        key = serialization.load_pem_private_key(self._key.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        signed = builder.sign(key, hashes.SHA256())
        path.write_bytes(signed.public_bytes(serialization.Encoding.PEM))

    def server_files(self, name: str = "server", *, client_ca: Path | None = None) -> TlsFiles:
        pair = self.issue(name)
        return TlsFiles(cert=pair.cert, key=pair.key, client_ca=client_ca)

    def client_context(self, pair: Pair | None = None) -> ssl.SSLContext:
        """The TLS context of a client that trusts only this CA. pair: the client's certificate."""
        context = ssl.create_default_context(cafile=self.cert)
        context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
        if pair is not None:
            context.load_cert_chain(pair.cert, pair.key)
        return context


class MountedSecret:
    """A Secret as kubelet mounts it: one symlink changes, and with it all files at once."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._directory = directory
        self._generation = 0

    def publish(self, pair: Pair, client_ca: Path) -> TlsFiles:
        self._generation += 1
        data = self._directory / f"..{self._generation}"
        data.mkdir()
        sources = {"tls.crt": pair.cert, "tls.key": pair.key, "ca.crt": client_ca}
        for name, source in sources.items():
            shutil.copyfile(source, data / name)
        link = self._directory / "..data_tmp"
        link.symlink_to(data.name)
        old = (self._directory / "..data").resolve()
        link.rename(self._directory / "..data")
        for name in sources:
            if not (self._directory / name).is_symlink():
                (self._directory / name).symlink_to(f"..data/{name}")
        if old.name.startswith("..") and old.name != "..data":
            shutil.rmtree(old)
        files = self._directory
        return TlsFiles(cert=files / "tls.crt", key=files / "tls.key", client_ca=files / "ca.crt")


def _openssl(*arguments: str | Path) -> None:
    command = ["openssl", *(os.fspath(argument) for argument in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
