# SPDX-License-Identifier: Apache-2.0
"""The agent's CPU time when no client scrapes it."""

import time
from collections.abc import Iterator

from bench.rows import Row
from bench.steady import Bench

ORDER = 80
GOAL_PER_CENT = 0.1


def measure(bench: Bench) -> Iterator[Row]:
    """CPU time of all the agent's processes. What the hooks cost is CPU time of the VMs instead."""
    plan = bench.plan
    agent = bench.steady(plan.vms).agent
    time.sleep(1.0)  # the last scrape is over
    begun_s, used_s = time.monotonic(), agent.cpu_s()
    time.sleep(plan.idle_s)
    used_s = agent.cpu_s() - used_s
    took_s = time.monotonic() - begun_s
    yield Row(
        key="idle",
        what=f"idle CPU with {plan.vms} VMs and no scrape",
        value=100 * used_s / took_s,
        unit="% of a core",
        goal=GOAL_PER_CENT,
        note=f"over {took_s:.0f} s, VMs known and VMI watch open",
    )
