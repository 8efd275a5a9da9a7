# SPDX-License-Identifier: Apache-2.0
"""EDGE: what the live view needs of a terminal beside a screen: signals, progress, a quiet stderr.

Must not know what is shown.
"""

import contextlib
import os
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Self

_Handler = Callable[[int, FrameType | None], object] | int | None
"""What ``signal.signal`` returns and accepts."""
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


@contextlib.contextmanager
def progress(line: str) -> Iterator[Callable[[], None]]:
    """Show on stderr what the command waits for.

    Yields a function that removes the line from a terminal again.
    """
    on_terminal = sys.stderr.isatty()
    said = True
    _write_stderr(line if on_terminal else f"{line}\n")

    def away() -> None:
        nonlocal said
        if said and on_terminal:
            _write_stderr("\r" + " " * len(line) + "\r")
        said = False

    try:
        yield away
    finally:
        away()


def _write_stderr(text: str) -> None:
    """Write to stderr, which may be a terminal that has gone."""
    with contextlib.suppress(OSError):
        os.write(2, text.encode(errors="replace"))


class Signals:
    """Makes signals something to wait for. Restores the previous handlers at the end."""

    def __init__(self) -> None:
        self.over = False
        """Whether a signal asked the command to end."""
        self._handlers: dict[signal.Signals, _Handler] = {}

    def __enter__(self) -> Self:
        self._awake, self._wake = os.pipe()
        os.set_blocking(self._awake, False)
        os.set_blocking(self._wake, False)
        self._before = signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        self._handlers = {number: signal.signal(number, self._end) for number in _ENDING}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._before)
        os.close(self._awake)
        os.close(self._wake)

    def restore_later(self, *numbers: signal.Signals) -> None:
        """Restore the present handlers of these signals at the end, too."""
        self._handlers |= {number: signal.getsignal(number) for number in numbers}

    def wait(self, until_s: float) -> None:
        """Wait for a monotonic time or a signal."""
        ready, _, _ = select.select([self._awake], [], [], max(until_s - time.monotonic(), 0.0))
        if ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._awake, 4096)

    def _end(self, *_: object) -> None:
        self.over = True


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
            with contextlib.suppress(OSError):  # the terminal has gone
                os.write(2, held.read())
