# SPDX-License-Identifier: Apache-2.0
"""A widget that shows lines of text exactly as they are: the only way from a report to the screen.

It never parses markup. Must not know what the lines say; their makers have called visible().
"""

from collections.abc import Sequence

from rich.style import Style
from rich.text import Text
from textual.strip import Strip
from textual.widget import Widget

LINE_META = "line"
"""The name under which the style of a line that can be selected carries its index."""
_SELECTED = Style(reverse=True)


class TextLines(Widget):
    """Shows as many of its lines as fit, from a first one that can be chosen."""

    def __init__(self, *, id: str) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id)
        self._lines: Sequence[Text] = ()
        self._selected: int | None = None
        self.first = 0
        """The first line that is shown."""

    def show(self, lines: Sequence[Text], *, selected: int | None = None) -> None:
        """Show other lines; selected is the index of the one that is highlighted."""
        self._lines, self._selected = lines, selected
        self.scroll_lines(0)

    def scroll_lines(self, by: int) -> None:
        """Scroll by a number of lines, to the first or the last one at most."""
        last = max(len(self._lines) - max(self.size.height, 1), 0)
        self.first = max(min(self.first + by, last), 0)
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """Return one line of the widget, as Textual asks for it."""
        index, style, width = self.first + y, self.rich_style, self.size.width
        if index >= len(self._lines):
            return Strip.blank(width, style)
        strip = Strip(self._lines[index].render(self.app.console))
        strip = strip.crop_extend(0, width, style).apply_style(style)
        if index == self._selected:
            strip = strip.apply_style(_SELECTED)
        # Without a selected line, none can be selected.
        return strip if self._selected is None else strip.apply_meta({LINE_META: index})
