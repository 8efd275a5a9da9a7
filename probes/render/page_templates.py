# SPDX-License-Identifier: Apache-2.0
"""Fills the templates of the pages, in which no text acts and all text is visible. Pure.

Owns escaping: Jinja2 escapes what a template prints, and before that ``printed`` bounds it and
makes its invisible characters visible, so a template cannot forget to. Must not know what a page
shows. An agent that is only scraped never imports Jinja2.
"""

import functools
from collections.abc import Mapping
from importlib import resources
from typing import TYPE_CHECKING

from probes.judge.reasons import Outcome

if TYPE_CHECKING:
    import jinja2

MAX_NAME_CHARS = 120
"""The most characters that are shown of a name or an error. KubeVirt's longest guest name has
317."""
_MAX_PRINTED_CHARS = 1000
"""The most characters of anything that a template prints."""
_FOLDER = "templates"

CLASSES: Mapping[Outcome | None, str] = {
    Outcome.GOOD: "good",
    Outcome.DEGRADED: "warn",
    Outcome.BAD: "bad",
    None: "",
}
"""CSS classes by emphasis."""

STYLE = resources.files(__package__).joinpath(_FOLDER, "style.css").read_text(encoding="utf-8")


def filled(template: str, values: Mapping[str, object]) -> bytes:
    """Fill a template and return it in UTF-8.

    Raises jinja2.UndefinedError when the template uses a value that is not there.
    """
    return _environment().get_template(template).render(values).encode()


def visible(text: str) -> str:
    """Replace each invisible character, which may act, by its code."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else f"\\u{{{ord(char):x}}}" for char in text)


def cut(text: str, most: int = MAX_NAME_CHARS) -> str:
    """Shorten a text to a number of characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def printed(value: object) -> object:
    """Return what a template prints of a value that is not markup yet."""
    if type(value) is not str and (not isinstance(value, str) or hasattr(value, "__html__")):
        return value
    return visible(cut(value, _MAX_PRINTED_CHARS))


@functools.cache
def _environment() -> "jinja2.Environment":
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__, _FOLDER),
        autoescape=True,
        auto_reload=False,
        undefined=jinja2.StrictUndefined,
        finalize=printed,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cut"] = cut
    environment.filters["css"] = CLASSES.__getitem__
    return environment
