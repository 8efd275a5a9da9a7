# SPDX-License-Identifier: Apache-2.0
"""Foreign text on a terminal: escaped, measured in cells, and never able to disturb it."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from probes.render.terminal_text import cut, fit, utf8_locale, visible

any_text = st.text(st.characters(), max_size=40)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("default/alpha", "default/alpha"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("\x9b31m", r"\x9b31m"),
        ("a\r\n\tb\x7f", r"a\r\n\tb\x7f"),
        ("\u202eevil", r"\u202eevil"),
        ("שלום", r"\u05e9\u05dc\u05d5\u05dd"),
        ("e\u0301", r"e\u0301"),
        ("a\u200db\ufeff", r"a\u200db\ufeff"),
        ("a\u00a0b\u3000", r"a\xa0b\u3000"),
        ("\udc80", r"\udc80"),
        ("\u1160\u3164\uffa0", r"\u1160\u3164\uffa0"),
        ("🇩🇪👍🏽", r"\U0001f1e9\U0001f1ea👍\U0001f3fd"),
        ("\U000e0041\U0010ffff", r"\U000e0041\U0010ffff"),
        ("日本語 ｱ 한글 é", "日本語 ｱ 한글 é"),
    ],
)
def test_visible(text: str, shown: str) -> None:
    """Characters that move the cursor, change the direction or have no width are escaped."""
    assert visible(text) == shown
    assert visible(text, ascii_only=True).isascii()


@given(text=any_text)
def test_visible_takes_as_many_cells_as_counted(text: str) -> None:
    """Any text becomes printable, left to right and not combining; rich counts as many cells."""
    shown = visible(text)
    assert shown.isprintable()
    assert cell_len(shown) == sum(cell_len(char) for char in shown)
    assert not any(unicodedata.combining(char) for char in shown)
    assert not {unicodedata.bidirectional(char) for char in shown} & {"R", "AL", "AN", "RLO"}


@given(text=any_text, width=st.integers(0, 50), right=st.booleans(), ascii_only=st.booleans())
def test_fit(text: str, width: int, *, right: bool, ascii_only: bool) -> None:
    """The text has exactly the given width, and is complete if it fits."""
    shown = visible(text, ascii_only=ascii_only)
    fitted = fit(shown, width, right=right, ascii_only=ascii_only)
    assert cell_len(fitted) == width
    assert fitted.isascii() or not ascii_only
    if cell_len(shown) <= width:
        assert fitted.strip(" ") == shown.strip(" ")


@given(text=any_text, width=st.integers(-1, 50))
def test_cut(text: str, width: int) -> None:
    """The longest beginning of the text that fits the width is kept."""
    shown = visible(text)
    found = cut(shown, width)
    assert shown.startswith(found)
    assert cell_len(found) <= max(width, 0)
    if found != shown:
        assert cell_len(shown[: len(found) + 1]) > width


@pytest.mark.parametrize(
    ("environment", "utf8"),
    [
        ({}, False),
        ({"LANG": "C"}, False),
        ({"LANG": "C.UTF-8"}, True),
        ({"LANG": "de_DE.utf8"}, True),
        ({"LANG": "en_US.UTF-8", "LC_ALL": "C"}, False),
        ({"LANG": "C", "LC_CTYPE": "C.UTF-8"}, True),
        ({"LANG": "C", "LC_CTYPE": "C.UTF-8", "LC_ALL": ""}, True),
        ({"LANG": "en_US.ISO-8859-1"}, False),
    ],
)
def test_locale(environment: dict[str, str], *, utf8: bool) -> None:
    """The first of LC_ALL, LC_CTYPE and LANG that is set decides."""
    assert utf8_locale(environment) is utf8
