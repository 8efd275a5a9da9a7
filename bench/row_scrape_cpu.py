# SPDX-License-Identifier: Apache-2.0
"""CPU time of the agent for a scrape, at several sizes, and how it grows."""

from collections.abc import Iterator

from bench.rows import Row, spread
from bench.steady import Bench, Scraped

ORDER = 50
GOAL_MS = 25.0
GROWTH = 10.0
"""The most that ten times the VMs may cost, in times."""


def measure(bench: Bench) -> Iterator[Row]:
    """Each size, then ten times one size over it."""
    plan = bench.plan
    cost_ms: dict[int, float] = {}
    for vms in (*plan.fleets, plan.vms):
        steady = bench.steady(vms)
        series = bench.scraped() if vms == plan.vms else steady.scrapes(plan.scrapes_elsewhere)
        row = cpu_row(
            key=f"scrape_cpu.{vms}",
            what=f"{vms} VMs",
            series=series,
            goal=GOAL_MS if vms == plan.vms else None,
        )
        cost_ms[vms] = row.value
        yield row
    for vms, ms in sorted(cost_ms.items()):
        if vms * 10 in cost_ms:
            yield Row(
                key=f"scrape_cpu.growth_{vms * 10}",
                what=f"CPU per scrape at {vms * 10} VMs over that at {vms}",
                value=cost_ms[vms * 10] / ms,
                unit="times",
                goal=GROWTH,
            )


def cpu_row(*, key: str, what: str, series: Scraped, goal: float | None) -> Row:
    """Return the row of what a series of scrapes cost the agent."""
    ms = [used_s * 1000 for used_s in series.cpu_s]
    spread_ms = spread(ms)
    return Row(
        key=key,
        what=f"CPU per scrape at {what}",
        value=sum(ms) / len(ms),
        low=spread_ms.low,
        high=spread_ms.high,
        unit="ms",
        goal=goal,
        note=f"all CPU time of the agent over {len(ms)} scrapes and the seconds between them, "
        "divided by their number; every VM made an exit before each",
    )
