# SPDX-License-Identifier: Apache-2.0
"""EDGE: connects Textual to the terminal on stdin and stdout.

Must not know what is shown. It is a driver of its own for two reasons: Textual's draws on stderr,
which a user may redirect to a file, and Textual's blocks forever once nothing can be written to a
terminal that has gone.
"""

import os
import select
import sys
from io import TextIOWrapper
from typing import Any, cast

from textual.app import App
from textual.drivers.linux_driver import LinuxDriver


class _Output:
    """Writes to a terminal, and discards the text once the terminal has gone."""

    def __init__(self, fd: int, encoding: str) -> None:
        self._fd = fd
        self._encoding = encoding

    def write(self, text: str) -> None:
        data = text.encode(self._encoding, "backslashreplace")
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError:
            return

    def flush(self) -> None:
        """Do nothing, because nothing is kept."""

    def fileno(self) -> int:
        return self._fd


class TerminalDriver(LinuxDriver):
    """Draws on stdout, and ends the view when the terminal goes away."""

    def __init__(
        self,
        app: App[Any],
        *,
        debug: bool = False,
        mouse: bool = True,
        size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(app, debug=debug, mouse=mouse, size=size)
        output = _Output(sys.stdout.fileno(), sys.stdout.encoding)
        self._file = cast("TextIOWrapper", output)

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
        """Whether the terminal has been closed or the connection to it has ended."""
        return has_gone(self.fileno)

    def run_input_thread(self) -> None:
        """Read keys until the end. A terminal that cannot be read has gone (see has_gone)."""
        try:
            super().run_input_thread()
        except OSError:
            return


def has_gone(fd: int) -> bool:
    """Whether what a descriptor leads to has been hung up."""
    watched = select.poll()
    watched.register(fd, 0)
    return any(event & (select.POLLHUP | select.POLLERR) for _, event in watched.poll(0))
