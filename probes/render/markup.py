# SPDX-License-Identifier: Apache-2.0
"""Makes HTML a separate type, so that the type checker finds unescaped text. Pure.

Owns escaping: text becomes Markup only through the functions of this module, or as a literal in the
source. Must not know what a page shows.
"""

import html
from collections.abc import Iterable, Iterator
from typing import NewType

Markup = NewType("Markup", str)
"""Text in which every ``<`` and ``&`` is intended as HTML."""

MAX_TEXT_CHARS = 120
"""The most characters shown of a text. KubeVirt's longest guest name has 317."""
_ATTRIBUTES = {"class_": "class", "data_of": "data-of"}
"""HTML attributes whose names are not valid in Python."""


def text(foreign: str, *, most: int = MAX_TEXT_CHARS) -> Markup:
    """Turn any text into markup in which nothing acts and everything is visible."""
    cut = foreign if len(foreign) <= most else foreign[: most - 1] + "…"
    return plain("".join(c if c.isprintable() else f"\\u{{{ord(c):x}}}" for c in cut))


def isolated(foreign: str, *, most: int = MAX_TEXT_CHARS) -> Markup:
    """Do the same as text(), and isolate it from the bidirectional text around it."""
    return element("bdi", text(foreign, most=most))


def plain(ours: str) -> Markup:
    """Turn hvprobe's own printable text of any length into markup."""
    return Markup(html.escape(ours))


def element(tag: str, *content: Markup, **attributes: str) -> Markup:
    """Make an element with its content; ``class_`` and ``data_of`` become class and data-of."""
    given = "".join(
        f' {_ATTRIBUTES.get(name, name)}="{html.escape(value)}"'
        for name, value in attributes.items()
    )
    return Markup(f"<{tag}{given}>{joined(content)}</{tag}>")


def line(tag: str, *content: Markup, **attributes: str) -> Markup:
    """Make an element on a line of its own."""
    return Markup(element(tag, *content, **attributes) + "\n")


def joined(parts: Iterable[Markup]) -> Markup:
    """Join pieces of markup."""
    return Markup("".join(parts))


def table(columns: tuple[str, ...], rows: Iterable[tuple[Markup, ...]]) -> Iterator[Markup]:
    """Yield a table in which each cell names its column, for narrow screens."""
    heads = (element("th", plain(column), scope="col") for column in columns)
    yield Markup("<table>\n<thead>")
    yield element("tr", *heads)
    yield Markup("</thead>\n<tbody>\n")
    for first, *rest in rows:
        cells = zip(columns[1:], rest, strict=True)
        shown = (element("td", cell, data_of=column) for column, cell in cells)
        yield line("tr", element("th", first, scope="row"), *shown)
    yield Markup("</tbody>\n</table>\n")
