# SPDX-License-Identifier: Apache-2.0
"""How long a watch of the API server waits: for answers, for signs of life, between tries. Pure.

Owns: the kinds of failure that differ in how long to wait after them, the pauses that follow them,
and for how long a watch is asked. Must not know: sockets, threads, clocks, what an answer holds.
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
    """What an unsuccessful try says about the server and about our resourceVersion."""

    UNANSWERED = "unanswered"
    """No connection, or it ended before an answer. The server may be another one afterwards."""
    HUNG = "hung"
    """The request was sent and no answer came in time."""
    REFUSED = "refused"
    """The server refused the request as such: our resourceVersion is as good as before."""
    BROKEN = "broken"
    """An answer that is an error, makes no sense or ends in the middle: changes may be missing."""
    EXPIRED = "expired"
    """The server no longer has our resourceVersion or continue token."""

    @property
    def answered(self) -> bool:
        """Whether the server is there: it sent at least the head of an answer."""
        return self not in {Failure.UNANSWERED, Failure.HUNG}


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchTiming:
    """How patient a watch is. The defaults are for production.

    The VMIs are known again within 5 s of a server that answers, so no pause is longer than 3 s
    unless the server asks for it.
    """

    backoff_base_s: float = 0.5
    backoff_cap_s: float = 3.0
    connect_timeout_s: float = 4.0
    answer_deadline_s: float = 5.0
    """For the head of an answer; grows to four times this while one request after another hangs."""
    idle_deadline_s: float = 75.0
    """Silence after which a watch is taken for dead; the server sends a bookmark every minute."""
    first_watch_s: int = 1
    """How long the first watch after a list is asked to last. Its end in order proves that the
    server follows our resourceVersion, long before the first bookmark does on a quiet node."""
    watch_timeout_s: int = 300
    """Asked of the server in the long run; it ends a watch after this, or up to twice this."""
    page_limit: int = 100
    """VMIs in one list page, which is then about 1.5 MB."""

    def watch_s(self, before_s: int | None, random: float) -> int:
        """How long the next watch is asked to last, after one of ``before_s`` that ended in order.

        None: there was none since the last failure. A watch is trusted for a few times as long as
        the one before it, so that a connection that stalls soon after a recovery is found soon.
        ``random`` in [0, 1) spreads the ends: the agents of a cluster do not come back together.
        """
        grown_s = self.first_watch_s if before_s is None else before_s * _WATCH_GROWTH
        base_s = min(self.watch_timeout_s, grown_s)
        return base_s + int(random * base_s)

    def silence_s(self, watch_s: int) -> float:
        """How long a watch that was asked to last ``watch_s`` may be silent."""
        return min(self.idle_deadline_s, watch_s + self.answer_deadline_s)


class Backoff:
    """What went wrong of late, as far as it decides how long to wait."""

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

        Longer after answers that did not come: a server that is only slow is understood in the end.
        """
        return self._timing.answer_deadline_s * 2.0 ** min(self._hung, _HUNG_DOUBLINGS)

    def answered(self) -> None:
        """Note that the server answered, whatever it said: the time of silence is over."""
        self._answered = True
        if self._silent:
            self._failures = 0
            self._silent = False

    def recovered(self) -> None:
        """Note that a watch delivers: all that went wrong before is over."""
        self._failures = 0
        self._hung = 0
        self._silent = False
        self._may_list_at_once = True

    def pause_s(self, failure: Failure, retry_after_s: float | None, random: float) -> float:
        """Note a failure; returns how long to wait before the next try."""
        if failure.answered:
            self.answered()
            self._hung = 0
        self._hung += failure is Failure.HUNG
        # A list that was answered counts: only a try without any answer begins a silence.
        self._silent = not self._answered
        self._answered = False
        if failure is Failure.EXPIRED and self._may_list_at_once:
            # Once: a server that calls every version expired must not be asked in a spin.
            self._may_list_at_once = False
            return 0.0
        timing = self._timing
        wait_s = backoff_s(self._failures, timing.backoff_base_s, timing.backoff_cap_s, random)
        self._failures += 1
        if retry_after_s is None:
            return wait_s
        asked_s = max(retry_after_s, timing.backoff_base_s)
        # Later rather than sooner, since all agents may have been given the same number.
        return min(_RETRY_AFTER_CAP_S, asked_s * (1.0 + random / 4.0))


def backoff_s(failures: int, base_s: float, cap_s: float, random: float) -> float:
    """How long to wait after the ``failures``-th failure in a row (from 0).

    Doubles up to the cap; ``random`` in [0, 1) takes off up to half of it, so that the agents of a
    large cluster do not come back at once.
    """
    return min(cap_s, base_s * 2.0 ** min(failures, 30)) * (1.0 - random / 2.0)


def retry_after_s(text: str | None, server_date: str | None, now_unix_s: float) -> float | None:
    """Read a Retry-After header: seconds or an HTTP date; None: absent or neither.

    A date is compared with the server's own Date header where there is one, since the clocks of
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
    """Read an HTTP date."""
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()
