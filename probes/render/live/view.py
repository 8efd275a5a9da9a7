# SPDX-License-Identifier: Apache-2.0
"""Holds what the user of the live view has chosen: order, filter, pause, position. Pure.

Owns the meaning of keys. Must not know the terminal they come from, nor what is drawn.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from probes.render.live.rows import Order

FILTER_MAX = 60
"""The most characters of a filter."""


class Key(StrEnum):
    """A key that is not a character."""

    UP = "up"
    DOWN = "down"
    PAGE_UP = "page up"
    PAGE_DOWN = "page down"
    HOME = "home"
    END = "end"
    ENTER = "enter"
    ESCAPE = "escape"
    BACKSPACE = "backspace"
    OTHER = "other"
    """A key that has no meaning here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewState:
    """The state of the view."""

    order: Order = Order.SEVERITY
    words: str = ""
    """The filter; empty: everything is shown."""
    editing: bool = False
    """Whether keys are typed into the filter now."""
    paused: bool = False
    details: bool = True
    """Whether rows are followed by why they are emulated, and by what KVM's statistics say."""
    top: int = 0
    """The first line of the table that is shown."""
    over: bool = False
    """Whether the user wants to leave."""


def pressed(view: ViewState, key: Key | str, *, page: int) -> ViewState:
    """Return the view after a key: a Key or one character.

    page is the number of lines of the table that are shown.
    """
    step = (
        {
            Key.UP: -1,
            Key.DOWN: 1,
            Key.PAGE_UP: -page,
            Key.PAGE_DOWN: page,
            Key.HOME: -(10**9),
            Key.END: 10**9,
        }.get(Key(key))
        if isinstance(key, Key)
        else None
    )
    if step is not None:
        return replace(view, top=max(view.top + step, 0))
    if view.editing:
        return _edited(view, key)
    if key in _ORDERS:
        order = Order.SEVERITY if view.order is _ORDERS[key] else _ORDERS[key]
        return replace(view, order=order, top=0)
    match key:
        case "/":
            return replace(view, editing=True, words="", top=0)
        case "c":
            return replace(view, details=not view.details, top=0)
        case "p":
            return replace(view, paused=not view.paused)
        case "q":
            return replace(view, over=True)
        case Key.ESCAPE:
            return replace(view, words="", top=0)
    return view


def scrolled(view: ViewState, *, lines: int, page: int) -> ViewState:
    """Return the view scrolled to a position within a table of ``lines`` lines."""
    return replace(view, top=max(min(view.top, lines - page), 0))


def keys_of(data: bytes) -> tuple[list[Key | str], bytes]:
    """Split what a terminal sent into keys, and the beginning of an incomplete one."""
    keys: list[Key | str] = []
    while data:
        found = _SEQUENCE.match(data)
        if found:
            keys.append(_SEQUENCES.get(found[0], Key.OTHER))
        elif data[0] == _ESC and _UNFINISHED.fullmatch(data):
            break
        elif data[0] == _ESC:
            keys.append(Key.ESCAPE)
            data = data[1:]
            continue
        else:
            found = _CHARACTER.match(data)
            if found is None and _CHARACTER_BEGUN.fullmatch(data):
                break
            if found is None:
                data = data[1:]
                continue
            keys.append(_plain(found[0]))
        data = data[found.end() :]
    return keys, data


_ORDERS: Mapping[str, Order] = {"r": Order.EXITS, "t": Order.TYPE, "n": Order.NAME}
_ESC = 0x1B
_SEQUENCE = re.compile(rb"\x1b(?:\[[0-9;]*[A-Za-z~]|O[A-Za-z])")
_UNFINISHED = re.compile(rb"\x1b(?:\[[0-9;]*|O)?")
_CHARACTER = re.compile(
    rb"[\x00-\x7f]|[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}"
)
_CHARACTER_BEGUN = re.compile(rb"[\xc2-\xdf]|[\xe0-\xef][\x80-\xbf]?|[\xf0-\xf4][\x80-\xbf]{0,2}")
_SEQUENCES: Mapping[bytes, Key] = {
    b"\x1b[A": Key.UP,
    b"\x1bOA": Key.UP,
    b"\x1b[B": Key.DOWN,
    b"\x1bOB": Key.DOWN,
    b"\x1b[5~": Key.PAGE_UP,
    b"\x1b[6~": Key.PAGE_DOWN,
    b"\x1b[H": Key.HOME,
    b"\x1bOH": Key.HOME,
    b"\x1b[1~": Key.HOME,
    b"\x1b[F": Key.END,
    b"\x1bOF": Key.END,
    b"\x1b[4~": Key.END,
}


def _plain(data: bytes) -> Key | str:
    match data:
        case b"\r" | b"\n":
            return Key.ENTER
        case b"\x7f" | b"\x08":
            return Key.BACKSPACE
    char = data.decode(errors="replace")
    return char if char.isprintable() else Key.OTHER


def _edited(view: ViewState, key: Key | str) -> ViewState:
    match key:
        case Key.ENTER:
            return replace(view, editing=False)
        case Key.ESCAPE:
            return replace(view, editing=False, words="")
        case Key.BACKSPACE:
            return replace(view, words=view.words[:-1])
        case Key.OTHER:
            return view
    return replace(view, words=(view.words + key)[:FILTER_MAX])
