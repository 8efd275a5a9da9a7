# SPDX-License-Identifier: Apache-2.0
"""What the live view's screen is made of, as text, without a screen."""

from collections.abc import Sequence

from rich.text import Text

from probes.render.live.frame_data import FrameData, TerminalSize
from probes.render.live.frames import bottom_line, table_frame, top_lines
from probes.render.live.view import ViewState

SMALL = TerminalSize(width=80, height=24)


def text(lines: Sequence[Text]) -> str:
    """The lines without blanks at their ends."""
    return "".join(f"{line.plain.rstrip()}\n" for line in lines)


def parts(of: FrameData, view: ViewState, size: TerminalSize) -> list[Text]:
    """Header, notes, heading, every line of the table, and the line below it."""
    top, frame = top_lines(of, size, "every 1 s"), table_frame(of, view, size)
    room = max(size.height - len(top) - 2, 1)
    return [
        *(*top, frame.heading, *frame.lines),
        bottom_line(view, frame, size, first=0, shown=room),
    ]


def shown(of: FrameData, size: TerminalSize = SMALL, view: ViewState | None = None) -> str:
    """The same as text."""
    return text(parts(of, view or ViewState(), size))
