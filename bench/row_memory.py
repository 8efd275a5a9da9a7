# SPDX-License-Identifier: Apache-2.0
"""What the steady agent holds, beside what others hold before they know a VM."""

from collections.abc import Iterator

from bench.peers import PEERS, memory_beside
from bench.rows import Beside, Row
from bench.steady import Bench

ORDER = 70
GOAL_MIB = 64.0
MIB = 1 << 20


def measure(bench: Bench) -> Iterator[Row]:
    """After all scrapes that other rows took of it: it has grown to what it stays at."""
    plan = bench.plan
    held = bench.steady(plan.vms).agent.memory()
    peers = {peer.name: memory_beside(peer) for peer in PEERS}
    note = f"{held.processes} process(es) of the agent, added up"
    for name, goal in (("rss", GOAL_MIB), ("pss", None), ("anonymous", None)):
        beside = []
        for peer, memory in peers.items():
            if isinstance(memory, str):
                beside.append(Beside(name=peer, value=None, why=memory))
            else:
                beside.append(Beside(name=peer, value=getattr(memory, name) / MIB))
        yield Row(
            key=f"memory.{name}",
            what=f"{name.upper() if len(name) == 3 else name} memory with {plan.vms} VMs and VMIs",
            value=getattr(held, name) / MIB,
            unit="MiB",
            goal=goal,
            beside=tuple(beside),
            note=note,
        )
