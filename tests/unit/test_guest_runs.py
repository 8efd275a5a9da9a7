# SPDX-License-Identifier: Apache-2.0
"""vmtest/runs.py: which guests run when, and at what priority."""

import os
import threading

import pytest

from vmtest.cache import say
from vmtest.runs import NICE, Runs

LOWEST = 19
"""The nice value of the lowest priority."""


def priority() -> int:
    """The nice value of the calling thread."""
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_the_last_run_one_by_one_until_the_others_begin(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """They have a lower priority than the others and than the tests beside them, and say nothing.

    An early run that is in progress when the others begin goes on, and no other one follows it.
    """
    before, begun = priority(), list[str]()
    reached, go_on = threading.Event(), threading.Event()

    def run(key: str) -> tuple[str, int]:
        begun.append(key)
        say(key)
        if key == "third":
            reached.set()
            assert go_on.wait(timeout=10)
        return key, priority() - before

    runs = Runs(run, ["first", "second", "third", "last"])
    runs.begin_early()
    low = min(NICE, LOWEST - before)
    assert runs.result("last") == ("last", low)
    assert reached.wait(timeout=10)
    assert begun == ["last", "third"]
    runs.begin(at_once=1)
    assert [runs.result(key) for key in ("first", "second")] == [("first", 0), ("second", 0)]
    go_on.set()
    assert runs.result("third") == ("third", low)
    assert begun == ["last", "third", "first", "second"]
    assert priority() == before
    assert sorted(capsys.readouterr().err.splitlines()) == ["guests: first", "guests: second"]


def test_no_more_at_once_than_there_is_room_for() -> None:
    """Runs begin in the order of the keys, and one begins where another has ended."""
    going, most, order = 0, 0, []
    lock, both = threading.Lock(), threading.Barrier(2)

    def run(key: int) -> int:
        nonlocal going, most
        with lock:
            going += 1
            most = max(most, going)
            order.append(key)
        both.wait(timeout=10)
        with lock:
            going -= 1
        return key

    runs = Runs(run, range(4))
    runs.begin(at_once=2)
    assert [runs.result(key) for key in range(4)] == [0, 1, 2, 3]
    assert most == 2
    assert sorted(order[:2]) == [0, 1]


def test_what_a_run_raises() -> None:
    """result() raises it; the other runs go on."""

    def run(key: str) -> str:
        if key == "bad":
            raise ValueError(key)
        return key

    runs = Runs(run, ["bad", "good"])
    runs.begin(at_once=1)
    assert runs.result("good") == "good"
    with pytest.raises(ValueError, match="bad"):
        runs.result("bad")
