# SPDX-License-Identifier: Apache-2.0
"""What a dashboard consists of, as values. Pure types.

Must not know where they come from, Grafana or Perses.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """How a panel shows its data."""

    STAT = "stat"
    TIMESERIES = "timeseries"
    TABLE = "table"


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A PromQL expression and the name of its series."""

    expr: str
    legend: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A label that a table shows."""

    label: str
    header: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """How a table shows the value. yes, no: colors of 1 and 0, which are shown as these words."""

    header: str
    sort: str | None
    yes: str | None
    no: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """The value from which a stat has another color."""

    value: float
    color: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Cells of the grid, counted from the first line below the section's title."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One panel. Which fields matter depends on its kind."""

    id: int
    kind: Kind
    title: str
    description: str
    place: Place
    queries: Sequence[Query]
    unit: str | None
    min: float | None
    max: float | None
    decimals: int | None
    color: str
    threshold: Threshold | None
    stacked: bool
    colors: Mapping[str, str]
    columns: Sequence[Column]
    value: Value | None
    links: Sequence[str]
    runbook: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Panels under a title."""

    title: str
    panels: Sequence[Panel]

    @property
    def height(self) -> int:
        """Lines of the grid, without the title's."""
        return max(panel.place.y + panel.place.height for panel in self.panels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """A choice at the top: the values of a label of some series, several of them, or all."""

    name: str
    title: str
    label: str
    series: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    """The complete source."""

    uid: str
    title: str
    description: str
    tags: Sequence[str]
    refresh: str
    duration: str
    alerts: str
    variables: Sequence[Variable]
    sections: Sequence[Section]

    @property
    def panels(self) -> Iterator[Panel]:
        """The panels of all sections."""
        for section in self.sections:
            yield from section.panels
