# SPDX-License-Identifier: Apache-2.0
"""vmtest/runs.py: which guests run when, and at what priority."""

import contextlib
import gc
import os
import threading
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.support.kernel_world import wait_for
from vmtest.cache import say
from vmtest.runs import NICE, Runs

LOWEST = 19
"""The nice value of the lowest priority."""


@dataclass(frozen=True, slots=True)
class Key:
    """A run's key. ``folder`` has what runs do and see."""

    name: str
    folder: Path

    @property
    def begun(self) -> Path:
        return self.folder / f"{self.name}-begun"


def guest(key: Key) -> tuple[str, int, int]:
    """A run: its key's name, its process and its priority. The third one waits."""
    key.begun.touch()
    say(key.name)
    if key.name == "third":
        wait_for((key.folder / "go-on").exists, "the third one may go on")
    return key.name, os.getpid(), os.getpriority(os.PRIO_PROCESS, 0)


def descriptors() -> dict[str, str]:
    """The descriptors of this process, but for the one of this listing, with what they are of."""
    found = {}
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found[link.name] = str(link.readlink())
    return found


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs[Key, tuple[str, int, int]]]:
    made = Runs(guest, [Key(name, tmp_path) for name in ("first", "second", "third", "last")])
    yield made
    made.end()


def test_the_last_run_one_by_one_until_the_others_begin(
    runs: Runs[Key, tuple[str, int, int]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """They have a lower priority than the others and than the tests beside them, and say nothing.

    An early run that is in progress when the others begin goes on, and no other one follows it.
    """
    first, second, third, last = (Key(n, tmp_path) for n in ("first", "second", "third", "last"))
    own = os.getpriority(os.PRIO_PROCESS, 0)
    runs.begin_early()
    name, process, priority = runs.result(last)
    assert (name, priority) == ("last", min(own + NICE, LOWEST))
    assert process != os.getpid()
    wait_for(third.begun.exists, "the third one has begun")
    assert not first.begun.exists()
    assert not second.begun.exists()
    runs.begin(at_once=1)
    for key in (first, second):
        assert runs.result(key) == (key.name, os.getpid(), own)
    (tmp_path / "go-on").touch()
    assert runs.result(third) == ("third", process, priority)
    assert os.getpriority(os.PRIO_PROCESS, 0) == own
    assert sorted(capfd.readouterr().err.splitlines()) == ["guests: first", "guests: second"]


def test_early_runs_open_nothing_in_this_process(
    runs: Runs[Key, tuple[str, int, int]], tmp_path: Path
) -> None:
    """Tests beside them may compare the descriptors of this process."""
    runs.begin_early()
    before = descriptors()
    for name in ("last", "third"):
        wait_for(Key(name, tmp_path).begun.exists, f"the {name} one has begun")
        assert descriptors() == before


def test_an_early_run_ends_with_the_session(
    runs: Runs[Key, tuple[str, int, int]], tmp_path: Path
) -> None:
    """Nothing of an interrupted session remains, and what waits for the run gets an exception."""
    runs.begin_early()
    _, process, _ = runs.result(Key("last", tmp_path))
    wait_for(Key("third", tmp_path).begun.exists, "the third one has begun")
    runs.end()
    with pytest.raises(BrokenProcessPool):
        runs.result(Key("third", tmp_path))
    wait_for(lambda: not psutil.pid_exists(process), "its process has ended")
    assert not Key("second", tmp_path).begun.exists()


def test_a_session_that_outlives_its_early_runs(
    runs: Runs[Key, tuple[str, int, int]], tmp_path: Path
) -> None:
    """Their process has ended by itself, and whatever has its number now goes on."""
    (tmp_path / "go-on").touch()
    runs.begin_early()
    _, process, _ = runs.result(Key("first", tmp_path))
    gc.collect()
    wait_for(lambda: not psutil.pid_exists(process), "its process has ended")
    runs.end()


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
