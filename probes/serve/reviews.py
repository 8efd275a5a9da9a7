# SPDX-License-Identifier: Apache-2.0
"""EDGE: runs blocking work in threads: how much at once, how much waits, how much a second.

The event loop never blocks, and clients that make up work cannot make more than this of it. Must
not know what the work is.
"""

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneLimits:
    """How much work a lane accepts."""

    parallel: int
    """Threads at once."""
    waiting_max: int
    """Pieces of work that wait for a thread."""
    wait_s: float
    """How long one may wait. Then it is no longer begun, because nothing waits for its result."""
    per_s: float
    """Pieces that are accepted a second, on average."""
    burst: int
    """Pieces that are accepted at once after a pause."""


class BusyError(Exception):
    """More work is asked for than the limits accept. The message says which one, in one line."""


class Lane(Generic[_T]):
    """Threads for one kind of work. All methods run on one event loop."""

    def __init__(
        self, limits: LaneLimits, *, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits = limits
        self._clock_s = clock_s
        self._waiting: deque[tuple[float, Callable[[], _T], asyncio.Future[_T]]] = deque()
        self._running = 0
        self._left = float(limits.burst)
        self._counted_s = clock_s()

    def start(self, work: Callable[[], _T]) -> "asyncio.Future[_T]":
        """Begin a piece of work, or have it wait for a thread. Raises BusyError.

        The result is BusyError if it has waited for too long, and else what the work returns or
        raises.
        """
        limits, now_s = self._limits, self._clock_s()
        self._left = min(limits.burst, self._left + (now_s - self._counted_s) * limits.per_s)
        self._counted_s = now_s
        if self._left < 1:
            raise BusyError(f"more than {limits.per_s:g} reviews a second are asked for")
        if len(self._waiting) >= limits.waiting_max:
            raise BusyError(f"{limits.waiting_max} reviews wait for the API server")
        self._left -= 1
        ended: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        # Retrieved here, because the requests that wait for it may be gone.
        ended.add_done_callback(lambda future: future.exception())
        self._waiting.append((now_s + limits.wait_s, work, ended))
        self._begin_next()
        return ended

    def _begin_next(self) -> None:
        while self._waiting and self._running < self._limits.parallel:
            late_s, work, ended = self._waiting.popleft()
            if self._clock_s() > late_s:
                ended.set_exception(BusyError(f"no review began within {self._limits.wait_s:g} s"))
                continue
            self._running += 1
            self._begin(work, ended)

    def _begin(self, work: Callable[[], _T], ended: "asyncio.Future[_T]") -> None:
        loop = asyncio.get_running_loop()

        def run() -> None:
            result: list[_T] = []
            failure: BaseException | None = None
            try:
                result.append(work())
            except BaseException as err:  # noqa: BLE001 - raised again on the event loop
                failure = err
            with contextlib.suppress(RuntimeError):  # the loop is closed: no request waits
                loop.call_soon_threadsafe(self._end, ended, result, failure)

        try:
            # A daemon thread, for which the interpreter does not wait at its end.
            threading.Thread(target=run, name="review", daemon=True).start()
        except RuntimeError as err:  # there can be no more threads
            self._running -= 1
            ended.set_exception(BusyError(f"no thread can be started: {err}"))

    def _end(
        self, ended: "asyncio.Future[_T]", result: list[_T], failure: BaseException | None
    ) -> None:
        self._running -= 1
        if failure is not None:
            ended.set_exception(failure)
        else:
            ended.set_result(result[0])
        self._begin_next()
