# SPDX-License-Identifier: Apache-2.0
"""EDGE: the screens of the live view: one VM, and the help. Both are lines that scroll.

Must not know what the lines say (detail.py, help.py).
"""

from collections.abc import Iterable, Sequence

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.events import Resize
from textual.message import Message
from textual.screen import Screen

from probes.render.live.help import help_lines
from probes.render.live.keys import HELP_KEYS, SCROLL_KEYS, VM_KEYS, Key
from probes.render.live.rows import RowKey
from probes.render.live.text_lines import TextLines


def bindings(keys: Iterable[Key]) -> list[BindingType]:
    """Return Textual's bindings of rows of the table of keys."""
    return [
        Binding(key.keys, key.action, key.meaning, show=False, priority=key.priority)
        for key in keys
        if key.keys
    ]


def has_settled(screen: Screen[None], event: Resize) -> bool:
    """Whether the terminal still has the size that a screen is to be laid out for.

    If not, Textual ignores the event, too. It sends a screen the size for which it was laid out
    once more. Of two sizes that follow each other quickly, each would have the screen laid out for
    it again, for ever.
    """
    if event.size == screen.app.size:
        return True
    event.prevent_default()
    return False


class LinesScreen(Screen[None]):
    """Lines that scroll, above one line about the keys."""

    BINDINGS = bindings(SCROLL_KEYS)

    def compose(self) -> ComposeResult:
        """Yield the widgets, from above to below."""
        yield TextLines(id="lines")
        yield TextLines(id="keys")

    @property
    def lines(self) -> TextLines:
        """The widget with the lines."""
        return self.query_one("#lines", TextLines)

    def show(self, lines: Sequence[Text], keys: str) -> None:
        """Show other lines, and what the keys do."""
        self.lines.show(lines)
        self.query_one("#keys", TextLines).show([Text(keys, "dim")])

    def action_back(self) -> None:
        """Close the screen."""
        self.dismiss()

    def action_by_line(self, lines: int) -> None:
        """Scroll by lines."""
        self.lines.scroll_lines(lines)

    def action_by_page(self, pages: int) -> None:
        """Scroll by pages."""
        self.lines.scroll_lines(pages * self.lines.size.height)

    def action_to_top(self) -> None:
        """Scroll to the first line."""
        self.lines.scroll_lines(-self.lines.first)

    def action_to_end(self) -> None:
        """Scroll to the last line."""
        self.lines.scroll_lines(10**9)

    def on_mouse_scroll_down(self) -> None:
        """Scroll as the mouse's wheel does."""
        self.lines.scroll_lines(3)

    def on_mouse_scroll_up(self) -> None:
        """Scroll as the mouse's wheel does."""
        self.lines.scroll_lines(-3)


class HelpScreen(LinesScreen):
    """Every key, and what the marks mean."""

    BINDINGS = bindings(HELP_KEYS)

    def on_resize(self, event: Resize) -> None:
        """Show the lines once there is a size."""
        if has_settled(self, event):
            self.show(list(help_lines()), "Escape back  Up/Down scroll  q quit")


class VmChanged(Message):
    """The screen of a VM has another size, or the user wants something else on it."""


class VmScreen(LinesScreen):
    """Everything about one VM or process."""

    BINDINGS = bindings(VM_KEYS)

    def __init__(self, key: RowKey) -> None:
        super().__init__()
        self.key = key
        self.by_reason = False
        """Whether the user wants the VM's exits by reason."""
        self._last: Sequence[Text] = ()

    def on_resize(self, event: Resize) -> None:
        """Have the lines laid out for the new size."""
        if has_settled(self, event):
            self.post_message(VmChanged())

    def action_reasons(self) -> None:
        """Count the VM's exits by reason, or stop."""
        self.by_reason = not self.by_reason
        self.post_message(VmChanged())

    def show_vm(self, lines: Sequence[Text] | None) -> None:
        """Show the lines about the VM; None: it is no longer there, so the last ones stay."""
        self._last = self._last if lines is None else lines
        verb = "hide" if self.by_reason else "show"
        keys = f"Escape back  e {verb} exits by reason  Up/Down scroll  ? help  q quit"
        self.show(self._last, keys if lines is not None else "it has ended  Escape back  q quit")
