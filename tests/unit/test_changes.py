# SPDX-License-Identifier: Apache-2.0
"""The steps of a process: when it is looked at, read and judged, and when its verdict stands."""

from dataclasses import replace

import pytest

from ebpf.hooks import SCHED_PROCESS_FREE
from ebpf.ledger import LedgerEntry
from probes.host.hypervisors import HypervisorType
from probes.judge.changes import (
    FREED_WITHIN_NS,
    event_of_reading,
    next_step,
    record_is_stale,
    tracked_process,
)
from probes.judge.evidence import Evidence
from probes.judge.reasons import Reason
from probes.judge.tracked import Action, Event, State, Step, TrackedProcess
from probes.judge.verdict import Verdict
from tests.support.facts import (
    ALL_HOOKS,
    RUNS_ON_KVM,
    STARTED_NS,
    entry,
    evidence,
    hooks,
    kernel,
    process,
    tracked,
)

PLAIN = tracked()
"""Proven to run on KVM without a record."""
RECORDED = tracked(record_ns=entry().first_ns)
PAUSED = Verdict(type=HypervisorType.KVM, verified=False, reasons=(Reason.HOLDS_VCPUS,))
UNPROVEN = replace(RECORDED, state=State.RECHECK, verdict=PAUSED)
MAIN_THREAD_ENDED = replace(RECORDED, state=State.RECHECK)
RECHECKED = replace(PLAIN, state=State.RECHECK)
DOUBTED = replace(PLAIN, state=State.DOUBTED)
SIDECAR = replace(PLAIN, named_like_qemu=False)
OTHER = entry(first_ns=entry().first_ns + 1)
NOT_FOLLOWED = (State.RECHECK, State.DOUBTED)


# every state and every event


@pytest.mark.parametrize(
    ("known", "event", "action", "state"),
    [
        (None, Event.LISTED, Action.SCAN, State.NEW),
        (None, Event.DUE, Action.SCAN, State.NEW),
        (None, Event.UNFOLLOWED, Action.SCAN, State.NEW),
        (None, Event.MARKED, Action.SCAN, State.NEW),
        (None, Event.FOUND, Action.READ, State.NEW),
        (None, Event.PLAIN, Action.SET_ASIDE, State.OTHER),
        (None, Event.UNREAD, Action.WAIT, State.NEW),
        (None, Event.ENDED, Action.DROP, State.ENDED),
        (None, Event.VMM, Action.JUDGE, None),
        (None, Event.NO_VMM, Action.SET_ASIDE, State.OTHER),
        (PLAIN, Event.LISTED, Action.LEAVE, State.FOLLOWED),
        (PLAIN, Event.DUE, Action.SCAN, State.FOLLOWED),
        (PLAIN, Event.UNFOLLOWED, Action.SCAN, State.RECHECK),
        (PLAIN, Event.MARKED, Action.SCAN, State.DOUBTED),
        (PLAIN, Event.FOUND, Action.LEAVE, State.FOLLOWED),
        (PLAIN, Event.PLAIN, Action.READ, State.RECHECK),
        (SIDECAR, Event.PLAIN, Action.LEAVE, State.FOLLOWED),
        (PLAIN, Event.UNREAD, Action.WAIT, State.FOLLOWED),
        (PLAIN, Event.ENDED, Action.DROP, State.ENDED),
        (PLAIN, Event.VMM, Action.KEEP, None),
        (PLAIN, Event.REPLACED, Action.JUDGE, None),
        (PLAIN, Event.NO_VMM, Action.SET_ASIDE, State.OTHER),
        (RECHECKED, Event.LISTED, Action.SCAN, State.RECHECK),
        (RECHECKED, Event.DUE, Action.SCAN, State.RECHECK),
        (RECHECKED, Event.UNFOLLOWED, Action.SCAN, State.RECHECK),
        (RECHECKED, Event.MARKED, Action.SCAN, State.DOUBTED),
        (RECHECKED, Event.FOUND, Action.READ, State.RECHECK),
        (RECHECKED, Event.PLAIN, Action.READ, State.RECHECK),
        (RECHECKED, Event.UNREAD, Action.WAIT, State.RECHECK),
        (RECHECKED, Event.ENDED, Action.DROP, State.ENDED),
        (RECHECKED, Event.VMM, Action.KEEP, None),
        (RECHECKED, Event.REPLACED, Action.JUDGE, None),
        (RECHECKED, Event.NO_VMM, Action.SET_ASIDE, State.OTHER),
        (DOUBTED, Event.LISTED, Action.SCAN, State.DOUBTED),
        (DOUBTED, Event.DUE, Action.SCAN, State.DOUBTED),
        (DOUBTED, Event.UNFOLLOWED, Action.SCAN, State.DOUBTED),
        (DOUBTED, Event.MARKED, Action.SCAN, State.DOUBTED),
        (DOUBTED, Event.FOUND, Action.READ, State.DOUBTED),
        (DOUBTED, Event.PLAIN, Action.READ, State.DOUBTED),
        (DOUBTED, Event.UNREAD, Action.WAIT, State.DOUBTED),
        (DOUBTED, Event.ENDED, Action.DROP, State.ENDED),
        (DOUBTED, Event.VMM, Action.JUDGE, None),
        (DOUBTED, Event.REPLACED, Action.JUDGE, None),
        (DOUBTED, Event.NO_VMM, Action.SET_ASIDE, State.OTHER),
    ],
)
def test_steps(
    known: TrackedProcess | None, event: Event, action: Action, state: State | None
) -> None:
    """What follows each event in each state, for a process without a record."""
    assert next_step(known, event, None) == Step(action=action, state=state)


def test_a_new_process_with_a_record_is_read() -> None:
    """It uses an accelerator, whatever it is called."""
    assert next_step(None, Event.PLAIN, entry()) == Step(action=Action.READ, state=State.NEW)


@pytest.mark.parametrize(
    "known", [RECORDED, MAIN_THREAD_ENDED, replace(RECORDED, state=State.DOUBTED)]
)
def test_a_mark_counts_whatever_the_record_says(known: TrackedProcess) -> None:
    """Its record is the one it was judged with, and what it does may be something else."""
    step = next_step(known, Event.MARKED, entry())
    assert step == Step(action=Action.SCAN, state=State.DOUBTED)
    assert next_step(replace(known, state=State.DOUBTED), Event.VMM, entry()).action is Action.JUDGE


# what its record says


@pytest.mark.parametrize(
    ("known", "record", "needs"),
    [
        (PLAIN, None, False),
        (PLAIN, entry(), True),
        (RECORDED, None, True),
        (RECORDED, entry(), False),
        (RECORDED, entry(userspace_exits=1), False),
        (RECORDED, OTHER, True),
        (RECORDED, entry(leader_exit_ns=1), True),
        (RECORDED, entry(vcpus_created=1), True),
        (RECORDED, entry(mshv_runs=1), True),
        (UNPROVEN, entry(), True),
        (MAIN_THREAD_ENDED, entry(), True),
    ],
)
@pytest.mark.parametrize("event", [Event.LISTED, Event.DUE])
def test_a_process_is_read_again(
    known: TrackedProcess, record: LedgerEntry | None, event: Event, *, needs: bool
) -> None:
    """Until its verdict is final, and whenever the ledger says something new of it."""
    step = next_step(known, event, record)
    assert (step.state is State.RECHECK) is needs
    assert (step.action is Action.SCAN) is (needs or event is Event.DUE)
    assert step.state is not None
    looked = replace(known, state=step.state)
    assert (next_step(looked, Event.FOUND, record).action is Action.READ) is needs


@pytest.mark.parametrize(
    ("known", "record", "stands"),
    [
        (PLAIN, None, True),
        (PLAIN, entry(), True),
        (PLAIN, entry(mshv_runs=1), False),
        (RECORDED, None, False),
        (RECORDED, entry(exits=1), True),
        (RECORDED, OTHER, False),
        (RECORDED, entry(mshv_runs=1), False),
        (UNPROVEN, entry(), False),
    ],
)
def test_a_final_verdict_stands(
    known: TrackedProcess, record: LedgerEntry | None, *, stands: bool
) -> None:
    """As long as its record is the one it was judged with, and does not contradict."""
    step = next_step(known, Event.VMM, record)
    assert step.action is (Action.KEEP if stands else Action.JUDGE)


def test_a_ledger_that_cannot_be_read_changes_nothing() -> None:
    """Its silence is no news."""
    listed = next_step(RECORDED, Event.LISTED, None, ledger_read=False)
    assert listed == Step(action=Action.LEAVE, state=State.FOLLOWED)
    assert next_step(RECORDED, Event.VMM, None, ledger_read=False).action is Action.KEEP
    unproven = next_step(UNPROVEN, Event.LISTED, None, ledger_read=False)
    assert unproven == Step(action=Action.SCAN, state=State.RECHECK)
    assert next_step(UNPROVEN, Event.VMM, None, ledger_read=False).action is Action.JUDGE


@pytest.mark.parametrize(
    ("known", "record", "own"),
    [(RECORDED, entry(), True), (RECORDED, OTHER, False), (PLAIN, entry(), False)],
    ids=["its own", "a later one", "none known"],
)
def test_its_own_record(known: TrackedProcess, record: LedgerEntry, *, own: bool) -> None:
    """A record of its number is its own if it is the one that it was judged with."""
    assert known.owns(record) is own


# what a reading shows


@pytest.mark.parametrize(
    ("named", "shown", "vmm"),
    [
        (True, evidence(), True),
        (False, evidence(), False),
        (False, evidence(kvm_held=True), True),
        (False, evidence(mshv_held=True), True),
        (False, evidence(kvm_runs_unheld=1), True),
        (False, evidence(ledger=entry(vms_created=1)), False),
        (False, evidence(ledger=entry(exits=1)), True),
        (False, evidence(ledger=entry(mshv_runs=1)), True),
    ],
)
def test_what_is_a_vmm(shown: Evidence, *, named: bool, vmm: bool) -> None:
    """A name is enough, and so is the use of an accelerator."""
    expected = Event.VMM if vmm else Event.NO_VMM
    assert event_of_reading(None, process(named_like_qemu=named), shown) is expected


@pytest.mark.parametrize(
    ("program", "event"),
    [("qemu-system-x86_64", Event.VMM), ("qemu-kvm", Event.REPLACED), (None, Event.REPLACED)],
)
def test_another_program_replaces_it(program: str | None, event: Event) -> None:
    """The executable shows what no mark shows."""
    assert event_of_reading(PLAIN, process(program=program), evidence()) is event


@pytest.mark.parametrize(
    ("verdict", "main_thread_ended", "state"),
    [
        (RUNS_ON_KVM, False, State.FOLLOWED),
        (RUNS_ON_KVM, True, State.RECHECK),
        (PAUSED, False, State.RECHECK),
    ],
)
def test_state_after_a_verdict(verdict: Verdict, state: State, *, main_thread_ended: bool) -> None:
    """Only a final verdict is followed, and only while the main thread runs."""
    facts = process(main_thread_ended=main_thread_ended)
    found = tracked_process(facts, evidence(), verdict, started_unix_s=1.5)
    assert (found.state, found.verdict, found.started_unix_s) == (state, verdict, 1.5)


# records without a process


@pytest.mark.parametrize(
    ("state", "record", "started_ns", "stale"),
    [
        (State.NEW, entry(), None, False),
        (State.OTHER, entry(), None, True),
        (State.ENDED, entry(), None, False),
        (State.ENDED, entry(leader_exit_ns=1), None, True),
        (State.GONE, entry(), None, True),
        (State.GONE, entry(leader_exit_ns=kernel().taken_ns - FREED_WITHIN_NS), None, False),
        (State.GONE, entry(leader_exit_ns=kernel().taken_ns - FREED_WITHIN_NS - 1), None, True),
        *(
            row
            for state in (State.FOLLOWED, *NOT_FOLLOWED)
            for row in (
                (state, entry(first_ns=STARTED_NS), STARTED_NS, False),
                (state, entry(first_ns=STARTED_NS - 1), STARTED_NS, True),
            )
        ),
    ],
)
def test_stale_records(
    state: State, record: LedgerEntry, started_ns: int | None, *, stale: bool
) -> None:
    """Of no VMM, of a former owner, and of what has ended, unless the kernel is to remove it."""
    assert record_is_stale(record, state, kernel(), started_ns=started_ns) is stale


def test_records_are_removed_by_the_hook_of_the_end() -> None:
    """By no other one."""
    lately = entry(leader_exit_ns=kernel().taken_ns)
    assert not record_is_stale(lately, State.GONE, kernel(), started_ns=None)
    without = hooks(ALL_HOOKS - {SCHED_PROCESS_FREE})
    assert record_is_stale(lately, State.GONE, kernel(hooks=without), started_ns=None)
