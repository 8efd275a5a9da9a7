# SPDX-License-Identifier: Apache-2.0
"""Guests that run at the same time, one for each CPU of this machine as far as memory permits.

Owns the order in which they start. Must not know what a run does. The threads are daemons, so a
test run that is interrupted does not wait for them, and QEMU dies with the thread that started it.
"""

import os
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Generic, TypeVar

from vmtest.vm import MEMORY_MIB

K = TypeVar("K")
R = TypeVar("R")


class Runs(Generic[K, R]):
    """One run for each key. Runs start in the order of the keys, ``at_once`` at a time."""

    def __init__(self, run: Callable[[K], R], keys: Sequence[K], *, at_once: int) -> None:
        self._run = run
        self._futures: dict[K, Future[R]] = {key: Future() for key in keys}
        self._waiting: queue.SimpleQueue[K] = queue.SimpleQueue()
        for key in keys:
            self._waiting.put(key)
        for number in range(min(at_once, len(keys))):
            threading.Thread(target=self._work, name=f"guest-{number}", daemon=True).start()

    def result(self, key: K) -> R:
        """Wait for a run's result. Raises the exception that the run raised."""
        return self._futures[key].result()

    def _work(self) -> None:
        while True:
            try:
                key = self._waiting.get_nowait()
            except queue.Empty:
                return
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
