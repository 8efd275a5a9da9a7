# SPDX-License-Identifier: Apache-2.0
"""EDGE: connects Textual to the terminal on stdin and stdout.

Must not know what is shown. It is a driver of its own because Textual's does not fit a command that
must end with its terminal:

* It draws on stderr, which a user may redirect to a file.
* It waits forever to write to a terminal that is not read, and reads one that has gone in a loop.
* It starts a second time at each SIGCONT, which the kernel sends along with SIGHUP.
"""

import codecs
import contextlib
import os
import select
import sys
import termios
import time
from collections.abc import Callable
from io import TextIOWrapper
from typing import Any, cast

from textual._xterm_parser import XTermParser
from textual.app import App
from textual.drivers.linux_driver import LinuxDriver

STALL_S = 30.0
"""How long the terminal may accept nothing before it is taken for gone. A terminal emulator pauses
while its user selects text."""
END_STALL_S = 0.3
"""The same once the view is to end."""
_POLL_S = 0.05
_INTERRUPTS = (b"\x03", b"\x1b[99;5u")
"""What a terminal sends for Ctrl-C, without and with kitty's keyboard protocol."""
_HUNG_UP = select.POLLHUP | select.POLLERR | select.POLLNVAL


class _Output:
    """Writes to a terminal, and discards text that the terminal does not accept."""

    def __init__(self, fd: int, encoding: str, ends: Callable[[], bool]) -> None:
        self.has_stalled = False
        """Whether the terminal has accepted nothing for too long."""
        self._waits = self._hurries = False
        self._fd = _unblocked(fd)
        self._encoding = encoding
        self._ends = ends

    def write(self, text: str) -> None:
        data = text.encode(self._encoding, "backslashreplace")
        accepted_s = time.monotonic()
        while data:
            try:
                data = data[os.write(self._fd, data) :]
                accepted_s, self._waits = time.monotonic(), False
            except BlockingIOError:
                soon = self._hurries or self._ends()
                waited_s = time.monotonic() - accepted_s
                if self.has_stalled or waited_s >= (END_STALL_S if soon else STALL_S):
                    self._give_up()
                    return
                self._waits = waited_s >= END_STALL_S
                _events(self._fd, select.POLLOUT, wait_s=_POLL_S)
            except OSError:
                return

    def hurry(self) -> None:
        """Give up soon if the terminal accepts nothing now, because its user wants the end."""
        self._hurries = self._waits

    def _give_up(self) -> None:
        """Make room for what restores the terminal, by dropping what it has not read."""
        self.has_stalled = True
        with contextlib.suppress(termios.error):
            termios.tcflush(self._fd, termios.TCOFLUSH)

    def flush(self) -> None:
        """Do nothing, because nothing is kept."""

    def fileno(self) -> int:
        return self._fd


class TerminalDriver(LinuxDriver):
    """Draws on stdout, and notices when the terminal goes away."""

    def __init__(
        self,
        app: App[Any],
        *,
        debug: bool = False,
        mouse: bool = True,
        size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(app, debug=debug, mouse=mouse, size=size)
        self.ends: Callable[[], bool] = lambda: False
        """Whether the application is to end. Any thread may call it."""
        self._output = _Output(sys.stdout.fileno(), sys.stdout.encoding, self._is_ending)
        self._file = cast("TextIOWrapper", self._output)
        self._input_ended = False

    def _is_ending(self) -> bool:
        return self.ends()

    def use_mouse(self, *, wanted: bool) -> None:
        """Have the terminal report the mouse, or leave it to the terminal, which selects text."""
        if wanted:
            self._mouse = True
            self._enable_mouse_support()
        else:
            self._disable_mouse_support()
            self._mouse = False

    @property
    def has_gone(self) -> bool:
        """Whether the terminal was closed, its connection has ended, or it accepts nothing."""
        return (
            self._input_ended
            or self._output.has_stalled
            or any(has_gone(fd) for fd in (self.fileno, self._output.fileno()))
        )

    def write(self, data: str) -> None:
        """Write to the terminal, unless the view is suspended or could not start."""
        if self._writer_thread is not None and self._writer_thread.is_alive():
            super().write(data)

    def run_input_thread(self) -> None:
        """Read keys until the view ends or there is nothing more to read."""
        parser = XTermParser(self._debug)
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        while not self.exit_event.is_set():
            if _events(self.fileno, select.POLLIN, wait_s=2 * _POLL_S):
                try:
                    data = os.read(self.fileno, 4096)
                except OSError:
                    data = b""
                if not data:
                    self._input_ended = True
                    return
                if any(key in data for key in _INTERRUPTS):
                    self._output.hurry()
                for message in parser.feed(decode(data)):
                    self.process_message(message)
            for message in parser.tick():
                self.process_message(message)

    def _sigcont_application(self, *_: object) -> None:
        """Begin again, whether the view was suspended or only stopped."""
        if has_gone(self.fileno):
            return
        if self._writer_thread is not None and self._writer_thread.is_alive():
            self.suspend_application_mode()
        super()._sigcont_application()


def has_gone(fd: int) -> bool:
    """Whether what a descriptor leads to has been hung up."""
    return bool(_events(fd, 0) & _HUNG_UP)


def _events(fd: int, events: int, *, wait_s: float = 0.0) -> int:
    """Return which of these events a descriptor has, or a hang-up; 0: none in time."""
    watched = select.poll()
    watched.register(fd, events)
    return next((found for _, found in watched.poll(wait_s * 1000)), 0)


def _unblocked(fd: int) -> int:
    """Return another descriptor of a terminal, writing to which never waits.

    The flag belongs to the open file, which other processes share, so the terminal is opened again.
    Where that is impossible the descriptor itself is returned.
    """
    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        return os.open(f"/proc/self/fd/{fd}", flags)
    except OSError:
        return fd
