# SPDX-License-Identifier: Apache-2.0
"""EDGE: looks at the node for all who ask: shared, and not waited for longer than a scrape lasts.

Owns what is known at the moment somebody asks, and what is said when a look fails or does not end.
Must not know what a look reads, nor who asks. All of it but the look itself runs on one event loop.
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
"""Who asks within this time after a look gets what that look found."""
DEADLINE_S = 4.0
"""How long a look is waited for. Prometheus gives a scrape 10 s by default, often 5."""
STOP_GRACE_S = 1.0
"""How long a look that is under way may take when the agent is told to stop."""

DURATION_BOUNDS_S = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
    float("inf"),
)
"""Up to these looks are counted together by how long they took."""

log = logging.getLogger(__name__)


class Cause(StrEnum):
    """Why a look gave nothing (label ``cause`` of hvprobe_refresh_failures_total)."""

    ERROR = "error"
    DEADLINE = "deadline"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What is known at the moment somebody asks."""

    report: NodeReport | None
    """The newest; None: no look has ever succeeded."""
    previous: NodeReport | None
    """The one before it, at least SHARED_FOR_S older; None: there is none."""
    failure: str | None
    """Why there is no newer report although it was asked for, one line; None: there is."""
    failing_s: float
    """For how long looks have failed: from the first failure since the newest report to the first
    reader of this; 0 without a failure. The age of the report does not matter: it is what the
    interval between two scrapes makes it, and the first failure begins at 0 all the same."""


class RefreshCache:
    """One look at a time, in a thread of its own.

    A look that raises (a defect) or hangs (a read of /proc that blocks in the kernel) costs its
    askers DEADLINE_S at most; they get the report before it, and the failure. While a look hangs no
    second one is begun, and nobody waits for it again; whenever it ends, its report counts.
    """

    def __init__(self, look: Callable[[], NodeReport]) -> None:
        """Take reports from look()."""
        self._look = look
        self.failures: dict[str, int] = dict.fromkeys((cause.value for cause in Cause), 0)
        """Looks that gave nothing, by cause."""
        self.durations_s = 0.0
        """How long all looks that have ended took together."""
        self._by_duration = [0] * len(DURATION_BOUNDS_S)
        self._report: NodeReport | None = None
        self._previous: NodeReport | None = None
        self._failure: str | None = None
        self._failed_s = 0.0
        """When the first look since the newest report failed; of use while there is a failure."""
        self._pending: asyncio.Future[NodeReport] | None = None
        self._begun_s = self._ended_s = self._seen_s = float("-inf")
        self._seen: Seen | None = None
        """What askers are told; None: that has changed."""
        self._overdue = False

    @property
    def durations(self) -> list[tuple[float, int]]:
        """(upper bound in seconds, looks that took no longer), by bound."""
        return [*zip(DURATION_BOUNDS_S, accumulate(self._by_duration), strict=True)]

    async def seen(self) -> Seen:
        """What is known now: looked at within the last SHARED_FOR_S, or the failure to.

        The same object for all who are to be told the same: until a look ends or fails, and for
        SHARED_FOR_S at most. So what is made of it can be shared as well.
        """
        if self._pending is None and time.monotonic() - self._ended_s >= SHARED_FOR_S:
            self._pending = self._begin()
        if self._pending is not None:
            left_s = self._begun_s + DEADLINE_S - time.monotonic()
            await asyncio.wait({self._pending}, timeout=max(0.0, left_s))
        if self._pending is not None and not self._overdue:
            self._overdue = True
            self._fail(Cause.DEADLINE, f"a look at the node has not ended within {DEADLINE_S:g} s")
        now_s = time.monotonic()
        if self._seen is None or now_s - self._seen_s >= SHARED_FOR_S:
            self._seen_s = now_s
            self._seen = Seen(
                report=self._report,
                previous=self._previous,
                failure=self._failure,
                failing_s=0.0 if self._failure is None else now_s - self._failed_s,
            )
        return self._seen

    async def stop(self) -> None:
        """Let a look under way end, for a while."""
        if self._pending is not None:
            await asyncio.wait({self._pending}, timeout=STOP_GRACE_S)

    def _begin(self) -> "asyncio.Future[NodeReport]":
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[NodeReport] = loop.create_future()
        ended.add_done_callback(self._end)  # the first: done before whoever waits goes on
        self._begun_s = time.monotonic()
        self._overdue = False

        def tell(report: NodeReport | None, err: BaseException | None, took_s: float) -> None:
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
                report = self._look()
            except BaseException as err:  # noqa: BLE001 - raised again on the event loop
                failure = err
            took_s = time.monotonic() - begun_s
            with contextlib.suppress(RuntimeError):  # the loop is closed: no caller waits
                loop.call_soon_threadsafe(tell, report, failure, took_s)

        # A thread of its own and a daemon: the interpreter waits for an executor's threads at its
        # end, hence for ever for one that hangs.
        threading.Thread(target=work, name="look", daemon=True).start()
        return ended

    def _end(self, ended: "asyncio.Future[NodeReport]") -> None:
        self._pending = self._seen = None
        self._ended_s = time.monotonic()
        err = ended.exception()
        if err is not None:
            self._fail(Cause.ERROR, f"a look at the node failed: {err!r}", err)
            return
        if self._failure is not None:
            log.info("looking at the node succeeds again")
        self._failure = None
        self._previous, self._report = self._report, ended.result()

    def _fail(self, cause: Cause, line: str, err: BaseException | None = None) -> None:
        """Count a look that gave nothing; log it once until it changes or a look succeeds."""
        self.failures[cause.value] += 1
        self._seen = None
        if self._failure is None:
            self._failed_s = time.monotonic()
        if line != self._failure:
            log.error("%s", line, exc_info=err)
        self._failure = line
