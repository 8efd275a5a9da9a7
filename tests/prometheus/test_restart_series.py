# SPDX-License-Identifier: Apache-2.0
"""What Prometheus has of a VMI whose agent is restarted, scraped as the shipped PodMonitor asks."""

import copy
import itertools
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.kernel_agent import Agent
from tests.support.kernel_world import KvmLoad, Qemu, build_kvmload, wait_for
from tests.support.podmonitor import Pod, in_file, scrape_job, shipped, write_pods
from tests.support.prometheus_process import running_prometheus
from tests.support.queries import ask, run_query

NODE = "n1"
ACCELERATED, EMULATED = (f"{name}-{os.getpid()}" for name in ("accelerated", "emulated"))
INTERVAL = str(shipped()["spec"]["podMetricsEndpoints"][0]["interval"])
INTERVAL_S = int(INTERVAL.removesuffix("s"))
"""As shipped. Prometheus takes up to 10 s to notice another pod, so a shorter one shows nothing."""
MISSED_SCRAPES = 2
"""How many a restart may cost a series, besides those for which there is no agent."""
WINDOW = "10m"
"""Longer than this test."""
BEFORE, BETWEEN, AFTER = 100_003, 20_011, 5_003
"""Userspace exits of the accelerated guest under the first agent, under none, and the second."""
PER_VMI = "kubevirt_vmi_.+"


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """The Prometheus, the file in which it looks for pods, and the accelerated guest."""

    url: str
    pods: Path
    load: KvmLoad

    def series(self, job: str, metric: str, name: str) -> list[dict[str, str]]:
        """The label sets of all series of a VMI that a job has ever had."""
        selector = f'{{__name__=~"{metric}",job="{job}",name="{name}"}}'
        found: Any = ask(self.url, "series", {"match[]": selector})
        return list(found)

    def samples(self, metric: str, name: str) -> list[tuple[float, float]]:
        """Time and value of each sample of the one series that the shipped job has of a VMI."""
        selector = f'{metric}{{job="hvprobe",name="{name}"}}'
        (series,) = run_query_of_range(self.url, selector)
        return [(float(at), float(value)) for at, value in series["values"]]

    def values(self, metric: str) -> list[float]:
        """The accelerated guest's values of a counter, in the order of their scrapes."""
        return [value for _, value in self.samples(metric, ACCELERATED)]

    def wait_for_exits(self, number: int) -> None:
        """Wait until a scrape of the accelerated guest's exits has found that many."""
        query = f'kubevirt_vmi_vcpu_exits_total{{job="hvprobe",name="{ACCELERATED}"}} >= {number}'
        deadline_s = (MISSED_SCRAPES + 3) * INTERVAL_S
        wait_for(lambda: run_query(self.url, query), f"{number} exits are scraped", deadline_s)

    def wait_for_bare_series(self, name: str, *pods: str) -> None:
        """Wait until the job without our relabelling has a series of the VMI for each pod."""

        def all_pods() -> bool:
            bare = self.series("hvprobe/bare", "kubevirt_vmi_hypervisor_info", name)
            return {each["pod"] for each in bare} == {*pods}

        deadline_s = (MISSED_SCRAPES + 1) * INTERVAL_S
        wait_for(all_pods, f"the other job has scraped {' and '.join(pods)}", deadline_s)


def run_query_of_range(url: str, selector: str) -> list[dict[str, Any]]:
    """Every stored sample of each series that the selector has."""
    found: list[dict[str, Any]] = ask(url, "query", {"query": f"{selector}[{WINDOW}]"})["result"]
    return found


def bare_job(pods: Path) -> dict[str, Any]:
    """The same PodMonitor without any relabelling of ours, which is job="hvprobe/bare"."""
    monitor = copy.deepcopy(shipped())
    monitor["metadata"]["name"] = "bare"
    del monitor["spec"]["jobLabel"]
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    del endpoint["relabelings"], endpoint["metricRelabelings"]
    return scrape_job(in_file(pods), interval=INTERVAL, monitor=monitor)


@contextmanager
def agent_in(pod: str, pods: Path) -> Iterator[Agent]:
    """A real agent, discovered as the pod of that name as long as the block lasts."""
    with Agent("--standalone", "--node", NODE) as agent:
        address = agent.url.partition("://")[2]
        write_pods(pods, [Pod(name=pod, node=NODE, address=address)])
        yield agent
        assert agent.end(signal.SIGTERM, 20) == 0
    write_pods(pods, [])


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    """Two guests and a Prometheus that scrapes whatever pod is in the file."""
    pods = tmp_path / "pods.json"
    write_pods(pods, [])
    config = {
        "scrape_configs": [
            scrape_job(in_file(pods), interval=INTERVAL),
            bare_job(pods),
        ]
    }
    named = ("-name", f"guest=lab_{ACCELERATED}", "--statistics", "--step")
    with (
        KvmLoad(build_kvmload(tmp_path), *named).finish_counted_part() as load,
        Qemu(f"lab_{EMULATED}", accel=("tcg",)),
        running_prometheus(tmp_path, config) as url,
    ):
        yield Watched(url=url, pods=pods, load=load)


@pytest.mark.timeout(600)
def test_a_vmi_keeps_its_series_when_its_agent_is_restarted(watched: Watched) -> None:
    """One series per VMI and metric under two pods' names, no long gap, and no counter restarts.

    The same pods without our relabelling have two of each, so one is not what any scrape gives.
    """
    with agent_in("hvprobe-first", watched.pods):
        watched.load.step(BEFORE)
        watched.wait_for_exits(BEFORE)
        # Each job scrapes at times of its own.
        for name in (ACCELERATED, EMULATED):
            watched.wait_for_bare_series(name, "hvprobe-first")
        ended = time.monotonic()
    watched.load.step(BETWEEN)
    with agent_in("hvprobe-second", watched.pods):
        restart_s = time.monotonic() - ended
        watched.load.step(AFTER)
        watched.wait_for_exits(watched.load.totals["exits"])
        kinds = {series["__name__"] for series in watched.series("hvprobe", PER_VMI, ACCELERATED)}
        assert {"kubevirt_vmi_hypervisor_info", "kubevirt_vmi_vcpu_exits_total"} <= kinds
        for name in (ACCELERATED, EMULATED):
            ours = watched.series("hvprobe", "kubevirt_vmi_hypervisor_(info|fallback)", name)
            assert [each["__name__"] for each in ours] == sorted(
                {each["__name__"] for each in ours}
            )
            assert all(each["instance"] == NODE for each in ours)
            assert not any({"pod", "container"} & each.keys() for each in ours)
            watched.wait_for_bare_series(name, "hvprobe-first", "hvprobe-second")
            times = [at for at, _ in watched.samples("kubevirt_vmi_hypervisor_info", name)]
            gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
            assert max(gaps) <= restart_s + MISSED_SCRAPES * INTERVAL_S
        made = watched.load.totals["exits"]
        assert made >= BEFORE + BETWEEN + AFTER
        by_kvm = watched.values("kubevirt_vmi_vcpu_exits_total")
        assert by_kvm == sorted(by_kvm)
        assert by_kvm[0] <= made - BETWEEN - AFTER
        assert by_kvm[-1] == made
        # The hooks count from 0 with each agent: the one reset that is none of a counter's own, and
        # after it what the second agent saw, no more.
        by_hooks = watched.values("kubevirt_vmi_vcpu_userspace_exits_total")
        assert [before > now for before, now in itertools.pairwise(by_hooks)].count(True) == 1
        assert (max(by_hooks), by_hooks[-1]) == (BEFORE, AFTER)
    # up and what the agent says of itself keep the pod: whose log to read.
    found = run_query(
        watched.url, f'count by (pod) (last_over_time(up{{job="hvprobe"}}[{WINDOW}]))'
    )
    assert {each["metric"]["pod"] for each in found} == {"hvprobe-first", "hvprobe-second"}
    for metric in ("hvprobe_build_info", "process_start_time_seconds"):
        query = f'count by (pod, instance) (last_over_time({metric}{{job="hvprobe"}}[{WINDOW}]))'
        labels = {tuple(sorted(each["metric"].items())) for each in run_query(watched.url, query)}
        assert labels == {
            (("instance", NODE), ("pod", pod)) for pod in ("hvprobe-first", "hvprobe-second")
        }
