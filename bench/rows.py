# SPDX-License-Identifier: Apache-2.0
"""What a measurement gives, and which there are. Pure but for finding the files.

A new row is one file bench/row_<name>.py with two names in it: ORDER, a number that says
where it stands, and measure(bench), which yields its rows.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.steady import Bench


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """A peer's figure in the same unit, of the same run."""

    name: str
    value: float | None
    """None: there is none, and `why` says why."""
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure. Less is always better."""

    key: str
    """Stays the same between runs: letters, digits, dots."""
    what: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    """The spread: quartiles of the samples, unless `note` says otherwise."""
    goal: float | None = None
    """The highest value that meets the goal; None: the value is reported for comparison only."""
    beside: tuple[Beside, ...] = ()
    note: str = ""
    """How it was measured, where the row's name does not say it."""

    @property
    def passed(self) -> bool | None:
        """Whether the goal is met; None: it has none."""
        return None if self.goal is None else self.value <= self.goal


Measure = Callable[["Bench"], Iterator[Row]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A file of rows."""

    name: str
    order: int
    measure: Measure


def measurements() -> list[Measurement]:
    """Every row_*.py, in order."""
    found = []
    for file in Path(__file__).parent.glob("row_*.py"):
        module: Any = importlib.import_module(f"bench.{file.stem}")
        name = file.stem.removeprefix("row_")
        found.append(Measurement(name=name, order=module.ORDER, measure=module.measure))
    return sorted(found, key=lambda measurement: measurement.order)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Median and quartiles."""

    middle: float
    low: float
    high: float


def spread(samples: Sequence[float]) -> Spread:
    """Of two samples at least."""
    low, _, high = quantiles(samples, n=4)
    return Spread(middle=median(samples), low=low, high=high)


def percentile(samples: Sequence[float], per_cent: float) -> float:
    """The smallest sample that so many per cent of all do not exceed."""
    ordered = sorted(samples)
    return ordered[max(0, ceil(len(ordered) * per_cent / 100) - 1)]
