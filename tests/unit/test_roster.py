"""Whom the kernel follows, and who has to be read again: every reading of /proc is counted."""

import os
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from facts import (
    KVM_FDS,
    STARTED_NS,
    VMM,
    entry,
    hooks,
    in_ioctl,
    kernel,
    kvm_process,
    process,
    tcg_process,
)
from test_observer import (
    BETA,
    BETA_NS,
    KVM,
    PLAYED_TGID,
    TCG,
    Node,
    World,
    kvm_world,
    tcg_world,
    type_of,
)

from ebpf.errors import LedgerReadError
from ebpf.hooks import Backend, Question
from ebpf.ledger import KernelSnapshot, LedgerEntry
from probes import observer as observer_module
from probes.evidence import KVM_RUN
from probes.roster import FREED_WITHIN_NS, IN_TURN
from probes.verdict import Reason
from probes.vmi import IndexState, VmiIndex, WatchStatus
from probes.vmm import VmmId, VmmProcess

EARLY = VmmId(tgid=PLAYED_TGID, start_ticks=1)
"""Started 10 ms after the clock of this machine did: any record made by now is of its time."""
SECOND = VmmId(tgid=PLAYED_TGID + 1, start_ticks=1)
ATTACHED_NS = 20_000_000
"""After EARLY's start."""
MARKED_NS = 89_000_000_000
ASLEEP = (in_ioctl(9, KVM_RUN, tid=EARLY.tgid + 1),)
"""The one thread of EARLY that sleeps in a KVM_RUN which began before the hooks."""


def late(*entries: LedgerEntry, **changes: object) -> KernelSnapshot:
    """A ledger whose hooks were attached after EARLY started."""
    return kernel(*entries, **{"attached_ns": ATTACHED_NS, **changes})


def early_world(found: VmmProcess, **changes: object) -> World:
    """One process, older than the hooks, of which the ledger has no record."""
    world = World(processes=(found,))
    world.books.says = late(**changes)
    world.node.swept_up = {found.vmm.tgid}
    return world


def asleep() -> VmmProcess:
    """A QEMU that sleeps in one KVM_RUN for hours."""
    return replace(kvm_process(EARLY), threads=ASLEEP)


def read(node: Node) -> tuple[int, int]:
    """How often processes were identified and inspected."""
    return node.identifications.total(), node.inspections.total()


# followed by the kernel


def test_a_thousand_settled_processes_are_not_read_again() -> None:
    """KVM and TCG alike: later looks read the ledger and nothing of theirs in /proc."""
    ids = [VmmId(tgid=PLAYED_TGID + number, start_ticks=7000 + number) for number in range(1000)]
    make: tuple[Callable[..., VmmProcess], ...] = (kvm_process, tcg_process)
    found = [make[vmm.tgid % 2](vmm, guest_name=f"lab_vm-{vmm.tgid}") for vmm in ids]

    def says(runs: int) -> KernelSnapshot:
        return kernel(
            *(
                entry(
                    vmm.tgid,
                    first_ns=vmm.start_ticks * 10_000_000 + 5,
                    userspace_exits=runs if vmm.tgid % 2 == 0 else 0,
                )
                for vmm in ids
            )
        )

    world = World(processes=tuple(found))
    for look in range(1, 4):
        world.books.says = says(look)
        report = world.look()
        assert len(report.vmis) == 1000
        assert {it.userspace_exits for it in report.vmis} == {look, None}
        assert all(it.verdict.verified for it in report.vmis)
        identified, inspected = read(world.node)
        assert inspected == 1000
        assert 1000 <= identified <= 1000 + (look - 1) * (1000 // IN_TURN + 1)


def test_an_end_that_no_hook_told_is_noticed_in_turn() -> None:
    """The record stands unmarked and its process is gone: seen after IN_TURN looks at the latest.

    The kernel would never remove that record: it is forgotten, and its slot is free.
    """
    world = kvm_world()
    assert type_of(world.one()) == (KVM, True)
    del world.node.processes[VMM.tgid]
    looks = next(look for look in range(1, 100) if not world.look().processes)
    assert looks <= IN_TURN
    assert world.books.forgotten == [VMM.tgid]


def test_a_record_that_outlives_its_process_is_removed() -> None:
    """Marked, and not freed for ten seconds: the kernel's word was lost."""
    world = kvm_world()
    assert type_of(world.one()) == (KVM, True)
    del world.node.processes[VMM.tgid]
    marked = entry(runs=6, leader_exit_ns=MARKED_NS)
    world.books.says = replace(kernel(marked), taken_ns=MARKED_NS + FREED_WITHIN_NS)
    assert world.look().processes == ()
    assert world.books.forgotten == []
    world.books.says = replace(kernel(marked), taken_ns=MARKED_NS + FREED_WITHIN_NS + 1)
    assert world.look().processes == ()
    assert world.books.forgotten == [VMM.tgid]


@pytest.mark.parametrize("question", [Question.BECOMES_VMM, Question.ENDS, Question.IS_FREED])
@pytest.mark.parametrize("backend", [Backend.NONE, Backend.RAW_TRACEPOINT])
def test_without_every_hook_each_look_identifies(question: Question, backend: Backend) -> None:
    """A hook that is missing, or may lose events, follows nobody: /proc is asked who lives."""
    world = kvm_world()
    statuses = tuple(
        replace(it, backend=backend) if it.hook.question is question else it for it in hooks()
    )
    for looks in (1, 2, 3):
        world.books.says = kernel(entry(runs=5, userspace_exits=5), hooks=statuses)
        assert type_of(world.one()) == (KVM, True)
        assert read(world.node) == (looks, 1)
    del world.node.processes[VMM.tgid]
    assert world.look().processes == ()


def test_marked_record_is_asked_about_at_every_look() -> None:
    """The main thread has ended and vCPU threads may live on: /proc tells when they are gone."""
    world = kvm_world()
    assert type_of(world.one()) == (KVM, True)
    world.books.says = kernel(entry(runs=6, userspace_exits=6, leader_exit_ns=MARKED_NS))
    for looks in (2, 3):
        found = world.one()
        assert (type_of(found), found.runs) == ((KVM, True), 6)
        assert read(world.node) == (looks, 1)
    del world.node.processes[VMM.tgid]
    assert world.look().processes == ()
    assert world.books.forgotten == []


def test_added_vcpus_are_read_once() -> None:
    """A vCPU was plugged in: its number is read, the verdict stands."""
    world = World(entry(runs=5, vcpus_created=1), processes=(asleep_at(VMM),))
    first = world.one()
    world.books.says = kernel(entry(runs=5, vcpus_created=2))
    two = replace(KVM_FDS, kvm_vcpus=frozenset({9, 11}))
    world.node.processes[VMM.tgid] = replace(kvm_process(), fds=two)
    for _ in range(3):
        found = world.one()
        assert (found.vcpus, found.verdict) == (2, first.verdict)
        assert found.started_unix_s == first.started_unix_s
    assert read(world.node) == (2, 2)


def asleep_at(vmm: VmmId) -> VmmProcess:
    return replace(kvm_process(vmm), threads=(in_ioctl(9, KVM_RUN),))


def test_main_thread_that_ended_before_its_record_began() -> None:
    """Nothing would mark that record, nor remove it: each look asks, and it goes at the end."""
    ended = replace(kvm_process(), main_thread_ended=True)
    world = World(entry(runs=5, userspace_exits=5), processes=(ended,))
    for looks in (1, 2, 3):
        assert type_of(world.one()) == (KVM, True)
        assert read(world.node) == (looks, 1)
    assert world.books.forgotten == []
    del world.node.processes[VMM.tgid]
    assert world.look().processes == ()
    assert world.books.forgotten == [VMM.tgid]


def test_main_thread_that_ended_is_the_kernels_business_once_marked() -> None:
    """A marked record is removed by the kernel, when the last thread is freed."""
    ended = replace(kvm_process(), main_thread_ended=True)
    world = World(entry(runs=5, exits=5, leader_exit_ns=MARKED_NS), processes=(ended,))
    assert type_of(world.one()) == (KVM, True)
    del world.node.processes[VMM.tgid]
    assert world.look().processes == ()
    assert world.books.forgotten == []


# given a record


@pytest.mark.parametrize(
    ("found", "verdict"),
    [(asleep(), KVM), (tcg_process(EARLY), TCG)],
    ids=["asleep in KVM_RUN", "tcg"],
)
def test_process_without_a_record_is_given_one(found: VmmProcess, verdict: object) -> None:
    """Before it is read, and once: from the next look on the kernel follows it."""
    world = early_world(found)
    first = world.one()
    assert type_of(first) == (verdict, True)
    for _ in range(3):
        assert world.one() == first
    assert world.books.adopted == [EARLY.tgid]
    assert read(world.node) == (1, 1)


def test_adopted_record_counts_as_any_other() -> None:
    """What the kernel counts from then on is shown, and nobody is read for it."""
    world = early_world(asleep())
    world.look()
    assert isinstance(world.books.says, KernelSnapshot)
    record = world.books.says.entries[EARLY.tgid]
    world.books.says = late(record._replace(runs=3, userspace_exits=3))
    found = world.one()
    assert (found.runs, found.userspace_exits) == (3, 3)
    assert read(world.node) == (1, 1)


def test_adopted_record_is_no_witness_of_the_start() -> None:
    """It began when hvprobe asked for it: the reasons are those of a process without a record."""
    world = early_world(tcg_process(EARLY, ticks=0))
    assert world.one().verdict.reasons == (Reason.TCG_IDLE,)
    world.node.processes[EARLY.tgid] = tcg_process(EARLY)
    assert world.one().verdict.reasons == (Reason.TCG_COMPUTES, Reason.HOOKS_LATE)
    assert world.books.adopted == [EARLY.tgid]


def test_adopted_record_does_not_hide_lost_events() -> None:
    """Events were dropped, so a record that has nothing says nothing: not verified, no false 0."""
    guests = (tcg_process(EARLY), asleep_at(SECOND), kvm_process())
    world = World(processes=guests)
    world.books.says = late(entry(runs=1, userspace_exits=1, exits=1), dropped_total=1)
    world.node.swept_up = {EARLY.tgid, SECOND.tgid}
    for _ in range(3):
        found = {it.vmm: it for it in world.look().processes}
        assert found[EARLY].verdict.reasons == (Reason.TCG_COMPUTES, Reason.LEDGER_INCOMPLETE)
        assert type_of(found[SECOND]) == (KVM, True)
        assert (found[SECOND].runs, found[SECOND].exits) == (None, None)
        assert (found[VMM].runs, found[VMM].exits) == (1, 1)
        assert sorted(world.books.adopted) == [EARLY.tgid, SECOND.tgid]


def test_adopted_record_does_not_make_a_vmm() -> None:
    """Named like QEMU when it was swept up, and something else when it was read."""
    sh = replace(process(EARLY), named_like_qemu=False, program="sh", comm="sh")
    world = early_world(sh)
    assert world.look().processes == ()
    assert world.books.adopted == world.books.forgotten == [EARLY.tgid]


@pytest.mark.parametrize(
    "now",
    [
        None,
        entry(EARLY.tgid, first_ns=STARTED_NS * 10**6, exec_ns=STARTED_NS * 10**6),
        entry(EARLY.tgid, first_ns=STARTED_NS * 10**6, exec_ns=None, vms_created=1),
    ],
    ids=["something else", "a QEMU", "another user of KVM"],
)
def test_execution_ends_an_adopted_record(now: LedgerEntry | None) -> None:
    """Another program is judged afresh, whatever the process was before."""
    world = early_world(asleep())
    assert type_of(world.one()) == (KVM, True)
    world.books.says = late(*([now] if now else []))
    world.node.processes[EARLY.tgid] = tcg_process(EARLY, ticks=0)
    assert world.one().verdict.reasons == (Reason.TCG_IDLE,)


def test_execution_between_adoption_and_reading() -> None:
    """What was read is of a program that the adopted record is not of: it is read again."""
    world = early_world(asleep())
    world.look()
    world.books.says = late(entry(EARLY.tgid, first_ns=time.monotonic_ns(), exec_ns=1))
    world.node.processes[EARLY.tgid] = tcg_process(EARLY, ticks=0)
    assert world.one().verdict.reasons == (Reason.TCG_IDLE,)
    assert read(world.node) == (2, 2)


def test_gone_between_adoption_and_reading() -> None:
    """The record may have come too late for the kernel to remove it, so hvprobe does, at once."""
    world = early_world(asleep())
    world.node.vanish_at_inspection = {EARLY.tgid}
    assert world.look().processes == ()
    assert world.books.adopted == world.books.forgotten == [EARLY.tgid]


def test_number_used_again_between_adoption_and_reading() -> None:
    """The follower is judged by itself; a record that is older than it is not believed."""
    world = early_world(asleep())
    world.look()
    assert isinstance(world.books.says, KernelSnapshot)
    follower = VmmId(tgid=EARLY.tgid, start_ticks=time.monotonic_ns() // 10_000_000 + 10)
    world.node.processes[EARLY.tgid] = tcg_process(follower, ticks=0)
    world.books.says = late(
        *(
            it._replace(runs=7, userspace_exits=7, leader_exit_ns=MARKED_NS)
            for it in world.books.says.entries.values()
        )
    )
    for _ in range(2):
        found = world.one()
        assert (found.vmm, found.verdict.reasons) == (follower, (Reason.TCG_IDLE,))
    assert world.books.forgotten == []


@pytest.mark.parametrize("fails", ["adopt", "forget"])
def test_ledger_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    """Looks go on, and each identifies."""
    world = early_world(replace(asleep(), main_thread_ended=fails == "forget"))

    def refuse(tgid: int) -> bool:
        raise LedgerReadError(f"cannot write to the ledger: {tgid}")

    monkeypatch.setattr(world.books, fails, refuse)
    for looks in (1, 2):
        assert type_of(world.one()) == (KVM, True)
        assert read(world.node) == (looks, 1)
    del world.node.processes[EARLY.tgid]
    assert world.look().processes == ()


def test_without_room_each_look_identifies() -> None:
    """A full ledger takes nobody in: the process is followed as it was, and tried again."""
    world = early_world(asleep())
    world.books.room = False
    for looks in (1, 2, 3):
        assert type_of(world.one()) == (KVM, True)
        assert read(world.node) == (looks, 1)
    world.books.room = True
    for _ in range(3):
        assert type_of(world.one()) == (KVM, True)
    assert read(world.node) == (4, 2)
    assert world.books.adopted == [EARLY.tgid]


@pytest.mark.parametrize("question", [Question.BECOMES_VMM, Question.ENDS, Question.IS_FREED])
def test_nobody_is_adopted_whom_the_kernel_cannot_follow(question: Question) -> None:
    """A record that nothing marks, ends or removes would stay for ever."""
    world = early_world(asleep(), hooks=hooks(frozenset(Question) - {question}))
    for _ in range(2):
        assert type_of(world.one()) == (KVM, True)
    assert world.books.adopted == []


def test_unreadable_ledger_adopts_nobody() -> None:
    """While it cannot be read each look identifies; afterwards the kernel follows again."""
    world = early_world(asleep())
    world.look()
    before = world.books.says
    world.books.says = LedgerReadError("cannot read the ledger: gone")
    for looks in (2, 3):
        assert type_of(world.one()) == (KVM, True)
        assert read(world.node) == (looks, 1)
    world.books.says = before
    for _ in range(2):
        assert type_of(world.one()) == (KVM, True)
    assert read(world.node) == (3, 1)
    assert world.books.adopted == [EARLY.tgid]


def test_unsettled_process_is_read_with_or_without_a_record() -> None:
    """A paused VM older than the hooks is adopted once, and read until it is seen to run."""
    world = early_world(kvm_process(EARLY))
    for looks in (1, 2, 3):
        assert type_of(world.one()) == (KVM, False)
        assert read(world.node) == (looks, looks)
    world.node.processes[EARLY.tgid] = asleep()
    for _ in range(3):
        assert type_of(world.one()) == (KVM, True)
    assert read(world.node) == (4, 4)
    assert world.books.adopted == [EARLY.tgid]


def test_record_that_began_by_itself_is_taken_over() -> None:
    """There was no room; then the kernel made one by a KVM event. It is read once and followed."""
    world = early_world(asleep())
    world.books.room = False
    assert type_of(world.one()) == (KVM, True)
    began = entry(EARLY.tgid, first_ns=time.monotonic_ns(), exec_ns=None, runs=1)
    world.books.says = late(began)
    for _ in range(3):
        found = world.one()
        assert (type_of(found), found.runs) == ((KVM, True), 1)
    assert read(world.node) == (2, 2)


# names are made once


class Told:
    """An index of VMIs that the test exchanges."""

    def __init__(self) -> None:
        self.says = VmiIndex.of((), state=IndexState.CURRENT, synced_at_unix_s=1.0)

    def index(self) -> VmiIndex:
        return self.says

    def status(self) -> WatchStatus:
        return WatchStatus(
            up=True, synced=True, last_sync_unix_s=1.0, restarts=0, error=None, malformed_total=0
        )


def test_names_are_made_anew_only_for_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counters change none; a process that comes, goes or is judged otherwise does."""
    made: list[int] = []
    real = observer_module.by_guest_name

    def counted(candidates: object) -> object:
        made.append(1)
        return real(candidates)  # type: ignore[arg-type]

    monkeypatch.setattr(observer_module, "by_guest_name", counted)
    world = tcg_world()
    for runs in (0, 0, 0):
        world.books.says = kernel(entry(runs=runs))
        assert [it.vm.name for it in world.look().vmis] == ["beta"]
    assert len(made) == 1
    world.node.processes[BETA.tgid] = kvm_process(BETA)
    born = entry(BETA.tgid, first_ns=BETA_NS, exec_ns=BETA_NS, userspace_exits=1)
    for exits in (1, 2):
        world.books.says = kernel(entry(), born._replace(userspace_exits=exits))
        assert [it.userspace_exits for it in world.look().vmis] == [exits, None]
    assert len(made) == 2
    world.books.says = kernel(born)
    del world.node.processes[VMM.tgid]
    assert [it.vm.name for it in world.look().vmis] == ["alpha"]
    assert len(made) == 3


def test_itself_is_not_adopted() -> None:
    """Swept up because it is named like a VMM, or holds the accelerator it tries."""
    world = early_world(process(EARLY))
    world.node.swept_up = {os.getpid()}
    assert world.look().processes == ()
    assert world.books.adopted == []
