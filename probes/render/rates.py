# SPDX-License-Identifier: Apache-2.0
"""Computes a rate from two totals of a counter. Pure.

Owns when there is a rate at all. Must not know what is counted.
"""

from collections.abc import Mapping


def rates_of(
    before: Mapping[str, float], now: Mapping[str, float], seconds: float
) -> dict[str, float]:
    """Return events per second by the counter's name, without counters that have no rate."""
    rates: dict[str, float] = {}
    for name, total in now.items():
        rate = per_second(before.get(name), total, seconds)
        if rate is not None:
            rates[name] = rate
    return rates


def per_second(before: float | None, now: float | None, seconds: float) -> float | None:
    """Return events per second between two readings; None: there is no rate.

    There is none if a total is missing, if no time has passed (the clock was set), or if the total
    decreased because the hook was attached again or the process was replaced.
    """
    if before is None or now is None or seconds <= 0 or now < before:
        return None
    return (now - before) / seconds
