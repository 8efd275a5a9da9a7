# SPDX-License-Identifier: Apache-2.0
"""The time from the agent's start to the first scrape that shows every VM of a full node."""

import time
from collections.abc import Iterator
from statistics import median

from bench.agent import BenchAgent
from bench.fleet import Fleet, State
from bench.peers import PEERS, Peer, seconds_to_first_output
from bench.rows import Beside, Row
from bench.steady import Bench

ORDER = 30
GOAL_S = 2.0
DEADLINE_S = 30.0


def measure(bench: Bench) -> Iterator[Row]:
    """The VMs sleep inside KVM_RUN, as idle guests do, so only /proc shows what they are."""
    plan = bench.plan
    bench.release()
    with Fleet(plan.vms, State.HALTED) as fleet:
        took_s = [_start(fleet) for _ in range(plan.starts)]
    beside = [_beside(peer, plan.starts) for peer in PEERS if peer.speaks]
    yield Row(
        key="start",
        what=f"process start to first complete scrape, {plan.vms} VMs running",
        value=median(took_s),
        low=min(took_s),
        high=max(took_s),
        unit="s",
        goal=GOAL_S,
        beside=tuple(beside),
        note=f"{plan.starts} starts; spread: the fastest and the slowest",
    )


def _start(fleet: Fleet) -> float:
    with BenchAgent(*fleet.agent_arguments) as agent:
        agent.wait_ready()
        while agent.get().verified_kvm() != len(fleet.tgids):
            assert time.monotonic() - agent.started_s < DEADLINE_S, "not every VM is shown"
            time.sleep(0.01)
        return time.monotonic() - agent.started_s


def _beside(peer: Peer, starts: int) -> Beside:
    name = f"{peer.name}, to its first output"
    seconds = seconds_to_first_output(peer, starts)
    if isinstance(seconds, str):
        return Beside(name=name, value=None, why=seconds)
    return Beside(name=name, value=median(seconds))
