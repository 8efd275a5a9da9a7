# SPDX-License-Identifier: Apache-2.0
"""The server answers correct and malformed HTTP from real clients."""

import asyncio
import gzip
import http.client
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from http import HTTPStatus

import pytest

from probes.serve.limits import Limits
from probes.serve.listeners import BindError
from probes.serve.routes import Request, Response
from tests.support.serving import DEADLINE_S, TEXT, Gate, Peer, Serving, text

METRICS = "".join(f'metric{{name="vm-{n}"}} {n}\n' for n in range(2000)).encode()
HUGE = b"".join(b'metric{name="vm-%d"} %d\n' % (n, n * n) for n in range(40_000))


@pytest.fixture
def serving() -> Iterator[Serving]:
    async def echo(request: Request) -> Response:
        words = (request.path, request.accept, request.accept_encoding)
        return Response(content_type=TEXT, body=repr(words).encode(), headers=(("X-Extra", "1"),))

    async def query(request: Request) -> Response:
        return Response(content_type=TEXT, body=request.query.encode())

    routes = {
        "/": text("hello"),
        "/query": query,
        "/metrics": text(METRICS),
        "/huge": text(HUGE),
        "/echo": echo,
        "/below/*": echo,
    }
    with Serving(routes) as started:
        yield started


def test_get(serving: Serving) -> None:
    """A client library gets the status, the body, the handler's headers and a Date."""
    client = http.client.HTTPConnection("127.0.0.1", serving.port, timeout=DEADLINE_S)
    client.request("GET", "/echo?debug=1#x", headers={"Accept": "a/b", "Accept-Encoding": "br"})
    response = client.getresponse()
    assert response.status == 200
    assert response.read() == b"('/echo', 'a/b', 'br')"
    assert response.getheader("Content-Type") == TEXT
    assert response.getheader("X-Extra") == "1"
    assert response.getheader("Date", "").endswith(" GMT")
    client.close()


@pytest.mark.parametrize(
    ("target", "query"),
    [("/query", ""), ("/query?", ""), ("/query?a=%20?b", "a=%20?b"), ("http://test/query?c", "c")],
)
def test_a_handler_gets_the_query_as_sent(serving: Serving, target: str, query: str) -> None:
    """The query decides no route; the handler gets everything after the first question mark."""
    with Peer(serving.port) as peer:
        peer.get(target)
        answer = peer.answer()
        assert (answer.status, answer.body.decode()) == (200, query)


def test_absolute_target_and_repeated_headers(serving: Serving) -> None:
    """A target with a host is served by its path, and a repeated header is joined to one list."""
    with Peer(serving.port) as peer:
        peer.get("http://test/echo?x", "Accept: a/b", "Accept: c/d")
        assert peer.answer().body == b"('/echo', 'a/b,c/d', None)"
        peer.get("http://test")
        assert peer.answer().body == b"hello"


def test_head(serving: Serving) -> None:
    """HEAD is answered with the head of GET and no body, and the connection stays open."""
    with Peer(serving.port) as peer:
        for lines in ((), ("Accept-Encoding: gzip",)):
            peer.get("/metrics", *lines)
            full = peer.answer()
            peer.get("/metrics", *lines, method="HEAD")
            head = peer.answer(bodiless=True)
            assert head.status == 200
            assert {**head.headers, "date": ""} == {**full.headers, "date": ""}
        peer.get("/missing", method="HEAD")
        assert peer.answer(bodiless=True).status == 404
        peer.get("/")
        assert peer.answer().body == b"hello"


@pytest.mark.parametrize(
    "path",
    [
        "/missing",
        "/metrics/",
        "//metrics",
        "/%6detrics",
        "/../metrics",
        "/below",
        "/*",
        "/beloww/x",
    ],
)
def test_unknown_path(serving: Serving, path: str) -> None:
    """Any path but the exact ones is answered 404, and the connection stays open."""
    with Peer(serving.port) as peer:
        peer.get(path)
        assert peer.answer().status == 404
        peer.get("/")
        assert peer.answer().status == 200


@pytest.mark.parametrize("path", ["/below/", "/below/*", "/below/a/b%2Fc", "/below//x"])
def test_paths_below_a_folder(serving: Serving, path: str) -> None:
    """A route that ends with ``/*`` serves all paths below it, as they were sent."""
    with Peer(serving.port) as peer:
        peer.get(f"{path}?query")
        answer = peer.answer()
        assert answer.status == 200
        assert repr(path).encode() in answer.body
        peer.get(path, method="POST")
        assert peer.answer().status == 405


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "get"])
def test_other_methods(serving: Serving, method: str) -> None:
    """Another method is answered 405 with the allowed ones, and the connection ends."""
    with Peer(serving.port) as peer:
        peer.get("/metrics", method=method)
        answer = peer.answer()
        assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")
        assert peer.ended()


@pytest.mark.parametrize(("method", "status"), [("POST", 405), ("GET", 413), ("HEAD", 413)])
@pytest.mark.parametrize(
    ("header", "body"),
    [
        ("Content-Length: 1000000", b"x" * 1_000_000),
        ("Transfer-Encoding: chunked", b"5\r\nGET /\r\n0\r\n\r\n"),
    ],
)
def test_request_body(serving: Serving, method: str, status: int, header: str, body: bytes) -> None:
    """A request with a body is refused. A peer that sends all of it first still gets the answer.

    No part of the body is taken for a request.
    """
    with Peer(serving.port) as peer:
        peer.get("/metrics", header, method=method)
        peer.send(body)
        assert peer.answer(bodiless=method == "HEAD").status == status
        assert peer.ended()


def test_body_that_still_comes() -> None:
    """A peer that still sends its body after the answer is not reset, so it can read the answer."""
    limits = Limits(linger_deadline_s=DEADLINE_S)
    with Serving({}, limits=limits) as serving, Peer(serving.port) as peer:
        peer.get("/", "Content-Length: 20000000", method="POST")
        assert peer.answer().status == 405
        for _ in range(200):  # more than buffers hold
            peer.send(b"x" * 100_000)
        peer.sock.shutdown(socket.SHUT_WR)
        assert peer.ended()


def test_body_is_refused_before_it_is_sent(serving: Serving) -> None:
    """A peer that expects 100-continue gets the final answer at once."""
    with Peer(serving.port) as peer:
        peer.get("/metrics", "Content-Length: 5", "Expect: 100-continue", method="POST")
        assert peer.answer().status == 405
        assert peer.ended()


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nbad header\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 413),
        (b"GET /\x80 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"HEAD * HTTP/1.0\r\n\r\n", 400),
        (b"GET metrics HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET a:9747 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET ftp://a/metrics HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"GET / HTTP/0.9\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0, 0\r\n\r\n", 400),
        (
            b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n",
            413,
        ),
    ],
)
def test_malformed_request(serving: Serving, request_bytes: bytes, status: int) -> None:
    """A malformed request gets its error status and ends the connection, but no other one."""
    with Peer(serving.port) as peer, Peer(serving.port) as other:
        peer.send(request_bytes)
        answer = peer.last()
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert answer.count(b"HTTP/1.1 ") == 1
        other.get("/")
        assert other.answer().status == 200


@pytest.mark.parametrize(
    "head", [b"GET /" + b"a" * 40_000, b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 10_000]
)
def test_head_too_long(serving: Serving, head: bytes) -> None:
    """A head that is too long ends the connection without an answer, but no other one."""
    with Peer(serving.port) as peer, Peer(serving.port) as other:
        try:
            peer.send(head)
            assert peer.last() == b""
        except (BrokenPipeError, ConnectionResetError):
            pass  # the server has not read all of it
        other.get("/")
        assert other.answer().status == 200


def test_head_cut_off(serving: Serving) -> None:
    """A peer that closes its side in the middle of a head is disconnected."""
    with Peer(serving.port) as peer:
        peer.send(b"GET / HTTP/1.1\r\nHost:")
        peer.sock.shutdown(socket.SHUT_WR)
        assert peer.ended()


def test_keep_alive(serving: Serving) -> None:
    """A connection serves many requests and ends when the peer requests it."""
    with Peer(serving.port) as peer:
        for _ in range(200):
            peer.get("/metrics")
            answer = peer.answer()
            assert answer.body == METRICS
            assert "connection" not in answer.headers
        peer.get("/", "Connection: close")
        answer = peer.answer()
        assert (answer.body, answer.headers["connection"]) == (b"hello", "close")
        assert peer.ended()


def test_pipelining(serving: Serving) -> None:
    """Requests sent at once are answered in order, however their bytes are split."""
    paths = ["/", "/missing", "/metrics", "/echo", "/"] * 20
    sent = b"".join(b"GET %s HTTP/1.1\r\nHost: a\r\n\r\n" % path.encode() for path in paths)
    for step in (len(sent), 7):
        with Peer(serving.port) as peer:
            for start in range(0, len(sent), step):
                peer.send(sent[start : start + step])
            statuses = [peer.answer().status for _ in paths]
            assert statuses == [404 if path == "/missing" else 200 for path in paths]


def test_nothing_is_served_after_the_last_request(serving: Serving) -> None:
    """Requests pipelined after one with `Connection: close` are not answered."""
    with Peer(serving.port) as peer:
        peer.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" * 3)
        assert peer.answer().status == 200
        assert peer.ended()


def test_http_1_0(serving: Serving) -> None:
    """An HTTP/1.0 client needs no Host, gets an unchunked body, and the connection ends."""
    with Peer(serving.port) as peer:
        peer.send(b"GET /metrics HTTP/1.0\r\n\r\n")
        answer = peer.answer()
        assert (answer.status, answer.body) == (200, METRICS)
        assert "transfer-encoding" not in answer.headers
        assert peer.ended()


@pytest.mark.parametrize(("path", "body"), [("/metrics", METRICS), ("/huge", HUGE)])
def test_compression(serving: Serving, path: str, body: bytes) -> None:
    """Only a client that accepts gzip gets a compressed body; Vary is always set for caches."""
    with Peer(serving.port) as peer:
        peer.get(path, "Accept-Encoding: zstd, gzip")
        answer = peer.answer()
        assert answer.headers["content-encoding"] == "gzip"
        assert answer.headers["vary"] == "Accept-Encoding"
        assert len(answer.body) < len(body) / 3
        assert gzip.decompress(answer.body) == body
        for lines in ((), ("Accept-Encoding: gzip;q=0",)):
            peer.get(path, *lines)
            answer = peer.answer()
            assert "content-encoding" not in answer.headers
            assert answer.headers["vary"] == "Accept-Encoding"
            assert answer.body == body


def test_small_body_is_not_compressed(serving: Serving) -> None:
    """A body that fits one packet is not compressed, because that would save nothing."""
    with Peer(serving.port) as peer:
        peer.get("/", "Accept-Encoding: gzip")
        answer = peer.answer()
        assert "content-encoding" not in answer.headers
        assert answer.body == b"hello"


def test_curl(serving: Serving) -> None:
    """The curl command fetches compressed metrics, a head, and two paths over one connection."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    url = f"http://127.0.0.1:{serving.port}"

    def curl(*arguments: str) -> bytes:
        command = ["curl", "-sS", "-m", "20", *arguments]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout

    assert curl("--compressed", f"{url}/huge") == HUGE
    assert curl("-I", f"{url}/metrics").startswith(b"HTTP/1.1 200")
    count = ("-w", "%{num_connects}")
    assert curl(*count, f"{url}/", f"{url}/") == b"hello1hello0"
    assert curl("-w", "%{http_code}", "-d", "x=y", f"{url}/").endswith(b"405")


def test_handler_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    """A failing handler is answered 500. Its traceback is logged once until it succeeds again."""
    broken = True

    async def handler(request: Request) -> Response:
        if broken:
            raise RuntimeError("ledger\nlost")
        return Response(content_type=TEXT, body=b"fine")

    with Serving({"/": handler, "/ok": text("ok")}) as serving, Peer(serving.port) as peer:
        statuses = []
        for _ in range(3):
            peer.get("/")
            answer = peer.answer()
            assert b"ledger" not in answer.body
            statuses.append(answer.status)
        peer.get("/ok")
        statuses.append(peer.answer().status)
        assert len(caplog.records) == 1
        broken = False
        peer.get("/")
        statuses.append(peer.answer().status)
        broken = True
        peer.get("/")
        statuses.append(peer.answer().status)
    assert statuses == [500, 500, 500, 200, 200, 500]
    assert len(caplog.records) == 2
    assert 'raise RuntimeError("ledger\\nlost")' in caplog.text
    assert "\n" not in caplog.records[0].getMessage()


@pytest.mark.parametrize("headers", [(("X", "a\r\nSet-Cookie: b"),), (("a b", "c"),)])
def test_header_that_is_not_allowed(headers: tuple[tuple[str, str], ...]) -> None:
    """A handler's invalid header is answered 500, so its value cannot split the response."""

    async def handler(request: Request) -> Response:
        return Response(content_type=TEXT, body=b"", headers=headers)

    with Serving({"/": handler}) as serving, Peer(serving.port) as peer:
        peer.get("/")
        answer = peer.answer()
        assert answer.status == 500
        assert "set-cookie" not in answer.headers


def test_status_of_handler() -> None:
    """A handler's status and empty body reach the client."""

    async def handler(request: Request) -> Response:
        return Response(status=HTTPStatus.SERVICE_UNAVAILABLE, content_type=TEXT, body=b"")

    with Serving({"/readyz": handler}) as serving, Peer(serving.port) as peer:
        peer.get("/readyz")
        answer = peer.answer()
        assert (answer.status, answer.body) == (503, b"")


@pytest.mark.parametrize("obeys", [True, False])
def test_handler_that_hangs(obeys: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A hanging handler is answered 503 at its deadline, even if it ignores being cancelled.

    Other connections are served in that time.
    """
    release = threading.Event()
    entered = threading.Event()
    cancelled = threading.Event()

    async def hang(request: Request) -> Response:
        entered.set()
        while not release.is_set():
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                cancelled.set()
                if obeys:
                    raise
        return Response(content_type=TEXT, body=b"late")

    limits = Limits(handler_deadline_s=0.3)
    with Serving({"/hang": hang, "/": text("hello")}, limits=limits) as serving:
        with Peer(serving.port) as stuck, Peer(serving.port) as other:
            stuck.get("/hang")
            assert entered.wait(DEADLINE_S)
            other.get("/")
            assert other.answer().body == b"hello"
            answer = stuck.answer()
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
            assert cancelled.wait(DEADLINE_S)
            stuck.get("/")
            assert stuck.answer().body == b"hello"
        release.set()
    assert [record.getMessage() for record in caplog.records] == [
        "cannot answer /hang: no answer within 0.3 s"
    ]


def test_peer_that_leaves(caplog: pytest.LogCaptureFixture) -> None:
    """Peers that disconnect before, during or after their request are not logged."""
    gate = Gate()
    with Serving({"/gate": gate.handler, "/huge": text(HUGE), "/": text("hello")}) as serving:
        for path in (None, "/gate", "/huge", "/"):
            with Peer(serving.port) as peer:
                if path is not None:
                    peer.get(path)
                if path == "/gate":
                    gate.wait_entered(1)
        gate.open()
        with Peer(serving.port) as peer:
            peer.get("/")
            assert peer.answer().status == 200
    assert caplog.records == []


@pytest.mark.parametrize(
    ("listen", "hosts"),
    [
        ("127.0.0.1:0", ["127.0.0.1"]),
        ("[::1]:0", ["::1"]),
        ("[::]:0", ["::1", "127.0.0.1"]),
        (":0", ["::1", "127.0.0.1"]),
        ("0.0.0.0:0", ["127.0.0.1"]),
    ],
)
def test_addresses(listen: str, hosts: list[str]) -> None:
    """`[::]` and no host serve IPv6 and IPv4 on one port, and the server knows the real port."""
    with Serving({"/": text("hello")}, listen=listen) as serving:
        assert serving.port != 0
        for host in hosts:
            with Peer(serving.port, host=host) as peer:
                peer.get("/")
                assert peer.answer().body == b"hello"


def test_host_name() -> None:
    """The server listens on every address of a host name, and knows them all."""
    with Serving({"/": text("hello")}, listen="localhost:0") as serving:
        addresses = serving.server.addresses
        assert {host for host, _ in addresses} <= {"127.0.0.1", "::1"}
        for host, port in addresses:
            with Peer(port, host=host) as peer:
                peer.get("/")
                assert peer.answer().body == b"hello"


def test_address_in_use() -> None:
    """A second server on a port does not start. Its error is one line with reason and remedy."""
    with Serving({}) as first:
        listen = f"127.0.0.1:{first.port}"
        with pytest.raises(BindError) as caught, Serving({}, listen=listen):
            pass
    line = f"cannot listen on {listen}: Address already in use; choose another with --listen"
    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("listen", "why"),
    [
        ("192.0.2.1:0", "Cannot assign requested address"),
        ("no-such-host.invalid:0", "Name or service not known"),
    ],
)
def test_address_that_is_not_ours(listen: str, why: str) -> None:
    """The error for another machine's address or an unknown host name is one line."""
    with pytest.raises(BindError) as caught, Serving({}, listen=listen):
        pass
    assert str(caught.value) == f"cannot listen on {listen}: {why}; choose another with --listen"


def test_stop_lets_requests_in_flight_end() -> None:
    """``stop`` ends idle connections, lets requests in flight be answered, and frees the port."""
    gate = Gate()
    limits = Limits(stop_grace_s=DEADLINE_S)
    with Serving({"/": text("hello"), "/gate": gate.handler}, limits=limits) as serving:
        port = serving.port
        with Peer(port) as idle, Peer(port) as busy:
            idle.get("/")
            assert idle.answer().status == 200
            busy.get("/gate")
            gate.wait_entered(1)
            stopping = threading.Thread(target=lambda: serving.call(serving.server.stop()))
            stopping.start()
            assert idle.ended()
            with pytest.raises(ConnectionRefusedError):
                Peer(port)
            gate.open()
            answer = busy.answer()
            assert (answer.body, answer.headers["connection"]) == (b"through the gate", "close")
            assert busy.ended()
            busy.sock.close()
            stopping.join(DEADLINE_S)
            assert not stopping.is_alive()
        with Serving({"/": text("next")}, listen=f"127.0.0.1:{port}"), Peer(port) as peer:
            peer.get("/")
            assert peer.answer().body == b"next"


def test_stop_does_not_wait_for_ever() -> None:
    """``stop`` drops a request that is not answered within the grace."""
    gate = Gate()
    limits = Limits(stop_grace_s=0.1)
    with Serving({"/gate": gate.handler}, limits=limits) as serving, Peer(serving.port) as peer:
        peer.get("/gate")
        gate.wait_entered(1)
        serving.call(serving.server.stop())
        assert peer.ended()
