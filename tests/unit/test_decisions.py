# SPDX-License-Identifier: Apache-2.0
"""How long decisions about tokens are kept, and which one makes room for another."""

from dataclasses import replace

import pytest

from probes.serve.decisions import PATHS_MAX, TOKENS_MAX, Decisions, Lifetimes
from probes.vmi.access import Presented, Ruling, User

SCRAPER = User(name="system:serviceaccount:monitoring:prometheus", groups=("system:authenticated",))
ALLOWED = Ruling(user=SCRAPER, allowed=True)
DENIED = Ruling(user=SCRAPER, allowed=False)
INVALID = Ruling(user=None, allowed=False)
TIMES = Lifetimes(user_s=60.0, invalid_s=10.0, allowed_s=40.0, denied_s=15.0)
TOKEN = b"digest"


def kept(*rulings: Ruling) -> Decisions:
    """Decisions about one token and path, made at 0 s."""
    decisions = Decisions(TIMES)
    for ruling in rulings:
        decisions.keep(TOKEN, "/metrics", ruling, 0.0, token_reviewed=True)
    return decisions


@pytest.mark.parametrize(("ruling", "holds_s"), [(ALLOWED, 40.0), (DENIED, 15.0), (INVALID, 10.0)])
def test_a_decision_holds_for_its_time(ruling: Ruling, holds_s: float) -> None:
    """It holds until its end, which is not part of it, however often it is used."""
    decisions = kept(ruling)
    for now_s in (0.0, holds_s / 2, holds_s - 0.001):
        assert decisions.ruling(TOKEN, "/metrics", now_s) == ruling
    assert decisions.ruling(TOKEN, "/metrics", holds_s) is None


def test_a_refusal_holds_for_less_time_than_a_permission() -> None:
    """So a right that is granted, or a token that is new, works soon."""
    times = Lifetimes()
    assert times.invalid_s < times.denied_s < times.allowed_s <= times.user_s


def test_the_user_holds_longer_than_the_access() -> None:
    """Access is reviewed again without the token, until the token has to be as well."""
    decisions = kept(ALLOWED)
    assert decisions.ruling(TOKEN, "/metrics", 45.0) is None
    assert decisions.user(TOKEN, 45.0) == SCRAPER
    decisions.keep(TOKEN, "/metrics", ALLOWED, 45.0, token_reviewed=False)
    assert decisions.ruling(TOKEN, "/metrics", 59.0) == ALLOWED
    assert decisions.ruling(TOKEN, "/metrics", 60.0) is None
    assert decisions.user(TOKEN, 60.0) is None


def test_a_review_of_access_does_not_prolong_the_token() -> None:
    """Access that was decided after the token's end leaves the token to be reviewed."""
    decisions = kept(ALLOWED)
    decisions.keep(TOKEN, "/metrics", ALLOWED, 61.0, token_reviewed=False)
    assert decisions.user(TOKEN, 61.0) is None
    assert decisions.ruling(TOKEN, "/metrics", 61.0) is None
    decisions.keep(TOKEN, "/metrics", ALLOWED, 61.0, token_reviewed=True)
    assert decisions.ruling(TOKEN, "/metrics", 61.0) == ALLOWED


def test_paths_are_decided_one_by_one() -> None:
    """What is allowed for one path says nothing about another."""
    decisions = kept(ALLOWED)
    assert decisions.ruling(TOKEN, "/snapshot", 1.0) is None
    decisions.keep(TOKEN, "/snapshot", DENIED, 1.0, token_reviewed=False)
    assert decisions.ruling(TOKEN, "/metrics", 1.0) == ALLOWED
    assert decisions.ruling(TOKEN, "/snapshot", 1.0) == DENIED


def test_a_token_that_is_no_longer_valid() -> None:
    """Everything that was allowed with it is forgotten, and it counts as never accepted."""
    decisions = kept(ALLOWED, INVALID)
    assert decisions.ruling(TOKEN, "/metrics", 1.0) == INVALID
    assert decisions.ruling(TOKEN, "/snapshot", 1.0) == INVALID
    assert not decisions.known(TOKEN)
    assert decisions.user(TOKEN, 1.0) is None


def test_a_token_that_becomes_valid() -> None:
    """The refusal is forgotten at once."""
    assert kept(INVALID, ALLOWED).ruling(TOKEN, "/metrics", 1.0) == ALLOWED


def test_a_token_that_belongs_to_another_user() -> None:
    """Decisions about the former user are not the new one's."""
    decisions = kept(ALLOWED)
    decisions.keep(TOKEN, "/snapshot", ALLOWED, 0.0, token_reviewed=True)
    other = Ruling(user=replace(SCRAPER, groups=()), allowed=False)
    decisions.keep(TOKEN, "/metrics", other, 1.0, token_reviewed=True)
    assert decisions.ruling(TOKEN, "/metrics", 1.0) == other
    assert decisions.ruling(TOKEN, "/snapshot", 1.0) is None


def test_an_accepted_token_stays_known() -> None:
    """It is known after all its decisions have ended, so that its review has a lane of its own."""
    decisions = kept(ALLOWED)
    assert decisions.known(TOKEN)
    assert decisions.ruling(TOKEN, "/metrics", 1e6) is None
    assert decisions.known(TOKEN)
    assert not decisions.known(b"another")


def test_made_up_tokens_displace_one_another_only() -> None:
    """Any number of them takes the room of TOKENS_MAX, and no accepted token is forgotten."""
    decisions = kept(ALLOWED)
    for number in range(3 * TOKENS_MAX):
        decisions.keep(b"%d" % number, "/metrics", INVALID, 0.0, token_reviewed=True)
    remembered = [
        number
        for number in range(3 * TOKENS_MAX)
        if decisions.ruling(b"%d" % number, "/metrics", 1.0) is not None
    ]
    assert remembered == [*range(2 * TOKENS_MAX, 3 * TOKENS_MAX)]
    assert decisions.ruling(TOKEN, "/metrics", 1.0) == ALLOWED


def test_the_token_that_was_not_used_for_longest_makes_room() -> None:
    """A token that is used stays, however many accepted ones there are."""
    decisions = kept(ALLOWED)
    for number in range(2 * TOKENS_MAX):
        decisions.keep(b"%d" % number, "/metrics", ALLOWED, 0.0, token_reviewed=True)
        assert decisions.ruling(TOKEN, "/metrics", 1.0) == ALLOWED
    assert not decisions.known(b"0")
    assert decisions.known(b"%d" % (2 * TOKENS_MAX - 1))


def test_paths_of_one_token_are_bounded() -> None:
    """A client that asks for any number of paths displaces its own decisions only."""
    decisions = kept(ALLOWED)
    decisions.keep(b"another", "/metrics", ALLOWED, 0.0, token_reviewed=True)
    for number in range(PATHS_MAX):
        decisions.keep(TOKEN, f"/why/vms/{number}", ALLOWED, 0.0, token_reviewed=False)
    assert decisions.ruling(TOKEN, "/metrics", 1.0) is None
    assert decisions.ruling(TOKEN, "/why/vms/0", 1.0) == ALLOWED
    assert decisions.ruling(b"another", "/metrics", 1.0) == ALLOWED


def test_a_token_is_in_no_text_and_no_key() -> None:
    """What a token is shown as, and what it is kept under, do not hold it."""
    presented = Presented(token="secret", audience=None)
    assert "secret" not in repr(presented)
    assert b"secret" not in presented.digest
    assert len(presented.digest) == 32
    assert presented.digest != Presented(token="secret", audience="hvprobe").digest
