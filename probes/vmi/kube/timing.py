# SPDX-License-Identifier: Apache-2.0
"""Decides how long a watch of the API server waits: for answers, events and retries. Pure.

Owns the kinds of failure that need different waits, the pauses after them, and how long a watch is
requested to last. Must not know sockets, threads, clocks, or what an answer holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum

_RETRY_AFTER_CAP_S = 30.0
_HUNG_DOUBLINGS = 2
_WATCH_GROWTH = 4


class Failure(Enum):
    """What a failed request says about the server and about our resourceVersion."""

    UNANSWERED = "unanswered"
    """There was no connection, or it ended before an answer. The next server may be another one."""
    HUNG = "hung"
    """The request was sent, but no answer arrived in time."""
    REFUSED = "refused"
    """The server refused the request itself, so our resourceVersion is still valid."""
    BROKEN = "broken"
    """The answer is an error, makes no sense or is incomplete, so changes may be missing."""
    EXPIRED = "expired"
    """The server no longer has our resourceVersion or continue token."""

    @property
    def answered(self) -> bool:
        """Whether the server sent at least the head of an answer."""
        return self not in {Failure.UNANSWERED, Failure.HUNG}


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchTiming:
    """How patient a watch is. The defaults are for production.

    VMIs are to be current again within 5 s of the server's recovery, so no pause is longer than 3 s
    unless the server asks for it.
    """

    backoff_base_s: float = 0.5
    backoff_cap_s: float = 3.0
    connect_timeout_s: float = 4.0
    answer_deadline_s: float = 5.0
    """Deadline for the head of an answer. It grows to four times this while requests keep
    hanging."""
    idle_deadline_s: float = 75.0
    """Silence after which a watch is considered dead; the server sends a bookmark every minute."""
    first_watch_s: int = 1
    """How long the first watch after a list is requested to last.

    Its orderly end proves that the server follows our resourceVersion, long before the first
    bookmark does on a quiet node.
    """
    watch_timeout_s: int = 300
    """The longest requested duration of a watch. The server may end a watch after up to twice
    this."""
    page_limit: int = 100
    """VMIs in one list page, which then takes about 1.5 MB."""

    def watch_s(self, before_s: int | None, random: float) -> int:
        """Return how long the next watch is requested to last, after one of ``before_s``.

        None: no watch has ended in order since the last failure. Each watch lasts a few times as
        long as the one before it, so that a connection that stalls soon after a recovery is
        detected soon. ``random`` in [0, 1) spreads the ends, so that the agents of a cluster do not
        reconnect together.
        """
        grown_s = self.first_watch_s if before_s is None else before_s * _WATCH_GROWTH
        base_s = min(self.watch_timeout_s, grown_s)
        return base_s + int(random * base_s)

    def silence_s(self, watch_s: int) -> float:
        """Return how long a watch that lasts ``watch_s`` may be silent."""
        return min(self.idle_deadline_s, watch_s + self.answer_deadline_s)


class Backoff:
    """Remembers recent failures, as far as they decide how long to wait."""

    def __init__(self, timing: WatchTiming) -> None:
        self._timing = timing
        self._failures = 0
        self._hung = 0
        self._answered = False
        self._silent = False
        self._may_list_at_once = True

    @property
    def answer_deadline_s(self) -> float:
        """How long to wait for the head of the next answer.

        It grows after answers that did not arrive, so that a server that is merely slow is read in
        the end.
        """
        return self._timing.answer_deadline_s * 2.0 ** min(self._hung, _HUNG_DOUBLINGS)

    def answered(self) -> None:
        """Record that the server answered, with any result, which ends a silence."""
        self._answered = True
        if self._silent:
            self._failures = 0
            self._silent = False

    def recovered(self) -> None:
        """Record that a watch delivers, which ends all earlier failures."""
        self._failures = 0
        self._hung = 0
        self._silent = False
        self._may_list_at_once = True

    def pause_s(self, failure: Failure, retry_after_s: float | None, random: float) -> float:
        """Record a failure and return how long to wait before the next request."""
        if failure.answered:
            self.answered()
            self._hung = 0
        self._hung += failure is Failure.HUNG
        # Only a request without any answer begins a silence; an answered list does not.
        self._silent = not self._answered
        self._answered = False
        if failure is Failure.EXPIRED and self._may_list_at_once:
            # Only once, because a server that calls every version expired must not be asked in a
            # loop.
            self._may_list_at_once = False
            return 0.0
        timing = self._timing
        wait_s = backoff_s(self._failures, timing.backoff_base_s, timing.backoff_cap_s, random)
        self._failures += 1
        if retry_after_s is None:
            return wait_s
        asked_s = max(retry_after_s, timing.backoff_base_s)
        # Rather later than sooner, because all agents may have been given the same number.
        return min(_RETRY_AFTER_CAP_S, asked_s * (1.0 + random / 4.0))


def backoff_s(failures: int, base_s: float, cap_s: float, random: float) -> float:
    """Return how long to wait after the ``failures``-th failure in a row (from 0).

    The wait doubles up to the cap. ``random`` in [0, 1) shortens it by up to half, so that the
    agents of a large cluster do not all return at once.
    """
    return min(cap_s, base_s * 2.0 ** min(failures, 30)) * (1.0 - random / 2.0)


def retry_after_s(text: str | None, server_date: str | None, now_unix_s: float) -> float | None:
    """Parse a Retry-After header: seconds or an HTTP date; None: absent or neither.

    A date is compared with the server's own Date header if there is one, because the clocks of
    server and node may differ.
    """
    if text is None:
        return None
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text)
    until_unix_s = _unix_s(text)
    if until_unix_s is None:
        return None
    since_unix_s = _unix_s(server_date) if server_date is not None else None
    return max(0.0, until_unix_s - (now_unix_s if since_unix_s is None else since_unix_s))


def _unix_s(text: str) -> float | None:
    """Parse an HTTP date."""
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()
