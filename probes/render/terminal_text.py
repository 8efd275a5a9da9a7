# SPDX-License-Identifier: Apache-2.0
"""Foreign text → text that a terminal shows as counted cells. Pure.

Owns what may reach a terminal of a name that somebody else chose (a process's comm, a domain name,
a kernel's message). Whatever moves the cursor, turns the direction of writing, takes no cell, or
takes a number of cells that programs disagree about is shown escaped.
"""

import unicodedata
from collections.abc import Mapping
from functools import lru_cache

from rich.cells import cell_len

_SHOWN_CATEGORIES = "LNPS"
_RIGHT_TO_LEFT = frozenset({"R", "AL", "AN", "RLE", "RLO", "RLI", "LRE", "LRO", "LRI"})
_ESCAPED_RANGES = (
    (0x115F, 0x11FF),  # Hangul vowels and finals join the syllable before them
    (0x3164, 0x3164),  # Hangul filler, a letter that is not there
    (0xD7B0, 0xD7FF),
    (0xFFA0, 0xFFA0),
    (0x1F1E6, 0x1F1FF),  # two of them make a flag
    (0x1F3FB, 0x1F3FF),  # skin colours join the figure before them
)


def visible(text: str, *, ascii_only: bool = False) -> str:
    """The text with everything escaped that could disturb a terminal.

    ascii_only: escape everything beyond ASCII, for a terminal that can show no more.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(char, ascii_only=ascii_only) for char in text)


def cells(text: str) -> int:
    """Cells that text from visible() takes."""
    return len(text) if text.isascii() else sum(_width(char) for char in text)


def fit(text: str, width: int, *, right: bool = False, ascii_only: bool = False) -> str:
    """Text from visible() made exactly so many cells wide: padded, or cut with a mark."""
    if cells(text) > width:
        mark = "~" if ascii_only else "…"
        text = cut(text, width - 1) + mark if width > 0 else ""
    space = " " * (width - cells(text))
    return space + text if right else text + space


def cut(text: str, width: int) -> str:
    """As much of text from visible() as so many cells hold."""
    if text.isascii():
        return text[: max(width, 0)]
    used = 0
    for index, char in enumerate(text):
        used += _width(char)
        if used > width:
            return text[:index]
    return text


def utf8_locale(environment: Mapping[str, str]) -> bool:
    """Whether the locale says that the terminal shows UTF-8."""
    for variable in ("LC_ALL", "LC_CTYPE", "LANG"):
        if environment.get(variable):
            return "utf8" in environment[variable].lower().replace("-", "")
    return False


@lru_cache(maxsize=4096)
def _shown(char: str, *, ascii_only: bool) -> str:
    if char == " " or (char.isascii() and char.isprintable()):
        return char
    plain = (
        not ascii_only
        and unicodedata.category(char)[0] in _SHOWN_CATEGORIES
        and unicodedata.bidirectional(char) not in _RIGHT_TO_LEFT
        and not any(first <= ord(char) <= last for first, last in _ESCAPED_RANGES)
        and cell_len(char) == _width(char)
    )
    return char if plain else char.encode("unicode_escape").decode("ascii")


@lru_cache(maxsize=4096)
def _width(char: str) -> int:
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
