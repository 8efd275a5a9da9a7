# SPDX-License-Identifier: Apache-2.0
"""The live view's application on a screen without a terminal, driven by Textual's Pilot."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from textual.pilot import Pilot

from probes.render.live.app import LiveApp
from probes.render.live.frame_data import FrameData
from probes.render.live.frame_source import Feed
from probes.render.live.history import History
from probes.report.model import NodeReport

SMALL = (80, 24)
Steps = Callable[["Screen"], Awaitable[None]]


class Screen:
    """What a person sees of the application, and the keys and clicks of that person."""

    def __init__(self, app: LiveApp, pilot: Pilot[None]) -> None:
        self.app = app
        self.pilot = pilot

    @property
    def lines(self) -> list[str]:
        """The lines on the screen, without blanks at their ends."""
        strips = self.app.screen._compositor.render_strips()
        return ["".join(segment.text for segment in strip).rstrip() for strip in strips]

    @property
    def text(self) -> str:
        """The screen as one text, whose last line has an end."""
        return "".join(f"{line}\n" for line in self.lines)

    @property
    def selected(self) -> str:
        """The line that is highlighted on the screen; empty: there is none."""
        for strip in self.app.screen._compositor.render_strips():
            segments = [segment for segment in strip if segment.text.strip()]
            if segments and all(one.style and one.style.reverse for one in segments):
                return "".join(segment.text for segment in strip).rstrip()
        return ""

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)
        await self.pilot.pause()


def run(
    steps: Steps,
    of: FrameData,
    *,
    size: tuple[int, int] = SMALL,
    feed: Feed | None = None,
    **options: Any,  # noqa: ANN401 - options of the application
) -> LiveApp:
    """Run the application on these data while the steps last."""

    async def whole() -> LiveApp:
        app = LiveApp(of, feed or still(of), **{"interval_s": 1.0, **options})
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await steps(Screen(app, pilot))
        return app

    return asyncio.run(whole())


def still(of: FrameData) -> Feed:
    """A feed that always gives the same data."""
    return Feed(next_data=lambda: of, stop=lambda: None)


class Stepped:
    """Data that change when the test says so: those of one report after another."""

    def __init__(self, *reports: NodeReport) -> None:
        self._history = History()
        self._left = list(reports)
        self._turn = threading.Semaphore(0)
        self._over = False
        self.first = self._data()
        """The data of the first report."""
        self.feed = Feed(next_data=self._wait, stop=self._stop)

    def step(self) -> None:
        """Let the next refresh end."""
        self._turn.release()

    def _wait(self) -> FrameData:
        self._turn.acquire()
        if self._over:
            raise InterruptedError
        return self._data()

    def _data(self) -> FrameData:
        report = self._left.pop(0)
        self._history.add(report)
        return FrameData(report=report, history=self._history)

    def _stop(self) -> None:
        self._over = True
        self._turn.release()


def screen_of(of: FrameData, *, size: tuple[int, int] = SMALL, ascii_only: bool = False) -> str:
    """The first screen as text."""
    found: list[str] = []

    async def look(screen: Screen) -> None:
        found.append(screen.text)

    run(look, of, size=size, ascii_only=ascii_only)
    return found[0]
