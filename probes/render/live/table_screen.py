# SPDX-License-Identifier: Apache-2.0
"""EDGE: the screen with the table of all VMs, one of which is selected.

Owns what is selected and which lines are shown. Must not know how rows are sorted, chosen or laid
out (frames.py), nor when the data change.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace

from rich.text import Text
from textual.app import ComposeResult
from textual.events import Click, Key, Paste, Resize
from textual.message import Message
from textual.screen import Screen

from probes.render.live.columns import ORDER_META
from probes.render.live.frame_data import FrameData, TerminalSize
from probes.render.live.frames import bottom_line, table_frame, top_lines
from probes.render.live.keys import TABLE_KEYS
from probes.render.live.rows import Order, RowKey
from probes.render.live.screens import bindings, has_settled
from probes.render.live.text_lines import LINE_META, TextLines
from probes.render.live.view import FILTER_MAX, ViewState
from probes.render.terminal_text import visible


class Opened(Message):
    """The user opens a row."""

    def __init__(self, key: RowKey) -> None:
        super().__init__()
        self.key = key


class PauseToggled(Message):
    """The user pauses the refreshes, or continues them."""


class TableScreen(Screen[None]):
    """The header, the table, and a line about the keys or the filter."""

    BINDINGS = bindings(TABLE_KEYS)

    def __init__(self, data: FrameData, status: str, *, ascii_only: bool) -> None:
        super().__init__()
        self.view = ViewState()
        self._data = data
        self._status = status
        self._ascii_only = ascii_only
        # Laid out again for the real size before it is shown.
        size = TerminalSize(width=80, height=24, ascii_only=ascii_only)
        self._frame = table_frame(data, self.view, size)
        self._key: RowKey | None = None
        """What the user has selected; None: the first row, whichever it is."""
        self._index = 0
        """The index of the selected row."""
        self._editing = False
        """Whether keys are typed into the filter now."""

    def compose(self) -> ComposeResult:
        """Yield the widgets, from above to below."""
        yield TextLines(id="top")
        yield TextLines(id="heading")
        yield TextLines(id="table")
        yield TextLines(id="keys")

    def on_resize(self, event: Resize) -> None:
        """Lay everything out for the new size."""
        if has_settled(self, event):
            self._draw()

    def show_data(self, data: FrameData, status: str) -> None:
        """Show other data; status says when they are refreshed."""
        self._data, self._status = data, status
        self._draw()

    def show_status(self, status: str) -> None:
        """Show when the data are refreshed."""
        self._status = status
        self._draw_top()

    def action_by_line(self, rows: int) -> None:
        """Select another row."""
        self._select(self._index + rows)

    def action_by_page(self, pages: int) -> None:
        """Select the row that is a page away."""
        starts, page = self._frame.row_of_line, self._page
        line = bisect_left(starts, self._index) + pages * page
        row = starts[max(min(line, len(starts) - 1), 0)] if starts else 0
        # A row with more lines than a page must not hold the selection.
        self._select(row if row != self._index else self._index + pages)

    def action_to_top(self) -> None:
        """Select the first row, and keep to the first one."""
        self._select(0)
        self._key = None

    def action_to_end(self) -> None:
        """Select the last row."""
        self._select(len(self._frame.rows) - 1)

    def action_open(self) -> None:
        """Open the selected row."""
        if self._frame.rows:
            self.post_message(Opened(self._frame.rows[self._index].key))

    def action_sort(self, order: str) -> None:
        """Sort the rows, or restore the order by severity."""
        self._change(self.view.sorted_by(Order(order)))

    def action_details(self) -> None:
        """Show or hide the lines below the rows."""
        self._change(replace(self.view, details=not self.view.details))

    def action_pause(self) -> None:
        """Pause or continue the refreshes."""
        self.view = replace(self.view, paused=not self.view.paused)
        self.post_message(PauseToggled())
        self._draw()

    def action_clear(self) -> None:
        """Remove the filter."""
        self._change(replace(self.view, words=""))

    def on_key(self, event: Key) -> None:
        """Begin a filter, and type it.

        No binding and no focus: both act only after the keys that the terminal sent along.
        """
        if not self._editing:
            if event.character == "/":
                event.stop()
                self._editing = True
                self._change(replace(self.view, words=""))
            return
        words = self.view.words
        match event.key:
            case "enter":
                self._editing = False
            case "escape":
                self._editing, words = False, ""
            case "backspace":
                words = words[:-1]
            case _ if event.is_printable:
                words += event.character or ""
            case _:
                return
        event.stop()
        self._type(words)

    def on_paste(self, event: Paste) -> None:
        """Add what is pasted to the filter, unless it has a control character."""
        if self._editing and event.text.isprintable():
            self._type(self.view.words + event.text)

    def _type(self, words: str) -> None:
        if words != self.view.words:
            self._change(replace(self.view, words=words[:FILTER_MAX]))
        self._draw_bottom()

    def on_click(self, event: Click) -> None:
        """Sort by a heading, select a row, or open the one that is selected."""
        order, line = event.style.meta.get(ORDER_META), event.style.meta.get(LINE_META)
        if order is not None:
            self.action_sort(order)
        elif line is not None:
            row = self._frame.row_of_line[line]
            if row == self._index:
                self.action_open()
            self._select(row)

    def on_mouse_scroll_down(self) -> None:
        """Scroll as the mouse's wheel does; the selection stays."""
        self._scroll(3)

    def on_mouse_scroll_up(self) -> None:
        """Scroll as the mouse's wheel does; the selection stays."""
        self._scroll(-3)

    @property
    def _table(self) -> TextLines:
        return self.query_one("#table", TextLines)

    @property
    def _terminal(self) -> TerminalSize:
        return TerminalSize(
            width=self.size.width, height=self.size.height, ascii_only=self._ascii_only
        )

    @property
    def _page(self) -> int:
        """How many lines of the table are shown."""
        return max(self._table.size.height, 1)

    def _change(self, view: ViewState) -> None:
        """Choose something else, and begin at the top again."""
        self.view, self._key, self._index = view, None, 0
        self._table.first = 0
        self._draw()

    def _draw(self) -> None:
        """Lay everything out again; the selected VM stays where it is on the screen."""
        before = self._first_line(self._index)
        self._frame = table_frame(self._data, self.view, self._terminal)
        keys: Sequence[RowKey] = [row.key for row in self._frame.rows]
        if self._key is None:
            self._index = 0
        elif self._key in keys:
            self._index = keys.index(self._key)
            self._table.first += self._first_line(self._index) - before
        else:
            self._index = max(min(self._index, len(keys) - 1), 0)
        self._draw_top()
        self.query_one("#heading", TextLines).show([self._frame.heading])
        self._draw_table()

    def _draw_top(self) -> None:
        status = "paused" if self.view.paused else self._status
        lines = top_lines(self._data, self._terminal, status)
        top = self.query_one("#top", TextLines)
        top.styles.height = len(lines)
        top.show(lines)

    def _draw_table(self) -> None:
        lines = self._frame.lines or (Text("nothing to show", "dim"),)
        selected = self._first_line(self._index) if self._frame.rows else None
        self._table.show(lines, selected=selected)
        # The height of the table follows that of the header, so only after the next layout.
        self.call_after_refresh(self._draw_bottom)

    def _draw_bottom(self) -> None:
        if self._editing:
            words = visible(self.view.words, ascii_only=self._ascii_only)
            line = Text(f"filter: {words}_   Enter applies, Esc clears", "bold")
            self.query_one("#keys", TextLines).show([line])
            return
        line = bottom_line(
            self.view, self._frame, self._terminal, first=self._table.first, shown=self._page
        )
        self.query_one("#keys", TextLines).show([line])

    def _select(self, index: int) -> None:
        """Select a row and scroll until all its lines are shown, or as many as fit."""
        rows = self._frame.rows
        self._index = max(min(index, len(rows) - 1), 0)
        self._key = rows[self._index].key if rows else None
        start, end = self._first_line(self._index), self._first_line(self._index + 1)
        above = self._table.first - start
        below = min(end - self._table.first - self._page, start - self._table.first)
        self._table.first += -above if above > 0 else max(below, 0)
        self._draw_table()

    def _scroll(self, lines: int) -> None:
        self._table.scroll_lines(lines)
        self._draw_bottom()

    def _first_line(self, row: int) -> int:
        return bisect_left(self._frame.row_of_line, row)
