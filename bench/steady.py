# SPDX-License-Identifier: Apache-2.0
"""A steady agent over a fleet, scraped in a fixed rhythm; what rows of one fleet share.

Owns which fleet is up, so that rows that want the same one need not start it again, and how much
is measured. Must not know the rows.
"""

from __future__ import annotations

import itertools
import select
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Self

from bench.agent import Answer, AnswerBytes, BenchAgent, Connection
from bench.fleet import Fleet

BETWEEN_SCRAPES_S = 1.05
"""Each scrape is to make its own refresh, and a refresh is shared for 1 s (SHARED_FOR_S)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured."""

    vms: int = 1000
    fleets: tuple[int, ...] = (100, 300, 3000)
    """Further sizes whose CPU per scrape is measured."""
    vcpus: int = 8
    """Of each VM in the fleet of large VMs."""
    large_vms: int = 250
    scrapes: int = 220
    """At `vms`, one scraper: a p99 wants 200."""
    scrapes_elsewhere: int = 20
    rounds_of_ten: int = 40
    idle_s: float = 40.0
    starts: int = 5
    burst: int = 500
    hook_rounds: int = 24
    exits: int = 10000
    """Of a guest in each round."""
    guest_exits: int = 4000
    guest_rounds: int = 150
    event_rounds: int = 80


SHORT = Plan(
    vms=200,
    large_vms=50,
    fleets=(20, 60, 600),
    scrapes=12,
    scrapes_elsewhere=6,
    rounds_of_ten=4,
    idle_s=5,
    starts=2,
    burst=100,
    hook_rounds=6,
    exits=3000,
    guest_exits=1000,
    guest_rounds=8,
    event_rounds=8,
)
"""For work on the bench itself: every row, no figure worth keeping."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scraped:
    """A series of scrapes by one scraper."""

    seconds: list[float]
    """Of each answer."""
    cpu_s: list[float]
    """CPU time of the agent from each scrape's begin to the next one's: what was idle, too."""
    last: Answer


@dataclass
class Steady:
    """A fleet and an agent that knows it."""

    fleet: Fleet
    agent: BenchAgent
    _free_at_s: float = field(default=0.0)

    def settle(self) -> None:
        """Scrape until every VM is shown as what it is. Raises AssertionError: it never is."""
        for _ in range(5):
            if self.scrape().verified_kvm() == len(self.fleet.tgids):
                return
        raise AssertionError("the agent does not show every VM as kvm, verified")

    def scrape(self) -> Answer:
        """Let each VM make an exit, wait until a scrape makes its own refresh, and scrape."""
        self._wait_for_a_refresh()
        answer = self.agent.get()
        self._free_at_s = time.monotonic() + BETWEEN_SCRAPES_S
        assert answer.status == 200, answer.status
        return answer

    def scrapes(self, count: int) -> Scraped:
        """One scraper."""
        seconds: list[float] = []
        cpu_s: list[float] = []
        answer = self.scrape()
        for _ in range(count):
            self._wait_for_a_refresh()
            cpu_s.append(self.agent.cpu_s())
            answer = self.scrape()
            assert answer.verified_kvm() == len(self.fleet.tgids)
            seconds.append(answer.seconds)
        self._wait_for_a_refresh()
        cpu_s.append(self.agent.cpu_s())
        used = [after - before for before, after in itertools.pairwise(cpu_s)]
        return Scraped(seconds=seconds, cpu_s=used, last=answer)

    def scrapes_at_once(self, scrapers: int, rounds: int) -> list[float]:
        """Seconds of each answer, when so many ask at the same moment; all in one thread."""
        connections = [Connection(self.agent.port) for _ in range(scrapers)]
        seconds: list[float] = []
        for _ in range(rounds):
            self._wait_for_a_refresh()
            seconds += _ask_all(connections)
            self._free_at_s = time.monotonic() + BETWEEN_SCRAPES_S
        for each in connections:
            each.close()
        return seconds

    def _wait_for_a_refresh(self) -> None:
        """Let the VMs make their exits first, so that their cost is over before the scrape."""
        if self._free_at_s > time.monotonic():
            self.fleet.tick()
        while (left_s := self._free_at_s - time.monotonic()) > 0:
            time.sleep(left_s)


class Bench:
    """What rows are given. Use as a context manager."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._stack = ExitStack()
        self._steady: Steady | None = None
        self._is_of = (0, 0, False)
        """Which fleet it has: VMs, vCPUs of each, and whether they hold statistics."""
        self._scraped: dict[bool, Scraped] = {}

    def steady(self, vms: int, *, vcpus: int = 1, statistics: bool = False) -> Steady:
        """An agent that knows such a fleet; the last one, if it is that."""
        wanted = (vms, vcpus, statistics)
        if self._steady is None or self._is_of != wanted:
            self.release()
            fleet = Fleet(vms, vcpus=vcpus, statistics=statistics)
            self._stack.enter_context(fleet)
            agent = self._stack.enter_context(BenchAgent(*fleet.agent_arguments))
            self._steady, self._is_of = Steady(fleet, agent.wait_ready()), wanted
            self._steady.settle()
        return self._steady

    def scraped(self, *, statistics: bool = False) -> Scraped:
        """One long series at plan.vms, which rows of CPU and of latency share."""
        if statistics not in self._scraped:
            steady = self.steady(self.plan.vms, statistics=statistics)
            self._scraped[statistics] = steady.scrapes(self.plan.scrapes)
        return self._scraped[statistics]

    def release(self) -> None:
        """End the fleet and the agent that are up, if any: a row wants the machine."""
        self._stack.close()
        self._steady = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _ask_all(connections: list[Connection]) -> list[float]:
    waiting = select.epoll()
    begun: dict[int, float] = {}
    by_fd = {connection.socket.fileno(): connection for connection in connections}
    answers = {fd: AnswerBytes() for fd in by_fd}
    seconds: list[float] = []
    for fd, connection in by_fd.items():
        waiting.register(fd, select.EPOLLIN)
        begun[fd] = time.perf_counter()
        connection.send("/metrics")
    while begun:
        for fd, _ in waiting.poll():
            read = by_fd[fd].socket.recv(1 << 20)
            assert read, "the agent closed a connection"
            answers[fd].add(read)
            if answers[fd].complete:
                seconds.append(time.perf_counter() - begun.pop(fd))
                waiting.unregister(fd)
    waiting.close()
    assert all(answer.answer(0).status == 200 for answer in answers.values())
    return seconds
