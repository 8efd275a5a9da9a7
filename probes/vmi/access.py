# SPDX-License-Identifier: Apache-2.0
"""Holds which client requests which path, and what the API server decided about that. Pure.

Owns the values that go between the HTTP server and the API server. Must not know how a token is
taken from a request, how it is reviewed, nor how long a decision is kept.

A token never leaves these values: it is in no text that they are shown as, and decisions are kept
under a digest of it.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

VERB = "get"
"""The verb of every request that an agent answers. HEAD reveals less than GET, and is reviewed as
it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Presented:
    """A token as a client presented it."""

    token: str = field(repr=False)
    audience: str | None
    """For whom the token must have been made; None: for the API server."""

    @property
    def digest(self) -> bytes:
        """What stands for the token where a decision about it is kept."""
        return hashlib.sha256(f"{self.audience or ''}\0{self.token}".encode()).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Whom a token belongs to, as the API server says."""

    name: str
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: tuple[tuple[str, tuple[str, ...]], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """What the API server decided about a token and a path."""

    user: User | None
    """None: the token is not valid for this agent."""
    allowed: bool
    """Whether the user may get the path; False without a user."""


class ReviewError(Exception):
    """The API server cannot be asked, or its answer makes no sense.

    The message is one line: what failed, on what, why, what to do. It holds no token.
    """


Review = Callable[[Presented, User | None, str], Ruling]
"""Has the API server decide about a token and a path.

With a user the token is not reviewed again. It may block, and raises ReviewError.
"""
