# SPDX-License-Identifier: Apache-2.0
"""Writes metric families in Prometheus's text formats. Pure.

Owns how a family is written: escaping, order of labels, numbers, and the differences between the
two formats. The output is byte for byte that of prometheus_client's encoders for the same families
(tests/unit/test_exposition.py compares them). Those encoders build a dictionary for each sample and
escape its labels again at each scrape, which with 1000 VMs is most of the cost of a scrape. This
module escapes the labels of a VM once and keeps the text while the VM runs. Must not know what is
measured.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from prometheus_client.utils import floatToGoString

_EXPONENT_FROM = 1_000_000
"""Go writes a number from this one on with an exponent."""

Sample = tuple[tuple[str, ...], float]
"""The values of the family's labels, in its order, and the number."""


class Kind(StrEnum):
    """The type of a family, in the words of both formats."""

    GAUGE = "gauge"
    COUNTER = "counter"


class Format(StrEnum):
    """A text format, by its content type."""

    TEXT = "text/plain; version=0.0.4; charset=utf-8"
    OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One metric and all its samples."""

    name: str
    """Letters, digits and underscores. A counter's name omits ``_total``, which its samples
    have."""
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    """Names of the labels."""
    samples: Sequence[Sample]


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """One metric without labels that counts observations by their size."""

    name: str
    help: str
    buckets: Sequence[tuple[float, int]]
    """(upper bound, observations not above it), by bound; the last bound is infinite."""
    total: float
    """Sum of all observations."""


class Exposition:
    """Writes families, and remembers the labels of the families that it wrote last."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, ...], dict[tuple[str, ...], str]] = {}
        """Text of the labels by their names and values."""

    def write(self, families: Iterable[Family | Histogram], form: Format) -> list[str]:
        """Return the text of the families in pieces.

        The caller appends the end marker that OpenMetrics requires.
        """
        pieces: list[str] = []
        written: dict[tuple[str, ...], dict[tuple[str, ...], str]] = {}
        for family in families:
            if isinstance(family, Histogram):
                pieces.append(_histogram(family, form))
                continue
            known = self._known.get(family.labels, {})
            now = written.setdefault(family.labels, {})
            name = family.name + ("_total" if family.kind is Kind.COUNTER else "")
            shown = name if form is Format.TEXT else family.name
            pieces.append(_head(shown, family.help, family.kind.value, form))
            for values, number in family.samples:
                labels = known.get(values) or _labels(family.labels, values)
                now[values] = labels
                pieces.append(f"{name}{labels} {_number(number)}\n")
        self._known = written
        return pieces


def _head(name: str, text: str, kind: str, form: Format) -> str:
    """Write help and type. Only the text format names a counter as its samples are named."""
    if form is Format.TEXT:
        escaped = text.replace("\\", r"\\").replace("\n", r"\n")
    else:
        escaped = _escaped(text)
    return f"# HELP {name} {escaped}\n# TYPE {name} {kind}\n"


def _histogram(family: Histogram, form: Format) -> str:
    samples: list[tuple[str, float]] = [
        (f'_bucket{{le="{_number(bound)}"}}', count) for bound, count in family.buckets
    ]
    samples += [("_count", family.buckets[-1][1]), ("_sum", family.total)]
    lines = (f"{family.name}{suffix} {_number(value)}\n" for suffix, value in samples)
    return _head(family.name, family.help, "histogram", form) + "".join(lines)


def _number(value: float) -> str:
    if isinstance(value, int) and -_EXPONENT_FROM < value < _EXPONENT_FROM:
        return f"{value:d}.0"  # what floatToGoString returns, in half the time
    text: str = floatToGoString(value)
    return text


def _labels(names: tuple[str, ...], values: tuple[str, ...]) -> str:
    """Write labels sorted by name, as both formats do; nothing if there are none."""
    pairs = sorted(zip(names, values, strict=True))
    text = ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs)
    return f"{{{text}}}" if text else ""


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
