# SPDX-License-Identifier: Apache-2.0
"""The real agent as a separate process, its answers over HTTP, and its programs in the kernel."""

import contextlib
import ctypes
import errno
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.support.kernel_world import DEADLINE_S, MACHINE, Started

_BPF_PROG_GET_FD_BY_ID = 13
_SYS_BPF = {"x86_64": 321, "aarch64": 280}[MACHINE]
_LIBC = ctypes.CDLL(None, use_errno=True)

ROOT = Path(__file__).resolve().parents[2]
Labels = tuple[tuple[str, str], ...]
"""Pairs of a sample's labels and their values, by label."""


class Agent(Started):
    """``hvprobe agent`` on a free port of the loopback interface."""

    def __init__(self, *arguments: str, wait: bool = True, before: Sequence[str] = ()) -> None:
        """Start the agent.

        wait: return when it serves; otherwise call wait_until_serving(). before: a command that
        runs it.
        """
        super().__init__(
            [
                *before,
                *(sys.executable, "-m", "probes", "agent", "--listen", "127.0.0.1:0"),
                *arguments,
            ],
            environment={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
        )
        self.log: list[str] = []
        self.url = ""
        if wait:
            self.wait_until_serving()

    def wait_until_serving(self) -> None:
        """Wait until the agent logs its address."""
        self.url = self._url()

    def _url(self) -> str:
        assert self.popen.stderr is not None
        for line in self.popen.stderr:
            self.log.append(line)
            found = re.search(r"serving (https?://\S+)/metrics", line)
            if found:
                return found[1]
        raise AssertionError("the agent ended: " + "".join(self.log))

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=DEADLINE_S) as answer:
            body: bytes = answer.read()
            return body.decode()

    def samples(self, metric: str) -> dict[Labels, float]:
        """Scrape, and return the values of one metric by labels."""
        return samples_of(self.get("/metrics"), metric)

    def end(self, number: int, deadline_s: float) -> int:
        """Send a signal, wait for the end, and return the exit code."""
        self.popen.send_signal(number)
        return self.popen.wait(timeout=deadline_s)


def samples_of(text: str, metric: str) -> dict[Labels, float]:
    """The values of one metric by labels, from an answer of /metrics."""
    return {
        tuple(sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == metric
    }


def program_ids(tgid: int) -> set[int]:
    """The ids of the BPF programs that a process holds: attached (links, perf events) or loaded."""
    found: set[int] = set()
    for info in Path(f"/proc/{tgid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the descriptor was closed
            lines = info.read_text().splitlines()
            found |= {int(line.split()[1]) for line in lines if line.startswith("prog_id:")}
    return found


def program_exists(program_id: int) -> bool:
    """Whether the kernel still has a BPF program with this id."""
    attributes = (ctypes.c_uint32 * 4)(program_id)
    fd = _LIBC.syscall(_SYS_BPF, _BPF_PROG_GET_FD_BY_ID, attributes, ctypes.sizeof(attributes))
    if fd >= 0:
        os.close(fd)
        return True
    assert ctypes.get_errno() == errno.ENOENT, os.strerror(ctypes.get_errno())
    return False
