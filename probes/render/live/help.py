# SPDX-License-Identifier: Apache-2.0
"""Lays out the help of the live view: every key, and what the marks of the table mean. Pure."""

from collections.abc import Iterator

from rich.text import Text

from probes.render.live.keys import COMMON_KEYS, SCROLL_KEYS, TABLE_KEYS, VM_KEYS

_KEYS = (
    ("In the table", TABLE_KEYS),
    ("On the screen of a VM", (*VM_KEYS, *SCROLL_KEYS)),
    ("Everywhere", COMMON_KEYS),
)
_MARKS = (
    ("kvm?", "the type is inferred, not proven by the kernel"),
    ("tcg!", "emulated although this node could accelerate the VM"),
    ("1 MIN", "exits in the last minute, relative to the VM's highest rate"),
    ("-", "unknown, or nothing counts it"),
)
_LABEL_CELLS = 16


def help_lines() -> Iterator[Text]:
    """Yield the lines, none of which is wider than 80 cells."""
    yield Text("hvprobe live: the most urgent VMs come first", "bold")
    for title, keys in _KEYS:
        yield from (Text(), Text(title, "bold"))
        for key in keys:
            yield _line(key.shown, key.meaning)
    yield from (Text(), Text("In the table's columns", "bold"))
    for mark, meaning in _MARKS:
        yield _line(mark, meaning)
    yield from (Text(), Text("With the mouse", "bold"))
    yield _line("heading", "a click sorts by that column")
    yield _line("VM", "a click selects it; a click on the selected one opens it")


def _line(label: str, words: str) -> Text:
    return Text.assemble((f"  {label:{_LABEL_CELLS}}", "bold cyan"), words)
