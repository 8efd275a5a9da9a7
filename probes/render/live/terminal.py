# SPDX-License-Identifier: Apache-2.0
"""EDGE: controls the terminal: keys, screen, size, signals.

Owns the state of the terminal and restores it on every way out. Must not know what is shown, nor
what keys mean.
"""

import contextlib
import os
import select
import shutil
import signal
import sys
import tempfile
import termios
import time
import tty
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Self

from rich.console import Console, ConsoleDimensions, Group
from rich.live import Live
from rich.text import Text

from probes.render.live.view import Key, keys_of

ESCAPE_WAIT_S = 0.05
"""How long to wait after ESC: if nothing follows, it is the Escape key."""
_Handler = Callable[[int, FrameType | None], object] | int | None
"""What ``signal.signal`` returns and accepts."""
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextlib.contextmanager
def progress(line: str) -> Iterator[Callable[[], None]]:
    """Show on stderr what the command waits for.

    Yields a function that removes the line from a terminal again.
    """
    on_terminal = sys.stderr.isatty()
    said = True
    sys.stderr.write(line if on_terminal else f"{line}\n")
    sys.stderr.flush()

    def away() -> None:
        nonlocal said
        if said and on_terminal:
            sys.stderr.write("\r" + " " * len(line) + "\r")
            sys.stderr.flush()
        said = False

    try:
        yield away
    finally:
        away()


class Signals:
    """Makes signals something to wait for. Restores the previous handlers at the end."""

    def __init__(self) -> None:
        self.over = False
        """Whether a signal asked the command to end."""
        self.stop_wanted = False
        """Whether Ctrl-Z was pressed or SIGTSTP was sent."""
        self._handlers: dict[signal.Signals, _Handler] = {}

    def __enter__(self) -> Self:
        self._awake, self._wake = os.pipe()
        os.set_blocking(self._awake, False)
        os.set_blocking(self._wake, False)
        self._before = signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        self.handle(_ENDING, self._end)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._before)
        os.close(self._awake)
        os.close(self._wake)

    def handle(
        self, numbers: tuple[signal.Signals, ...], handler: Callable[[int, FrameType | None], None]
    ) -> None:
        """Install a handler until the end."""
        for number in numbers:
            before = signal.signal(number, handler)
            self._handlers.setdefault(number, before)

    def wait(self, until_s: float | None, keyboard: int | None = None) -> bool:
        """Wait for a monotonic time, a signal or a key. Returns whether there is a key."""
        timeout_s = None if until_s is None else max(until_s - time.monotonic(), 0.0)
        watched = [self._awake] if keyboard is None else [self._awake, keyboard]
        ready, _, _ = select.select(watched, [], [], timeout_s)
        if self._awake in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._awake, 4096)
        return keyboard is not None and keyboard in ready

    def _end(self, *_: object) -> None:
        self.over = True


class Screen:
    """Takes the entire terminal, with keys unbuffered and not echoed, and restores it on exit."""

    def __init__(self, console: Console, keyboard: int) -> None:
        self._console = console
        self._keyboard = keyboard
        self._live: Live | None = None

    def __enter__(self) -> Self:
        self._take()
        return self

    def __exit__(self, *_: object) -> None:
        self._release()

    def _take(self) -> None:
        self._settings = termios.tcgetattr(self._keyboard)
        tty.setcbreak(self._keyboard, termios.TCSADRAIN)
        try:
            self._live = Live(
                console=self._console,
                screen=True,
                auto_refresh=False,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        except BaseException:
            self._restore()
            raise

    def _release(self) -> None:
        try:
            if self._live is not None:
                self._live.stop()
        finally:
            self._restore()

    def size(self) -> tuple[int, int]:
        """Return the present columns and lines."""
        with contextlib.suppress(OSError):
            found = os.get_terminal_size(sys.stdout.fileno())
            if found.columns and found.lines:
                return found.columns, found.lines
        return shutil.get_terminal_size()

    def draw(self, lines: list[Text]) -> None:
        """Show these lines, which must fit the screen in width and number."""
        assert self._live is not None  # noqa: S101 - entered
        self._console.size = ConsoleDimensions(*self.size())
        for line in lines:
            line.no_wrap, line.overflow = True, "crop"
        self._live.update(Group(*lines), refresh=True)

    def suspend(self) -> None:
        """Restore the terminal and stop as Ctrl-Z does; returns when continued."""
        self._release()
        ours = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, ours)
        self._take()

    def _restore(self) -> None:
        # A terminal that has gone needs no restoring.
        with contextlib.suppress(termios.error):
            termios.tcsetattr(self._keyboard, termios.TCSADRAIN, self._settings)


class Keyboard:
    """Reads keys as they are typed."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._rest = b""

    @property
    def unfinished(self) -> bool:
        """Whether the last key may be incomplete."""
        return bool(self._rest)

    def read(self) -> list[Key | str] | None:
        """Return the typed keys; None: the terminal has gone."""
        try:
            data = os.read(self.fd, 1024)
        except OSError:
            return None
        if not data:
            return None
        keys, self._rest = keys_of(self._rest + data)
        return keys

    def finish(self) -> list[Key | str]:
        """Return the incomplete input as a key, because nothing followed it."""
        escape = self._rest.startswith(b"\x1b")
        self._rest = b""
        return [Key.ESCAPE] if escape else []


@contextlib.contextmanager
def stderr_held() -> Iterator[None]:
    """Hold back what is written to a terminal's stderr, and write it afterwards."""
    if not sys.stderr.isatty():
        yield
        return
    saved = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
            held.seek(0)
            os.write(2, held.read())
