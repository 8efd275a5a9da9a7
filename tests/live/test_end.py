# SPDX-License-Identifier: Apache-2.0
"""``hvprobe live`` ends with its terminal, on signals and on keys, and leaves nothing behind."""

import contextlib
import ctypes
import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path
from typing import Self

import pytest

from ebpf.bpf_syscall import bpf
from tests.support.kernel_world import DEADLINE_S, wait_for
from tests.support.live_terminal import HVPROBE, Terminal, environment

COMMAND = (*HVPROBE, "live", "--standalone", "--node", "n", "--interval", "0.3")
END_S = 5.0
"""How long the view may take to end. On a machine without other work it takes less than 2 s."""
PROG_GET_FD_BY_ID = 13
"""A command of bpf(2) (``enum bpf_cmd``)."""
DRAWN = b"quit"
ENTERED = b"\x1b[?1049h"
"""What the view writes first, to enter the terminal's alternate screen."""


class Pty:
    """A view on a terminal of this test, which holds the other end."""

    def __init__(self, *, controls: bool = True) -> None:
        """Start the view; controls says whether the terminal sends it SIGHUP and SIGCONT."""
        self._master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self._written = b""
        self._stderr, errors = os.pipe()
        self.popen = subprocess.Popen(
            ["setsid", *(("--ctty",) if controls else ()), *COMMAND],
            stdin=slave,
            stdout=slave,
            stderr=errors,
            env=environment(TERM="xterm-256color"),
        )
        os.close(slave)
        os.close(errors)

    def until(self, words: bytes) -> None:
        """Read the terminal until the view has written these words."""

        def found() -> bool:
            if select.select([self._master], [], [], 0.05)[0]:
                self._written += os.read(self._master, 65536)
            return words in self._written

        wait_for(found, f"{words!r} is written")
        self._written = b""

    def type(self, keys: bytes) -> None:
        """Type keys, as far as the terminal has room for them."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._master, keys)

    def fill(self) -> None:
        """Have the view draw until its terminal, which is not read, accepts nothing more."""
        os.set_blocking(self._master, False)
        for _ in range(100):
            self.type(b"?\x1bnn")
            time.sleep(0.02)

    def close(self) -> None:
        """Close the terminal, as a terminal emulator or a connection does that ends."""
        os.close(self._master)
        self._master = -1

    def programs(self) -> set[int]:
        """The numbers of the BPF programs that the view has loaded."""
        found = set()
        for fd in Path(f"/proc/{self.popen.pid}/fdinfo").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found |= set(re.findall(r"^prog_id:\s*(\d+)", fd.read_text(), re.MULTILINE))
        return {int(number) for number in found}

    def assert_ends(self, programs: set[int]) -> None:
        """It ends in time with exit code 0 and nothing to say, and leaves nothing behind."""
        began_s = time.monotonic()
        assert self.popen.wait(DEADLINE_S) == 0
        assert time.monotonic() - began_s < END_S * DEADLINE_S / 30
        os.set_blocking(self._stderr, False)
        # Fails while another process still holds it.
        said = b"".join(iter(lambda: os.read(self._stderr, 65536), b"")).decode()
        lines = [line for line in said.splitlines() if " WARNING process " not in line]
        assert lines == ["hvprobe: attaching the probes ..."]
        assert session(self.popen.pid) == set()
        wait_for(lambda: not any(is_loaded(each) for each in programs), "the programs are gone")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.popen.kill()
        self.popen.wait()
        for fd in {self._master, self._stderr} - {-1}:
            os.close(fd)


def session(number: int) -> set[int]:
    """The processes of a session."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended in the meantime
            if int(stat.read_text().rpartition(")")[2].split()[3]) == number:
                found.add(int(stat.parent.name))
    return found


def is_loaded(program: int) -> bool:
    """Whether the kernel still has a BPF program."""
    attributes = ctypes.create_string_buffer(struct.pack("=I", program), 16)
    try:
        os.close(bpf(PROG_GET_FD_BY_ID, attributes))
    except FileNotFoundError:
        return False
    return True


def drawn(view: Pty) -> set[int]:
    """Wait for the first frame; the BPF programs of the view."""
    view.until(DRAWN)
    programs = view.programs()
    assert programs
    return programs


@pytest.mark.parametrize("controls", [True, False], ids=["controlling", "other"])
def test_a_terminal_that_goes_away(controls: bool) -> None:
    """The view ends when its terminal is closed: idle, while it draws, and once that is full.

    A terminal that does not control the view sends it no signal.
    """
    for before in (lambda view: time.sleep(0.5), lambda view: view.type(b"?"), Pty.fill):
        with Pty(controls=controls) as view:
            programs = drawn(view)
            before(view)
            view.close()
            view.assert_ends(programs)
    with Pty(controls=controls) as view:
        view.until(ENTERED)
        programs = view.programs()
        view.close()
        view.assert_ends(programs)


def test_a_terminal_that_goes_away_before_the_first_frame() -> None:
    """The view ends without an error if its terminal has gone while the probes were attached."""
    with Pty(controls=False) as view:
        view.close()
        view.popen.wait(DEADLINE_S)
        view.assert_ends(set())


@pytest.mark.parametrize(
    "number",
    [signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT],
    ids=lambda number: number.name,
)
def test_a_signal(number: signal.Signals) -> None:
    """A signal ends the view, also while its terminal is not read."""
    for before in (lambda view: None, Pty.fill):
        with Pty() as view:
            programs = drawn(view)
            before(view)
            view.popen.send_signal(number)
            view.assert_ends(programs)


@pytest.mark.parametrize("key", [b"q", b"\x03", b"\x04", b"\x1c"], ids=["q", "C-c", "C-d", "C-\\"])
def test_a_key(key: bytes) -> None:
    """Each of the keys that end programs ends the view; Ctrl-D is the end of the input."""
    with Pty() as view:
        programs = drawn(view)
        view.type(key)
        view.assert_ends(programs)


def test_ctrl_c_while_the_terminal_is_not_read() -> None:
    """Ctrl-C ends a view that waits for its terminal."""
    with Pty() as view:
        programs = drawn(view)
        view.fill()
        time.sleep(0.5)
        view.type(b"\x03")
        view.assert_ends(programs)


def test_a_terminal_that_goes_away_while_the_view_is_stopped() -> None:
    """The kernel continues a view whose terminal has gone, and it ends."""
    with Pty() as view:
        programs = drawn(view)
        view.type(b"\x1a")
        stat = Path(f"/proc/{view.popen.pid}/stat")
        wait_for(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "it is stopped")
        view.close()
        view.assert_ends(programs)


def test_continued_without_being_stopped() -> None:
    """A view that is stopped and continued from elsewhere draws again, with one thread for keys."""
    with Pty() as view:
        programs = drawn(view)
        threads = len(list(Path(f"/proc/{view.popen.pid}/task").iterdir()))
        for _ in range(3):
            view.popen.send_signal(signal.SIGSTOP)
            view.popen.send_signal(signal.SIGCONT)
            view.until(ENTERED)
            view.until(DRAWN)
        wait_for(
            lambda: len(list(Path(f"/proc/{view.popen.pid}/task").iterdir())) <= threads + 1,
            "it has no more threads",
        )
        view.type(b"q")
        view.assert_ends(programs)


@pytest.mark.parametrize("order", ["kill-pane", "kill-server"])
def test_tmux_ends(tmp_path: Path, order: str) -> None:
    """The view ends with its pane, and with tmux."""
    with Terminal(tmp_path, COMMAND) as terminal:
        terminal.wait_for("q quit")
        watched = os.pidfd_open(terminal.program())
        terminal.order(order)
        poll = select.poll()
        poll.register(watched, select.POLLIN)
        assert poll.poll(END_S * DEADLINE_S / 30 * 1000)
        os.close(watched)
