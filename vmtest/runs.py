# SPDX-License-Identifier: Apache-2.0
"""Guests that run at the same time, one for each CPU of this machine as far as memory permits.

Owns the order in which they start. Must not know what a run does. The threads are daemons, so a
test run that is interrupted does not wait for them, and QEMU dies with the thread that started it.

Early runs have a process of their own: some tests beside them look at the descriptors of theirs.
"""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Generic, TypeVar

from vmtest.cache import SILENT
from vmtest.vm import MEMORY_MIB

K = TypeVar("K")
R = TypeVar("R")
NICE = 10
"""Of a guest beside other tests: a tenth of a CPU that both want."""
_PR_SET_PDEATHSIG = 1
"""prctl(2)."""


class Runs(Generic[K, R]):
    """One run for each key, in the order of the keys. None begins by itself."""

    def __init__(self, run: Callable[[K], R], keys: Sequence[K]) -> None:
        self._run = run
        self._futures: dict[K, Future[R]] = {key: Future() for key in keys}
        self._waiting = deque(keys)
        self._early = threading.Event()
        """Set until all runs are to begin."""
        self._worker: int | None = None
        """The process of early runs."""

    def begin_early(self) -> None:
        """Begin runs one after another, the last key first, until ``begin`` is called.

        They run in a process that is silent and has a lower priority than this one, so the run,
        its key and its result must be picklable.
        """
        spawn = multiprocessing.get_context("spawn")
        process = ProcessPoolExecutor(1, mp_context=spawn, initializer=_step_back)
        # It dies with the thread that starts it, which is the first one that gives it something.
        self._worker = process.submit(os.getpid).result()
        self._early.set()
        self._start(self._from_the_last, lambda key: process.submit(self._run, key).result())

    def begin(self, *, at_once: int) -> None:
        """Begin the runs that have not begun, ``at_once`` at a time."""
        self._early.clear()
        for _ in range(min(at_once, len(self._waiting))):
            self._start(self._in_turn, self._run)

    def result(self, key: K) -> R:
        """Wait for a run's result. Raises the exception that the run raised."""
        return self._futures[key].result()

    def end(self) -> None:
        """End the early run that is in progress; no other one follows."""
        self._early.clear()
        # It may have ended, and its number may be another process's by now.
        for child in multiprocessing.active_children():
            if child.pid == self._worker:
                child.kill()

    def _start(self, work: Callable[[Callable[[K], R]], None], run: Callable[[K], R]) -> None:
        threading.Thread(target=work, args=(run,), name="guest", daemon=True).start()

    def _from_the_last(self, run: Callable[[K], R]) -> None:
        with contextlib.suppress(IndexError):
            while self._early.is_set():
                self._finish(self._waiting.pop(), run)

    def _in_turn(self, run: Callable[[K], R]) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._finish(self._waiting.popleft(), run)

    def _finish(self, key: K, run: Callable[[K], R]) -> None:
        future = self._futures[key]
        try:
            future.set_result(run(key))
        except BaseException as err:  # noqa: BLE001 - result() raises it again
            future.set_exception(err)


def _step_back() -> None:
    """Prepare the process of early runs."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.nice(NICE)
    SILENT.set(True)


def room() -> int:
    """The number of guests that this machine can run at once, at least one."""
    available_mib = 0
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            available_mib = int(line.split()[1]) // 1024
    return max(1, min(os.cpu_count() or 1, available_mib // (MEMORY_MIB + 512)))
