# SPDX-License-Identifier: Apache-2.0
"""Every scenario of the table, with the hooks attached before it and after it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ebpf.hooks import KVM_VCPU_IOCTL
from tests.support.kernel_ledger import wait_for_removal
from tests.support.kernel_node import Node
from tests.support.kernel_scenarios import SCENARIOS, Expected, Scenario, World
from tests.support.kernel_world import Started, wait_for

pytestmark = pytest.mark.every_kernel

LOOKS_AT_NOTHING = 5
"""Looks at which a process that must not be shown stays away, after the node was seen to look."""


@pytest.fixture(scope="module")
def world(kvmload: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(kvmload=kvmload, scratch=tmp_path_factory.mktemp("scenarios"))


@pytest.fixture(scope="module")
def all_running(world: World) -> Iterator[dict[str, Started]]:
    """All scenarios at once, all of them there before any hook."""
    started = {scenario.name: scenario.start(world) for scenario in SCENARIOS}
    yield started
    for process in started.values():
        process.kill()


@pytest.fixture(scope="module")
def late_node(all_running: dict[str, Started]) -> Iterator[Node]:
    with Node() as node:
        yield node


def check(node: Node, tgid: int, expected: Expected | None) -> str:
    """Look until the verdict is the expected one; what was reported in the end."""
    if expected is None:
        for _ in range(LOOKS_AT_NOTHING):
            assert node.process(tgid) is None
        return "not shown"
    wait_for(
        lambda: node.verdict(tgid, expected.type) == (expected.type, expected.proof.holds(tgid)),
        f"{tgid} is {expected}",
    )
    shown = node.process(tgid)
    assert shown is not None
    sure = "verified" if shown.verdict.verified else "inferred"
    return f"{shown.verdict.type}, {sure}: {shown.verdict.reasons[0].sentence}"


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_seen_from_the_start(
    node: Node, world: World, scenario: Scenario, record_property: Callable[[str, object], None]
) -> None:
    """Hooks first: the verdict is the table's, the counts are exact, the record leaves with it."""
    needs = scenario.seen_early_by
    early = scenario.early if needs is None or node.has(needs) else None
    with scenario.start(world) as process:
        record_property("verdict", check(node, process.tgid, early))
        made = scenario.userspace_exits
        if made is not None:
            wait_for(
                lambda: (
                    node.session.read().entries[process.tgid].counters["userspace_exits"] >= made
                ),
                "the last exit is recorded",
            )
            shown = node.process(process.tgid)
            assert shown is not None
            assert shown.counters.get("userspace_exits") == made
            if node.has(KVM_VCPU_IOCTL):
                assert shown.counters.get("runs") == scenario.runs
        check(node, process.tgid, early)
    wait_for_removal(node.session, process.tgid)
    assert node.process(process.tgid) is None


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_found_running(
    late_node: Node,
    all_running: dict[str, Started],
    scenario: Scenario,
    record_property: Callable[[str, object], None],
) -> None:
    """Process first: what is proven without having seen it start is the table's."""
    verdict = check(late_node, all_running[scenario.name].tgid, scenario.late)
    record_property("verdict", verdict)
