# SPDX-License-Identifier: Apache-2.0
"""Certificate authorities and real certificates, made by trustme, as files."""

import shutil
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme

from probes.serve.listen import TlsFiles

_NAMES = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The files of a certificate and its private key."""

    cert: Path
    key: Path


class Authority:
    """A CA that keeps its certificate and what it issues in a directory of its own."""

    def __init__(self, directory: Path, name: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._ca = trustme.CA(organization_unit_name=name)
        self.cert = directory / "ca.crt"
        self._ca.cert_pem.write_to_path(self.cert)

    def issue(self, name: str, *, valid_s: tuple[int, int] | None = None) -> Pair:
        """Issue a certificate for the loopback addresses, of servers and of clients.

        valid_s: begin and end of its validity, in seconds from now; None: it is valid for years.
        """
        now = datetime.now(UTC)
        begin, end = (
            (now + timedelta(seconds=each) for each in valid_s) if valid_s else (None, None)
        )
        issued = self._ca.issue_cert(*_NAMES, common_name=name, not_before=begin, not_after=end)
        pair = Pair(cert=self._directory / f"{name}.crt", key=self._directory / f"{name}.key")
        issued.cert_chain_pems[0].write_to_path(pair.cert)
        issued.private_key_pem.write_to_path(pair.key)
        return pair

    def server_context(self) -> ssl.SSLContext:
        """TLS for a server on the loopback addresses, its certificate issued by this CA."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._ca.issue_cert(*_NAMES).configure_cert(context)
        return context

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
