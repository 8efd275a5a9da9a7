# SPDX-License-Identifier: Apache-2.0
"""A process that gets an ended one's number at once, and executes nothing, has its own counts."""

import time
from collections.abc import Callable, Iterator

import pytest

from ebpf.clock import monotonic_ns
from ebpf.hooks import SCHED_PROCESS_FORK
from ebpf.session import Session
from tests.support.kernel_numbers import Owners, busy_users_of_maps
from tests.support.kernel_world import EMULATED, wait_for

pytestmark = pytest.mark.host_only

PAIRS = 5 if EMULATED else 30
EARLIER, LATER = 11, 7
FREED_S = 1.0
"""After this the kernel has freed the earlier owners, which it does at some time of its own."""


@pytest.fixture
def owners() -> Iterator[Owners]:
    with Owners() as started:
        yield started


@pytest.fixture
def session() -> Iterator[Session]:
    with Session() as opened:
        if not all(status.attached for status in opened.hooks if status.is_of(SCHED_PROCESS_FORK)):
            pytest.skip("there is no tracefs")
        yield opened


def returns(session: Session, tgids: list[int]) -> list[int | None]:
    """Return the count in each number's record; None: there is no record."""
    entries = session.read().entries
    return [
        entries[tgid].counters["userspace_exits"] if tgid in entries else None for tgid in tgids
    ]


def pairs(session: Session, owners: Owners) -> list[int]:
    """Return numbers that passed to a later owner, which has made its returns."""
    tgids = [owners.start(EARLIER) for _ in range(PAIRS)]
    assert returns(session, tgids) == [EARLIER] * PAIRS
    session.new_lives()
    for tgid in tgids:
        owners.replace(tgid, LATER)
    return tgids


def test_each_life_has_its_own_counts(session: Session, owners: Owners) -> None:
    """The earlier owner adds nothing to the later one's record, and its end does not remove that.

    ``new_lives()`` includes the number.
    """
    tgids = pairs(session, owners)
    lives = session.new_lives()
    assert lives is not None
    assert lives >= set(tgids)
    assert returns(session, tgids) == [LATER] * PAIRS
    time.sleep(FREED_S)
    assert returns(session, tgids) == [LATER] * PAIRS
    for tgid in tgids:
        owners.end(tgid)
    wait_for(lambda: returns(session, tgids) == [None] * PAIRS, "the records are gone")
    assert session.read().dropped_total == 0


def test_a_record_is_of_one_life_beside_busy_users_of_maps(
    session: Session, owners: Owners, record_property: Callable[[str, object], None]
) -> None:
    """A record belongs to one life even if the kernel skips the programs of fork and end.

    The kernel skips programs while other processes call BPF maps. A record that began before the
    later owner is recognized by its time, and ``forget()`` removes it. The remaining records count
    nothing of the earlier owner, and no record outlives its process.
    """
    tgids = [owners.start(EARLIER) for _ in range(PAIRS)]
    wait_for(lambda: returns(session, tgids) == [EARLIER] * PAIRS, "the earlier ones are counted")
    session.new_lives()
    with busy_users_of_maps():
        replaced_ns = monotonic_ns()
        for tgid in tgids:
            owners.replace(tgid, LATER)
        lives = session.new_lives()
        record_property("lives", "unknown" if lives is None else f"{len(lives & {*tgids})}")
        assert lives is None or lives >= set(tgids), "what is unknown is said to be"
        time.sleep(FREED_S)
        forget_older(session, tgids, replaced_ns)
        found = returns(session, tgids)
        record_property("exact", f"{found.count(LATER)} of {PAIRS}")
        assert all(count is None or 0 < count <= LATER for count in found), found
        for tgid in tgids:
            owners.end(tgid)
        time.sleep(FREED_S)
    forget_older(session, tgids, monotonic_ns())
    assert returns(session, tgids) == [None] * PAIRS


def forget_older(session: Session, tgids: list[int], began_ns: int) -> None:
    """Remove the records that began before their number's current process."""
    entries = session.read().entries
    for tgid in tgids:
        if tgid in entries and entries[tgid].first_ns < began_ns:
            session.forget(tgid, entries[tgid].first_ns)
