# SPDX-License-Identifier: Apache-2.0
"""EDGE: the live view as a Textual application: its screens, its refreshes, its end.

Owns when to refresh. A refresh runs in a thread, so keys work while it hangs. Must not know how
data are made, nor how they are laid out.
"""

import asyncio
import time
from collections.abc import Callable

from textual.app import App
from textual.driver import Driver
from textual.events import Event, Key
from textual.timer import Timer
from textual.worker import Worker

from probes.host.process import VmmId
from probes.render.live.detail import DetailLayout, detail_lines
from probes.render.live.driver import TerminalDriver
from probes.render.live.frame_data import FrameData
from probes.render.live.frame_source import Feed
from probes.render.live.keys import COMMON_KEYS
from probes.render.live.rows import RowKey
from probes.render.live.screens import HelpScreen, VmScreen, bindings
from probes.render.live.table_screen import Opened, TableScreen

LATE_S = 2.0
"""How long a refresh may take before the header says that it is late."""
_TICK_S = 0.2
"""How often the application looks whether a refresh is late, and whether the terminal is there."""


class LiveApp(App[None]):
    """The table of VMs, with a screen for each VM and one for the help."""

    ENABLE_COMMAND_PALETTE = False
    CSS = """
    Screen, TextLines { background: ansi_default; color: ansi_default; }
    TextLines { height: 1; }
    #table, #lines { height: 1fr; }
    """
    BINDINGS = bindings(COMMON_KEYS)

    def __init__(
        self,
        first: FrameData,
        feed: Feed,
        *,
        interval_s: float,
        ascii_only: bool = False,
        ended: Callable[[], bool] = lambda: False,
        driver: type[Driver] = TerminalDriver,
    ) -> None:
        """Make the application; ended says whether a signal has asked it to end."""
        # The terminal's own colours, as those of the plain output.
        super().__init__(driver_class=driver, ansi_color=True)
        self.failure: BaseException | None = None
        """Why the application has ended, unless the user or a signal ended it."""
        self._data = first
        self._feed = feed
        self._interval_s = interval_s
        self._ascii_only = ascii_only
        self._ended = ended
        self._leaves = False
        """Whether the application is to end."""
        self._due_s = time.monotonic() + interval_s
        self._began_s: float | None = None
        """When the refresh that is under way began; None: there is none."""
        self._watched: RowKey | None = None
        """The VM whose threads are read."""
        self._worker: Worker[None] | None = None
        self._timer: Timer | None = None
        """When to refresh next."""
        self._mouse = False
        self._table = TableScreen(first, self._status, ascii_only=ascii_only)

    def get_default_screen(self) -> TableScreen:
        """Return the screen with the table."""
        return self._table

    def on_mount(self) -> None:
        """Begin to refresh, and to look whether to end."""
        if isinstance(self._driver, TerminalDriver):
            self._driver.ends = lambda: self._leaves or self._ended()
        # No timer of Textual's, whose turn comes after every key that was typed before.
        self._watch = asyncio.create_task(self._look_around())
        self._schedule()

    def on_unmount(self) -> None:
        """End a refresh that is under way, however the application ends."""
        self._watch.cancel()
        self._feed.stop()

    async def on_event(self, event: Event) -> None:
        """Ignore the keys that were typed before the end and not yet had their effect."""
        if not (self._leaves and isinstance(event, Key)):
            await super().on_event(event)

    async def action_quit(self) -> None:
        """End the application."""
        self.leave()

    def action_help(self) -> None:
        """Show the help."""
        if not isinstance(self.screen, HelpScreen):
            self.push_screen(HelpScreen())

    def action_mouse(self) -> None:
        """Use the mouse, or leave it to the terminal."""
        if isinstance(self._driver, TerminalDriver):
            self._mouse = not self._mouse
            self._driver.use_mouse(wanted=self._mouse)

    def leave(self, failure: BaseException | None = None) -> None:
        """End the application at once, whatever a refresh does."""
        self.failure = self.failure or failure
        self._leaves = True
        self._feed.stop()
        self.exit()

    def on_opened(self, event: Opened) -> None:
        """Show the screen of a VM."""
        self.push_screen(VmScreen(event.key), lambda _: self._close_vm())

    def on_pause_toggled(self) -> None:
        """Refresh at once if that is overdue."""
        self._schedule()

    def on_vm_changed(self) -> None:
        """Show a VM as its screen wants it, and have its exits counted as it wants."""
        if not isinstance(self.screen, VmScreen):
            return
        key = self.screen.key if self.screen.by_reason else None
        self._feed.count_of(key.tgid if isinstance(key, VmmId) else None)
        self._watch_vm(self.screen.key)
        self._show_vm(self.screen)

    def _watch_vm(self, key: RowKey | None) -> None:
        """Have the threads of a VM read, and soon if it is another one than before."""
        if key == self._watched:
            return
        self._watched = key
        self._feed.watch(key if isinstance(key, VmmId) else None)
        if key is not None:
            self._due_s = time.monotonic()
            self._schedule()

    def _close_vm(self) -> None:
        self._feed.count_of(None)
        self._watch_vm(None)

    def _show(self) -> None:
        self._table.show_data(self._data, self._status)
        for screen in self.screen_stack:
            if isinstance(screen, VmScreen) and screen.is_mounted:
                self._show_vm(screen)

    def _show_vm(self, screen: VmScreen) -> None:
        layout = DetailLayout(
            width=screen.size.width, ascii_only=self._ascii_only, by_reason=screen.by_reason
        )
        screen.show_vm(detail_lines(self._data, screen.key, layout))

    @property
    def _status(self) -> str:
        late_s = 0.0 if self._began_s is None else time.monotonic() - self._began_s
        if late_s >= LATE_S:
            return f"no answer for {late_s:.0f} s"
        return f"every {self._interval_s:g} s"

    async def _look_around(self) -> None:
        while not self._leaves:
            await asyncio.sleep(_TICK_S)
            gone = isinstance(self._driver, TerminalDriver) and self._driver.has_gone
            if gone or self._ended():
                self.leave()
            elif self._began_s is not None and time.monotonic() - self._began_s >= LATE_S:
                self._table.show_status(self._status)

    def _schedule(self) -> None:
        """Refresh when it is due, unless one is under way or the user has paused."""
        wait_s = self._due_s - time.monotonic()
        if self._timer is not None:
            self._timer.stop()
        if wait_s > 0:
            self._timer = self.set_timer(wait_s, self._schedule)
        elif self._began_s is None and not self._table.view.paused:
            self._began_s = time.monotonic()
            self._worker = self.run_worker(self._refresh_data, exit_on_error=False)

    async def _refresh_data(self) -> None:
        try:
            data = await asyncio.to_thread(self._feed.next_data)
            self._began_s = None
            now_s = time.monotonic()
            self._due_s = max(self._due_s + self._interval_s, now_s + self._interval_s / 2)
            if not self._table.view.paused:
                self._data = data
                self._show()
            self._schedule()
        except Exception as err:  # noqa: BLE001 - raised again after the terminal is restored
            self.leave(err)

    def _handle_exception(self, error: Exception) -> None:
        """Keep an error for the caller; Textual would print it with every local variable."""
        super()._handle_exception(error)
        self._exit_renderables.clear()
        self.failure = self.failure or error
        self._feed.stop()
