"""Metric families → Prometheus's text formats. Pure.

Owns how a family is written: escaping, order of labels, numbers, and where the two formats differ.
What it writes is byte for byte what prometheus_client's encoders would write of the same families
(tests/unit/test_exposition.py compares them). Those build a dictionary for each sample and escape
its labels anew at each scrape, which with 1000 VMs is most of what a scrape costs; here the labels
of a VM are escaped once and kept as text while it runs. Must not know what is measured.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from prometheus_client.utils import floatToGoString

Sample = tuple[tuple[str, ...], float]
"""Values of the family's labels, in its order, and the number."""


class Kind(StrEnum):
    """Type of a family, as both formats call it."""

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
    """Letters, digits and underscores; a counter's without ``_total``, which its samples carry."""
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    """Names of the labels."""
    samples: Sequence[Sample]


class Exposition:
    """Writes families; remembers the labels of those written last, and of no others."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, ...], dict[tuple[str, ...], str]] = {}
        """Text of the labels, by their names and values."""

    def write(self, families: Iterable[Family], form: Format) -> list[str]:
        """Text of the families, in pieces.

        The end that OpenMetrics asks for is left to whoever writes the last family.
        """
        pieces: list[str] = []
        written: dict[tuple[str, ...], dict[tuple[str, ...], str]] = {}
        for family in families:
            known = self._known.get(family.labels, {})
            now = written.setdefault(family.labels, {})
            name = family.name + ("_total" if family.kind is Kind.COUNTER else "")
            pieces.append(_head(family, name, form))
            for values, number in family.samples:
                labels = known.get(values) or _labels(family.labels, values)
                now[values] = labels
                pieces.append(f"{name}{labels} {floatToGoString(number)}\n")  # type: ignore[no-untyped-call]
        self._known = written
        return pieces


def _head(family: Family, name: str, form: Format) -> str:
    """Help and type; only the text format calls a counter there by its samples' name."""
    if form is Format.TEXT:
        text = family.help.replace("\\", r"\\").replace("\n", r"\n")
        return f"# HELP {name} {text}\n# TYPE {name} {family.kind.value}\n"
    text = _escaped(family.help)
    return f"# HELP {family.name} {text}\n# TYPE {family.name} {family.kind.value}\n"


def _labels(names: tuple[str, ...], values: tuple[str, ...]) -> str:
    """Labels as both formats write them, by name; nothing without labels."""
    pairs = sorted(zip(names, values, strict=True))
    text = ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs)
    return f"{{{text}}}" if text else ""


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
