# SPDX-License-Identifier: Apache-2.0
"""Lays an explanation out as a page of text. Pure.

Owns the layout; the words are those of probes.report.why_words. Must not judge.
"""

import textwrap
from collections.abc import Iterable, Iterator

from probes.render.terminal_text import fit, visible
from probes.report.why import Explanation
from probes.report.why_words import Section, headline, sections

WIDTH = 80
_MAX_LABEL = 16
_MIN_WORDS = 20
"""How many cells the words get, however narrow the terminal is."""
_MAX_WORDS = 700
"""The most characters of one line's words. A VM's longest name has 317."""


def why_text(
    explanation: Explanation, *, width: int = WIDTH, ascii_only: bool = False
) -> Iterator[str]:
    """Yield the lines of the page, none of which is wider than the width."""
    words = headline(explanation)
    yield from laid_out(words, sections(explanation), width=width, ascii_only=ascii_only)


def laid_out(
    words: str, shown: Iterable[Section], *, width: int, ascii_only: bool
) -> Iterator[str]:
    """Yield the lines of a page that begins with these words. A section has at least one line."""
    yield from _wrapped(words, width, ascii_only=ascii_only)
    for section in shown:
        yield ""
        yield from section_text(section, width=width, ascii_only=ascii_only)


def section_text(section: Section, *, width: int, ascii_only: bool) -> Iterator[str]:
    """Yield the title of a section and its labelled lines, which begin with blanks."""
    yield from _wrapped(section.title, width, ascii_only=ascii_only)
    yield from _lines(section, width, ascii_only=ascii_only)


def headline_text(explanation: Explanation, *, width: int, ascii_only: bool) -> Iterator[str]:
    """Yield the lines of the verdict's sentence."""
    yield from _wrapped(headline(explanation), width, ascii_only=ascii_only)


def _lines(section: Section, width: int, *, ascii_only: bool) -> Iterator[str]:
    column = min(max(len(line.label) for line in section.lines), _MAX_LABEL)
    for line in section.lines:
        begin = f"  {visible(line.label, ascii_only=ascii_only):{column}}  "
        room = max(width - len(begin), _MIN_WORDS)
        for piece in _wrapped(line.words, room, ascii_only=ascii_only):
            yield f"{begin}{piece}"
            begin = " " * len(begin)


def _wrapped(words: str, width: int, *, ascii_only: bool) -> Iterator[str]:
    shown = visible(words[:_MAX_WORDS], ascii_only=ascii_only)
    for piece in textwrap.wrap(shown, width, break_on_hyphens=False) or [""]:
        # Wide characters take two cells, which wrapping does not know.
        yield fit(piece, width, ascii_only=ascii_only).rstrip()
