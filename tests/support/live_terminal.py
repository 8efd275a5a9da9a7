# SPDX-License-Identifier: Apache-2.0
"""A real terminal for tests: tmux with its own server and socket, which end with the test."""

import contextlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from tests.support.kernel_world import Started, wait_for

ROOT = Path(__file__).resolve().parents[2]
HVPROBE = (sys.executable, "-m", "probes")


def environment(**changes: str | None) -> dict[str, str]:
    """The environment of a user at a UTF-8 terminal, with changes; None removes a variable."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HVPROBE_")}
    kept |= {"PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8"}
    for variable in ("NO_COLOR", "COLUMNS", "LINES", "FORCE_COLOR", "TMUX"):
        kept.pop(variable, None)
    for variable, value in changes.items():
        if value is None:
            kept.pop(variable, None)
        else:
            kept[variable] = value
    return kept


class Terminal:
    """A terminal of a given size in which one program runs."""

    def __init__(
        self,
        scratch: Path,
        command: Sequence[str | Path],
        *,
        columns: int = 80,
        lines: int = 24,
        variables: Mapping[str, str | None] | None = None,
    ) -> None:
        # The path of a socket is limited to about 100 characters, and scratch may be longer.
        self._socket = f"hvprobe-test-{os.getpid()}-{id(self)}"
        self._scratch = scratch
        # In the foreground, so that the server and what it runs die with the test (see Started).
        self._server = Started(
            ["tmux", "-L", self._socket, "-f", "/dev/null", "-D"],
            environment=environment(**(variables or {})),
        )
        wait_for(lambda: self._tmux("list-sessions", check=False) is not None, "tmux serves")
        words = " ".join(shlex.quote(str(word)) for word in command)
        self._tmux(
            *("new-session", "-d", "-x", str(columns), "-y", str(lines), "-c", str(ROOT)),
            # The end of the program stays on the screen with its exit status.
            f"{words}; code=$?; echo; echo ended with $code; "
            f"stty -a > {scratch}/stty; exec sleep 600",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._tmux("kill-server", check=False)
        self._server.kill()
        with contextlib.suppress(OSError):
            Path(f"/tmp/tmux-{os.getuid()}/{self._socket}").unlink()

    def press(self, *keys: str) -> None:
        """Press keys, by tmux's names (q, Escape, PageDown, C-z)."""
        self._tmux("send-keys", *keys)

    def resize(self, columns: int, lines: int) -> None:
        self._tmux("resize-window", "-x", str(columns), "-y", str(lines))

    def order(self, *words: str) -> None:
        """Have tmux carry out a command, which may be its end."""
        self._tmux(*words, check=False)

    def frame(self) -> list[str]:
        """The lines on the screen now, without colours."""
        return (self._tmux("capture-pane", "-p") or "").rstrip("\n").split("\n")

    def coloured(self) -> str:
        """The text on the screen now, with its escape sequences."""
        return self._tmux("capture-pane", "-p", "-e") or ""

    def asks(self, question: str) -> str:
        """The value of a tmux format variable: alternate_on, cursor_flag, pane_pid."""
        return (self._tmux("display-message", "-p", f"#{{{question}}}") or "").strip()

    def wait_for(self, words: str) -> list[str]:
        """Wait for the words in one line, and return the first frame that has them."""

        def shown() -> list[str] | None:
            frame = self.frame()
            return frame if any(words in line for line in frame) else None

        return wait_for(shown, f"{words!r} is shown")

    def row(self, words: str) -> str | None:
        """The first line with these words; None: no line has them."""
        return next((line for line in self.frame() if words in line), None)

    def program(self) -> int:
        """The process id of the program that runs in the terminal's shell now."""
        return wait_for(self._child, "the program runs")

    def settings(self) -> str:
        """``stty -a`` after the program has ended."""
        path = self._scratch / "stty"
        wait_for(lambda: path.exists() and path.read_text().strip(), "the program has ended")
        return path.read_text()

    def _child(self) -> int | None:
        shell = self.asks("pane_pid")
        children = Path(f"/proc/{shell}/task/{shell}/children").read_text().split()
        return int(children[0]) if children else None

    def _tmux(self, *arguments: str, check: bool = True) -> str | None:
        done = subprocess.run(
            ["tmux", "-L", self._socket, *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode and check:
            raise AssertionError(f"tmux {arguments}: {done.stderr}")
        if done.returncode and re.search("no server|error connecting", done.stderr):
            return None
        return done.stdout
