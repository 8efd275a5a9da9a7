# SPDX-License-Identifier: Apache-2.0
"""Many idle and slow clients do not keep scrapes from being answered."""

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

from probes.serve.limits import Limits
from tests.support.certificates import Authority
from tests.support.serving import DEADLINE_S, Gate, Peer, Serving, descriptors, text

CROWD = 1000
SCRAPE_DEADLINE_S = 10.0
"""The default timeout of Prometheus. A scrape must be answered within it despite the crowd."""

METRICS = "".join(f'metric{{name="vm-{n}"}} {n}\n' for n in range(2000)).encode()
LONG = b"x" * 4_000_000
"""More than a connection's send and receive buffers in the kernel hold."""

ROUTES = {"/metrics": text(METRICS), "/long": text(LONG)}


def scrape(serving: Serving, *, tls: ssl.SSLContext | None = None) -> None:
    """Scrape on a new connection, and check the answer and that it arrives in time."""
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
    """CROWD peers, all connected. Each has sent its `hello`, unless it had to make room before."""
    with descriptors(4 * CROWD), ExitStack() as stack:
        peers = []
        for number in range(CROWD):
            peer = stack.enter_context(Peer(serving.port, receive_buffer=receive_buffer))
            peers.append(peer)
            try:
                peer.send(hello(number))
            except (BrokenPipeError, ConnectionResetError):
                continue  # the server has ended it to make room
        yield peers


def test_1000_idle_connections() -> None:
    """With 1000 silent connections, scrapes are answered, and no more than the limit are kept."""
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
    """1000 clients that keep their connection after a scrape do not block the next scrape."""
    request = b"GET /metrics HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\n\r\n"
    limits = Limits(connections_max=64)
    with Serving(ROUTES, limits=limits) as serving, crowd(serving, lambda _: request) as peers:
        scrape(serving)
        assert peers[-1].answer().status == 200


def test_1000_slow_heads() -> None:
    """1000 clients that send their heads a byte at a time do not block scrapes."""
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
    """1000 clients that request a lot and do not read it block scrapes only for their grace."""
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
    """Under TLS, 1000 peers that never start the handshake and 100 idle ones block no scrape."""
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


def test_connections_of_a_flood_are_read_before_they_make_room() -> None:
    """A client that connects and sends its request before 1000 others gets its answer."""
    with (
        Serving(ROUTES, limits=Limits(connections_max=64)) as serving,
        Peer(serving.port) as first,
    ):
        first.get("/metrics")
        with crowd(serving, lambda _: b""):
            assert first.answer().body == METRICS


@pytest.mark.parametrize("secure", [False, True])
def test_longest_waiting_makes_room(secure: bool, authority: Authority) -> None:
    """At the limit the connection that has waited longest is closed in order; the others stay."""
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
    """When every connection has a request in progress, a new one gets 503; the others go on."""
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
        "4 connections: from now on the longest idle one is closed for a new one"
    ]


def test_head_deadline() -> None:
    """A head that is incomplete at the deadline ends the connection, even if bytes keep coming."""
    limits = Limits(header_deadline_s=0.3)
    with Serving(ROUTES, limits=limits) as serving, Peer(serving.port) as peer:
        began_s = time.monotonic()
        peer.send(b"GET / HTTP/1.1\r\nX: ")
        peer.sock.settimeout(0.02)
        ended = False
        while not ended and time.monotonic() - began_s < DEADLINE_S:
            try:
                peer.send(b"y")
                ended = peer.ended()
            except TimeoutError:
                continue
            except (BrokenPipeError, ConnectionResetError):
                ended = True
        assert ended
        assert time.monotonic() - began_s >= 0.3


@pytest.mark.parametrize(
    "limits",
    [
        Limits(header_deadline_s=0.1),
        Limits(header_deadline_s=0.1, idle_deadline_s=0.1),
    ],
)
def test_connection_without_request(limits: Limits) -> None:
    """A connection without a first request ends at the deadline for heads, without an answer."""
    with Serving(ROUTES, limits=limits) as serving, Peer(serving.port) as peer:
        assert peer.ended()


def test_idle_deadline() -> None:
    """A kept connection ends at the idle deadline, not at the shorter deadline for heads."""
    limits = Limits(idle_deadline_s=0.4, header_deadline_s=0.1)
    with Serving(ROUTES, limits=limits) as serving, Peer(serving.port) as peer:
        peer.get("/metrics")
        assert peer.answer().status == 200
        began_s = time.monotonic()
        assert peer.ended()
        assert 0.3 < time.monotonic() - began_s < DEADLINE_S


def test_write_deadline() -> None:
    """A peer that does not read its response is reset, so the kernel drops what it buffered."""
    limits = Limits(write_deadline_s=0.2)
    with (
        Serving(ROUTES, limits=limits) as serving,
        Peer(serving.port, receive_buffer=4096) as peer,
    ):
        peer.get("/long")
        assert peer.cut()
        scrape(serving)


def test_linger_deadline() -> None:
    """A peer that keeps its side open after the last response does not keep the socket open."""
    limits = Limits(linger_deadline_s=0.1)
    with Serving(ROUTES, limits=limits) as serving, Peer(serving.port) as peer:
        peer.get("/metrics", "Connection: close")
        assert peer.answer().status == 200
        assert peer.ended()
        deadline_s = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline_s:  # sending to a closed socket fails sooner or later
            try:
                peer.send(b"x")
            except (BrokenPipeError, ConnectionResetError):
                return
        pytest.fail("the server still receives bytes")


def test_fast_peer_does_not_block_the_loop() -> None:
    """A peer that keeps sending requests and reads all answers does not block other peers."""
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
        threads = [threading.Thread(target=work, args=(peer,)) for work in (flood, swallow)]
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
    """Without free descriptors, the longest waiting connection makes room; one line is logged."""
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
            assert late.recv(13) == b"HTTP/1.1 200 "
            assert idle[0].ended()
            for peer in idle[1:]:
                peer.get("/metrics")
                assert peer.answer().status == 200
    why = os.strerror(errno.EMFILE)
    assert [r.getMessage() for r in caplog.records] == [f"cannot accept connections: {why}"]


@pytest.mark.parametrize("limit", [24, 40, 64, 200])
def test_a_small_descriptor_limit(limit: int) -> None:
    """With more idle connections than the limit, a request is answered and can open its files.

    The server is a separate process, so the peers' descriptors do not count against its limit.
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
from probes.serve.limits import Limits
from probes.serve.listen import parse_listen
from probes.serve.routes import Response
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
    """Connections leave 64 descriptors free, or half of fewer than that, and are at least one."""
    limits = Limits().within(left)
    assert (limits.connections_max, limits.refusals_max) == (connections, refusals)


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Set this process's limit so that it can open no file until it closes one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.open(os.devnull, os.O_RDONLY)  # the lowest free number
    os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
