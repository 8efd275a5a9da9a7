# SPDX-License-Identifier: Apache-2.0
"""Parses where to listen, and holds the paths and the state of the TLS files. Pure."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """Where to listen."""

    host: str
    """A name or an address without brackets; empty: all addresses of the machine."""
    port: int
    """The port; 0: any free port."""

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_listen(text: str) -> Listen:
    """Parse ``HOST:PORT``, ``[IPV6]:PORT`` or ``:PORT``.

    Raises ValueError when the text has another form; one line says why.
    """
    host, colon, digits = text.rpartition(":")
    why = None
    if not colon or text.endswith("]"):
        why = "there is no port"
    elif host.startswith("[") != host.endswith("]") or "[" in host[1:] or "]" in host[:-1]:
        why = "a bracket is missing or misplaced"
    elif not digits.isascii() or not digits.isdecimal() or int(digits) > 65535:
        why = f"port {digits!r} is not a number from 0 to 65535"
    elif host.startswith("["):
        host = host[1:-1]
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            why = f"{host!r} is not an IPv6 address"
    elif "/" in host or any(character.isspace() for character in host):
        why = f"{host!r} is not a host name or address"
    elif ":" in host:
        why = "an IPv6 address must be in brackets"
    if why is not None:
        form = "write HOST:PORT, e.g. 0.0.0.0:9747 or [::]:9747"
        raise ValueError(f"listen address {text!r}: {why}; {form}")
    return Listen(host=host, port=int(digits))


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """The paths of the PEM files of TLS. Symbolic links are followed at every read."""

    cert: Path
    """The server's certificate, then its intermediates."""
    key: Path
    """The certificate's private key, not encrypted."""
    client_ca: Path | None = None
    """CAs whose clients are admitted to everything; None: clients need no certificate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsState:
    """The state of the TLS files in use."""

    reload_failed: bool
    """Whether the files have changed but cannot be used, so that older ones are in use."""
    expiry_unix_s: float
    """When the server's certificate in use expires."""
