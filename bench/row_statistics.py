# SPDX-License-Identifier: Apache-2.0
"""What the agent spends when KVM's own statistics count the exits of every VM.

The rows of scrapes have the same goals as those whose exits the hook counts. The last rows read
the statistics alone, because ten times as many VMs leave no room for a useful scrape here: in the
kernel's memory, as the agent does where it can, and through copies of descriptors.
"""

import contextlib
import time
from collections.abc import Iterator
from enum import StrEnum

from bench.fleet import Fleet, State
from bench.row_latency import GOAL_MS as LATENCY_MS
from bench.row_scrape_cpu import GOAL_MS as CPU_MS
from bench.row_scrape_cpu import cpu_row
from bench.rows import Row, Spread, percentile, spread
from bench.steady import Bench
from ebpf.statistics.session import StatisticsSession
from probes.host.process import VmmId
from probes.host.reader import Host

ORDER = 47
TIMES = 10
PROOFS = 3
"""Readings before those that count: some that prove, and one that releases what proofs needed."""
TRIES = 4
"""How many readings are tried for each that is wanted."""
GROWTH = 11.0
"""The most that ten times the VMs may cost, in times."""


class Way(StrEnum):
    """How statistics are read."""

    MEMORY = "in memory"
    COPIES = "through copies"


def measure(bench: Bench) -> Iterator[Row]:
    """Many small VMs, fewer large ones, then the growth."""
    plan = bench.plan
    small = bench.scraped(statistics=True)
    yield cpu_row(
        key="statistics.small",
        what=f"{plan.vms} VMs that KVM's statistics count",
        series=small,
        goal=CPU_MS,
    )
    yield Row(
        key="statistics.p99",
        what=f"/metrics p99 at {plan.vms} VMs that KVM's statistics count, one scraper",
        value=percentile(small.seconds, 99) * 1000,
        low=min(small.seconds) * 1000,
        high=max(small.seconds) * 1000,
        unit="ms",
        goal=LATENCY_MS,
        note=f"{len(small.seconds)} answers; spread: the fastest and the slowest",
    )
    large = bench.steady(plan.large_vms, vcpus=plan.vcpus, statistics=True)
    yield cpu_row(
        key="statistics.large",
        what=f"{plan.large_vms} VMs of {plan.vcpus} vCPUs that KVM's statistics count",
        series=large.scrapes(plan.scrapes_elsewhere),
        goal=CPU_MS,
    )
    bench.release()
    some, many = (_reading_ms(plan.vms * times, plan.rounds_of_ten) for times in (1, TIMES))
    for way in Way:
        yield from _reading_rows(plan.vms, way, spread(some[way]), spread(many[way]))


def _reading_rows(vms: int, way: Way, some: Spread, many: Spread) -> Iterator[Row]:
    """What a reading takes in one way, and how that grows."""
    yield Row(
        key=f"statistics.{way.name.lower()}",
        what=f"reading the statistics of {vms} VMs of one vCPU {way}",
        value=some.middle,
        low=some.low,
        high=some.high,
        unit="ms",
        note="CPU time of the reading process",
    )
    yield Row(
        key=f"statistics.{way.name.lower()}.growth",
        what=f"reading {way} the statistics of {vms * TIMES} VMs over those of {vms}",
        value=many.middle / some.middle,
        low=many.low / some.middle,
        high=many.high / some.middle,
        unit="times",
        goal=GROWTH,
        note=f"{many.middle:.1f} ms over {some.middle:.1f} ms",
    )


def _reading_ms(vms: int, readings: int) -> dict[Way, list[float]]:
    """CPU time of each reading of so many VMs, both ways in one run, once all are known."""
    with (
        contextlib.ExitStack() as opened,
        Fleet(vms, State.HALTED, statistics=True) as fleet,
    ):
        hosts: dict[Way, Host] = {}
        for way in Way:
            memory = StatisticsSession() if way is Way.MEMORY else None
            hosts[way] = opened.enter_context(contextlib.closing(Host(memory=memory)))
            if memory is not None:
                opened.callback(memory.close)
        first = hosts[Way.COPIES]
        named = (first.identify(tgid) for tgid in fleet.tgids)
        wanted: list[tuple[VmmId, int]] = [(vmm, 1) for vmm in named if vmm is not None]
        assert len(wanted) == vms
        for host in hosts.values():
            while len(_counted(host, wanted)) < vms:  # listing has a time limit for each reading
                pass
            for _ in range(PROOFS):  # numbers in memory are compared within a time limit, too
                _counted(host, wanted)
        return {way: _samples(host, wanted, readings) for way, host in hosts.items()}


def _samples(host: Host, wanted: list[tuple[VmmId, int]], readings: int) -> list[float]:
    samples: list[float] = []
    for _ in range(readings * TRIES):
        begun_s = time.process_time()
        counted = _counted(host, wanted)
        took_s = time.process_time() - begun_s
        if len(counted) == len(wanted):  # else a pause of the machine used up the reading's time
            samples.append(took_s * 1000)
        if len(samples) == readings:
            return samples
    raise AssertionError(f"{len(samples)} of {readings * TRIES} readings had all {len(wanted)} VMs")


def _counted(host: Host, wanted: list[tuple[VmmId, int]]) -> list[int]:
    """Read the statistics; the exits of each VM that could be read."""
    readings = host.read_statistics(wanted, new_threads=())
    return [reading.counts[0][0] for reading in readings.values() if reading.counts]
