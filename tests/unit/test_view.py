# SPDX-License-Identifier: Apache-2.0
"""Keys: from the bytes of a terminal to keys, and from keys to the state of the view."""

from functools import reduce

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.render.live.rows import Order
from probes.render.live.view import FILTER_MAX, Key, ViewState, keys_of, pressed, scrolled


def after(*keys: Key | str) -> ViewState:
    return reduce(lambda view, key: pressed(view, key, page=10), keys, ViewState())


@pytest.mark.parametrize(
    ("sent", "keys"),
    [
        (b"q", ["q"]),
        (b"\x1b[A\x1b[B\x1bOA\x1bOB", [Key.UP, Key.DOWN, Key.UP, Key.DOWN]),
        (b"\x1b[5~\x1b[6~", [Key.PAGE_UP, Key.PAGE_DOWN]),
        (b"\x1b[H\x1b[F\x1b[1~\x1b[4~", [Key.HOME, Key.END, Key.HOME, Key.END]),
        (b"\r\n\x7f\x08", [Key.ENTER, Key.ENTER, Key.BACKSPACE, Key.BACKSPACE]),
        (b"\x1b[15~\x1b[1;5Cx", [Key.OTHER, Key.OTHER, "x"]),
        ("é日".encode(), ["é", "日"]),
        (b"\xff\xfea", ["a"]),
        (b"\x1bq", [Key.ESCAPE, "q"]),
        (b"\x01\x1b\x1b[A", [Key.OTHER, Key.ESCAPE, Key.UP]),
    ],
)
def test_keys(sent: bytes, keys: list[Key | str]) -> None:
    """Escape sequences of several terminals, UTF-8 and other bytes are decoded."""
    assert keys_of(sent) == (keys, b"")


@pytest.mark.parametrize("sent", [b"\x1b", b"\x1b[", b"\x1b[5", b"\x1bO", "日".encode()[:2]])
def test_unfinished_keys_wait(sent: bytes) -> None:
    """The beginning of a key is kept until the rest arrives."""
    assert keys_of(b"q" + sent) == (["q"], sent)


@given(sent=st.binary(max_size=60), cut=st.integers(0, 60))
def test_keys_do_not_depend_on_how_they_arrive(sent: bytes, cut: int) -> None:
    """Bytes that arrive in two parts give the same keys, and no input waits without a limit."""
    complete, rest = keys_of(sent)
    first, kept = keys_of(sent[:cut])
    second, kept = keys_of(kept + sent[cut:])
    assert (first + second, kept) == (complete, rest)
    assert len(rest) < 4 or rest.startswith(b"\x1b[")


@pytest.mark.parametrize(
    ("keys", "order"),
    [
        ("", Order.SEVERITY),
        ("r", Order.EXITS),
        ("t", Order.TYPE),
        ("n", Order.NAME),
        ("nr", Order.EXITS),
        ("rr", Order.SEVERITY),
    ],
)
def test_sorting(keys: str, order: Order) -> None:
    """A key sorts, the same key again restores the severity order, and both scroll to the top."""
    assert after(*keys).order is order
    assert after(Key.DOWN, *keys, "r").top == 0


def test_filter() -> None:
    """After ``/`` every key is a letter, until Enter keeps the filter or Escape drops it."""
    assert after(*"/rtnpq").words == "rtnpq"
    assert after(*"/rtnpq").order is Order.SEVERITY
    assert not after(*"/q").over
    assert after(*"/ab", Key.BACKSPACE, Key.ENTER) == ViewState(words="a")
    assert after(*"/ab", Key.ENTER, "n").order is Order.NAME
    assert after(*"/ab", Key.ESCAPE) == ViewState()
    assert after(*"/ab", Key.ENTER, Key.ESCAPE) == ViewState()
    assert after(*"/a", Key.OTHER, Key.DOWN).words == "a"
    assert len(after("/", *"a" * 200).words) == FILTER_MAX


def test_pause_and_quit() -> None:
    """p pauses and continues, q quits, and other keys do nothing."""
    assert after("p").paused
    assert not after("p", "p").paused
    assert not after("c").details
    assert after("c", "c").details
    assert after(Key.DOWN, "c").top == 0
    assert after("q").over
    assert after("x", Key.OTHER, Key.ENTER, Key.BACKSPACE) == ViewState()


def test_scrolling() -> None:
    """Keys scroll by line, by page and to both ends but not beyond them, even while filtering."""
    assert after(Key.DOWN, Key.DOWN, Key.UP).top == 1
    assert after(Key.UP).top == 0
    assert after(Key.PAGE_DOWN, Key.PAGE_DOWN, Key.PAGE_UP).top == 10
    assert scrolled(after(Key.END), lines=100, page=10).top == 90
    assert scrolled(after(Key.END), lines=3, page=10).top == 0
    assert after(Key.END, Key.HOME).top == 0
    assert after("/", Key.DOWN).top == 1
