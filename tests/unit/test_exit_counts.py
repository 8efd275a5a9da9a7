# SPDX-License-Identifier: Apache-2.0
"""The account of a process's exits: what counts them, and what the vCPUs' counts add up to."""

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.host.hypervisors import HypervisorType
from probes.host.kvm_stats import NO_STATISTICS, StatisticsListing, StatisticsReading
from probes.host.process import VmmId
from probes.judge.exit_counts import (
    MAX_GONE,
    Created,
    ExitAccount,
    ExitSource,
    accounts_after,
    opened,
    statistics_failed,
    statistics_wanted,
)
from probes.judge.exit_hook import exit_hook_needed
from probes.judge.reasons import Reason
from probes.judge.tracked import TrackedProcess, Tracking
from probes.judge.verdict import Verdict
from tests.support.facts import VMM, entry, tracked

STATISTICS, TRACEPOINT = ExitSource.KVM_STATISTICS, ExitSource.TRACEPOINT
UNREAD = StatisticsReading(None, None)
NONE = StatisticsReading(NO_STATISTICS, None)
INFERRED = Verdict(type=HypervisorType.KVM, verified=False, reasons=(Reason.HOLDS_VCPUS,))
TCG = Verdict(type=HypervisorType.TCG, verified=True, reasons=(Reason.TCG_COMPUTES,))
BETA = VmmId(tgid=5000, start_ticks=7000)


def reading(*vcpus: tuple[int, int, int], held: int | None = None) -> StatisticsReading:
    """A reading of vCPUs, each with descriptor, number and exits; held: vCPU descriptors."""
    fds = tuple((fd, f"anon_inode:kvm-vcpu-stats:{number}") for fd, number, _ in vcpus)
    listing = StatisticsListing(fds, len(vcpus) if held is None else held)
    return StatisticsReading(listing, tuple((exits,) for _, _, exits in vcpus))


UNSEEN = Created()


def account(first: StatisticsReading, created: Created | None = UNSEEN) -> ExitAccount:
    found = opened(VMM, first, created)
    assert found is not None
    return found


# the source


@pytest.mark.parametrize(
    ("first", "source"),
    [
        (reading((10, 0, 5)), STATISTICS),
        (reading((10, 0, 5), (12, 1, 0)), STATISTICS),
        # A vCPU without statistics would not be counted.
        (reading((10, 0, 5), held=2), TRACEPOINT),
        # More statistics than vCPUs are not what QEMU holds.
        (reading((10, 0, 5), (11, 0, 5), held=1), TRACEPOINT),
        (StatisticsReading(reading((10, 0, 5)).listing, None), TRACEPOINT),
        (NONE, TRACEPOINT),
    ],
)
def test_source(first: StatisticsReading, source: ExitSource) -> None:
    """KVM's statistics are the source if every vCPU has readable ones, otherwise the hook is."""
    found = account(first)
    assert found.source is source
    assert (found.exits is None) is (source is TRACEPOINT)


@pytest.mark.parametrize("first", [UNREAD, None])
def test_the_source_waits_until_there_was_time(first: StatisticsReading | None) -> None:
    """A process that could not be read in time gets its source later."""
    assert opened(VMM, first, Created()) is None


def test_the_source_is_kept() -> None:
    """Statistics that appear later, or that can no longer be read, change no source."""
    hooked = account(NONE)
    assert hooked.after(reading((10, 0, 5)), Created()) is hooked
    counted = account(reading((10, 0, 5)))
    for later in (None, UNREAD, NONE, StatisticsReading(counted.listing, None)):
        assert counted.after(later, Created()) is counted


# totals


def test_exits_add_up() -> None:
    """The total is the sum over all vCPUs, and an account that has no news is the same object."""
    counted = account(reading((10, 0, 5), (12, 1, 7)))
    assert counted.exits == 12
    assert counted.after(reading((10, 0, 5), (12, 1, 7)), Created()) is counted
    assert counted.after(reading((10, 0, 6), (12, 1, 70)), Created()).exits == 76


def test_a_vcpu_that_is_unplugged_and_plugged_again() -> None:
    """Exits of an unplugged vCPU stay in the total. If it returns it is not counted twice.

    QEMU opens its statistics again, at any number, and KVM has gone on counting.
    """
    both = account(reading((10, 0, 5), (12, 1, 7)))
    one = both.after(reading((10, 0, 6), held=2), Created())
    assert one.exits == 13
    again = one.after(reading((10, 0, 6), (19, 1, 9)), Created())
    assert again.exits == 15
    assert again.gone == ()


def test_a_vcpu_that_is_plugged() -> None:
    """All exits of a new vCPU count, and a number that another vCPU had is no obstacle."""
    counted = account(reading((10, 0, 5)), Created(1, 1))
    more = counted.after(reading((10, 0, 5), (12, 1, 4)), Created(1, 2))
    assert more.exits == 9
    swapped = more.after(reading((10, 0, 5), (12, 2, 1)), Created(1, 3))
    assert swapped.exits == 10


@pytest.mark.parametrize("exits", [0, 3, 5, 600])
def test_a_vm_that_is_made_again(exits: int) -> None:
    """Where the hooks see a new VM with new vCPUs, all counts begin again, whatever their values.

    The descriptors have the same numbers as before.
    """
    before = account(reading((10, 0, 5), (12, 1, 7)), Created(1, 2))
    after = before.after(reading((10, 0, exits), (12, 1, 1)), Created(2, 4))
    assert after.exits == 12 + exits + 1


def test_a_vm_that_is_made_again_unseen() -> None:
    """Without hooks a count that falls shows a new vCPU."""
    before = account(reading((10, 0, 5), (12, 1, 7)))
    assert before.after(reading((10, 0, 2), (12, 1, 0)), Created()).exits == 14


def test_a_new_vcpu_is_no_new_vm() -> None:
    """As many new vCPUs as there were, of the same VM, do not make the old ones count twice."""
    before = account(reading((10, 0, 5)), Created(1, 1))
    assert before.after(reading((10, 0, 5), (12, 1, 4)), Created(1, 2)).exits == 9
    assert before.after(reading((10, 0, 6)), Created(1, 2)).exits == 6
    assert before.after(reading((10, 0, 6), (12, 1, 4)), Created(2, 2)).exits == 10


def test_a_vm_that_is_made_again_between_ledger_and_statistics() -> None:
    """A new VM that the statistics show before the ledger does is counted once.

    A refresh reads the ledger first, so only the next one knows of the new VM.
    """
    before = account(reading((10, 0, 5), (12, 1, 7)), Created(1, 2))
    made = before.after(reading((10, 0, 2), (12, 1, 0)), Created(1, 2))
    assert made.exits == 14
    known = made.after(reading((10, 0, 3), (12, 1, 4)), Created(2, 4))
    assert known.exits == 12 + 7
    assert known.after(reading((10, 0, 1), (12, 1, 0)), Created(3, 6)).exits == 19 + 1


def test_a_process_without_a_record_for_a_while() -> None:
    """A ledger that could not be read, or had no record, is no news of a VM."""
    counted = account(reading((10, 0, 5)), Created(1, 1))
    unread = counted.after(reading((10, 0, 6)), None)
    assert unread.exits == 6
    assert unread.after(reading((10, 0, 7)), Created(1, 1)).exits == 7
    assert unread.after(reading((10, 0, 7)), Created(2, 2)).exits == 6 + 7
    late = account(reading((10, 0, 5)), None).after(reading((10, 0, 6)), Created(1, 1))
    assert late.exits == 6
    assert late.after(reading((10, 0, 7)), Created(2, 2)).exits == 6 + 7


def test_what_is_gone_is_bounded() -> None:
    """A process that opens and closes descriptors all the time does not make the account grow."""
    counted = account(reading((10, 0, 5)))
    for number in range(1, MAX_GONE + 10):
        counted = counted.after(reading((10, number, 5)), Created())
    assert len(counted.gone) == MAX_GONE
    assert counted.exits == 5 * (MAX_GONE + 10)


# against a model


@dataclass(slots=True)
class Vcpu:
    """A vCPU of the model."""

    exits: int = 0
    fd: int | None = None
    """Descriptor of its statistics; None: it is unplugged."""


@dataclass(slots=True)
class Model:
    """A QEMU as the kernel sees it, with the hooks that see what it creates."""

    vcpus: list[Vcpu] = field(default_factory=list)
    vms: int = 1
    vcpus_created: int = 0
    lost: int = 0
    """Exits of ended vCPUs and of unplugged ones that were never read."""
    ended: int = 0
    seen: int = 0

    def free(self, skip: int) -> int:
        """Return the lowest free descriptor, or a later one."""
        used = {vcpu.fd for vcpu in self.vcpus}
        return [fd for fd in range(10, 60) if fd not in used][skip]

    def plug(self, skip: int) -> None:
        parked = next((vcpu for vcpu in self.vcpus if vcpu.fd is None), None)
        if parked is None and len(self.vcpus) < 6:
            self.vcpus.append(parked := Vcpu())
            self.vcpus_created += 1
        if parked is not None:
            parked.fd = self.free(skip)

    def unplug(self, index: int) -> None:
        if sum(vcpu.fd is not None for vcpu in self.vcpus) > 1:
            self.vcpus[index % len(self.vcpus)].fd = None

    def reset(self) -> None:
        self.ended += sum(vcpu.exits for vcpu in self.vcpus)
        self.vms += 1
        self.vcpus_created += len(self.vcpus)
        fds = [vcpu.fd for vcpu in self.vcpus]
        self.vcpus = [Vcpu(fd=fd) for fd in fds]

    def run(self, index: int, exits: int) -> None:
        vcpu = self.vcpus[index % len(self.vcpus)]
        if vcpu.fd is not None:
            vcpu.exits += exits

    @property
    def created(self) -> Created:
        return Created(self.vms, self.vcpus_created)

    @property
    def total(self) -> int:
        return self.ended + sum(vcpu.exits for vcpu in self.vcpus)

    def read(self) -> StatisticsReading:
        plugged = [
            (vcpu.fd, number, vcpu.exits)
            for number, vcpu in enumerate(self.vcpus)
            if vcpu.fd is not None
        ]
        return reading(*sorted(plugged), held=len(self.vcpus))


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("run"), st.integers(0, 5), st.integers(0, 1000)),
        st.tuples(st.just("plug"), st.integers(0, 3), st.just(0)),
        st.tuples(st.just("unplug"), st.integers(0, 5), st.just(0)),
        st.tuples(st.just("reset"), st.just(0), st.just(0)),
        st.tuples(st.just("fail"), st.just(0), st.just(0)),
    ),
    max_size=40,
)


def take(model: Model, kind: str, number: int, exits: int) -> None:
    """Let the model take a step."""
    match kind:
        case "run":
            model.run(number, exits)
        case "plug":
            model.plug(number)
        case "unplug":
            model.unplug(number)
        case "reset":
            model.reset()


@given(STEPS)
def test_totals_are_exact(steps: list[tuple[str, int, int]]) -> None:
    """With the hooks attached, a reading after every step gives the exact total of all exits ever.

    A reading that fails leaves the total as it was.
    """
    model = Model()
    model.plug(0)
    counted = account(model.read(), model.created)
    for kind, number, exits in steps:
        if kind == "fail":
            assert counted.after(UNREAD, model.created) is counted
            continue
        take(model, kind, number, exits)
        counted = counted.after(model.read(), model.created)
        assert counted.exits == model.total


@given(STEPS, st.booleans(), st.lists(st.booleans(), min_size=40, max_size=40))
def test_totals_never_fall(
    steps: list[tuple[str, int, int]], hooked: bool, read: list[bool]
) -> None:
    """Whatever happens between two readings, with or without hooks, the total does not fall.

    Nor does it exceed the exits that were made.
    """
    model = Model()
    model.plug(0)
    counted = account(model.read(), model.created if hooked else Created())
    before = 0
    for (kind, number, exits), wanted in zip(steps, read, strict=False):
        take(model, kind, number, exits)
        if wanted:
            counted = counted.after(model.read(), model.created if hooked else Created())
        assert counted.exits is not None
        assert before <= counted.exits <= model.total
        before = counted.exits


@given(st.lists(st.lists(st.tuples(st.integers(9, 12), st.integers(0, 2), st.integers(0, 9)))))
def test_any_readings_never_fall(readings: list[list[tuple[int, int, int]]]) -> None:
    """A process that shows anything as its statistics cannot make its total fall."""
    counted = account(reading((10, 0, 3)))
    before = 3
    for vcpus in readings:
        unique = {(fd, number): (fd, number, exits) for fd, number, exits in vcpus}
        counted = counted.after(reading(*sorted(unique.values())), Created())
        assert counted.exits is not None
        assert counted.exits >= before
        before = counted.exits


# all processes


def tracking(*processes: TrackedProcess, created: Created | None = None) -> Tracking:
    records = (
        {VMM.tgid: entry(vms_created=created.vms, vcpus_created=created.vcpus)} if created else {}
    )
    return Tracking(processes=processes, records=records, pending=0)


def test_accounts_begin_with_a_proof_and_end_with_the_process() -> None:
    """Only a process that is proven to run on KVM has an account, until it is not tracked."""
    readings = {VMM.tgid: reading((10, 0, 5))}
    inferred = tracking(tracked(verdict=INFERRED))
    assert statistics_wanted({}, inferred) == []
    assert accounts_after({}, inferred, readings) == {}
    proven = tracking(tracked(), created=Created(1, 1))
    assert statistics_wanted({}, proven) == [(VMM, 1)]
    accounts = accounts_after({}, proven, readings)
    assert accounts[VMM.tgid].exits == 5
    assert statistics_wanted(accounts, proven) == [(VMM, 1)]
    assert accounts_after(accounts, inferred, {}) == accounts
    assert accounts_after(accounts, tracking(), readings) == {}


def test_an_account_is_not_carried_to_another_process() -> None:
    """A process with a reused number begins its own account, even with the same descriptors."""
    accounts = accounts_after({}, tracking(tracked()), {VMM.tgid: reading((10, 0, 5))})
    other = tracked(VmmId(tgid=VMM.tgid, start_ticks=VMM.start_ticks + 1))
    assert statistics_wanted(accounts, tracking(other)) == [(other.vmm, 0)]
    after = accounts_after(accounts, tracking(other), {VMM.tgid: reading((10, 0, 2))})
    assert (after[VMM.tgid].vmm, after[VMM.tgid].exits) == (other.vmm, 2)
    assert accounts_after(accounts, tracking(other), {}) == {}


def test_a_record_that_is_missing_once_counts_nothing_twice() -> None:
    """The total of a process whose record was unreadable in one refresh goes on from there."""
    found: dict[int, ExitAccount] = {}
    exits = []
    for created, now in ((Created(1, 1), 5), (None, 6), (Created(1, 1), 7)):
        seen = tracking(tracked(), created=created)
        found = accounts_after(found, seen, {VMM.tgid: reading((10, 0, now))})
        exits.append(found[VMM.tgid].exits)
    assert exits == [5, 6, 7]


def test_vcpus_in_the_table_of_another_thread() -> None:
    """Statistics are no source of a process that holds vCPUs where they cannot be copied from.

    Only descriptors in the table of the main thread can be copied.
    """
    readings = {VMM.tgid: reading((10, 0, 5))}
    hidden = accounts_after({}, tracking(tracked(vcpus=2)), readings)
    assert hidden[VMM.tgid].source is TRACEPOINT
    # One that was plugged after the process was read is in the listing alone.
    plugged = {VMM.tgid: reading((10, 0, 5), (12, 1, 3))}
    assert accounts_after({}, tracking(tracked(vcpus=1)), plugged)[VMM.tgid].exits == 8


def test_an_equal_identity_is_the_same_process() -> None:
    """The identity decides, not the object that holds it."""
    accounts = accounts_after({}, tracking(tracked()), {VMM.tgid: reading((10, 0, 5))})
    same = tracked(VMM._replace())
    assert accounts_after(accounts, tracking(same), {}) == accounts


def test_the_hook_counts_those_without_statistics() -> None:
    """A process whose source is the hook is not read again, and needs the hook."""
    processes = tracking(tracked(), tracked(BETA))
    readings = {VMM.tgid: reading((10, 0, 5)), BETA.tgid: NONE}
    accounts = accounts_after({}, processes, readings)
    assert statistics_wanted(accounts, processes) == [(VMM, 0)]
    assert exit_hook_needed(accounts, processes, entries_are_seen=True)
    alone = tracking(tracked())
    assert not exit_hook_needed(
        accounts_after(accounts, alone, readings), alone, entries_are_seen=True
    )


@pytest.mark.parametrize(
    ("process", "entries_are_seen", "needed"),
    [
        (tracked(verdict=INFERRED, vcpus=2, statistics=2), True, False),
        (tracked(verdict=INFERRED, vcpus=2, statistics=1), True, True),
        (tracked(verdict=TCG), True, False),
        # It may hide its vCPUs and pretend to emulate.
        (tracked(verdict=TCG), False, True),
        (tracked(verdict=replace(INFERRED, type=HypervisorType.UNKNOWN)), True, False),
        (
            tracked(
                verdict=Verdict(
                    type=HypervisorType.UNKNOWN, verified=False, reasons=(Reason.KVM_RUN_UNHELD,)
                )
            ),
            True,
            True,
        ),
        (
            tracked(
                verdict=Verdict(
                    type=HypervisorType.UNKNOWN, verified=False, reasons=(Reason.NO_VCPU_YET,)
                )
            ),
            False,
            False,
        ),
        # Its source is not chosen yet, and it has statistics.
        (tracked(vcpus=1, statistics=1), True, False),
    ],
)
def test_who_needs_the_hook(
    process: TrackedProcess, *, entries_are_seen: bool, needed: bool
) -> None:
    """Processes that may run a guest which only the hook shows need it."""
    found = exit_hook_needed({}, tracking(process), entries_are_seen=entries_are_seen)
    assert found is needed


def test_without_processes_nothing_needs_the_hook() -> None:
    """On a node without VMs the hook is not needed."""
    assert not exit_hook_needed({}, tracking(), entries_are_seen=False)


# what is missing


def test_vcpus_that_are_not_counted() -> None:
    """A vCPU that never had statistics is not counted, while an unplugged one is in the total."""
    counted = account(reading((10, 0, 5), (12, 1, 7)))
    assert counted.uncounted_vcpus == 0
    unplugged = counted.after(reading((10, 0, 5), held=2), UNSEEN)
    assert unplugged.uncounted_vcpus == 0
    plugged = unplugged.after(reading((10, 0, 5), held=3), UNSEEN)
    assert (plugged.uncounted_vcpus, plugged.exits) == (1, 12)
    found = plugged.after(reading((10, 0, 5), (14, 2, 4), held=3), UNSEEN)
    assert (found.uncounted_vcpus, found.exits) == (0, 16)
    assert account(NONE).uncounted_vcpus == 0


@pytest.mark.parametrize(
    ("later", "failed"),
    [
        (reading((10, 0, 6)), False),
        (reading((10, 0, 6), held=2), True),
        (UNREAD, True),
        (StatisticsReading(reading((10, 0, 5)).listing, None), True),
        # All its statistics are gone, or no longer read.
        (NONE, True),
        # It has ended.
        (None, False),
    ],
)
def test_failed_readings(later: StatisticsReading | None, *, failed: bool) -> None:
    """A reading after which exits are missing from an account has failed."""
    readings = {} if later is None else {VMM.tgid: later}
    first = {VMM.tgid: account(reading((10, 0, 5)))}
    accounts = accounts_after(first, tracking(tracked()), readings)
    assert statistics_failed(accounts, readings) is failed


@pytest.mark.parametrize(
    ("first", "failed"),
    [(NONE, False), (StatisticsReading(reading((9, 0, 1)).listing, None), True)],
)
def test_no_statistics_are_no_failure(first: StatisticsReading, *, failed: bool) -> None:
    """The hook counts a process without readable statistics, which is a failure if it has some."""
    readings = {VMM.tgid: first}
    accounts = accounts_after({}, tracking(tracked()), readings)
    assert accounts[VMM.tgid].source is TRACEPOINT
    assert statistics_failed(accounts, readings) is failed
