# SPDX-License-Identifier: Apache-2.0
"""EDGE: runs the live view, as an application on a screen or line by line.

Owns the deadline of a refresh, and when to refresh where there is no screen. Must not know how the
data of a frame are made (frame_source.py) nor what a frame looks like (frames.py).
"""

import contextlib
import errno
import importlib
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable

from rich.console import Console

from probes.command.console import ascii_only, console_for
from probes.command.deadline import REFRESH_DEADLINE_S, StoppedError, within
from probes.render.live.frame_data import FrameData
from probes.render.live.frame_source import Feed, FrameSource
from probes.render.live.frames import frame_json, plain
from probes.render.live.options import LiveOptions
from probes.render.live.terminal import Signals, stderr_held

ONCE_WINDOW_S = 0.5
"""How long ``--once`` observes, at most, before it shows rates."""


def import_early(options: LiveOptions) -> None:
    """Begin to import what draws the screen, if there will be one, while the probes are attached.

    Both take about as long, and the probes are compiled by another process.
    """
    if _on_screen(options, console_for(os.environ)):
        module = "probes.render.live.app"
        threading.Thread(target=importlib.import_module, args=(module,), daemon=True).start()


def _on_screen(options: LiveOptions, console: Console) -> bool:
    terminal = sys.stdout.isatty() and sys.stdin.isatty() and not console.is_dumb_terminal
    return terminal and not options.once and not options.json


def show(
    source: FrameSource, options: LiveOptions, *, begin: Callable[[], None] = lambda: None
) -> None:
    """Show frames until the user or a signal ends it, on the entire screen or one after another.

    begin is called once, right before the first frame. Raises BrokenPipeError when the reader of
    stdout has gone, and RefreshTimeoutError when a refresh takes too long.
    """
    console = console_for(os.environ)
    stop = threading.Event()
    with Signals() as signals, contextlib.suppress(StoppedError):

        def timed() -> FrameData:
            return within(
                source,
                deadline_s=REFRESH_DEADLINE_S,
                stopped=lambda: signals.over or stop.is_set(),
            )

        if _on_screen(options, console):
            feed = Feed(
                next_data=timed, stop=stop.set, count_of=source.count_of, watch=source.watch
            )
            _show_on_screen(feed, options, console, signals, begin=begin)
        else:
            _show_in_turn(timed, options, console, signals, begin=begin)


def _show_on_screen(
    feed: Feed,
    options: LiveOptions,
    console: Console,
    signals: Signals,
    *,
    begin: Callable[[], None],
) -> None:
    """Run the application, and raise what ended it unless the user or a signal did."""
    from probes.render.live.app import LiveApp  # noqa: PLC0415 - pipes and --once save Textual

    first = feed.next_data()
    begin()
    app = LiveApp(
        first,
        feed,
        interval_s=options.interval_s,
        ascii_only=ascii_only(console, os.environ),
        ended=lambda: signals.over,
    )
    # Textual leaves its own handlers of these signals behind.
    signals.restore_later(signal.SIGTSTP, signal.SIGCONT, signal.SIGWINCH)
    with stderr_held():
        app.run(mouse=False)
    if app.failure is not None:
        raise app.failure


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
    """Print a frame. Raises BrokenPipeError when the reader or the terminal has gone."""
    try:
        _print_frame(data, options, console)
    except OSError as err:
        if err.errno != errno.EIO:
            raise
        raise BrokenPipeError("the terminal has gone") from err


def _print_frame(data: FrameData, options: LiveOptions, console: Console) -> None:
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
