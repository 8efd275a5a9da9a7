# SPDX-License-Identifier: Apache-2.0
"""Guests that run at the same time, one for each CPU of this machine as far as memory permits.

Owns the order in which they start. Must not know what a run does. The threads are daemons, so a
test run that is interrupted does not wait for them, and QEMU dies with the thread that started it.
"""

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Generic, TypeVar

from vmtest.cache import SILENT
from vmtest.vm import MEMORY_MIB

K = TypeVar("K")
R = TypeVar("R")
NICE = 10
"""Of a guest beside other tests: a tenth of a CPU that both want."""


class Runs(Generic[K, R]):
    """One run for each key, in the order of the keys. None begins by itself."""

    def __init__(self, run: Callable[[K], R], keys: Sequence[K]) -> None:
        self._run = run
        self._futures: dict[K, Future[R]] = {key: Future() for key in keys}
        self._waiting = deque(keys)
        self._early = threading.Event()
        """Set until all runs are to begin."""

    def begin_early(self) -> None:
        """Begin runs one after another, the last key first, until ``begin`` is called.

        They are silent, and have a lower priority than everything else.
        """
        self._early.set()
        self._start(self._from_the_last)

    def begin(self, *, at_once: int) -> None:
        """Begin the runs that have not begun, ``at_once`` at a time."""
        self._early.clear()
        for _ in range(min(at_once, len(self._waiting))):
            self._start(self._in_turn)

    def result(self, key: K) -> R:
        """Wait for a run's result. Raises the exception that the run raised."""
        return self._futures[key].result()

    def _start(self, work: Callable[[], None]) -> None:
        threading.Thread(target=work, name="guest", daemon=True).start()

    def _from_the_last(self) -> None:
        # Of this thread, and of the processes that it starts.
        os.nice(NICE)
        SILENT.set(True)
        with contextlib.suppress(IndexError):
            while self._early.is_set():
                self._finish(self._waiting.pop())

    def _in_turn(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._finish(self._waiting.popleft())

    def _finish(self, key: K) -> None:
        future = self._futures[key]
        try:
            future.set_result(self._run(key))
        except BaseException as err:  # noqa: BLE001 - result() raises it again
            future.set_exception(err)


def room() -> int:
    """The number of guests that this machine can run at once, at least one."""
    available_mib = 0
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            available_mib = int(line.split()[1]) // 1024
    return max(1, min(os.cpu_count() or 1, available_mib // (MEMORY_MIB + 512)))
