# SPDX-License-Identifier: Apache-2.0
"""Which event is written next and when, and what is lost."""

import pytest

from probes.vmi.kube.event_queue import EventQueue, EventTiming
from tests.support.vmi_events import event

TIMING = EventTiming(
    burst=3,
    per_s=0.5,
    capacity=4,
    max_age_s=100.0,
    backoff_base_s=1.0,
    backoff_cap_s=8.0,
    retry_after_cap_s=40.0,
    not_allowed_pause_s=60.0,
)


def queue(*names: str, timing: EventTiming = TIMING, now_s: float = 0.0) -> EventQueue:
    made = EventQueue(timing)
    for name in names:
        assert made.put(event(name), now_s)
    return made


def taken(waiting: EventQueue, now_s: float) -> str:
    """Take the event that may be written now, and return its VM's name."""
    assert waiting.wait_s(now_s) == 0.0
    return waiting.take().name


def test_order() -> None:
    """Events are written in the order in which they come; an empty queue has none to wait for."""
    waiting = queue("a", "b")
    assert len(waiting) == 2
    for name in "ab":
        assert taken(waiting, 0.0) == name
        waiting.done()
    assert waiting.wait_s(0.0) is None
    assert (len(waiting), waiting.lost) == (0, 0)


def test_rate() -> None:
    """After a burst the events follow each other slowly, and a pause allows another burst."""
    waiting = queue("a", "b", "c", "d")
    for _ in range(3):
        taken(waiting, 0.0)
        waiting.done()
    assert waiting.wait_s(0.0) == 2.0
    assert waiting.wait_s(1.5) == 0.5
    taken(waiting, 2.0)
    waiting.done()
    assert waiting.wait_s(2.0) is None
    for name in "efgh":
        waiting.put(event(name), 1000.0)
    for _ in range(3):
        taken(waiting, 1000.0)
        waiting.done()
    assert waiting.wait_s(1000.0) == 2.0


def test_too_many() -> None:
    """What exceeds the capacity is lost and counted; the events that wait stay."""
    waiting = queue("a", "b", "c", "d")
    assert [waiting.put(event(name), 0.0) for name in "ef"] == [False, False]
    assert waiting.lost == 2
    assert taken(waiting, 0.0) == "a"
    assert waiting.put(event("g"), 0.0)


def test_too_old() -> None:
    """An event that has waited for too long is lost, and makes room."""
    waiting = queue("a", "b")
    waiting.put(event("c"), 50.0)
    assert waiting.wait_s(99.0) == 0.0
    assert waiting.wait_s(100.0) == 0.0
    assert (len(waiting), waiting.lost) == (1, 2)
    assert taken(waiting, 100.0) == "c"
    full = queue("a", "b", "c", "d")
    assert full.put(event("e"), 100.0)
    assert (len(full), full.lost) == (1, 4)


def test_not_allowed() -> None:
    """Without the permission nothing is written for long, and then another event comes first."""
    waiting = queue("a", "b")
    taken(waiting, 10.0)
    waiting.not_allowed(10.0)
    assert waiting.wait_s(10.0) == 60.0
    waiting.put(event("c"), 30.0)
    assert waiting.wait_s(30.0) == 40.0
    assert [taken(waiting, 70.0), waiting.take().name] == ["b", "a"]
    assert waiting.lost == 0


def test_an_event_that_is_put_back_keeps_its_age() -> None:
    """An event that fails again and again is lost in the end."""
    waiting = queue("a")
    taken(waiting, 90.0)
    waiting.failed(90.0, None, 0.0)
    assert waiting.wait_s(99.0) == 0.0
    assert waiting.wait_s(100.0) is None
    assert waiting.lost == 1


@pytest.mark.parametrize(
    ("failures", "pause_s"), [(1, 1.0), (2, 2.0), (3, 4.0), (4, 8.0), (5, 8.0)]
)
def test_backoff(failures: int, pause_s: float) -> None:
    """The pause doubles with each failure in a row, up to a limit."""
    waiting = queue("a", timing=EventTiming(burst=99, backoff_base_s=1.0, backoff_cap_s=8.0))
    now_s = 0.0
    for _ in range(failures):
        now_s += waiting.wait_s(now_s) or 0.0
        waiting.take()
        waiting.failed(now_s, None, 0.0)
    assert waiting.wait_s(now_s) == pause_s
    waiting.take()
    waiting.done()
    waiting.put(event("b"), now_s + pause_s)
    taken(waiting, now_s + pause_s)
    waiting.failed(now_s + pause_s, None, 0.0)
    assert waiting.wait_s(now_s + pause_s) == 1.0


def test_the_backoff_is_spread() -> None:
    """The agents of a cluster do not all come back at the same time."""
    waiting = queue("a")
    taken(waiting, 0.0)
    waiting.failed(0.0, None, 0.5)
    assert waiting.wait_s(0.0) == 0.75


@pytest.mark.parametrize(
    ("asked_s", "random", "pause_s"),
    [(0.0, 0.0, 1.0), (20.0, 0.0, 20.0), (20.0, 0.5, 22.5), (39.0, 0.9, 40.0), (9e9, 0.0, 40.0)],
)
def test_retry_after(asked_s: float, random: float, pause_s: float) -> None:
    """The server's own wait counts, within limits, and rather longer than shorter."""
    waiting = queue("a", "b")
    taken(waiting, 0.0)
    waiting.failed(0.0, asked_s, random)
    assert waiting.wait_s(0.0) == pause_s
    assert taken(waiting, pause_s) == "b"


def test_the_defaults_are_bounded() -> None:
    """The bounds of production fit together: a full queue is written before its events are old."""
    timing = EventTiming()
    assert timing.capacity / timing.per_s < timing.max_age_s
    assert timing.backoff_cap_s < timing.not_allowed_pause_s < timing.max_age_s
