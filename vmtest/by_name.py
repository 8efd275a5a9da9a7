# SPDX-License-Identifier: Apache-2.0
"""Finds rows of a table by their names, as a user writes them. Must not know any table."""

import os
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar


class Named(Protocol):
    """A row of a table."""

    @property
    def name(self) -> str:
        """What users write."""
        ...


class UnknownNameError(Exception):
    """A row was asked for that its table does not hold. The message lists those it holds."""


Row = TypeVar("Row", bound=Named)


def row_named(table: Sequence[Row], name: str, *, what: str) -> Row:
    """The row of that name. what says in an error what the rows are."""
    for row in table:
        if row.name == name:
            return row
    known = ", ".join(row.name for row in table)
    raise UnknownNameError(f"no {what} is called {name!r}: take one of {known}")


def names_in(variable: str, environ: Mapping[str, str]) -> list[str]:
    """The names that a variable lists, separated by commas."""
    names = (name.strip() for name in environ.get(variable, "").split(","))
    return [name for name in names if name]


def rows_in(
    variable: str, table: Sequence[Row], *, what: str, environ: Mapping[str, str] = os.environ
) -> tuple[Row, ...]:
    """The rows that a variable names, or all for ``all``; none when it is unset."""
    names = names_in(variable, environ)
    if "all" in names:
        return tuple(table)
    return tuple(row_named(table, name, what=what) for name in names)
