# SPDX-License-Identifier: Apache-2.0
"""How the live view's driver writes to a terminal that is not read, has gone, or is another's."""

import fcntl
import os
import select
import threading
import time
from collections.abc import Iterator

import pytest

from probes.render.live import driver
from probes.render.live.driver import _Output, has_gone

MUCH = "x" * 500_000
"""More than a terminal holds for its reader."""


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Both ends of a terminal: the one that a terminal emulator holds, and the program's."""
    master, slave = os.openpty()
    yield master, slave
    for fd in (master, slave):
        try:
            os.close(fd)
        except OSError:
            continue


def output(fd: int, *, ends: bool = False) -> _Output:
    return _Output(fd, "utf-8", lambda: ends)


def test_a_terminal_that_is_read(terminal: tuple[int, int]) -> None:
    """Everything reaches a terminal that is read slowly, and its open file stays as it was."""
    master, slave = terminal
    got = bytearray()

    def read() -> None:
        while not got.endswith(b"!"):
            got.extend(os.read(master, 65536))
            time.sleep(0.005)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    out = output(slave)
    out.write(MUCH + "é!")
    reader.join(10)
    assert got.decode() == MUCH + "é!"
    assert not out.has_stalled
    assert not fcntl.fcntl(slave, fcntl.F_GETFL) & os.O_NONBLOCK


def test_a_terminal_that_is_not_read(
    terminal: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a time the text is dropped, so that what restores the terminal still reaches it."""
    monkeypatch.setattr(driver, "STALL_S", 0.2)
    master, slave = terminal
    out = output(slave)
    began_s = time.monotonic()
    out.write(MUCH)
    assert 0.2 <= time.monotonic() - began_s < 5
    assert out.has_stalled
    out.write("restored")
    got = b""
    while select.select([master], [], [], 0.5)[0]:
        got += os.read(master, 65536)
    assert got.endswith(b"restored")
    # The kernel hands some text on to the reader's side, where it is out of reach.
    assert len(got) < 100_000


def test_the_end_does_not_wait_long(terminal: tuple[int, int]) -> None:
    """Once the view is to end, it waits for its terminal only a short time."""
    _, slave = terminal
    began_s = time.monotonic()
    out = output(slave, ends=True)
    out.write(MUCH)
    assert out.has_stalled
    assert time.monotonic() - began_s < driver.STALL_S / 2


def test_an_interrupt_ends_the_wait(terminal: tuple[int, int]) -> None:
    """Ctrl-C while the terminal accepts nothing ends the wait; at any other time it does not."""
    _, slave = terminal
    out = output(slave)
    out.hurry()
    writer = threading.Thread(target=out.write, args=(MUCH,), daemon=True)
    writer.start()
    time.sleep(2 * driver.END_STALL_S)
    assert not out.has_stalled
    out.hurry()
    writer.join(5)
    assert out.has_stalled


def test_a_terminal_that_has_gone(terminal: tuple[int, int]) -> None:
    """A terminal that was closed is known to be gone, and writing to it does nothing."""
    master, slave = terminal
    out = output(slave)
    assert not has_gone(slave)
    os.close(master)
    assert has_gone(slave)
    out.write(MUCH)
    assert not out.has_stalled
