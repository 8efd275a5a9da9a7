# SPDX-License-Identifier: Apache-2.0
"""Lays out the line of the live view that shows what KVM's statistics say of one VM. Pure.

Owns what the line shows and what it leaves out on a narrow terminal. Must not know where it stands.
"""

from collections.abc import Iterator

from rich.text import Text

from probes.host.vcpu_counts import EXITS_BY_CLASS, HALT_POLLING, NESTED_RUNS, VCPU_COUNTS
from probes.render.live.columns import number
from probes.render.live.history import GUEST_CPU
from probes.render.live.rows import Row

_BEGIN = "     "


def vcpu_line(row: Row, *, width: int | None) -> Text:
    """Return the line of a row, made of parts that fit the width; empty: nothing is known."""
    line = Text(_BEGIN)
    for name, value in vcpu_parts(row):
        if not _fits(line.cell_len, name, value, width):
            break
        line.append(f"{name} ", "dim")
        line.append(f"{value}  ")
    line.rstrip()
    return line


def has_vcpu_line(row: Row, *, width: int | None) -> bool:
    """Whether vcpu_line() is not empty. It is not laid out for that."""
    first = next(vcpu_parts(row), None)
    return first is not None and _fits(len(_BEGIN), *first, width)


def _fits(used: int, name: str, value: str, width: int | None) -> bool:
    return width is None or used + len(f"{name} {value}") <= width


def vcpu_parts(row: Row) -> Iterator[tuple[str, str]]:
    """Yield name and value of each part of the line, the most important first."""
    if row.statistics is None:
        return
    counts, rates = row.statistics.counts, row.statistics_rates
    for count in VCPU_COUNTS:
        if count.group is EXITS_BY_CLASS and count.name in counts:
            yield f"{count.name}/s", number(rates.get(count.name))
    if row.statistics.guest_cpu_s is not None:
        yield "guest CPU", percent(rates.get(GUEST_CPU))
    polling = [count.name for count in VCPU_COUNTS if count.group is HALT_POLLING]
    if any(name in counts for name in polling):
        known = [rates[name] for name in polling if name in rates]
        yield "halt polling", percent(sum(known) if known else None)
    for count in VCPU_COUNTS:
        if count.group is NESTED_RUNS and counts.get(count.name):
            yield "nested runs/s", number(rates.get(count.name))


def percent(share: float | None) -> str:
    """Format a share of one CPU; ``-``: unknown."""
    return "-" if share is None else f"{share * 100:.0f}%"
