# SPDX-License-Identifier: Apache-2.0
"""The table of the live view's keys: what each does, and how the help names it. Pure.

The screens take their bindings from it, so the help cannot miss a key. Must not know how an action
is carried out.
"""

from dataclasses import dataclass

from probes.render.live.rows import Order


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key, or several that do the same."""

    keys: str
    """Textual's names of the keys, separated by commas; empty: the screen itself takes the key."""
    action: str
    """Textual's name of the action, with its arguments."""
    shown: str
    """How the help names the keys."""
    meaning: str
    priority: bool = False
    """Whether the key works while a filter is typed."""


SORT_KEYS = {
    "r": Order.EXITS,
    "t": Order.TYPE,
    "n": Order.NAME,
    "v": Order.VCPUS,
    "a": Order.AGE,
}
TABLE_KEYS = (
    Key(keys="up,k", action="by_line(-1)", shown="Up, k", meaning="select the VM above"),
    Key(keys="down,j", action="by_line(1)", shown="Down, j", meaning="select the VM below"),
    Key(keys="pageup", action="by_page(-1)", shown="PageUp", meaning="select a page above"),
    Key(keys="pagedown", action="by_page(1)", shown="PageDown", meaning="select a page below"),
    Key(keys="home,g", action="to_top", shown="Home, g", meaning="select the first VM"),
    Key(keys="end,G", action="to_end", shown="End, G", meaning="select the last VM"),
    Key(keys="enter", action="open", shown="Enter", meaning="open the selected VM"),
    Key(keys="", action="", shown="/", meaning="filter by words, as you type"),
    Key(keys="escape", action="clear", shown="Escape", meaning="remove the filter"),
    *(
        Key(
            keys=key,
            action=f"sort('{order.value}')",
            shown=key,
            meaning=f"sort by {order.value}; again: by severity",
        )
        for key, order in SORT_KEYS.items()
    ),
    Key(keys="c", action="details", shown="c", meaning="show or hide causes and KVM's statistics"),
    Key(keys="p", action="pause", shown="p", meaning="pause or continue the refreshes"),
)
VM_KEYS = (
    Key(keys="escape,enter,backspace", action="back", shown="Escape, Enter", meaning="back"),
    Key(keys="e", action="reasons", shown="e", meaning="count the VM's exits by reason, or stop"),
)
HELP_KEYS = (Key(keys="escape,enter,question_mark", action="back", shown="Escape", meaning="back"),)
SCROLL_KEYS = (
    Key(keys="up,k", action="by_line(-1)", shown="Up, k", meaning="scroll up"),
    Key(keys="down,j", action="by_line(1)", shown="Down, j", meaning="scroll down"),
    Key(keys="pageup", action="by_page(-1)", shown="PageUp", meaning="scroll a page up"),
    Key(keys="pagedown,space", action="by_page(1)", shown="PageDown", meaning="scroll a page down"),
    Key(keys="home,g", action="to_top", shown="Home, g", meaning="scroll to the top"),
    Key(keys="end,G", action="to_end", shown="End, G", meaning="scroll to the end"),
)
COMMON_KEYS = (
    Key(keys="m", action="mouse", shown="m", meaning="use the mouse here, or leave it alone"),
    Key(keys="question_mark,h,f1", action="help", shown="?, h, F1", meaning="this help"),
    Key(keys="q", action="quit", shown="q", meaning="quit"),
    Key(
        keys="ctrl+c,ctrl+d,ctrl+q,ctrl+backslash",
        action="quit",
        shown="Ctrl-C, Ctrl-D",
        meaning="quit",
        priority=True,
    ),
    Key(
        keys="ctrl+z",
        action="suspend_process",
        shown="Ctrl-Z",
        meaning="stop; the shell's fg continues",
        priority=True,
    ),
)
