# SPDX-License-Identifier: Apache-2.0
"""Blocking work in threads: how much at once, how much waits, how much a second."""

import asyncio
import threading
from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from probes.serve.reviews import BusyError, Lane, LaneLimits

WAIT_S = 20.0
LIMITS = LaneLimits(parallel=2, waiting_max=3, wait_s=5.0, per_s=10, burst=100)


@dataclass
class Clock:
    """A clock that only the test moves."""

    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Work:
    """Work that waits for the test, and counts how often it runs at once."""

    gate: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    running: int = 0
    most: int = 0
    begun: int = 0

    def __call__(self) -> str:
        with self.lock:
            self.running += 1
            self.begun += 1
            self.most = max(self.most, self.running)
        assert self.gate.wait(WAIT_S)
        with self.lock:
            self.running -= 1
        return "done"


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, WAIT_S))


def test_so_many_at_once() -> None:
    """The rest waits for a thread; all get their result, and the loop is never blocked."""

    async def scenario() -> None:
        work, lane = Work(), Lane[str](LIMITS)
        pending = [lane.start(work) for _ in range(5)]
        while work.begun < 2:
            await asyncio.sleep(0.001)
        assert not any(future.done() for future in pending)
        work.gate.set()
        assert await asyncio.gather(*pending) == ["done"] * 5
        assert work.most == 2

    run(scenario())


def test_so_many_wait() -> None:
    """One more is refused at once, until there is room again."""

    async def scenario() -> None:
        work, lane = Work(), Lane[str](LIMITS)
        pending = [lane.start(work) for _ in range(5)]
        with pytest.raises(BusyError, match="3 reviews wait for the API server"):
            lane.start(work)
        work.gate.set()
        await asyncio.gather(*pending)
        assert await lane.start(work) == "done"

    run(scenario())


def test_so_many_a_second() -> None:
    """A burst is accepted, then as many as the rate allows."""

    async def scenario() -> None:
        clock, work = Clock(), Work()
        work.gate.set()
        lane = Lane[str](replace(LIMITS, burst=3), clock_s=clock)
        for _ in range(3):
            await lane.start(work)
        with pytest.raises(BusyError, match="more than 10 reviews a second"):
            lane.start(work)
        clock.now_s += 0.1
        await lane.start(work)
        with pytest.raises(BusyError, match="more than 10 reviews a second"):
            lane.start(work)
        clock.now_s += 3600
        for _ in range(3):
            await lane.start(work)
        with pytest.raises(BusyError, match="more than 10 reviews a second"):
            lane.start(work)

    run(scenario())


def test_what_waited_for_too_long_is_not_begun() -> None:
    """Nothing waits for its result any longer, so it costs no request."""

    async def scenario() -> None:
        clock, work = Clock(), Work()
        lane = Lane[str](LIMITS, clock_s=clock)
        first, second, late = (lane.start(work) for _ in range(3))
        clock.now_s += LIMITS.wait_s + 1
        work.gate.set()
        assert [await first, await second] == ["done", "done"]
        with pytest.raises(BusyError, match="no review began within 5 s"):
            await late
        assert work.begun == 2

    run(scenario())


def test_work_that_raises() -> None:
    """The error is its result, its thread is free again, and the next one runs."""

    def fail() -> str:
        raise KeyError("defect")

    async def scenario() -> None:
        work, lane = Work(), Lane[str](replace(LIMITS, parallel=1))
        failing, after = lane.start(fail), lane.start(work)
        with pytest.raises(KeyError):
            await failing
        work.gate.set()
        assert await after == "done"

    run(scenario())


def test_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work is refused, and the lane still works when there are threads again."""

    class NoThread(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    async def scenario() -> None:
        work, lane = Work(), Lane[str](replace(LIMITS, parallel=1))
        work.gate.set()
        with monkeypatch.context() as patched:
            patched.setattr(threading, "Thread", NoThread)
            with pytest.raises(BusyError, match="no thread can be started"):
                await lane.start(work)
        assert await lane.start(work) == "done"

    run(scenario())
