# SPDX-License-Identifier: Apache-2.0
"""Keeps what the API server decided about tokens, for a while and within bounds. Pure.

Owns how long a decision holds, and which one makes room for another. Must not know clocks, tokens
(only their digests) or how a decision is made.

Tokens that the API server accepted are kept apart from those that it did not, because any client
can make up tokens: they displace one another only.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TypeVar

from probes.vmi.access import Ruling, User

_K = TypeVar("_K")
_V = TypeVar("_V")
TOKENS_MAX = 256
"""Tokens of each kind, accepted and not, about which decisions are kept."""
PATHS_MAX = 64
"""Paths about which decisions are kept for one token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetimes:
    """How long a decision holds, in seconds. A right that is taken away works that much longer."""

    user_s: float = 60.0
    """Whose a token is, as in components built with controller-runtime."""
    invalid_s: float = 10.0
    """That a token is not valid: shorter, because a new one may reach the API server late."""
    allowed_s: float = 60.0
    denied_s: float = 15.0
    """Shorter, so that a right that is granted works soon."""


@dataclass(slots=True, kw_only=True)
class _Accepted:
    """What is known of a token that the API server accepted."""

    user: User
    until_s: float
    """When the token has to be reviewed again."""
    paths: OrderedDict[str, tuple[bool, float]] = field(default_factory=OrderedDict)
    """Whether the user may get a path, and until when that holds, by path."""


class Decisions:
    """Decisions by digest of the token and by path."""

    def __init__(self, lifetimes: Lifetimes | None = None) -> None:
        self._lifetimes = lifetimes or Lifetimes()
        self._accepted: OrderedDict[bytes, _Accepted] = OrderedDict()
        self._invalid: OrderedDict[bytes, float] = OrderedDict()
        """Until when a token counts as not valid."""

    def known(self, digest: bytes) -> bool:
        """Whether the API server has accepted this token, and not rejected it since.

        This holds however long ago it was, as long as the token is among the latest.
        """
        return digest in self._accepted

    def user(self, digest: bytes, now_s: float) -> User | None:
        """Return whose a token is; None: it has to be reviewed."""
        accepted = self._accepted.get(digest)
        return accepted.user if accepted is not None and now_s < accepted.until_s else None

    def ruling(self, digest: bytes, path: str, now_s: float) -> Ruling | None:
        """Return the decision about a token and a path; None: there is none that still holds."""
        if now_s < self._invalid.get(digest, now_s):
            self._invalid.move_to_end(digest)
            return Ruling(user=None, allowed=False)
        accepted = self._accepted.get(digest)
        if accepted is None or now_s >= accepted.until_s:
            return None
        allowed, until_s = accepted.paths.get(path, (False, now_s))
        if now_s >= until_s:
            return None
        self._accepted.move_to_end(digest)
        accepted.paths.move_to_end(path)
        return Ruling(user=accepted.user, allowed=allowed)

    def keep(
        self, digest: bytes, path: str, ruling: Ruling, now_s: float, *, token_reviewed: bool
    ) -> None:
        """Keep a new decision. The token or path that was not used for longest makes room.

        token_reviewed says whether the token was reviewed as well, or only the access of its user.
        """
        lifetimes = self._lifetimes
        if ruling.user is None:
            self._accepted.pop(digest, None)
            self._invalid[digest] = now_s + lifetimes.invalid_s
            _bounded(self._invalid, digest, TOKENS_MAX)
            return
        self._invalid.pop(digest, None)
        accepted = self._accepted.get(digest)
        if accepted is None or accepted.user != ruling.user:
            accepted = _Accepted(user=ruling.user, until_s=now_s)
        if token_reviewed:
            accepted.until_s = now_s + lifetimes.user_s
        self._accepted[digest] = accepted
        _bounded(self._accepted, digest, TOKENS_MAX)
        holds_s = lifetimes.allowed_s if ruling.allowed else lifetimes.denied_s
        accepted.paths[path] = (ruling.allowed, now_s + holds_s)
        _bounded(accepted.paths, path, PATHS_MAX)


def _bounded(kept: OrderedDict[_K, _V], newest: _K, most: int) -> None:
    """Put an entry at the end, and remove the first one if there are too many."""
    kept.move_to_end(newest)
    if len(kept) > most:
        kept.popitem(last=False)
