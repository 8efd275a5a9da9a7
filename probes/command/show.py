# SPDX-License-Identifier: Apache-2.0
"""EDGE: runs the refresh loop of the live view, on a screen or line by line.

Owns when to refresh and when to draw. Must not know how the data of a frame are made (the caller
passes a function) nor what a frame looks like (frames.py).
"""

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable

from rich.console import Console

from probes.command.console import ascii_only, console_for
from probes.command.deadline import REFRESH_DEADLINE_S, StoppedError, within
from probes.render.live.frames import FrameData, TerminalSize, frame, frame_json, page_lines, plain
from probes.render.live.options import LiveOptions
from probes.render.live.terminal import (
    ESCAPE_WAIT_S,
    Keyboard,
    Screen,
    Signals,
    stderr_held,
)
from probes.render.live.view import Key, ViewState, pressed

ONCE_WINDOW_S = 0.5
"""How long ``--once`` observes, at most, before it shows rates."""


def show(
    next_data: Callable[[], FrameData],
    options: LiveOptions,
    *,
    begin: Callable[[], None] = lambda: None,
) -> None:
    """Show frames until the user or a signal ends it, on the entire screen or one after another.

    begin is called once, right before the first frame. Raises BrokenPipeError when the reader of
    stdout has gone, and RefreshTimeoutError when a refresh takes too long.
    """
    console = console_for(os.environ)
    terminal = sys.stdout.isatty() and sys.stdin.isatty() and not console.is_dumb_terminal
    with Signals() as signals, contextlib.suppress(StoppedError):

        def timed() -> FrameData:
            return within(next_data, deadline_s=REFRESH_DEADLINE_S, stopped=lambda: signals.over)

        if terminal and not options.once and not options.json:
            first = timed()
            begin()
            _show_on_screen(first, timed, options, console=console, signals=signals)
        else:
            _show_in_turn(timed, options, console, signals, begin=begin)


def _show_on_screen(
    data: FrameData,
    next_data: Callable[[], FrameData],
    options: LiveOptions,
    *,
    console: Console,
    signals: Signals,
) -> None:
    def stop(*_: object) -> None:
        signals.stop_wanted = True

    keyboard = Keyboard(sys.stdin.fileno())
    plain_text = ascii_only(console, os.environ)
    view = ViewState()
    due_s = time.monotonic() + options.interval_s
    with stderr_held(), Screen(console, keyboard.fd) as screen:
        signals.handle((signal.SIGTSTP,), stop)
        # These signals only have to wake the loop, which then draws again.
        signals.handle((signal.SIGWINCH, signal.SIGCONT), lambda *_: None)
        while not (view.over or signals.over):
            width, height = screen.size()
            size = TerminalSize(width=width, height=height, ascii_only=plain_text)
            lines, view = frame(data, view, size, interval_s=options.interval_s)
            screen.draw(lines)
            keys = _wait_for_keys(keyboard, signals, None if view.paused else due_s)
            if keys is None:
                return
            for key in keys:
                view = pressed(view, key, page=page_lines(size))
            if signals.stop_wanted:
                signals.stop_wanted = False
                screen.suspend()
            if not view.paused and time.monotonic() >= due_s:
                data = next_data()
                due_s = max(due_s + options.interval_s, time.monotonic() + options.interval_s / 2)


def _wait_for_keys(
    keyboard: Keyboard, signals: Signals, until_s: float | None
) -> list[Key | str] | None:
    """Wait for keys, a signal or a time. Returns the keys; None: the terminal has gone."""
    if keyboard.unfinished:
        if not signals.wait(time.monotonic() + ESCAPE_WAIT_S, keyboard.fd):
            return keyboard.finish()
        return keyboard.read()
    return keyboard.read() if signals.wait(until_s, keyboard.fd) else []


def _show_in_turn(
    next_data: Callable[[], FrameData],
    options: LiveOptions,
    console: Console,
    signals: Signals,
    *,
    begin: Callable[[], None],
) -> None:
    """Print one frame after another, or only one, as lines."""
    data = next_data()
    if options.once:
        signals.wait(time.monotonic() + min(options.interval_s, ONCE_WINDOW_S))
        data = next_data()
        begin()
        if not signals.over:
            _print(data, options, console)
        return
    begin()
    due_s = time.monotonic()
    while not signals.over:
        _print(data, options, console)
        due_s = max(due_s + options.interval_s, time.monotonic() + options.interval_s / 2)
        while time.monotonic() < due_s and not signals.over:
            signals.wait(due_s)
        data = next_data()


def _print(data: FrameData, options: LiveOptions, console: Console) -> None:
    if options.json:
        print(frame_json(data.report, data.reasons), flush=True)  # noqa: T201 - data
        return
    on_terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if on_terminal else None
    for line in plain(data, width=width, ascii_only=ascii_only(console, os.environ)):
        console.print(line, soft_wrap=True)
    if not options.once:
        console.print()
    sys.stdout.flush()
