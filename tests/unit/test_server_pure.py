# SPDX-License-Identifier: Apache-2.0
"""The server's decisions without a socket: the listen address and compression."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.serve.listen import Listen, parse_listen
from probes.serve.routes import accepts_gzip


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("0.0.0.0:9747", "0.0.0.0", 9747),
        ("[::]:9747", "::", 9747),
        ("[fe80::1%eth0]:1", "fe80::1%eth0", 1),
        (":9747", "", 9747),
        ("localhost:0", "localhost", 0),
        ("node-1.example:65535", "node-1.example", 65535),
    ],
)
def test_listen_address_is_read(text: str, host: str, port: int) -> None:
    """Host and port are separated without brackets, and are written in the original form again."""
    listen = parse_listen(text)
    assert listen == Listen(host=host, port=port)
    assert str(listen) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "there is no port"),
        ("9747", "there is no port"),
        ("localhost", "there is no port"),
        ("[::1]", "there is no port"),
        ("localhost:", "port '' is not a number from 0 to 65535"),
        ("localhost:http", "port 'http' is not a number"),
        ("localhost:65536", "port '65536' is not a number from 0 to 65535"),
        ("localhost:-1", "port '-1' is not"),
        ("localhost:+1", "port '+1' is not"),
        ("localhost: 1", "port ' 1' is not"),
        ("localhost:1_0", "port '1_0' is not"),
        ("localhost:\u0661", "is not a number"),
        ("::1:9747", "an IPv6 address must be in brackets"),
        ("[::1:9747", "a bracket is missing"),
        ("::1]:9747", "a bracket is missing"),
        ("[[::1]]:9747", "a bracket is missing or misplaced"),
        ("[localhost]:9747", "'localhost' is not an IPv6 address"),
        ("http://localhost:9747", "'http://localhost' is not a host name"),
        ("local host:9747", "'local host' is not a host name"),
    ],
)
def test_wrong_listen_address_is_explained(text: str, why: str) -> None:
    """The error repeats the input, names the mistake and the correct form, in one line."""
    with pytest.raises(ValueError) as caught:
        parse_listen(text)
    line = str(caught.value)
    assert line.startswith(f"listen address {text!r}: ")
    assert why in line
    assert "write HOST:PORT" in line
    assert "\n" not in line


@given(st.text(max_size=30))
def test_any_listen_text_is_read_or_refused(text: str) -> None:
    """Any text is an address with a valid port or raises ``ValueError`` with one line."""
    try:
        listen = parse_listen(text)
    except ValueError as err:
        line = str(err)
    else:
        line = str(listen)
        assert 0 <= listen.port <= 65535
    assert "\n" not in line


@pytest.mark.parametrize(
    ("header", "gzip"),
    [
        (None, False),
        ("", False),
        ("gzip", True),
        ("GZip", True),
        ("x-gzip", True),
        ("zstd, gzip;q=0.5", True),
        ("gzip;q=0", False),
        ("gzip; q=0.000", False),
        ("gzip;q=0, *;q=1", False),
        ("*", True),
        ("*;q=0", False),
        ("deflate", False),
        ("identity", False),
        ("gzip;q=0.1, identity;q=0.9", False),
        ("gzip, identity;q=0.5", True),
        ("gzip;q=nonsense", False),
        ("gzip;level=9;q=0.4", True),
        (";;,,q=", False),
    ],
)
def test_compression_is_negotiated(header: str | None, gzip: bool) -> None:
    """Responses are compressed if Accept-Encoding allows gzip and does not prefer identity."""
    assert accepts_gzip(header) is gzip


@given(st.text(max_size=60))
def test_any_accept_encoding_is_accepted(header: str) -> None:
    """A malformed header gives an answer, never an exception."""
    assert accepts_gzip(header) in (True, False)
