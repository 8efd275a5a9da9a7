# SPDX-License-Identifier: Apache-2.0
"""Reads from a certificate's PEM text when it is valid (RFC 5280, 4.1). Pure.

The ssl module shows that for a peer's certificate only, but the agent needs it for its own. Must
not know where the text comes from, nor check any signature: OpenSSL does.
"""

import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

_BLOCK = re.compile(
    rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----(.*?)-----END (?:X509 |TRUSTED )?CERTIFICATE",
    re.DOTALL,
)
_SEQUENCE, _UTC_TIME, _GENERALIZED_TIME, _VERSION = 0x30, 0x17, 0x18, 0xA0
_LONG_FORM = 0x80
_CENTURY_PIVOT = 50
"""Two-digit years below this are in this century (RFC 5280, 4.1.2.5.1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Validity:
    """When a certificate is valid, in Unix seconds."""

    from_unix_s: float
    until_unix_s: float

    def wrong_at(self, unix_s: float) -> str | None:
        """Say why it is not valid at a time, and until or since when; None: it is valid."""
        if unix_s < self.from_unix_s:
            return f"not valid before {_shown(self.from_unix_s)}"
        if unix_s > self.until_unix_s:
            return f"expired at {_shown(self.until_unix_s)}"
        return None


def validity(pem: bytes) -> Validity:
    """Return the validity of the first certificate in the text, which is the server's own.

    Raises ValueError when there is none, or when it is damaged.
    """
    found = _BLOCK.search(pem)
    if found is None:
        raise ValueError("it contains no certificate")
    try:
        certificate = base64.b64decode(found[1])
        (signed, *_) = _items(_only(certificate, _SEQUENCE))
        fields = [item for item in _items(_of(signed, _SEQUENCE)) if item[0] != _VERSION]
        # serialNumber, signature, issuer, validity
        begin, end = _items(_of(fields[3], _SEQUENCE))
        return Validity(from_unix_s=_unix_s(begin), until_unix_s=_unix_s(end))
    except (ValueError, IndexError) as err:
        raise ValueError("its certificate is damaged") from err


_Item = tuple[int, bytes]
"""Tag and content."""


def _items(data: bytes) -> Iterator[_Item]:
    """Iterate over the items of DER. Raises IndexError when one is cut short."""
    at = 0
    while at < len(data):
        tag, length = data[at], data[at + 1]
        at += 2
        if length >= _LONG_FORM:
            size = length - _LONG_FORM
            length = int.from_bytes(data[at : at + size], "big")
            at += size
        if at + length > len(data):
            raise IndexError
        yield tag, data[at : at + length]
        at += length


def _only(data: bytes, tag: int) -> bytes:
    """Return the first item's content. OpenSSL's own data follow it in a TRUSTED CERTIFICATE."""
    return _of(next(_items(data), (0, b"")), tag)


def _of(item: _Item, tag: int) -> bytes:
    if item[0] != tag:
        raise IndexError
    return item[1]


def _unix_s(item: _Item) -> float:
    tag, text = item[0], item[1].decode("ascii")
    if tag == _UTC_TIME:
        text = ("20" if int(text[:2]) < _CENTURY_PIVOT else "19") + text
    elif tag != _GENERALIZED_TIME:
        raise IndexError
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _shown(unix_s: float) -> str:
    return f"{datetime.fromtimestamp(unix_s, UTC):%Y-%m-%dT%H:%M:%SZ}"
