# SPDX-License-Identifier: Apache-2.0
"""EDGE: decides whether a request is answered, by what the API server says about its token.

Owns the refusals, and what is logged when the API server cannot be asked. Must not know how the
API server is asked, nor sockets and TLS.

It fails closed: a request about which there is no decision is refused. Clients that no decision is
kept about never delay those whose token the API server has accepted before, because both have
threads of their own.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from http import HTTPStatus

from probes.serve.bearer import MalformedError, presented_by
from probes.serve.decisions import Decisions
from probes.serve.reviews import BusyError, Lane, LaneLimits
from probes.serve.routes import Request, Response, plain_text, unavailable
from probes.vmi.access import VERB, Presented, Review, ReviewError, Ruling, User
from probes.vmi.foreign_text import one_line

REVIEW_DEADLINE_S = 5.0
"""How long a request waits for a decision. A review that takes longer serves the next request."""
LOG_PAUSE_S = 60.0
"""The shortest time between two log lines about refusals without a decision."""
STRANGERS = LaneLimits(parallel=3, waiting_max=16, wait_s=REVIEW_DEADLINE_S, per_s=10, burst=32)
"""For tokens that the API server has not accepted before, which any client can make up."""
ACQUAINTANCES = LaneLimits(
    parallel=2, waiting_max=64, wait_s=REVIEW_DEADLINE_S, per_s=50, burst=128
)
"""For tokens that it has accepted before."""

_CHALLENGE = ("WWW-Authenticate", 'Bearer realm="hvprobe"')


class Authorization:
    """Refuses requests whose token does not permit them. All methods run on one event loop."""

    def __init__(
        self,
        review: Review,
        *,
        log: logging.Logger,
        strangers: LaneLimits = STRANGERS,
        deadline_s: float = REVIEW_DEADLINE_S,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Have review decide, in threads."""
        self._review = review
        self._log = log
        self._deadline_s = deadline_s
        self._clock_s = clock_s
        self._decisions = Decisions()
        self._strangers: Lane[Ruling] = Lane(strangers, clock_s=clock_s)
        self._acquaintances: Lane[Ruling] = Lane(ACQUAINTANCES, clock_s=clock_s)
        self._under_way: dict[tuple[bytes, str], asyncio.Future[Ruling]] = {}
        """Reviews that requests with the same token and path share. The lanes bound them."""
        self._logged_s = float("-inf")
        self._unlogged = 0
        """Requests refused without a decision since the last log line."""
        self._failing = False
        """Whether the log says that the API server cannot be asked, and not yet that it can."""

    async def refusal(self, request: Request) -> Response | None:
        """Return why a request is not answered; None: it is to be answered.

        401: there is no valid token; 403: its user may not get the path; 503: the API server could
        not be asked.
        """
        try:
            presented = presented_by(request)
        except MalformedError as err:
            return plain_text(HTTPStatus.UNAUTHORIZED, str(err), _CHALLENGE)
        if presented is None:
            line = "a bearer token is required"
            return plain_text(HTTPStatus.UNAUTHORIZED, line, _CHALLENGE)
        try:
            ruling = await self._ruling(presented, request.path)
        except BusyError as err:
            self._note(str(err))
            return unavailable("too many tokens wait for a review")
        except ReviewError as err:
            self._failing = self._note(str(err)) or self._failing
            return unavailable("the API server cannot be asked about the token; see the log")
        return _refusal(ruling, request.path)

    async def _ruling(self, presented: Presented, path: str) -> Ruling:
        """Return the decision about a token and a path. Raises BusyError and ReviewError."""
        digest = presented.digest
        ruling = self._decisions.ruling(digest, path, self._clock_s())
        if ruling is not None:
            return ruling
        pending = self._under_way.get((digest, path))
        if pending is None:
            pending = self._begin(presented, digest, path)
        await asyncio.wait({pending}, timeout=self._deadline_s)
        if not pending.done():
            raise ReviewError(f"the API server has not decided within {self._deadline_s:g} s")
        err = pending.exception()
        if err is not None and not isinstance(err, BusyError | ReviewError):
            # A defect. Its text is not shown, because it may hold a token.
            raise ReviewError(f"a review failed: {type(err).__name__}") from err
        return pending.result()

    def _begin(self, presented: Presented, digest: bytes, path: str) -> "asyncio.Future[Ruling]":
        known = self._decisions.known(digest)
        lane = self._acquaintances if known else self._strangers
        user = self._decisions.user(digest, self._clock_s())
        pending = lane.start(partial(self._review, presented, user, path))
        if pending.done():  # it could not begin
            return pending
        self._under_way[digest, path] = pending
        pending.add_done_callback(partial(self._end, digest, path, user))
        return pending

    def _end(
        self, digest: bytes, path: str, user: User | None, ended: "asyncio.Future[Ruling]"
    ) -> None:
        del self._under_way[digest, path]
        if ended.exception() is not None:
            return
        self._decisions.keep(
            digest, path, ended.result(), self._clock_s(), token_reviewed=user is None
        )
        if self._failing:
            self._failing = False
            self._log.info("the API server decides about clients")

    def _note(self, line: str) -> bool:
        """Log that a request was refused without a decision, at most one line each LOG_PAUSE_S.

        Returns whether there is a line.
        """
        self._unlogged += 1
        now_s = self._clock_s()
        if now_s - self._logged_s < LOG_PAUSE_S:
            return False
        count = self._unlogged
        which = "a client is" if count == 1 else f"{count} requests of clients are"
        self._log.error("%s refused, because %s", which, line)
        self._logged_s, self._unlogged = now_s, 0
        return True


def _refusal(ruling: Ruling, path: str) -> Response | None:
    if ruling.user is None:
        line = "the API server does not accept this token"
        return plain_text(HTTPStatus.UNAUTHORIZED, line, _CHALLENGE)
    if ruling.allowed:
        return None
    name, shown = one_line(ruling.user.name), one_line(path, longest=100)
    line = f"{name} may not {VERB} {shown}: grant it by a ClusterRole with nonResourceURLs"
    return plain_text(HTTPStatus.FORBIDDEN, line)
