# SPDX-License-Identifier: Apache-2.0
"""Writes metric families in Prometheus's text formats. Pure.

Owns how a family is written: escaping, order of labels, numbers, and the differences between the
two formats. The output is byte for byte that of prometheus_client's encoders for the same families
(tests/unit/test_exposition.py compares them). Those encoders build a dictionary for each sample and
escape its labels again at each scrape, which with 1000 VMs is most of the cost of a scrape. This
module escapes the labels of a VM once and keeps the text while the VM runs. Must not know what is
measured.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from prometheus_client.utils import floatToGoString

_EXPONENT_FROM = 1_000_000
"""From this number on Go writes an exponent. A smaller whole number ends with ``.0``."""

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


class _LabelTexts(dict[tuple[str, ...], str]):
    """Texts of labels with the same names, by their values; writes one that is not there yet."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self._names = names

    def __missing__(self, values: tuple[str, ...]) -> str:
        """Write labels sorted by name, as both formats do; nothing if there are none."""
        pairs = sorted(zip(self._names, values, strict=True))
        text = ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs)
        self[values] = shown = f"{{{text}}}" if text else ""
        return shown

    def keep(self, families: Sequence[Sequence[Sample]]) -> None:
        """Forget all texts except those of these families, which have been written."""
        if len(self) > max(map(len, families), default=0):  # else one family has them all
            for values in self.keys() - {values for each in families for values, _ in each}:
                del self[values]


class _Written(NamedTuple):
    """What was written of a family, in both formats alike."""

    samples: Sequence[Sample]
    text: str


class Exposition:
    """Writes families, and remembers those that it wrote last."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, ...], _LabelTexts] = {}
        """Text of the labels, by their names and then by their values."""
        self._written: dict[tuple[str, tuple[str, ...]], _Written] = {}
        """What was written last of each family, by its samples' name and its labels' names."""

    def write(self, families: Iterable[Family | Histogram], form: Format) -> list[str]:
        """Return the text of the families in pieces.

        The caller appends the end marker that OpenMetrics requires.
        """
        pieces: list[str] = []
        used: defaultdict[tuple[str, ...], list[Sequence[Sample]]] = defaultdict(list)
        for family in families:
            if isinstance(family, Histogram):
                pieces.append(_histogram(family, form))
                continue
            known = self._known.setdefault(family.labels, _LabelTexts(family.labels))
            used[family.labels].append(family.samples)
            name = family.name + ("_total" if family.kind is Kind.COUNTER else "")
            shown = name if form is Format.TEXT else family.name
            pieces.append(_head(shown, family.help, family.kind.value, form))
            # A comparison takes a third of the time, and what a VM runs on rarely changes.
            key = (name, family.labels)
            written = self._written.get(key)
            if written is None or written.samples != family.samples:
                text = _lines(name, known, family.samples)
                self._written[key] = written = _Written(family.samples, text)
            pieces.append(written.text)
        for names, known in self._known.items():
            known.keep(used[names])
        return pieces


def _lines(name: str, known: _LabelTexts, samples: Sequence[Sample]) -> str:
    # Most numbers are of type int and small, and a call for each would double the time.
    return "".join(
        [
            f"{name}{known[values]} {number}.0\n"
            if type(number) is int and -_EXPONENT_FROM < number < _EXPONENT_FROM
            else f"{name}{known[values]} {_number(number)}\n"
            for values, number in samples
        ]
    )


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
    text: str = floatToGoString(value)
    return text


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
