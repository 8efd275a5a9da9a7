# SPDX-License-Identifier: Apache-2.0
"""The pauses, deadlines and lengths of the API server's watch."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.vmi.kube.timing import Backoff, Failure, WatchTiming, backoff_s, retry_after_s

TIMING = WatchTiming(backoff_base_s=1.0, backoff_cap_s=8.0, answer_deadline_s=5.0)
RANDOM = st.floats(0, 1, exclude_max=True)
LOST, HUNG, REFUSED, BROKEN, GONE = (
    Failure.UNANSWERED,
    Failure.HUNG,
    Failure.REFUSED,
    Failure.BROKEN,
    Failure.EXPIRED,
)
GOOD = "a successful watch"


@pytest.mark.parametrize(
    ("course", "pauses_s"),
    [
        ([LOST] * 5, [1, 2, 4, 8, 8]),
        ([REFUSED] * 5, [1, 2, 4, 8, 8]),
        ([BROKEN] * 5, [1, 2, 4, 8, 8]),
        ([LOST, LOST, LOST, REFUSED, REFUSED], [1, 2, 4, 1, 2]),
        ([HUNG, HUNG, HUNG, BROKEN, BROKEN], [1, 2, 4, 1, 2]),
        ([LOST, LOST, LOST, GONE, LOST], [1, 2, 4, 0, 1]),
        ([BROKEN, BROKEN, BROKEN, LOST, LOST], [1, 2, 4, 8, 8]),
        ([LOST, LOST, LOST, GOOD, LOST, LOST], [1, 2, 4, 1, 2]),
        ([BROKEN, BROKEN, BROKEN, GOOD, BROKEN, BROKEN], [1, 2, 4, 1, 2]),
        ([LOST, REFUSED, REFUSED], [1, 1, 2]),
        ([BROKEN, LOST, REFUSED, REFUSED], [1, 2, 1, 2]),
        ([GONE] * 6, [0, 1, 2, 4, 8, 8]),
        ([GONE, GOOD, GONE, GONE], [0, 0, 1]),
        ([GONE, BROKEN, GONE, REFUSED, GONE], [0, 1, 2, 4, 8]),
    ],
)
def test_pauses(course: list[Failure | str], pauses_s: list[float]) -> None:
    """Pauses double until an answer follows silence or a watch succeeds.

    The first expired version since the last successful watch needs no pause.
    """
    backoff = Backoff(TIMING)
    found: list[float] = []
    for step in course:
        if isinstance(step, Failure):
            found.append(backoff.pause_s(step, None, 0.0))
        else:
            backoff.recovered()
    assert found == pauses_s


def test_a_list_that_is_answered_ends_the_silence() -> None:
    """An answered list resets the pause, which still grows if the watches after it fail."""
    backoff = Backoff(TIMING)
    assert [backoff.pause_s(LOST, None, 0.0) for _ in range(3)] == [1, 2, 4]
    found: list[float] = []
    for _ in range(3):
        backoff.answered()
        found.append(backoff.pause_s(LOST, None, 0.0))
    assert found == [1, 2, 4]


@pytest.mark.parametrize("failure", [REFUSED, BROKEN, LOST])
@pytest.mark.parametrize(
    ("asked_s", "random", "pause_s"),
    [
        (2.0, 0.0, 2.0),
        (20.0, 0.0, 20.0),
        (20.0, 0.5, 22.5),
        (0.0, 0.0, 1.0),
        (30.0, 0.9, 30.0),
        (31.0, 0.0, 30.0),
        (float("inf"), 0.0, 30.0),
    ],
)
def test_the_server_may_set_the_pause(
    failure: Failure, asked_s: float, random: float, pause_s: float
) -> None:
    """``Retry-After`` replaces a shorter or longer back-off, up to half a minute."""
    backoff = Backoff(TIMING)
    for _ in range(5):
        backoff.pause_s(failure, None, 0.0)
    assert backoff.pause_s(failure, asked_s, random) == pause_s


def test_deadlines_for_an_answer() -> None:
    """Deadlines grow up to a bound while requests hang, but not while connections are refused.

    An answered list does not change them, because the watch after it may hang each time.
    """
    backoff = Backoff(TIMING)
    found = [backoff.answer_deadline_s]
    for step in [LOST, LOST, HUNG, HUNG, LOST, HUNG, HUNG]:
        backoff.pause_s(step, None, 0.0)
        found.append(backoff.answer_deadline_s)
    assert found == [5, 5, 5, 10, 20, 20, 20, 20]
    backoff.answered()
    assert backoff.answer_deadline_s == 20
    backoff.recovered()
    assert backoff.answer_deadline_s == 5
    backoff.pause_s(HUNG, None, 0.0)
    backoff.pause_s(BROKEN, None, 0.0)
    assert backoff.answer_deadline_s == 5


@given(st.integers(0, 10_000), RANDOM)
def test_backoff_stays_between_its_bounds(failures: int, random: float) -> None:
    """The pause is from half the base to the cap, and at least half the cap once it is reached."""
    wait_s = backoff_s(failures, 0.5, 30.0, random)
    assert 0.25 <= wait_s <= 30.0
    assert failures < 6 or wait_s >= 15.0


@given(st.lists(st.sampled_from(Failure), max_size=50), RANDOM)
def test_in_production_no_pause_is_long(course: list[Failure], random: float) -> None:
    """No pause exceeds 3 s, so that names are current within 5 s after the server answers again."""
    backoff = Backoff(WatchTiming())
    for step in course:
        assert backoff.pause_s(step, None, random) <= 3.0


@given(RANDOM)
def test_watches_become_longer(random: float) -> None:
    """The lengths of watches grow from a second to minutes within a few watches."""
    timing = WatchTiming()
    lengths_s: list[int] = []
    for _ in range(8):
        lengths_s.append(timing.watch_s(lengths_s[-1] if lengths_s else None, random))
    assert lengths_s[0] == 1
    assert lengths_s == sorted(lengths_s)
    assert all(300 <= length_s < 600 for length_s in lengths_s[5:])


@pytest.mark.parametrize(("watch_s", "silence_s"), [(1, 6.0), (20, 25.0), (70, 75.0), (600, 75.0)])
def test_a_watch_may_be_silent_until_it_should_have_ended(watch_s: int, silence_s: float) -> None:
    """A silent watch is abandoned soon after its end is due or, if it is long, its bookmark."""
    assert WatchTiming().silence_s(watch_s) == silence_s


NOW_UNIX_S = 1_445_412_480.0
"""Wed, 21 Oct 2015 07:28:00 GMT."""


@pytest.mark.parametrize(
    ("text", "server_date", "seconds"),
    [
        ("1", None, 1.0),
        (" 30 ", None, 30.0),
        ("0", None, 0.0),
        ("9" * 5000, None, float("inf")),
        (None, None, None),
        ("", None, None),
        ("soon", None, None),
        ("-1", None, None),
        ("1.5", None, None),
        ("\u0661", None, None),
        ("Wed, 21 Oct 2015 07:28:07 GMT", None, 7.0),
        ("Wednesday, 21-Oct-15 07:28:07 GMT", None, 7.0),
        ("Wed Oct 21 07:28:07 2015", None, 7.0),
        ("Wed, 21 Oct 2015 09:28:07 +0200", None, 7.0),
        ("Wed, 21 Oct 2015 07:27:00 GMT", None, 0.0),
        ("Wed, 21 Oct 2015 07:28:07 GMT", "Wed, 21 Oct 2015 07:28:02 GMT", 5.0),
        ("Wed, 21 Oct 2015 07:28:07 GMT", "today", 7.0),
        ("Wed, 21 Oct 99999 07:28:00 GMT", None, None),
        ("Wed, 21 Oct 2015 07:28:00 +9999999999", None, None),
    ],
)
def test_retry_after(text: str | None, server_date: str | None, seconds: float | None) -> None:
    """Integral seconds and HTTP dates are read, and any other text is ignored."""
    assert retry_after_s(text, server_date, NOW_UNIX_S) == seconds


@given(st.text(), st.none() | st.text())
def test_any_text_is_a_time_or_nothing(text: str, server_date: str | None) -> None:
    """Any text, such as a proxy may send, gives a time or None and never an exception."""
    found = retry_after_s(text, server_date, NOW_UNIX_S)
    assert found is None or found >= 0
