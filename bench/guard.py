# SPDX-License-Identifier: Apache-2.0
"""What must not get worse, as ratios that a short run gives on any machine.

Owns the ratios and what each may be worse by. Must not know the stored ones. A ratio's two sides
are measured in turns in one run, so that machine, frequency and neighbours are the same on both.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from bench.agent import BenchAgent, memory_of
from bench.fleet import Fleet
from bench.hooks import COMMON, EMPTY, OURS, hook_programs
from bench.peers import PEERS, running
from bench.row_hook import warm
from bench.steady import Steady
from bench.turns import over
from bench.work import work_s

VMS = 300
SCRAPES = 10
ROUNDS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarded:
    """One ratio."""

    what: str
    tolerance: float
    """How many times the stored ratio it may be. See docs/benchmarks.md for the measured spread."""


GUARDED: Mapping[str, Guarded] = {
    "hook_over_common": Guarded(
        what="one exit in the hook over the common form's (hash increment, atomic), run in a loop",
        tolerance=1.5,
    ),
    "scrape_over_work": Guarded(
        what=f"CPU per scrape at {VMS} VMs over a fixed piece of pure Python work",
        tolerance=1.3,
    ),
    "memory_over_libraries": Guarded(
        what=f"RSS of the agent with {VMS} VMs over that of the three libraries alone",
        tolerance=1.15,
    ),
}


def guard_ratios() -> dict[str, float]:
    """Measure all of them now. Takes about half a minute."""
    with hook_programs() as hooks:
        ns = warm(hooks, ROUNDS)
    ours, common = (median(over(ns, name, EMPTY)) for name in (OURS, COMMON))
    ratios = {"hook_over_common": ours / common}
    with Fleet(VMS) as fleet, BenchAgent(*fleet.agent_arguments) as agent:
        steady = Steady(fleet, agent.wait_ready())
        steady.settle()
        series, work = [], []
        for _ in range(SCRAPES):
            work.append(work_s())
            series.append(steady.scrapes(1).cpu_s[0])
        ratios["scrape_over_work"] = median(series) / median(work)
        held = agent.memory().rss
    with running(PEERS[-1]) as libraries:
        ratios["memory_over_libraries"] = held / memory_of(libraries).rss
    return ratios


def worse(now: Mapping[str, float], stored: Mapping[str, float]) -> list[str]:
    """What got worse by more than its tolerance, a line each."""
    found = []
    for name, guarded in GUARDED.items():
        limit = stored[name] * guarded.tolerance
        if now[name] > limit:
            found.append(
                f"{guarded.what}: {now[name]:.3g}, stored {stored[name]:.3g}, allowed {limit:.3g}"
            )
    return found
