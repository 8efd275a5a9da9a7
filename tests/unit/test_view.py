# SPDX-License-Identifier: Apache-2.0
"""What the user of the live view chooses, and the table of its keys."""

from functools import reduce

import pytest

from probes.render.live.help import help_lines
from probes.render.live.keys import (
    COMMON_KEYS,
    HELP_KEYS,
    SCROLL_KEYS,
    SORT_KEYS,
    TABLE_KEYS,
    VM_KEYS,
)
from probes.render.live.rows import Order
from probes.render.live.view import ViewState


@pytest.mark.parametrize(
    ("orders", "order"),
    [
        ([], Order.SEVERITY),
        ([Order.EXITS], Order.EXITS),
        ([Order.NAME, Order.EXITS], Order.EXITS),
        ([Order.EXITS, Order.EXITS], Order.SEVERITY),
        ([Order.SEVERITY], Order.SEVERITY),
    ],
)
def test_sorting(orders: list[Order], order: Order) -> None:
    """An order is chosen, and the same one again restores the order by severity."""
    assert reduce(ViewState.sorted_by, orders, ViewState()).order is order


def test_every_order_has_a_key() -> None:
    """Each order but that by severity has a key."""
    assert {*SORT_KEYS.values(), Order.SEVERITY} == {*Order}


def test_the_help_names_every_key() -> None:
    """Each key of every screen is in the help, which fits 80 columns."""
    lines = [line.plain for line in help_lines()]
    for key in (*TABLE_KEYS, *VM_KEYS, *SCROLL_KEYS, *COMMON_KEYS):
        assert any(line.split("  ")[1:2] == [key.shown] and key.meaning in line for line in lines)
    assert max(map(len, lines)) <= 80


def test_no_key_has_two_meanings() -> None:
    """No screen has a key twice."""
    for keys in (TABLE_KEYS, (*VM_KEYS, *SCROLL_KEYS), (*HELP_KEYS, *SCROLL_KEYS)):
        names = [name for key in (*keys, *COMMON_KEYS) for name in key.keys.split(",")]
        if keys[0] in HELP_KEYS:
            names.remove("question_mark")  # closes the help that it has opened
        assert len(names) == len(set(names))
