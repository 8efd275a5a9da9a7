# SPDX-License-Identifier: Apache-2.0
"""Who gets how much room in a line of the live table, whatever is wanted."""

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from probes.render.live.columns import MINUTE_CELLS, Column, Key, fit_columns

FIXED = {Column.TGID, Column.VMI, Column.TYPE}
"""Columns that are shown in any terminal."""
GROWING = {Column.VMI: 80, Column.COMMAND: 80, Column.PROOF: 80, Column.MINUTE: MINUTE_CELLS}
"""Columns that may be wider than their least, and up to how wide."""

COLUMNS = (*Column, "runs", "exits")
"""A layout with two counters, whose columns are between the others."""

cells = st.integers(0, 120)
wanted = st.fixed_dictionaries(dict.fromkeys(COLUMNS, cells))
leasts = st.fixed_dictionaries({column: st.integers(1, 16) for column in COLUMNS})
terminals = st.integers(0, 400)


def line(widths: Mapping[Key, int]) -> int:
    return sum(widths.values()) + len(widths) - 1


@given(wanted, leasts, terminals)
def test_a_line_fits(wants: dict[Key, int], least: dict[Key, int], width: int) -> None:
    """No line is wider than the terminal, unless only the indispensable columns are left."""
    widths = fit_columns(wants, least, width)
    assert line(widths) <= width or set(widths) == FIXED
    assert list(widths) == [column for column in wants if column in widths]
    assert all(cells_ >= least[column] for column, cells_ in widths.items())


@given(wanted, leasts, terminals)
def test_what_must_not_be_cut_is_not(
    wants: dict[Key, int], least: dict[Key, int], width: int
) -> None:
    """A column whose content may not be cut is exactly as wide as its content or its least."""
    for column, got in fit_columns(wants, least, width).items():
        if column not in GROWING:
            assert got == max(wants[column], least[column])


@given(wanted, leasts, terminals)
def test_no_cell_is_wasted(wants: dict[Key, int], least: dict[Key, int], width: int) -> None:
    """Cells are left over only when every column has all that it may have."""
    widths = fit_columns(wants, least, width)
    if line(widths) < width:
        for column, most in GROWING.items():
            want = most if column is Column.MINUTE else min(wants[column], most)
            assert widths.get(column, most) >= want


@given(wanted, leasts, terminals)
def test_a_wider_terminal_hides_no_column(
    wants: dict[Key, int], least: dict[Key, int], width: int
) -> None:
    """One cell more never costs a column."""
    assert set(fit_columns(wants, least, width)) <= set(fit_columns(wants, least, width + 1))


@given(wanted, leasts)
def test_without_a_terminal_nothing_is_cut(wants: dict[Key, int], least: dict[Key, int]) -> None:
    """A pipe gets every column as wide as it wants."""
    assert fit_columns(wants, least, None) == {
        column: max(wants[column], least[column]) for column in COLUMNS
    }
