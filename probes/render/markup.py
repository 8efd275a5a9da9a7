# SPDX-License-Identifier: Apache-2.0
"""HTML as a type of its own, so that the type checker sees which text is escaped. Pure.

Owns escaping: text becomes Markup only by the functions of this module, or as a literal in the
source. Must not know what a page shows.
"""

import html
from collections.abc import Iterable, Iterator
from typing import NewType

Markup = NewType("Markup", str)
"""Text in which every ``<`` and ``&`` is meant as HTML."""

LONGEST_TEXT = 120
"""Characters shown of a text. KubeVirt's longest guest name has 317."""
_ATTRIBUTES = {"class_": "class", "data_of": "data-of"}
"""Attributes whose names are no Python names."""


def text(foreign: str) -> Markup:
    """Any text as markup: nothing in it acts, and everything in it is visible."""
    cut = foreign if len(foreign) <= LONGEST_TEXT else foreign[: LONGEST_TEXT - 1] + "…"
    return plain("".join(c if c.isprintable() else f"\\u{{{ord(c):x}}}" for c in cut))


def isolated(foreign: str) -> Markup:
    """As text(), and isolated so that it cannot affect bidirectional text around it."""
    return element("bdi", text(foreign))


def plain(ours: str) -> Markup:
    """Printable text of our own as markup, at any length."""
    return Markup(html.escape(ours))


def element(tag: str, *content: Markup, **attributes: str) -> Markup:
    """An element with its content; ``class_`` and ``data_of`` name class and data-of."""
    given = "".join(
        f' {_ATTRIBUTES.get(name, name)}="{html.escape(value)}"'
        for name, value in attributes.items()
    )
    return Markup(f"<{tag}{given}>{joined(content)}</{tag}>")


def line(tag: str, *content: Markup, **attributes: str) -> Markup:
    """An element on a line of its own."""
    return Markup(element(tag, *content, **attributes) + "\n")


def joined(parts: Iterable[Markup]) -> Markup:
    """Pieces of markup one after the other."""
    return Markup("".join(parts))


def table(columns: tuple[str, ...], rows: Iterable[tuple[Markup, ...]]) -> Iterator[Markup]:
    """A table; each cell names its column, for narrow screens."""
    heads = (element("th", plain(column), scope="col") for column in columns)
    yield Markup("<table>\n<thead>")
    yield element("tr", *heads)
    yield Markup("</thead>\n<tbody>\n")
    for first, *rest in rows:
        cells = zip(columns[1:], rest, strict=True)
        shown = (element("td", cell, data_of=column) for column, cell in cells)
        yield line("tr", element("th", first, scope="row"), *shown)
    yield Markup("</tbody>\n</table>\n")
