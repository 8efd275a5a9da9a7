# SPDX-License-Identifier: Apache-2.0
"""The time from the start of ``hvprobe live`` to its first frame on a terminal, probes attached."""

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from statistics import median

from bench.rows import Row
from bench.steady import Bench
from tests.support.live_terminal import HVPROBE, environment

ORDER = 31
GOAL_S = 2.0
DEADLINE_S = 30.0
DRAWN = b"quit"
"""A word of the last line of the screen."""


def measure(bench: Bench) -> Iterator[Row]:
    """No VM runs, so the time is that of the imports, of the probes and of the first screen."""
    bench.release()
    took_s = [_start() for _ in range(bench.plan.starts)]
    yield Row(
        key="live.start",
        what="process start of hvprobe live to its first frame on a terminal",
        value=median(took_s),
        low=min(took_s),
        high=max(took_s),
        unit="s",
        goal=GOAL_S,
        note=f"{bench.plan.starts} starts; spread: the fastest and the slowest",
    )


def _start() -> float:
    master, slave = os.openpty()
    begun_s = time.monotonic()
    with subprocess.Popen(
        [*HVPROBE, "live", "--standalone", "--node", "bench"],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment(TERM="xterm-256color"),
        start_new_session=True,
    ) as live:
        os.close(slave)
        written = b""
        while DRAWN not in written:
            assert time.monotonic() - begun_s < DEADLINE_S, "live draws nothing"
            if select.select([master], [], [], 1.0)[0]:
                written += os.read(master, 65536)
        took_s = time.monotonic() - begun_s
        live.send_signal(signal.SIGTERM)
        with contextlib.suppress(OSError):  # the end of the terminal
            while os.read(master, 65536):
                continue
    os.close(master)
    return took_s
