# SPDX-License-Identifier: Apache-2.0
"""deploy/monitoring/dashboard.toml as values, checked when it is read.

Owns the keys of the file and where each panel stands. Must not know Grafana or Perses.
"""

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from dashboard_model import (
    Column,
    Dashboard,
    Kind,
    Panel,
    Place,
    Query,
    Section,
    Threshold,
    Value,
    Variable,
)

COLUMNS = 24
"""The width of the grid, in Grafana as in Perses."""
UNITS = ("bytes", "cps", "percentunit", "s", "short")
COLORS = ("blue", "green", "orange", "red")
Table = Mapping[str, Any]
T = TypeVar("T")


class SourceError(Exception):
    """The file is not a dashboard. The message says where and why, in one line."""


def parse(text: str) -> Dashboard:
    """Read the file. Raises SourceError when it is not a dashboard."""
    try:
        source = tomllib.loads(text)
    except tomllib.TOMLDecodeError as err:
        raise SourceError(f"not TOML: {err}") from err
    taken = _Taker("the file", source)
    head = _Taker("dashboard", taken.required("dashboard", dict))
    dashboard = Dashboard(
        uid=head.required("uid", str),
        title=head.required("title", str),
        description=head.required("description", str),
        tags=tuple(head.required("tags", list)),
        refresh=head.required("refresh", str),
        duration=head.required("duration", str),
        alerts=head.required("alerts", str),
        variables=tuple(map(_variable, taken.required("variable", list))),
        sections=tuple(map(_section, taken.required("section", list))),
    )
    head.end()
    taken.end()
    variables = {variable.name for variable in dashboard.variables}
    for panel in dashboard.panels:
        if unknown := set(panel.links) - variables:
            raise SourceError(f"panel {panel.title!r}: link to unknown variable {min(unknown)}")
    _only_once("id", (panel.id for panel in dashboard.panels))
    _only_once("title", (panel.title for panel in dashboard.panels))
    return dashboard


class _Taker:
    """Takes the keys of one table, and finds those that nothing takes."""

    def __init__(self, where: str, table: Table) -> None:
        self.where = where
        self._left = dict(table)

    def required(self, key: str, kind: type[T]) -> T:
        if key not in self._left:
            raise SourceError(f"{self.where}: {key} is missing")
        return self._taken(key, kind)

    def optional(self, key: str, kind: type[T]) -> T | None:
        return self._taken(key, kind) if key in self._left else None

    def number(self, key: str) -> float | None:
        found = self._left.pop(key, None)
        if found is not None and not isinstance(found, int | float):
            raise SourceError(f"{self.where}: {key} is no number")
        return found

    def one_of(self, key: str, values: Sequence[str]) -> str | None:
        found = self.optional(key, str)
        if found is not None and found not in values:
            raise SourceError(f"{self.where}: {key} {found!r} is none of {', '.join(values)}")
        return found

    def end(self) -> None:
        if self._left:
            raise SourceError(f"{self.where}: unknown key {min(self._left)}")

    def _taken(self, key: str, kind: type[T]) -> T:
        found = self._left.pop(key)
        if not isinstance(found, kind):
            raise SourceError(f"{self.where}: {key} is no {kind.__name__}")
        return found


def _variable(table: Table) -> Variable:
    taken = _Taker(f"variable {table.get('name')!r}", table)
    variable = Variable(
        name=taken.required("name", str),
        title=taken.required("title", str),
        label=taken.required("label", str),
        series=taken.required("series", str),
    )
    taken.end()
    return variable


def _section(table: Table) -> Section:
    taken = _Taker(f"section {table.get('title')!r}", table)
    title, panels = taken.required("title", str), taken.required("panel", list)
    taken.end()
    sizes = [_size(panel) for panel in panels]
    places = _flow(sizes)
    return Section(title=title, panels=tuple(map(_panel, panels, places)))


def _size(table: Table) -> tuple[int, int]:
    found = table.get("size")
    match found:
        case [int(width), int(height)] if 0 < width <= COLUMNS and height > 0:
            return width, height
    raise SourceError(f"panel {table.get('title')!r}: size is not [width, height] in the grid")


def _flow(sizes: Iterable[tuple[int, int]]) -> list[Place]:
    """Place after place from left to right. What does not fit begins the next line."""
    places: list[Place] = []
    x = y = tallest = 0
    for width, height in sizes:
        if x + width > COLUMNS:
            x, y, tallest = 0, y + tallest, 0
        places.append(Place(x=x, y=y, width=width, height=height))
        x, tallest = x + width, max(tallest, height)
    return places


def _panel(table: Table, place: Place) -> Panel:
    taken = _Taker(f"panel {table.get('title')!r}", table)
    taken.required("size", list)
    kind = taken.one_of("kind", [kind.value for kind in Kind])
    if kind is None:
        raise SourceError(f"{taken.where}: kind is missing")
    panel = Panel(
        id=taken.required("id", int),
        kind=Kind(kind),
        title=taken.required("title", str),
        description=taken.optional("description", str) or "",
        place=place,
        queries=tuple(_query(taken.where, query) for query in taken.required("query", list)),
        unit=taken.one_of("unit", UNITS),
        min=taken.number("min"),
        max=taken.number("max"),
        decimals=taken.optional("decimals", int),
        color=taken.one_of("color", COLORS) or "green",
        threshold=_threshold(taken.where, taken.optional("threshold", dict)),
        stacked=taken.optional("stacked", bool) or False,
        colors=taken.optional("colors", dict) or {},
        columns=tuple(_column(taken.where, each) for each in taken.optional("columns", list) or ()),
        value=_value(taken.where, taken.optional("value", dict)),
        links=tuple(taken.optional("links", list) or ()),
        runbook=taken.optional("runbook", str),
    )
    taken.end()
    return panel


def _query(where: str, table: Table) -> Query:
    taken = _Taker(f"{where}, query", table)
    query = Query(
        expr=taken.required("expr", str).strip(), legend=taken.optional("legend", str) or ""
    )
    taken.end()
    return query


def _column(where: str, table: Table) -> Column:
    taken = _Taker(f"{where}, column", table)
    label = taken.required("label", str)
    column = Column(label=label, header=taken.optional("header", str) or label)
    taken.end()
    return column


def _value(where: str, table: Table | None) -> Value | None:
    if table is None:
        return None
    taken = _Taker(f"{where}, value", table)
    value = Value(
        header=taken.required("header", str),
        sort=taken.one_of("sort", ("asc", "desc")),
        yes=taken.one_of("yes", COLORS),
        no=taken.one_of("no", COLORS),
    )
    taken.end()
    return value


def _threshold(where: str, table: Table | None) -> Threshold | None:
    if table is None:
        return None
    taken = _Taker(f"{where}, threshold", table)
    value, color = taken.number("value"), taken.one_of("color", COLORS)
    taken.end()
    if value is None or color is None:
        raise SourceError(f"{where}: a threshold has a value and a color")
    return Threshold(value=value, color=color)


def _only_once(what: str, found: Iterable[object]) -> None:
    seen: set[object] = set()
    for each in found:
        if each in seen:
            raise SourceError(f"two panels have the {what} {each!r}")
        seen.add(each)
