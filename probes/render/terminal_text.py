# SPDX-License-Identifier: Apache-2.0
"""Turns foreign text into text that takes a known number of terminal cells. Pure.

Owns which characters of a foreign name (a process's comm, a domain name, a kernel message) may
reach a terminal. Characters that move the cursor, change the direction of writing, take no cell, or
take a number of cells on which programs disagree, are shown escaped.
"""

import unicodedata
from collections.abc import Mapping
from functools import lru_cache

from rich.cells import cell_len

_SHOWN_CATEGORIES = "LNPS"
_RIGHT_TO_LEFT = frozenset({"R", "AL", "AN", "RLE", "RLO", "RLI", "LRE", "LRO", "LRI"})
_ESCAPED_RANGES = (
    (0x115F, 0x11FF),  # Hangul vowels and finals, which join the syllable before them
    (0x3164, 0x3164),  # Hangul filler, an invisible letter
    (0xD7B0, 0xD7FF),
    (0xFFA0, 0xFFA0),
    (0x1F1E6, 0x1F1FF),  # regional indicators, two of which make a flag
    (0x1F3FB, 0x1F3FF),  # skin tones, which join the figure before them
)


def visible(text: str, *, ascii_only: bool = False) -> str:
    """Escape everything in a text that could disturb a terminal.

    ascii_only escapes everything beyond ASCII, for a terminal that can show nothing else.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(char, ascii_only=ascii_only) for char in text)


def fit(text: str, width: int, *, right: bool = False, ascii_only: bool = False) -> str:
    """Pad or cut a text from visible() to exactly ``width`` cells; a cut text ends in a mark."""
    if cell_len(text) > width:
        mark = "~" if ascii_only else "…"
        text = cut(text, width - 1) + mark if width > 0 else ""
    space = " " * (width - cell_len(text))
    return space + text if right else text + space


def cut(text: str, width: int) -> str:
    """Return as much of a text from visible() as fits into ``width`` cells."""
    if text.isascii():
        return text[: max(width, 0)]
    used = 0
    for index, char in enumerate(text):
        used += cell_len(char)
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
        and cell_len(char) == (2 if unicodedata.east_asian_width(char) in "WF" else 1)
    )
    return char if plain else char.encode("unicode_escape").decode("ascii")
