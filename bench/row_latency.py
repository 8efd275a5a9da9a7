# SPDX-License-Identifier: Apache-2.0
"""How long /metrics takes, for one scraper and for ten at the same moment."""

from collections.abc import Iterator

from bench.rows import Row, percentile
from bench.steady import Bench

ORDER = 60
GOAL_MS = 60.0
TEN = 10


def measure(bench: Bench) -> Iterator[Row]:
    """Each answer is the first of a new refresh; ten scrapes at once share one."""
    plan = bench.plan
    steady = bench.steady(plan.vms)
    one = bench.scraped().seconds
    ten = steady.scrapes_at_once(TEN, plan.rounds_of_ten)
    for name, samples, who in (("one", one, "one scraper"), ("ten", ten, "ten at once")):
        for per_cent, goal in ((50, None), (99, GOAL_MS)):
            yield Row(
                key=f"latency.{name}.p{per_cent}",
                what=f"/metrics p{per_cent} at {plan.vms} VMs, {who}",
                value=percentile(samples, per_cent) * 1000,
                low=min(samples) * 1000,
                high=max(samples) * 1000,
                unit="ms",
                goal=goal,
                note=f"{len(samples)} answers, asked for as Prometheus does (OpenMetrics, gzip, "
                "kept connections); spread: the fastest and the slowest",
            )
