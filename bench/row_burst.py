# SPDX-License-Identifier: Apache-2.0
"""Many VMMs that start at the same moment, under an agent that runs."""

import time
from collections.abc import Iterator

from bench.agent import Answer, BenchAgent
from bench.fleet import Fleet, State
from bench.rows import Row
from bench.steady import BETWEEN_SCRAPES_S, Bench

ORDER = 40


def measure(bench: Bench) -> Iterator[Row]:
    """All of them in the ledger, none dropped, each right at the next scrape."""
    vms = bench.plan.burst
    bench.release()
    with (
        Fleet(0, State.HALTED) as fleet,
        BenchAgent(*fleet.agent_arguments) as agent,
    ):
        before = agent.wait_ready().get()
        asked_s = time.monotonic()
        fleet.grow(vms)
        took_s = time.monotonic() - asked_s
        time.sleep(max(0.0, BETWEEN_SCRAPES_S - took_s))  # the next scrape makes its own refresh
        after = agent.get()
    note = (
        f"they started within {took_s:.2f} s, cgroups and VMIs included; "
        f"the scrape took {after.seconds * 1000:.0f} ms"
    )
    ledger = _value(after, "hvprobe_ledger_entries") - _value(before, "hvprobe_ledger_entries")
    for key, what, value in (
        ("ledger", "not in the ledger", vms - ledger),
        ("dropped", "events dropped", _value(after, "hvprobe_ledger_dropped_total")),
        ("verdicts", "without the right verdict at the next scrape", vms - after.verified_kvm()),
    ):
        yield Row(
            key=f"burst.{key}",
            what=f"{vms} VMMs started at once: {what}",
            value=value,
            unit="",
            goal=0,
            note=note,
        )


def _value(answer: Answer, metric: str) -> float:
    value = answer.value(metric)
    assert value is not None, f"no {metric}"
    return value
