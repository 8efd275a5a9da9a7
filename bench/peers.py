# SPDX-License-Identifier: Apache-2.0
"""Programs that hvprobe is compared with, started as they are.

Owns how each is started, when it has begun, and why it cannot be where it cannot. Must not know
what is compared.
"""

import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.agent import ROOT, Memory, memory_of, start

PYTHON = "/usr/bin/python3"
"""The distribution's: its bcc is built for it."""
KVMEXIT = shutil.which("kvmexit-bpfcc") or "/usr/sbin/kvmexit-bpfcc"
RUNNER = Path(__file__).with_name("kvmexit_runner.py")
DEADLINE_S = 30.0

ONE_PROBE = """
import bcc, time
bpf = bcc.BPF(text="int on_exit(void *ctx) { return 0; }")
bpf.attach_raw_tracepoint("kvm_exit", "on_exit")
print("attached", flush=True)
time.sleep(3600)
"""
LIBRARIES = """
import kubernetes, prometheus_client, psutil, time
print("imported", flush=True)
time.sleep(3600)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A program that says a line on its standard output once it is in place."""

    name: str
    command: Callable[[], list[str]]
    speaks: bool = True
    """Whether its first output is a user's first output."""


def kvmexit_command() -> list[str]:
    """Raises FileNotFoundError where the distribution's tool is not installed."""
    if not Path(KVMEXIT).exists():
        raise FileNotFoundError(f"{KVMEXIT} is not there: install bpfcc-tools")
    headers = ROOT / "build/bench/headers"
    shutil.copytree(ROOT / "ebpf/include", headers / "include", dirs_exist_ok=True)
    (headers / "include/linux/delay.h").touch()
    return [PYTHON, "-u", str(RUNNER), KVMEXIT, str(headers)]


KVMEXIT_PEER = Peer(name="kvmexit-bpfcc", command=kvmexit_command)
PEERS = (
    KVMEXIT_PEER,
    Peer(name="a bcc program with one probe", command=lambda: [PYTHON, "-c", ONE_PROBE]),
    Peer(
        name="kubernetes, prometheus-client, psutil imported",
        command=lambda: [sys.executable, "-c", LIBRARIES],
        speaks=False,
    ),
)


@contextmanager
def running(peer: Peer) -> Iterator[int]:
    """The peer once it is in place: its tgid. Raises OSError with the reason when it is not."""
    process = start(
        peer.command(),
        environment={**os.environ, "BCC_KERNEL_SOURCE": str(ROOT / "ebpf")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        answered = select.select([process.stdout], [], [], DEADLINE_S)[0]
        if not answered or not os.read(process.stdout.fileno(), 1):
            process.kill()
            said = process.stderr.read().decode(errors="replace").strip().splitlines()
            raise OSError(f"does not run here: {said[-1] if said else 'it says nothing'}")
        yield process.pid
    finally:
        process.kill()
        process.communicate()


def memory_beside(peer: Peer) -> Memory | str:
    """What it holds once it is in place, or why that is not known."""
    try:
        with running(peer) as tgid:
            return memory_of(tgid)
    except OSError as err:
        return str(err)


def seconds_to_first_output(peer: Peer, starts: int) -> list[float] | str:
    """From the start of its process, each time; or why that is not known."""
    took_s: list[float] = []
    try:
        for _ in range(starts):
            begun_s = time.monotonic()
            with running(peer):
                took_s.append(time.monotonic() - begun_s)
    except OSError as err:
        return str(err)
    return took_s
