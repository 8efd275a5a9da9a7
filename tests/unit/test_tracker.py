# SPDX-License-Identifier: Apache-2.0
"""The tracker reads only the necessary processes again, and removes only stale records."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import pytest

from ebpf.errors import LedgerReadError
from ebpf.hooks import SCHED_PROCESS_FREE
from ebpf.uapi import KVM_RUN
from probes.host.process import AcceleratorFds, QemuCommandLine, Unread, VmmId, VmmProcess
from probes.judge.changes import FREED_WITHIN_NS
from probes.judge.reasons import Reason
from probes.judge.tracked import TrackedProcess
from probes.judge.tracker import RECHECK_EVERY
from probes.report import collector as collector_module
from probes.vmi.attribution import Attribution, VmName, by_guest_name
from probes.vmi.model import Vmi, VmiIndex, VmiPhase
from tests.support.doubles import (
    BETA,
    BETA_NS,
    KVM,
    PLAYED_TGID,
    TCG,
    UNKNOWN,
    Told,
    World,
    kvm_world,
    tcg_world,
    type_of,
)
from tests.support.facts import (
    ALL_HOOKS,
    KVM_FDS,
    STARTED_NS,
    VMM,
    entry,
    hooks,
    in_ioctl,
    kernel,
    kvm_fds,
    kvm_process,
    process,
    tcg_process,
)

MARKED_NS = 89_000_000_000
SHELL = replace(process(), named_like_qemu=False, program="sh", comm="sh")
ASLEEP = (in_ioctl(9, KVM_RUN),)
"""The one thread of VMM that sleeps in a KVM_RUN which began before the hooks."""


def asleep(vmm: VmmId = VMM) -> VmmProcess:
    """Return a QEMU that sleeps in one KVM_RUN for hours."""
    return replace(kvm_process(vmm), threads=ASLEEP)


def rounds(world: World) -> None:
    """Refresh as often as it takes to look at every process once."""
    for _ in range(RECHECK_EVERY):
        world.refresh()


# what is final is left alone


def test_a_thousand_final_processes_are_not_read_again() -> None:
    """With KVM and with TCG, later refreshes look at one process in sixteen and read none."""
    ids = [VmmId(tgid=PLAYED_TGID + number, start_ticks=7000 + number) for number in range(1000)]
    make: tuple[Callable[..., VmmProcess], ...] = (kvm_process, tcg_process)
    world = World(
        processes=tuple(make[vmm.tgid % 2](vmm, guest_name=f"lab_vm-{vmm.tgid}") for vmm in ids)
    )
    for runs in range(1, 4):
        world.books.says = kernel(
            *(
                entry(vmm.tgid, first_ns=vmm.start_ticks * 10_000_000 + 5, userspace_exits=runs)
                for vmm in ids
                if vmm.tgid % 2 == 0
            )
        )
        report = world.refresh()
        assert {vmi.counters.get("userspace_exits") for vmi in report.vmis} == {runs, None}
        assert len(report.vmis) == 1000
        assert all(vmi.verdict.verified for vmi in report.vmis)
        assert world.node.inspections.total() == 1000
        assert world.node.scans.total() <= 1000 + (runs - 1) * (1000 // RECHECK_EVERY + 1)


def test_what_is_no_vmm_is_looked_at_in_turn_only() -> None:
    """A shell is looked at once, and then in one of sixteen refreshes."""
    world = World(processes=(SHELL,))
    world.refresh()
    assert world.node.scans[VMM.tgid] == 1
    rounds(world)
    assert world.node.scans[VMM.tgid] in {2, 3}
    assert world.node.inspections.total() == 0


def test_unverified_process_is_read_until_it_is_verified() -> None:
    """A paused VM is read in each refresh until it is known to have run."""
    world = World(processes=(kvm_process(),))
    for refreshes in (1, 2, 3):
        assert type_of(world.one()) == (KVM, False)
        assert world.node.inspections[VMM.tgid] == refreshes
    world.node.processes[VMM.tgid] = asleep()
    for _ in range(3):
        assert type_of(world.one()) == (KVM, True)
    assert world.node.inspections[VMM.tgid] == 4


# marks


@pytest.mark.parametrize("world", [kvm_world(), tcg_world()], ids=["kvm", "tcg"])
def test_a_mark_ends_a_final_verdict(world: World) -> None:
    """A process that executed another program gets a new verdict."""
    assert world.one().verdict.verified
    world.books.says = kernel()
    world.books.lives = {VMM.tgid}
    world.node.processes[VMM.tgid] = process()
    assert type_of(world.one()) == (UNKNOWN, False)


def test_a_mark_makes_a_vmm_of_what_was_none() -> None:
    """A shell that executes QEMU, or forks it under a number used before, becomes a VMM."""
    world = World(processes=(SHELL,))
    world.refresh()
    world.node.processes[VMM.tgid] = tcg_process()
    world.books.lives = {VMM.tgid}
    assert type_of(world.one()) == (TCG, True)


def test_a_mark_ends_a_vmm_that_executes_something_else() -> None:
    """A VMM that executes something else leaves the report at the next refresh."""
    world = tcg_world()
    world.refresh()
    world.node.processes[VMM.tgid] = SHELL
    world.books.lives = {VMM.tgid}
    assert world.refresh().processes == ()


def test_a_lost_mark_is_made_up_for_in_turn() -> None:
    """Without a mark, the exec of a VMM is noticed after sixteen refreshes at most."""
    world = tcg_world()
    world.refresh()
    world.node.processes[VMM.tgid] = SHELL
    rounds(world)
    assert world.refresh().processes == ()


@pytest.mark.parametrize("too_late_for", ["a look", "reading"])
def test_a_mark_is_not_lost_while_the_process_cannot_be_read(too_late_for: str) -> None:
    """A marked process is read as soon as it can be, and judged by what it is then."""
    world = tcg_world()
    world.refresh()
    world.books.lives = {VMM.tgid}
    world.node.processes[VMM.tgid] = process()
    if too_late_for == "a look":
        world.node.unscanned = {VMM.tgid}
    else:
        world.node.hurried = {VMM.tgid}
    for _ in range(2):
        assert type_of(world.one()) == (TCG, True)
    world.node.unscanned = world.node.hurried = set()
    assert type_of(world.one()) == (UNKNOWN, False)


def test_a_new_process_needs_no_mark() -> None:
    """Every new number in /proc is looked at, even without a mark."""
    world = World(processes=())
    world.refresh()
    world.node.processes[VMM.tgid] = tcg_process()
    assert type_of(world.one()) == (TCG, True)


def test_a_number_that_was_gone_is_new() -> None:
    """An earlier owner that was no VMM says nothing about the next owner of its number."""
    world = World(processes=(SHELL,))
    world.refresh()
    del world.node.processes[VMM.tgid]
    world.refresh()
    world.node.processes[VMM.tgid] = tcg_process()
    assert type_of(world.one()) == (TCG, True)


def test_a_thread_of_the_same_number_range_is_ignored() -> None:
    """Marks of threads and of ended processes cause no scan."""
    world = tcg_world()
    world.refresh()
    world.books.lives = {VMM.tgid + 1, 99}
    world.refresh()
    assert world.node.scans.keys() <= {VMM.tgid}
    assert world.node.inspections.total() == 1


def test_a_number_that_passes_at_once() -> None:
    """The next owner gets a verdict of its own, and the record of the former one is removed."""
    world = kvm_world()
    assert type_of(world.one()) == (KVM, True)
    follower = VmmId(tgid=VMM.tgid, start_ticks=9000)
    world.node.processes[VMM.tgid] = tcg_process(follower)
    world.books.lives = {VMM.tgid}
    found = world.one()
    assert (found.vmm, type_of(found), found.counters.get("userspace_exits")) == (
        follower,
        (TCG, True),
        None,
    )
    assert world.books.forgotten == [(VMM.tgid, entry().first_ns)]


def test_a_former_owners_record_never_counts_for_the_follower() -> None:
    """After a fork without a mark, the next owner does not show the former owner's counter."""
    world = kvm_world()
    world.refresh()
    follower = VmmId(tgid=VMM.tgid, start_ticks=9000)
    world.node.processes[VMM.tgid] = asleep(follower)
    rounds(world)
    found = world.one()
    assert (found.vmm, type_of(found)) == (follower, (KVM, True))
    assert found.counters == {}
    assert (VMM.tgid, entry().first_ns) in world.books.forgotten


def test_only_its_own_record_counts() -> None:
    """A later record of a number counts once the process has been read and judged with it."""
    world = kvm_world()
    world.refresh()
    later = entry(first_ns=entry().first_ns + 1, userspace_exits=9)
    world.books.says = kernel(later)
    world.node.hurried = {VMM.tgid}
    found = world.one()
    assert (type_of(found), found.counters.get("userspace_exits")) == ((KVM, True), None)
    world.node.hurried = set()
    assert world.one().counters.get("userspace_exits") == 9
    assert world.books.forgotten == []


# where lives are not followed


def test_without_marks_each_refresh_looks_at_all() -> None:
    """If a hook is missing or may lose events, /proc is read, and final verdicts stand."""
    world = World(entry(userspace_exits=5), processes=(kvm_process(), tcg_process(BETA)))
    for refreshes in (1, 2, 3):
        world.books.lives = None
        found = {
            process_report.vmm: type_of(process_report)
            for process_report in world.refresh().processes
        }
        assert found == {VMM: (KVM, True), BETA: (TCG, True)}
        assert world.node.scans == {VMM.tgid: refreshes, BETA.tgid: refreshes}
    world.node.processes[BETA.tgid] = replace(SHELL, vmm=BETA)
    world.books.lives = None
    assert [process_report.vmm for process_report in world.refresh().processes] == [VMM]


def test_without_marks_another_program_is_judged_by_itself() -> None:
    """The executable shows the exec that no mark reports."""
    world = tcg_world()
    world.books.lives = None
    assert type_of(world.one()) == (TCG, True)
    world.books.lives = None
    world.node.processes[VMM.tgid] = replace(process(), program="qemu-kvm")
    assert type_of(world.one()) == (UNKNOWN, False)


# the ledger


def test_the_kernel_overrules_a_final_tcg() -> None:
    """A process that emulated is judged again once the ledger records a run of it."""
    world = tcg_world()
    assert type_of(world.one()) == (TCG, True)
    world.books.says = kernel(entry(userspace_exits=1))
    found = world.one()
    assert (type_of(found), found.counters.get("userspace_exits")) == ((KVM, True), 1)


def test_a_refused_run_takes_the_proof_from_a_tcg() -> None:
    """After a refused KVM_RUN the process is neither verified as emulated nor accelerated."""
    world = tcg_world()
    world.refresh()
    world.books.says = kernel(entry(userspace_exits=9, completed_runs=0))
    found = world.one()
    assert type_of(found) == (UNKNOWN, False)
    assert Reason.KVM_RUN_REFUSED in found.verdict.reasons


def test_a_record_that_begins_late_is_taken_over() -> None:
    """The first event of a process that slept since before the hooks makes it read once more."""
    world = World(processes=(asleep(),))
    assert type_of(world.one()) == (KVM, True)
    world.books.says = kernel(entry(userspace_exits=3))
    for _ in range(3):
        found = world.one()
        assert (type_of(found), found.counters.get("userspace_exits")) == ((KVM, True), 3)
    assert world.node.inspections[VMM.tgid] == 2
    assert world.books.forgotten == []


def test_added_vcpus_are_read_once() -> None:
    """After a vCPU was plugged in, the number of vCPUs is read again, and the verdict stands."""
    world = World(entry(runs=5, vcpus_created=1), processes=(asleep(),))
    first = world.one()
    world.books.says = kernel(entry(runs=5, vcpus_created=2))
    two = kvm_fds(9, 11)
    world.node.processes[VMM.tgid] = replace(asleep(), fds=two)
    for _ in range(3):
        found = world.one()
        assert (found.vcpus, found.verdict) == (2, first.verdict)
        assert found.started_unix_s == first.started_unix_s
    assert world.node.inspections[VMM.tgid] == 2


def test_a_marked_record_is_read_in_each_refresh() -> None:
    """vCPU threads may outlive the main thread. Only /proc shows when they have ended."""
    world = kvm_world()
    world.refresh()
    world.books.says = kernel(entry(runs=6, userspace_exits=6, leader_exit_ns=MARKED_NS))
    for refreshes in (2, 3):
        assert type_of(world.one()) == (KVM, True)
        assert world.node.inspections[VMM.tgid] == refreshes
    del world.node.processes[VMM.tgid]
    assert world.refresh().processes == ()
    assert world.books.forgotten == []


def test_a_zombie_is_gone() -> None:
    """A zombie is gone although /proc lists it, because its end is marked."""
    world = tcg_world()
    world.refresh()
    del world.node.processes[VMM.tgid]
    world.node.zombies = {VMM.tgid}
    world.books.lives = {VMM.tgid}
    assert world.refresh().processes == ()


@pytest.mark.parametrize(
    ("record", "removed"),
    [
        (entry(runs=5), True),
        (entry(runs=5, leader_exit_ns=MARKED_NS), False),
        (entry(runs=5, leader_exit_ns=MARKED_NS - 1), True),
    ],
    ids=["unmarked", "marked lately", "marked long ago"],
)
def test_a_record_that_outlives_its_process(record: object, *, removed: bool) -> None:
    """hvprobe removes records that the kernel did not mark, or did not remove in time."""
    world = kvm_world()
    world.refresh()
    del world.node.processes[VMM.tgid]
    assert isinstance(record, type(entry()))
    world.books.says = replace(kernel(record), taken_ns=MARKED_NS + FREED_WITHIN_NS)
    assert world.refresh().processes == ()
    assert world.books.forgotten == [(VMM.tgid, record.first_ns)] * removed


@pytest.mark.parametrize("main_thread_ended", [True, False])
def test_a_zombie_keeps_no_record(*, main_thread_ended: bool) -> None:
    """Many zombies would fill the ledger, because their parents may never collect them.

    If the kernel did not record the end of its main thread, the record stays.
    """
    world = kvm_world()
    world.refresh()
    del world.node.processes[VMM.tgid]
    world.node.zombies = {VMM.tgid}
    ended_ns = MARKED_NS if main_thread_ended else None
    record = entry(runs=5, leader_exit_ns=ended_ns)
    world.books.says = replace(kernel(record), taken_ns=MARKED_NS)
    world.books.lives = {VMM.tgid}
    assert world.refresh().processes == ()
    assert world.books.forgotten == [(VMM.tgid, record.first_ns)] * main_thread_ended


def test_without_the_free_hook_records_of_the_dead_are_removed() -> None:
    """Without that hook, hvprobe removes records of ended processes as soon as they are marked."""
    dead = entry(PLAYED_TGID, leader_exit_ns=MARKED_NS)
    world = World(processes=())
    world.books.says = kernel(
        dead, taken_ns=MARKED_NS, hooks=hooks(ALL_HOOKS - {SCHED_PROCESS_FREE})
    )
    world.refresh()
    assert world.books.forgotten == [(PLAYED_TGID, dead.first_ns)]


def test_each_stale_record_is_removed() -> None:
    """The record of a process that lives does not protect other records."""
    dead = entry(PLAYED_TGID, runs=5)
    world = World(entry(userspace_exits=5), dead, processes=(kvm_process(),))
    world.refresh()
    assert world.books.forgotten == [(PLAYED_TGID, dead.first_ns)]


def test_a_record_of_what_is_no_vmm_is_removed() -> None:
    """The slot of a process that closed its VM is free for others."""
    world = World(entry(vms_created=1), processes=(SHELL,))
    assert world.refresh().processes == ()
    assert world.books.forgotten == [(VMM.tgid, entry().first_ns)]


def test_a_ledger_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refreshes continue, and the removal is tried again."""
    world = World(entry(runs=1), processes=())
    tried: list[int] = []

    def refuse(tgid: int, first_ns: int) -> None:
        tried.append(first_ns)
        raise LedgerReadError(f"cannot write to the ledger: {tgid}")

    monkeypatch.setattr(world.books, "forget", refuse)
    for refreshes in (1, 2):
        assert world.refresh().processes == ()
        assert len(tried) == refreshes


def test_final_verdicts_survive_an_unreadable_ledger() -> None:
    """While the ledger cannot be read, verdicts stand. The counters return afterwards."""
    world = kvm_world()
    before = world.one()
    says = world.books.says
    world.books.says = LedgerReadError("cannot read the ledger: gone")
    for _ in range(3):
        found = world.one()
        assert (found.verdict, found.counters.get("userspace_exits")) == (before.verdict, None)
    world.books.says = says
    assert world.one() == before
    assert world.node.inspections[VMM.tgid] == 1


# users of KVM under other names


def test_descriptors_are_searched_at_first_and_while_events_are_lost() -> None:
    """Later, records reveal the users of KVM, unless the ledger had no room for one."""
    firecracker = replace(
        asleep(), named_like_qemu=False, program="firecracker", comm="firecracker"
    )
    world = World(processes=(firecracker,))
    assert type_of(world.one()) == (KVM, True)
    assert world.node.fd_scans[VMM.tgid] == 1
    late = replace(firecracker, vmm=BETA)
    world.node.processes[BETA.tgid] = replace(SHELL, vmm=BETA)
    rounds(world)
    assert world.node.fd_scans[BETA.tgid] == 0
    world.node.processes[BETA.tgid] = late
    world.books.says = kernel(dropped_total=1)
    assert [process_report.vmm for process_report in world.refresh().processes] == [VMM, BETA]
    world.refresh()
    assert world.node.fd_scans[BETA.tgid] == 1


@pytest.mark.parametrize("too_late_for", ["a look", "reading"])
def test_a_search_for_descriptors_goes_on_where_it_had_no_time(too_late_for: str) -> None:
    """The search ends once every process has been looked at since events were lost."""
    user = replace(asleep(), named_like_qemu=False, program="firecracker", comm="firecracker")
    world = World(processes=(replace(SHELL, vmm=BETA),))
    world.refresh()
    world.node.processes[VMM.tgid] = user
    world.books.says = kernel(dropped_total=1)
    if too_late_for == "a look":
        world.node.unscanned = {VMM.tgid}
    else:
        world.node.hurried = {VMM.tgid}
    assert world.refresh().processes == ()
    assert world.refresh().processes == ()
    world.node.unscanned = world.node.hurried = set()
    assert [process_report.vmm for process_report in world.refresh().processes] == [VMM]
    searched = world.node.fd_scans[BETA.tgid]
    rounds(world)
    assert world.node.fd_scans[BETA.tgid] == searched


def test_a_user_of_kvm_is_found_by_its_record() -> None:
    """A record reveals a user of KVM of any name without a search through descriptors."""
    world = World(processes=(SHELL,))
    world.refresh()
    world.node.processes[VMM.tgid] = replace(SHELL, fds=KVM_FDS)
    world.books.says = kernel(entry(userspace_exits=2))
    found = world.one()
    assert (type_of(found), found.counters.get("userspace_exits")) == ((KVM, True), 2)
    assert world.books.forgotten == []


# what cannot be read


def test_blocked_processes_are_counted_and_come_first() -> None:
    """Blocked processes are not reported as VMs, and other processes are read as usual."""
    world = World(processes=(tcg_process(BETA),))
    world.node.blocked = {VMM.tgid, PLAYED_TGID}
    for _ in range(2):
        report = world.refresh()
        assert [process_report.vmm for process_report in report.processes] == [BETA]
        assert report.health.processes_pending == 2
        world.node.processes[7] = replace(SHELL, vmm=VmmId(tgid=7, start_ticks=7))
    assert world.node.order[:2] == [VMM.tgid, PLAYED_TGID]
    world.node.blocked = set()
    world.node.processes[VMM.tgid] = tcg_process()
    report = world.refresh()
    assert [process_report.vmm for process_report in report.processes] == [VMM, BETA]
    assert report.health.processes_pending == 0


def test_denied_processes_are_counted_until_they_can_be_read() -> None:
    """A process that may not be identified is counted as such, as long as it lives."""
    world = World(processes=(tcg_process(BETA),))
    world.node.denied = {VMM.tgid, PLAYED_TGID}
    for _ in range(2):
        health = world.refresh().health
        assert (health.processes_denied, health.processes_pending) == (2, 2)
    world.node.denied = {PLAYED_TGID}
    world.node.processes[VMM.tgid] = tcg_process()
    report = world.refresh()
    assert [process_report.vmm for process_report in report.processes] == [VMM, BETA]
    assert report.health.processes_denied == 1
    world.node.denied = set()
    assert world.refresh().health.processes_denied == 0


def test_a_blocked_process_keeps_a_final_verdict() -> None:
    """A verdict that was proven stands while its process cannot be read."""
    world = tcg_world()
    world.refresh()
    world.node.blocked = {VMM.tgid}
    world.books.lives = set()
    rounds(world)
    assert type_of(world.one()) == (TCG, True)


def test_a_blocked_user_of_kvm_is_judged_by_the_ledger() -> None:
    """The ledger proves a run even if /proc cannot be read."""
    hidden = replace(
        process(), unread=Unread.BLOCKED, threads=(), command_line=QemuCommandLine(),
        fds=AcceleratorFds(complete=False),
    )  # fmt: skip
    world = World(entry(userspace_exits=4), processes=(hidden,))
    world.node.blocked = {VMM.tgid}
    found = world.one()
    assert (type_of(found), found.counters.get("userspace_exits")) == ((KVM, True), 4)
    world.books.says = kernel(entry())
    world.books.lives = {VMM.tgid}
    assert world.one().verdict.reasons == (Reason.READ_BLOCKED,)


def test_a_known_process_that_ends_while_it_is_read_is_gone() -> None:
    """A process that ends between scan and reading is absent from that report."""
    world = kvm_world()
    assert world.one().verdict.verified
    world.books.lives = {VMM.tgid}
    world.node.vanish_at_inspection.add(VMM.tgid)
    assert world.refresh().processes == ()


def test_no_time_keeps_what_was_known() -> None:
    """A process that was not read in time keeps its state, and a new one is counted as pending."""
    world = World(processes=(kvm_process(),))
    first = world.one()
    world.node.hurried = {VMM.tgid, BETA.tgid}
    world.node.processes[BETA.tgid] = tcg_process(BETA)
    report = world.refresh()
    assert report.processes == (first,)
    assert report.health.processes_pending == 2
    world.node.hurried = set()
    assert len(world.refresh().processes) == 2


# names are made once


def test_names_are_made_again_only_for_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """New counts leave the names as they are. A new, ended or newly judged process may not."""
    made: list[int] = []

    def counted(candidates: Iterable[TrackedProcess]) -> Mapping[VmName, Attribution]:
        made.append(1)
        return by_guest_name(candidates)

    monkeypatch.setattr(collector_module, "by_guest_name", counted)
    world = tcg_world()
    for _ in range(3):
        assert [vmi.vm.name for vmi in world.refresh().vmis] == ["beta"]
    assert len(made) == 1
    world.node.processes[BETA.tgid] = kvm_process(BETA)
    for exits in (1, 2):
        world.books.says = kernel(entry(BETA.tgid, first_ns=BETA_NS, userspace_exits=exits))
        assert [vmi.counters.get("userspace_exits") for vmi in world.refresh().vmis] == [
            exits,
            None,
        ]
    assert len(made) == 2
    del world.node.processes[VMM.tgid]
    assert [vmi.vm.name for vmi in world.refresh().vmis] == ["alpha"]
    assert len(made) == 3


def test_names_are_made_again_when_only_the_vmis_change() -> None:
    """A VMI that appears for a known process is shown at the next refresh."""
    world = World(processes=())
    told = Told()
    collector = world.observed(told)
    assert collector.refresh().vmis == ()
    vmi = Vmi(
        namespace="lab",
        name="beta",
        phase=VmiPhase.RUNNING,
        node_name="node-1",
        active_pods=(),
        architecture=None,
    )
    told.says = VmiIndex.of((vmi,))
    assert [report.vm.name for report in collector.refresh().vmis] == ["beta"]


def test_itself_is_no_vmm() -> None:
    """hvprobe never looks at its own process, which is a user of KVM because of the trials."""
    world = World(entry(os.getpid(), vms_created=1, first_ns=STARTED_NS * 1000), processes=())
    assert world.refresh().processes == ()
    assert world.node.scans == {}
    assert world.books.forgotten == []
