# SPDX-License-Identifier: Apache-2.0
"""Decides which event is written next and when, and what is lost. Pure.

Owns the bounds: how many events wait and for how long, how fast they are written, and the pauses
after failures. Must not know sockets, threads, clocks, or what an event says. Not for use by two
threads at once.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from probes.vmi.event import VmiEvent
from probes.vmi.kube.timing import backoff_s


@dataclass(frozen=True, slots=True, kw_only=True)
class EventTiming:
    """How many events are written, and how patiently. The defaults are for production.

    A thousand agents that all find a forgotten useEmulation write at most 10,000 Events at first,
    and 200 a second after that.
    """

    burst: int = 10
    """Events that may be written one right after the other."""
    per_s: float = 0.2
    """Events that may be written each second in the long run."""
    capacity: int = 256
    """Events that may wait."""
    max_age_s: float = 3600.0
    """How long an event may wait. Kubernetes keeps an Event for an hour."""
    backoff_base_s: float = 1.0
    backoff_cap_s: float = 60.0
    retry_after_cap_s: float = 300.0
    not_allowed_pause_s: float = 600.0
    """How long nothing is written after the server has said that this agent may not. The permission
    may come later, so the agent tries again, one event each time."""
    connect_timeout_s: float = 4.0
    answer_deadline_s: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Waiting:
    event: VmiEvent
    since_s: float


class EventQueue:
    """The events that wait to be written. Times are those of a clock that never goes back."""

    def __init__(self, timing: EventTiming) -> None:
        self._timing = timing
        self._waiting: deque[_Waiting] = deque()
        self._taken: _Waiting | None = None
        self._tokens = float(timing.burst)
        self._counted_s: float | None = None
        """When the tokens were counted last."""
        self._not_before_s = float("-inf")
        self._failures = 0
        self.lost = 0
        """Events that were removed unwritten, because too many waited, or for too long."""

    def __len__(self) -> int:
        """Return how many events wait."""
        return len(self._waiting)

    def put(self, event: VmiEvent, now_s: float) -> bool:
        """Append an event. False: too many wait, so it is lost."""
        self._forget_old(now_s)
        if len(self._waiting) >= self._timing.capacity:
            self.lost += 1
            return False
        self._waiting.append(_Waiting(event=event, since_s=now_s))
        return True

    def wait_s(self, now_s: float) -> float | None:
        """Return how long to wait before ``take``; None: no event waits."""
        self._forget_old(now_s)
        if not self._waiting:
            return None
        self._count_tokens(now_s)
        for_token_s = max(0.0, 1.0 - self._tokens) / self._timing.per_s
        return max(0.0, self._not_before_s - now_s, for_token_s)

    def take(self) -> VmiEvent:
        """Remove and return the event that is written now.

        A call of ``done``, ``not_allowed`` or ``failed`` says how that ended.
        """
        self._tokens -= 1.0
        self._taken = self._waiting.popleft()
        return self._taken.event

    def done(self) -> None:
        """Record that the server has the event, or never accepts it."""
        self._taken = None
        self._failures = 0

    def not_allowed(self, now_s: float) -> None:
        """Record that this agent may not write events. Nothing is written for long then.

        Another event comes first afterwards, because a right may be limited to some namespaces.
        """
        self._put_back()
        self._not_before_s = now_s + self._timing.not_allowed_pause_s

    def failed(self, now_s: float, retry_after_s: float | None, random: float) -> None:
        """Record a failure that may pass. The pause after it doubles with each failure in a row.

        Another event comes first afterwards, because the reason may be one namespace's.
        ``random`` in [0, 1) spreads the agents of a cluster.
        """
        timing = self._timing
        pause_s = backoff_s(self._failures, timing.backoff_base_s, timing.backoff_cap_s, random)
        self._failures += 1
        if retry_after_s is not None:
            # Rather later than sooner, because all agents may have been given the same number.
            asked_s = max(retry_after_s, timing.backoff_base_s) * (1.0 + random / 4.0)
            pause_s = min(timing.retry_after_cap_s, asked_s)
        self._put_back()
        self._not_before_s = now_s + pause_s

    def _put_back(self) -> None:
        if self._taken is not None:
            self._waiting.append(self._taken)
            self._taken = None

    def _forget_old(self, now_s: float) -> None:
        """Remove events that have waited for too long to be news."""
        kept = [each for each in self._waiting if now_s - each.since_s < self._timing.max_age_s]
        self.lost += len(self._waiting) - len(kept)
        self._waiting = deque(kept)

    def _count_tokens(self, now_s: float) -> None:
        timing = self._timing
        if self._counted_s is not None:
            self._tokens += (now_s - self._counted_s) * timing.per_s
        self._tokens = min(self._tokens, float(timing.burst))
        self._counted_s = now_s
