# SPDX-License-Identifier: Apache-2.0
"""The agent under measurement: a process started as a service would be, and what it uses.

Owns starting it, asking it as Prometheus does, and the kernel's figures of its processes. Must not
know what runs on the node.
"""

import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

ROOT = Path(__file__).resolve().parents[1]
TREE = Path(os.environ.get("HVPROBE_BENCH_TREE", ROOT))
"""The checkout whose agent is measured: to compare two states with one bench."""

PROMETHEUS_HEADERS = (
    "Accept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2\r\n"
    "Accept-Encoding: gzip\r\n"
)
"""What Prometheus asks with, so that what is measured is what is scraped."""
DEADLINE_S = 60.0
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)
_VERIFIED_KVM = re.compile(
    rb'^kubevirt_vmi_hypervisor_info\{[^}]*"kvm"[^}]*\} 1(?:\.0)?$', re.MULTILINE
)
_VERIFIED = re.compile(rb"^kubevirt_vmi_hypervisor_verified\{[^}]*\} 1(?:\.0)?$", re.MULTILINE)
_INFO = re.compile(rb"^kubevirt_vmi_hypervisor_info\{", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of a process and all its descendants together (/proc/PID/smaps_rollup)."""

    rss: int
    pss: int
    anonymous: int
    processes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer of /metrics."""

    status: int
    body: bytes
    """Unpacked."""
    seconds: float
    """From the first byte sent to the last one received."""

    def value(self, metric: str) -> float | None:
        """The value of a metric without labels; None: it is not there."""
        found = re.search(rf"^{metric} (\S+)$".encode(), self.body, re.MULTILINE)
        return float(found[1]) if found else None

    def verified_kvm(self) -> int:
        """How many VMs it shows as kvm and verified; -1 where it shows any VM otherwise."""
        kvm = len(_VERIFIED_KVM.findall(self.body))
        complete = kvm == len(_INFO.findall(self.body)) == len(_VERIFIED.findall(self.body))
        return kvm if complete else -1


class BenchAgent:
    """``hvprobe agent`` of TREE on a port of its own. Use as a context manager."""

    def __init__(self, *arguments: str) -> None:
        """Start it and return at once: see `wait_ready`."""
        self.port = free_port()
        self.started_s = time.monotonic()
        self._process = start(
            [
                sys.executable,
                "-m",
                "probes",
                "agent",
                "--listen",
                f"127.0.0.1:{self.port}",
                *arguments,
            ],
            environment={**os.environ, "PYTHONPATH": str(TREE)},
            directory=TREE,
        )
        self._connection: Connection | None = None

    @property
    def tgid(self) -> int:
        return self._process.pid

    def wait_ready(self) -> Self:
        """Wait for /readyz to say so: the probes attached, the first list of VMIs here."""
        end_s = time.monotonic() + DEADLINE_S
        while True:
            try:
                if self.get("/readyz").status == 200:
                    return self
            except (ConnectionError, TimeoutError):
                self._disconnect()
            assert self._process.poll() is None, "the agent ended"
            assert time.monotonic() < end_s, f"the agent is not ready after {DEADLINE_S:g} s"
            time.sleep(0.005)

    def get(self, path: str = "/metrics") -> Answer:
        """Ask over one connection that is kept, as Prometheus does."""
        if self._connection is None:
            self._connection = Connection(self.port)
        return self._connection.get(path)

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def cpu_s(self) -> float:
        """CPU time of its processes: those that run, and for the agent all its threads ever."""
        return sum(cpu_s(tgid) for tgid in descendants(self.tgid))

    def memory(self) -> Memory:
        """What its processes hold now."""
        return memory_of(self.tgid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(10)
        finally:
            self._process.kill()
            self._process.wait()
            self._disconnect()


class Connection:
    """A kept connection that sends a request and waits for its answer."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def get(self, path: str) -> Answer:
        """One request, one answer."""
        begun_s = time.perf_counter()
        self.send(path)
        answer = AnswerBytes()
        while not answer.complete:
            read = self.socket.recv(1 << 20)
            if not read:
                raise ConnectionError("the agent closed the connection")
            answer.add(read)
        return answer.answer(time.perf_counter() - begun_s)

    def close(self) -> None:
        self.socket.close()

    def send(self, path: str) -> None:
        self.socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: agent\r\n{PROMETHEUS_HEADERS}\r\n".encode()
        )


class AnswerBytes:
    """The bytes of one answer, as they come. Its length must be announced."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._head_length: int | None = None
        self._length = 0

    def add(self, read: bytes) -> None:
        self._bytes += read
        if self._head_length is None and (end := self._bytes.find(b"\r\n\r\n")) >= 0:
            self._head_length = end + 4
            found = re.search(rb"(?i)\r\ncontent-length: *(\d+)", self._bytes[:end])
            assert found, f"no Content-Length: {bytes(self._bytes[:end])!r}"
            self._length = int(found[1])

    @property
    def complete(self) -> bool:
        return self._head_length is not None and (
            len(self._bytes) >= self._head_length + self._length
        )

    def answer(self, seconds: float) -> Answer:
        head = bytes(self._bytes[: self._head_length])
        body = bytes(self._bytes[self._head_length :])
        if re.search(rb"(?i)\r\ncontent-encoding: *gzip", head):
            body = zlib.decompress(body, wbits=31)
        return Answer(status=int(head.split()[1]), body=body, seconds=seconds)


def start(
    command: Sequence[str | Path],
    *,
    environment: dict[str, str] | None = None,
    directory: Path = ROOT,
    stdout: int | None = subprocess.DEVNULL,
    stderr: int | None = None,
) -> subprocess.Popen[bytes]:
    """Start a program that dies with this process, also when that is killed."""

    def die_with_parent() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    return subprocess.Popen(
        [str(word) for word in command],
        env=environment,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        preexec_fn=die_with_parent,  # noqa: PLW1509 - no thread of ours holds a lock it needs
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def descendants(tgid: int) -> list[int]:
    """A process and all its descendants that run now."""
    found, at = [tgid], 0
    while at < len(found):
        for task in Path(f"/proc/{found[at]}/task").glob("*/children"):
            found += [int(child) for child in task.read_text().split()]
        at += 1
    return found


def cpu_s(tgid: int) -> float:
    """CPU time of a process since its start, to the nanosecond, ended threads included.

    The clock of another process: include/linux/posix-timers_types.h, CPUCLOCK_SCHED of ~pid.
    """
    return time.clock_gettime(~tgid << 3 | 2)


def memory_of(tgid: int) -> Memory:
    """What a process and its descendants hold now."""
    sums = {"Rss": 0, "Pss": 0, "Anonymous": 0}
    processes = descendants(tgid)
    for each in processes:
        for line in Path(f"/proc/{each}/smaps_rollup").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in sums:
                sums[name] += int(value.split()[0]) * 1024
    return Memory(
        rss=sums["Rss"], pss=sums["Pss"], anonymous=sums["Anonymous"], processes=len(processes)
    )
