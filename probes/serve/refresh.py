# SPDX-License-Identifier: Apache-2.0
"""EDGE: shares one refresh of the node among concurrent requests and bounds how long they wait.

Owns the newest report, and what is said while refreshes fail or hang. Must not know what a refresh
reads, nor which requests need it. Everything but the refresh itself runs on one event loop.
"""

import asyncio
import contextlib
import logging
import threading
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate

from probes.report.model import NodeReport

SHARED_FOR_S = 1.0
"""Requests within this time after a refresh share its report."""
DEADLINE_S = 4.0
"""How long a request waits for a refresh. Prometheus gives a scrape 10 s by default, often 5."""
STOP_GRACE_S = 1.0
"""How long a refresh in progress may take when the agent stops."""

DURATION_BOUNDS_S = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
    float("inf"),
)
"""Upper bounds of the classes in which refreshes are counted by their duration."""

log = logging.getLogger(__name__)


class Cause(StrEnum):
    """Why a refresh gave no report (label ``cause`` of hvprobe_refresh_failures_total)."""

    ERROR = "error"
    DEADLINE = "deadline"


@dataclass(frozen=True, slots=True, kw_only=True)
class Latest:
    """What a request gets: the newest report, and whether it is current."""

    report: NodeReport | None
    """The newest report; None: no refresh has ever succeeded."""
    previous: NodeReport | None
    """The report before it, at least SHARED_FOR_S older; None: there is none."""
    failure: str | None
    """Why a newer report was requested but is not there, in one line; None: the report is
    current."""
    failing_s: float
    """How long refreshes have been failing; 0 without a failure.

    It counts from the first failure after the newest report to the first reader of this object. The
    age of the report does not matter, because it includes the interval between two scrapes, while
    the first failure always starts at 0.
    """


class RefreshCache:
    """Runs one refresh at a time, in a thread of its own.

    A refresh that raises (a defect) or hangs (a read of /proc that blocks in the kernel) delays its
    requests by DEADLINE_S at most; they get the previous report and the failure. While a refresh
    hangs, no second one starts and no request waits for it again; when it ends, its report is used.
    """

    def __init__(self, refresh: Callable[[], NodeReport]) -> None:
        """Take reports from refresh()."""
        self._refresh = refresh
        self.failures: dict[str, int] = dict.fromkeys((cause.value for cause in Cause), 0)
        """Refreshes that gave no report, by cause."""
        self.durations_s = 0.0
        """Total duration of all refreshes that have ended."""
        self._by_duration = [0] * len(DURATION_BOUNDS_S)
        self._report: NodeReport | None = None
        self._previous: NodeReport | None = None
        self._failure: str | None = None
        self._failed_s = 0.0
        """When the first refresh after the newest report failed; valid while there is a failure."""
        self._pending: asyncio.Future[NodeReport] | None = None
        self._begun_s = self._ended_s = self._latest_s = float("-inf")
        self._latest: Latest | None = None
        """What requests get; None: it has changed."""
        self._overdue = False

    @property
    def durations(self) -> list[tuple[float, int]]:
        """(upper bound in seconds, refreshes that took no longer), by bound."""
        return [*zip(DURATION_BOUNDS_S, accumulate(self._by_duration), strict=True)]

    async def latest(self) -> Latest:
        """Return a report at most SHARED_FOR_S old, or the last known one with the failure.

        All requests get the same object until a refresh ends or fails, and for SHARED_FOR_S at
        most, so what is made from it can be shared as well.
        """
        if self._pending is None and time.monotonic() - self._ended_s >= SHARED_FOR_S:
            self._pending = self._begin()
        if self._pending is not None:
            left_s = self._begun_s + DEADLINE_S - time.monotonic()
            await asyncio.wait({self._pending}, timeout=max(0.0, left_s))
        if self._pending is not None and not self._overdue:
            self._overdue = True
            self._fail(Cause.DEADLINE, f"the refresh has not finished within {DEADLINE_S:g} s")
        now_s = time.monotonic()
        if self._latest is None or now_s - self._latest_s >= SHARED_FOR_S:
            self._latest_s = now_s
            self._latest = Latest(
                report=self._report,
                previous=self._previous,
                failure=self._failure,
                failing_s=0.0 if self._failure is None else now_s - self._failed_s,
            )
        return self._latest

    async def latest_two(self) -> Latest:
        """Return the same as latest(), but with a previous report if there can soon be one.

        A request that finds only the first report waits for the second refresh, so that there are
        rates. It waits DEADLINE_S at most, and delays no other request.
        """
        begun_s = time.monotonic()
        latest = await self.latest()
        if latest.report is None or latest.previous is not None or latest.failure is not None:
            return latest
        now_s = time.monotonic()
        wait_s = max(0.0, self._ended_s + SHARED_FOR_S - now_s)
        left_s = begun_s + DEADLINE_S - now_s
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(left_s):
                await asyncio.sleep(wait_s)
                return await self.latest()
        return latest

    async def stop(self) -> None:
        """Give a refresh in progress some time to end."""
        if self._pending is not None:
            await asyncio.wait({self._pending}, timeout=STOP_GRACE_S)

    def _begin(self) -> "asyncio.Future[NodeReport]":
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[NodeReport] = loop.create_future()
        # The first callback runs before any waiting request continues.
        ended.add_done_callback(self._end)
        self._begun_s = time.monotonic()
        self._overdue = False

        def record(report: NodeReport | None, err: BaseException | None, took_s: float) -> None:
            self.durations_s += took_s
            self._by_duration[bisect_left(DURATION_BOUNDS_S, took_s)] += 1
            if err is not None:
                ended.set_exception(err)
            elif report is not None:
                ended.set_result(report)

        def work() -> None:
            report: NodeReport | None = None
            failure: BaseException | None = None
            begun_s = time.monotonic()
            try:
                report = self._refresh()
            except BaseException as err:  # noqa: BLE001 - raised again on the event loop
                failure = err
            took_s = time.monotonic() - begun_s
            with contextlib.suppress(RuntimeError):  # the loop is closed: no caller waits
                loop.call_soon_threadsafe(record, report, failure, took_s)

        # A daemon thread of its own, because at its end the interpreter waits for an executor's
        # threads, hence for ever for one that hangs.
        threading.Thread(target=work, name="refresh", daemon=True).start()
        return ended

    def _end(self, ended: "asyncio.Future[NodeReport]") -> None:
        self._pending = self._latest = None
        self._ended_s = time.monotonic()
        err = ended.exception()
        if err is not None:
            self._fail(Cause.ERROR, f"the refresh failed: {err!r}", err)
            return
        if self._failure is not None:
            log.info("refreshes succeed again")
        self._failure = None
        self._previous, self._report = self._report, ended.result()

    def _fail(self, cause: Cause, line: str, err: BaseException | None = None) -> None:
        """Count a refresh that gave no report.

        Log it once, until it changes or a refresh succeeds.
        """
        self.failures[cause.value] += 1
        self._latest = None
        if self._failure is None:
            self._failed_s = time.monotonic()
        if line != self._failure:
            log.error("%s", line, exc_info=err)
        self._failure = line
