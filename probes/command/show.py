# SPDX-License-Identifier: Apache-2.0
"""EDGE: the refresh loop of the live view, on a screen or line by line.

Owns when is looked and when is drawn. Must not know how a scene is made (it is given a function)
nor what a frame looks like (frames.py).
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
from probes.command.deadline import LOOK_DEADLINE_S, StoppedError, within
from probes.render.live.frames import Scene, Shape, frame, frame_json, page_lines, plain
from probes.render.live.options import LiveOptions
from probes.render.live.terminal import (
    ESCAPE_WAIT_S,
    Keyboard,
    Screen,
    Signals,
    stderr_held,
)
from probes.render.live.view import Key, View, pressed

ONCE_WINDOW_S = 0.5
"""How long ``--once`` watches before it shows rates, at most."""


def show(
    look: Callable[[], Scene], options: LiveOptions, *, begin: Callable[[], None] = lambda: None
) -> None:
    """Show scenes until a signal or a key ends it: full screen on a terminal, else one by one.

    begin: called once, right before the first frame. Raises BrokenPipeError when nobody reads
    any more, and LookTimeoutError when a look does not end.
    """
    console = console_for(os.environ)
    terminal = sys.stdout.isatty() and sys.stdin.isatty() and not console.is_dumb_terminal
    with Signals() as signals, contextlib.suppress(StoppedError):

        def timed() -> Scene:
            return within(look, deadline_s=LOOK_DEADLINE_S, stopped=lambda: signals.over)

        if terminal and not options.once and not options.json:
            first = timed()
            begin()
            _show_on_screen(first, timed, options, console=console, signals=signals)
        else:
            _show_in_turn(timed, options, console, signals, begin=begin)


def _show_on_screen(
    scene: Scene,
    look: Callable[[], Scene],
    options: LiveOptions,
    *,
    console: Console,
    signals: Signals,
) -> None:
    def stop(*_: object) -> None:
        signals.stop_wanted = True

    keyboard = Keyboard(sys.stdin.fileno())
    plain_text = ascii_only(console, os.environ)
    view = View()
    due_s = time.monotonic() + options.interval_s
    with stderr_held(), Screen(console, keyboard.fd) as screen:
        signals.handle((signal.SIGTSTP,), stop)
        # Nothing is to be done but to wake up and draw again.
        signals.handle((signal.SIGWINCH, signal.SIGCONT), lambda *_: None)
        while not (view.over or signals.over):
            width, height = screen.size()
            shape = Shape(width=width, height=height, ascii_only=plain_text)
            lines, view = frame(scene, view, shape, interval_s=options.interval_s)
            screen.draw(lines)
            keys = _wait_for_keys(keyboard, signals, None if view.paused else due_s)
            if keys is None:
                return
            for key in keys:
                view = pressed(view, key, page=page_lines(shape))
            if signals.stop_wanted:
                signals.stop_wanted = False
                screen.suspend()
            if not view.paused and time.monotonic() >= due_s:
                scene = look()
                due_s = max(due_s + options.interval_s, time.monotonic() + options.interval_s / 2)


def _wait_for_keys(
    keyboard: Keyboard, signals: Signals, until_s: float | None
) -> list[Key | str] | None:
    """Keys, none at a signal or when it is time; None: the terminal is gone."""
    if keyboard.unfinished:
        if not signals.wait(time.monotonic() + ESCAPE_WAIT_S, keyboard.fd):
            return keyboard.finish()
        return keyboard.read()
    return keyboard.read() if signals.wait(until_s, keyboard.fd) else []


def _show_in_turn(
    look: Callable[[], Scene],
    options: LiveOptions,
    console: Console,
    signals: Signals,
    *,
    begin: Callable[[], None],
) -> None:
    """One frame after the other, or only one, as lines."""
    scene = look()
    if options.once:
        signals.wait(time.monotonic() + min(options.interval_s, ONCE_WINDOW_S))
        scene = look()
        begin()
        if not signals.over:
            _print(scene, options, console)
        return
    begin()
    due_s = time.monotonic()
    while not signals.over:
        _print(scene, options, console)
        due_s = max(due_s + options.interval_s, time.monotonic() + options.interval_s / 2)
        while time.monotonic() < due_s and not signals.over:
            signals.wait(due_s)
        scene = look()


def _print(scene: Scene, options: LiveOptions, console: Console) -> None:
    if options.json:
        print(frame_json(scene.report, scene.reasons), flush=True)  # noqa: T201 - data
        return
    on_terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if on_terminal else None
    for line in plain(scene, width=width, ascii_only=ascii_only(console, os.environ)):
        console.print(line, soft_wrap=True)
    if not options.once:
        console.print()
    sys.stdout.flush()
