# SPDX-License-Identifier: Apache-2.0
"""Refreshes of a node of plain values show of which processes the cause is read, and when again."""

from dataclasses import replace

import pytest

from ebpf.tables import PID_MAX_LIMIT
from probes.host.emulation import EmulationFacts, Finding, RegisteredBetween, unknown
from probes.judge.cause import Cause, CauseFound
from probes.judge.emulation_tracker import MAX_PAUSE, MAX_READ_AGAIN
from tests.support.doubles import TCG, World, kvm_world, tcg_world
from tests.support.facts import KVM_ABSENT, VMM, kvm_process, tcg_process

NO = Finding(value=False, text="the pod has no /dev/kvm")
ALLOWED = EmulationFacts(
    architecture=Finding(value="x86_64", text="its program"),
    emulation_allowed=Finding(value=True, text="started with --allow-emulation"),
    device_in_pod=NO,
    device_accessible=unknown(NO.text),
    asked_for=Finding(value=("tcg",), text="QEMU was asked for tcg"),
)
"""Everything that can be known of a pod without the device."""


def cause_of(world: World) -> CauseFound:
    """Refresh and return why the only process emulates; its VM says the same."""
    report = world.refresh()
    (process,), (vmi,) = report.processes, report.vmis
    assert process.verdict.type is TCG
    assert process.cause is not None
    assert vmi.cause == process.cause
    return process.cause


def test_known_facts_are_read_once() -> None:
    """The facts of a process that are all known are not read again, and are reported each time."""
    world = tcg_world()
    world.pods.facts[VMM] = ALLOWED
    for _ in range(3):
        assert cause_of(world).cause is Cause.EMULATION_ALLOWED
    assert world.pods.asked == [[VMM]]
    assert world.pods.observed == 3


@pytest.mark.parametrize(
    "name", ["architecture", "emulation_allowed", "device_in_pod", "asked_for", "device_accessible"]
)
def test_an_unknown_fact_is_asked_for_again(name: str) -> None:
    """A process of which something is unknown is read again, until it is known."""
    world = tcg_world()
    complete = replace(
        ALLOWED,
        device_in_pod=Finding(value=True, text="the pod has it"),
        device_accessible=Finding(value=True, text="open to all"),
    )
    world.pods.facts[VMM] = replace(complete, **{name: unknown("unreadable")})
    world.refresh()
    world.refresh()
    world.pods.facts[VMM] = complete
    assert cause_of(world).cause is Cause.UNKNOWN  # the age of the accelerator is unknown
    world.refresh()
    assert world.pods.asked == [[VMM]] * 3


def test_what_stays_unknown_is_read_more_rarely() -> None:
    """Each pause is twice as long as the one before, up to a bound."""
    world = tcg_world()
    world.pods.facts[VMM] = replace(ALLOWED, emulation_allowed=unknown("unreadable"))
    read_at = []
    for refresh in range(1, 4 * MAX_PAUSE + 1):
        before = len(world.pods.asked)
        world.refresh()
        if len(world.pods.asked) > before:
            read_at.append(refresh)
    assert read_at == [1, 2, 4, 8, 16, 32, 48, 64]


def test_a_refresh_reads_few_processes_again() -> None:
    """Of many processes with something unknown, each refresh reads some, and none is forgotten."""
    # No process has such a number, and the one of the tests is none of a tracker's.
    vmms = [VMM._replace(tgid=PID_MAX_LIMIT + number) for number in range(3 * MAX_READ_AGAIN)]
    world = World(processes=tuple(tcg_process(vmm) for vmm in vmms))
    world.pods.facts = dict.fromkeys(vmms, replace(ALLOWED, asked_for=unknown("unreadable")))
    for _ in range(4):
        world.refresh()
    first, *again = world.pods.asked
    assert len(first) == len(vmms)
    assert [len(each) for each in again] == [MAX_READ_AGAIN] * 3
    assert {vmm for each in again for vmm in each} == {*vmms}


def test_what_is_known_stays() -> None:
    """A later reading fills in what was unknown, and changes nothing that was known."""
    world = tcg_world()
    world.pods.facts[VMM] = replace(ALLOWED, emulation_allowed=unknown("unreadable"))
    assert cause_of(world) == CauseFound(cause=Cause.UNKNOWN, detail="unreadable")
    yes = Finding(value=True, text="the pod has it now")
    world.pods.facts[VMM] = replace(ALLOWED, device_in_pod=yes, device_accessible=yes)
    assert cause_of(world).cause is Cause.EMULATION_ALLOWED


def test_what_could_not_be_read_again_stays() -> None:
    """A process that is left out of a later reading keeps the facts that are known."""
    world = tcg_world()
    world.pods.facts[VMM] = replace(ALLOWED, emulation_allowed=unknown("unreadable"))
    world.refresh()
    world.pods.facts.clear()
    assert cause_of(world).detail == "unreadable"


def test_a_process_that_cannot_be_read_has_an_unknown_cause() -> None:
    """Without any facts the cause is unknown, and the next refresh reads the process again."""
    world = tcg_world()
    assert cause_of(world).cause is Cause.UNKNOWN
    world.pods.facts[VMM] = ALLOWED
    assert cause_of(world).cause is Cause.EMULATION_ALLOWED


def test_facts_are_forgotten_with_their_process() -> None:
    """The next process with the same number is read for itself."""
    world = tcg_world()
    world.pods.facts[VMM] = ALLOWED
    world.refresh()
    later = VMM._replace(start_ticks=VMM.start_ticks + 5000)
    world.node.processes = {VMM.tgid: tcg_process(later)}
    world.books.lives = {VMM.tgid}
    world.pods.facts = {later: replace(ALLOWED, emulation_allowed=NO)}
    assert cause_of(world).cause is Cause.DEVICE_MISSING_IN_POD
    assert world.pods.asked == [[VMM], [later]]
    world.node.processes.clear()
    assert world.refresh().processes == ()
    assert world.collector._emulation.known.facts == {}


def test_only_processes_that_emulate_are_read() -> None:
    """An accelerated process has no cause, and its pod is left alone."""
    world = kvm_world()
    (process,) = world.refresh().processes
    assert process.cause is None
    assert world.pods.asked == []
    unverified = World(processes=(kvm_process(),))
    assert unverified.refresh().vmis[0].cause is None
    assert unverified.pods.asked == []


def test_the_node_is_asked_each_time() -> None:
    """The accelerator's trial and its age are those of the refresh, not of the first reading."""
    world = tcg_world()
    yes = Finding(value=True, text="yes")
    world.pods.facts[VMM] = replace(
        ALLOWED, emulation_allowed=NO, device_in_pod=yes, device_accessible=yes
    )
    world.trials.answer = KVM_ABSENT
    assert cause_of(world).cause is Cause.NODE_WITHOUT_ACCELERATOR
    world = World(processes=(tcg_process(),))
    world.pods.facts[VMM] = replace(
        ALLOWED, emulation_allowed=NO, device_in_pod=yes, device_accessible=yes
    )
    assert cause_of(world).cause is Cause.UNKNOWN
    world.pods.registered = RegisteredBetween(after_s=1e6, by_s=None)
    assert cause_of(world).cause is Cause.ACCELERATOR_ADDED_LATER
    world.pods.registered = RegisteredBetween(after_s=None, by_s=1.0)
    assert cause_of(world).cause is Cause.REQUESTED_BY_DOMAIN
