# SPDX-License-Identifier: Apache-2.0
"""Guests that run at the same time, one for each CPU of this machine as far as memory permits.

Owns the order in which they start. Must not know what a run does. The threads are daemons, so a
test run that is interrupted does not wait for them, and QEMU dies with the thread that started it.
"""

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

    def begin_last(self) -> None:
        """Begin the run of the last key alone, silently, and below everybody's priority."""
        if self._waiting:
            self._start(self._alone, self._waiting.pop())

    def begin(self, *, at_once: int) -> None:
        """Begin the runs that have not begun, ``at_once`` at a time."""
        for _ in range(min(at_once, len(self._waiting))):
            self._start(self._in_turn)

    def result(self, key: K) -> R:
        """Wait for a run's result. Raises the exception that the run raised."""
        return self._futures[key].result()

    def _start(self, work: Callable[..., None], *keys: K) -> None:
        threading.Thread(target=work, args=keys, name="guest", daemon=True).start()

    def _alone(self, key: K) -> None:
        # Of this thread, and of the processes that it starts.
        os.nice(NICE)
        SILENT.set(True)
        self._finish(key)

    def _in_turn(self) -> None:
        while True:
            try:
                key = self._waiting.popleft()
            except IndexError:
                return
            self._finish(key)

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
