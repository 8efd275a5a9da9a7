# SPDX-License-Identifier: Apache-2.0
"""Idle and slow clients, many of them, and what is left for a scrape."""

import errno
import os
import resource
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from probes.serve.http.connection import Limits
from tests.support.certificates import Authority
from tests.support.serving import DEADLINE_S, Gate, Peer, Serving, descriptors, text

CROWD = 1000
SCRAPE_DEADLINE_S = 10.0
"""Prometheus' default: a scrape among the crowd has to be answered within this."""

METRICS = "".join(f'metric{{name="vm-{n}"}} {n}\n' for n in range(2000)).encode()
LONG = b"x" * 4_000_000
"""More than the send and receive buffers hold that the kernel gives a connection."""

ROUTES = {"/metrics": text(METRICS), "/long": text(LONG)}


def scrape(serving: Serving, *, tls: ssl.SSLContext | None = None) -> None:
    """One scrape on a new connection, in time."""
    began_s = time.monotonic()
    with Peer(serving.port, tls=tls) as peer:
        peer.get("/metrics")
        answer = peer.answer()
    assert (answer.status, answer.body) == (200, METRICS)
    assert time.monotonic() - began_s < SCRAPE_DEADLINE_S


@contextmanager
def crowd(
    serving: Serving, hello: Callable[[int], bytes], *, receive_buffer: int | None = None
) -> Iterator[list[Peer]]:
    """CROWD peers connected at once, each having said its `hello`, as far as they were let."""
    with descriptors(4 * CROWD), ExitStack() as stack:
        peers = []
        for number in range(CROWD):
            peer = stack.enter_context(Peer(serving.port, receive_buffer=receive_buffer))
            peers.append(peer)
            try:
                peer.send(hello(number))
            except (BrokenPipeError, ConnectionResetError):
                continue  # made room for another already
        yield peers


def test_1000_idle_connections() -> None:
    """With 1000 connections that never say a word, scrapes go on; only so many are held."""
    limits = Limits(connections_max=64)
    with Serving(ROUTES, limits=limits) as serving, crowd(serving, lambda _: b"") as peers:
        for _ in range(20):
            scrape(serving)
        held = 0
        for peer in peers:
            peer.sock.setblocking(False)
            try:
                assert peer.sock.recv(1) == b""
            except BlockingIOError:
                held += 1
        assert held <= 64


def test_1000_kept_connections() -> None:
    """1000 clients that keep their connection after a scrape do not keep the next one out."""
    request = b"GET /metrics HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\n\r\n"
    limits = Limits(connections_max=64)
    with Serving(ROUTES, limits=limits) as serving, crowd(serving, lambda _: request) as peers:
        scrape(serving)
        assert peers[-1].answer().status == 200


def test_1000_slow_heads() -> None:
    """Nor do 1000 clients that send their heads a byte at a time, for as long as they try."""
    limits = Limits(connections_max=64)
    head = b"GET /metrics HTTP/1.1\r\nHost: a\r\nX-Slow: "
    with (
        Serving(ROUTES, limits=limits) as serving,
        crowd(serving, lambda number: head[: 1 + number % len(head)]) as peers,
    ):
        for _ in range(5):
            for peer in peers:
                try:
                    peer.send(b"y")
                except (BrokenPipeError, ConnectionResetError):
                    continue
            scrape(serving)


@pytest.mark.parametrize("grace_s", [0.0, 0.2])
def test_1000_slow_readers(grace_s: float) -> None:
    """Nor 1000 clients that ask for much and do not read it, once their grace is over."""
    request = b"GET /long HTTP/1.1\r\nHost: a\r\n\r\n"
    limits = Limits(connections_max=64, write_grace_s=grace_s)
    with (
        Serving(ROUTES, limits=limits) as serving,
        crowd(serving, lambda _: request, receive_buffer=4096),
    ):
        deadline_s = time.monotonic() + DEADLINE_S
        while grace_s and time.monotonic() < deadline_s:
            with Peer(serving.port) as peer:
                peer.get("/metrics")
                if peer.answer().status == 200:
                    break
        scrape(serving)


@pytest.mark.parametrize(("grace_s", "status"), [(0.0, 200), (DEADLINE_S, 503)])
def test_slow_readers_make_room_first(grace_s: float, status: int) -> None:
    """A slow reader makes room before an idle connection does, but not within its grace."""
    limits = Limits(connections_max=3, write_grace_s=grace_s)
    with Serving(ROUTES, limits=limits) as serving, ExitStack() as stack:
        idle = stack.enter_context(Peer(serving.port))
        idle.get("/metrics")
        assert idle.answer().status == 200
        slow = [stack.enter_context(Peer(serving.port, receive_buffer=4096)) for _ in range(2)]
        for peer in slow:
            peer.get("/long")
            assert peer.sock.recv(1) == b"H"
        if status == 503:
            idle.sock.close()
            slow.append(stack.enter_context(Peer(serving.port, receive_buffer=4096)))
            slow[-1].get("/long")
            assert slow[-1].sock.recv(1) == b"H"
        with Peer(serving.port) as late:
            late.get("/metrics")
            assert late.answer().status == status
            if status == 200:
                assert slow[0].cut()
                idle.get("/metrics")
                assert idle.answer().status == 200


def test_1000_idle_connections_under_tls(authority: Authority) -> None:
    """The same under TLS: 1000 peers that do not begin, and 100 that are through the handshake."""
    limits = Limits(connections_max=128)
    context = authority.client_context()
    with (
        Serving(ROUTES, limits=limits, tls=authority.server_files()) as serving,
        crowd(serving, lambda _: b""),
        ExitStack() as stack,
    ):
        for _ in range(100):
            stack.enter_context(Peer(serving.port, tls=context))
        for _ in range(5):
            scrape(serving, tls=context)


def test_connections_of_a_flood_are_looked_at_before_they_make_room() -> None:
    """A client that connects and asks at the head of 1000 others gets its answer."""
    with (
        Serving(ROUTES, limits=Limits(connections_max=64)) as serving,
        Peer(serving.port) as first,
    ):
        first.get("/metrics")
        with crowd(serving, lambda _: b""):
            assert first.answer().body == METRICS


@pytest.mark.parametrize("secure", [False, True])
def test_longest_waiting_makes_room(secure: bool, authority: Authority) -> None:
    """At the limit the connection that was used longest ago ends, in order; the others stay."""
    tls = authority.server_files() if secure else None
    context = authority.client_context() if secure else None
    with (
        Serving(ROUTES, limits=Limits(connections_max=3), tls=tls) as serving,
        Peer(serving.port, tls=context) as first,
        Peer(serving.port, tls=context) as second,
        Peer(serving.port, tls=context) as third,
    ):
        for peer in (first, second, third, first):
            peer.get("/metrics")
            assert peer.answer().status == 200
        scrape(serving, tls=context)
        assert second.ended()
        for peer in (first, third):
            peer.get("/metrics")
            assert peer.answer().status == 200


@pytest.mark.parametrize("secure", [False, True])
def test_all_busy(
    secure: bool,
    authority: Authority,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """When every connection has a request in work, a new one is told 503, and none is hurt."""
    gate = Gate()
    limits = Limits(connections_max=4, refusals_max=2)
    tls = authority.server_files() if secure else None
    context = authority.client_context() if secure else None
    with (
        Serving({"/gate": gate.handler, **ROUTES}, limits=limits, tls=tls) as serving,
        ExitStack() as stack,
    ):
        busy = [stack.enter_context(Peer(serving.port, tls=context)) for _ in range(4)]
        for peer in busy:
            peer.get("/gate")
        gate.wait_entered(4)
        for _ in range(10):
            with Peer(serving.port, tls=context) as late:
                late.get("/metrics")
                answer = late.answer()
                assert (answer.status, answer.headers["retry-after"]) == (503, "1")
                assert late.ended()
        silent = [stack.enter_context(Peer(serving.port)) for _ in range(3)]
        assert silent[0].ended(), "the third refused connection takes the place of the first"
        gate.open()
        assert [peer.answer().status for peer in busy] == [200] * 4
        scrape(serving, tls=context)
    assert [r.getMessage() for r in caplog.records if "connections:" in r.getMessage()] == [
        "4 connections: from now on the longest waiting one makes room for a new one"
    ]


def test_head_deadline() -> None:
    """A head that is not whole in time is answered 408, however steadily its bytes come."""
    limits = Limits(header_deadline_s=0.3)
    with Serving(ROUTES, limits=limits) as serving, Peer(serving.port) as peer:
        peer.get("/metrics")
        assert peer.answer().status == 200
        began_s = time.monotonic()
        peer.send(b"GET / HTTP/1.1\r\nX: ")
        peer.sock.settimeout(0.02)
        answer = None
        while answer is None and time.monotonic() - began_s < DEADLINE_S:
            peer.send(b"y")
            try:
                answer = peer.answer()
            except TimeoutError:
                continue
        assert answer is not None
        assert answer.status == 408
        assert time.monotonic() - began_s >= 0.3
        peer.sock.settimeout(DEADLINE_S)
        assert peer.ended()


@pytest.mark.parametrize(
    "limits",
    [
        Limits(header_deadline_s=0.1),
        Limits(header_deadline_s=0.1, idle_deadline_s=0.1),
    ],
)
def test_connection_without_request(limits: Limits) -> None:
    """A connection without a first request ends at the deadline for heads, without a word."""
    with Serving(ROUTES, limits=limits) as serving, Peer(serving.port) as peer:
        assert peer.ended()


def test_idle_deadline() -> None:
    """A kept connection ends after its idle time, not after the shorter time for a head."""
    limits = Limits(idle_deadline_s=0.4, header_deadline_s=0.1)
    with Serving(ROUTES, limits=limits) as serving, Peer(serving.port) as peer:
        peer.get("/metrics")
        assert peer.answer().status == 200
        began_s = time.monotonic()
        assert peer.ended()
        assert 0.3 < time.monotonic() - began_s < DEADLINE_S


def test_write_deadline() -> None:
    """A peer that does not read its response is reset, and the kernel keeps none of it."""
    limits = Limits(write_deadline_s=0.2)
    with (
        Serving(ROUTES, limits=limits) as serving,
        Peer(serving.port, receive_buffer=4096) as peer,
    ):
        peer.get("/long")
        assert peer.cut()
        scrape(serving)


def test_linger_deadline() -> None:
    """A peer that keeps its side open after the last response does not keep the socket."""
    limits = Limits(linger_deadline_s=0.1)
    with Serving(ROUTES, limits=limits) as serving, Peer(serving.port) as peer:
        peer.get("/metrics", "Connection: close")
        assert peer.answer().status == 200
        assert peer.ended()
        deadline_s = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline_s:  # sending into a closed socket fails, sooner or later
            try:
                peer.send(b"x")
            except (BrokenPipeError, ConnectionResetError):
                return
        pytest.fail("the server still takes bytes")


def test_fast_peer_does_not_take_the_loop() -> None:
    """A peer that sends requests without end, and reads all answers, leaves room for others."""
    stop = threading.Event()

    def flood(peer: Peer) -> None:
        batch = b"GET /missing HTTP/1.1\r\nHost: a\r\n\r\n" * 100
        try:
            while not stop.is_set():
                peer.send(batch)
        except OSError:  # the end of the test
            return

    def swallow(peer: Peer) -> None:
        try:
            while peer.sock.recv(1 << 20):
                pass
        except OSError:
            return

    with Serving(ROUTES) as serving, Peer(serving.port) as peer:
        threads = [threading.Thread(target=each, args=(peer,)) for each in (flood, swallow)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(5):
                scrape(serving)
        finally:
            stop.set()
            peer.sock.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join(DEADLINE_S)


def test_no_descriptors_left(caplog: pytest.LogCaptureFixture) -> None:
    """Out of descriptors, a waiting connection ends to let the next one in; one line is logged."""
    with Serving(ROUTES) as serving, ExitStack() as stack:
        idle = [stack.enter_context(Peer(serving.port)) for _ in range(3)]
        for peer in idle:
            peer.get("/metrics")
            assert peer.answer().status == 200
        late = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        late.settimeout(DEADLINE_S)
        with no_descriptors():
            late.connect(("127.0.0.1", serving.port))
            late.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert late.recv(15) == b"HTTP/1.1 200 \r\n"
            assert idle[0].ended()
            for peer in idle[1:]:
                peer.get("/metrics")
                assert peer.answer().status == 200
    why = os.strerror(errno.EMFILE)
    assert [r.getMessage() for r in caplog.records] == [f"cannot accept connections: {why}"]


@pytest.mark.parametrize("limit", [24, 40, 64, 200])
def test_a_small_descriptor_limit(limit: int) -> None:
    """With idle connections beyond the limit a scrape gets through, and what it reads is opened.

    The server is a process of its own: peers' descriptors are not among its few.
    """
    started = subprocess.Popen(
        [sys.executable, "-c", SERVE_FILES, str(limit)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert started.stdout is not None
    try:
        port = int(started.stdout.readline())
        with descriptors(4 * CROWD), ExitStack() as stack:
            for _ in range(3 * limit):
                stack.enter_context(Peer(port))
            for _ in range(5):
                with Peer(port) as peer:
                    peer.get("/files")
                    answer = peer.answer()
                    assert (answer.status, answer.body) == (200, b"5 files")
    finally:
        started.kill()
        started.wait()
        started.stdout.close()


SERVE_FILES = """
import asyncio, os, resource, sys
from pathlib import Path
from tests.support.serving import LOG, TEXT
from probes.serve.http.connection import Limits
from probes.serve.http.listen import parse_listen
from probes.serve.http.routes import Response
from probes.serve.http.server import Server

async def files(request):
    opened = [os.open("/dev/null", os.O_RDONLY) for _ in range(5)]
    for each in opened:
        os.close(each)
    return Response(content_type=TEXT, body=f"{len(opened)} files".encode())

async def main():
    limit = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    listen = parse_listen("127.0.0.1:0")
    server = Server(listen=listen, tls=None, limits=Limits(), log=LOG)
    await server.start({"/files": files})
    print(server.addresses[0][1], flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("left", "connections", "refusals"),
    [
        (10_000, 256, 16),
        (336, 256, 16),
        (300, 220, 16),
        (100, 44, 6),
        (20, 9, 1),
        (3, 2, 0),
        (0, 1, 0),
    ],
)
def test_connections_within_descriptors(left: int, connections: int, refusals: int) -> None:
    """They leave 64 descriptors, or half of the few there are, and are never none."""
    limits = Limits().within(left)
    assert (limits.connections_max, limits.refusals_max) == (connections, refusals)


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Let this process open no file until it closes one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.open(os.devnull, os.O_RDONLY)  # the lowest free number
    os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
