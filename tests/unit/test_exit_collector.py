# SPDX-License-Identifier: Apache-2.0
"""Refreshes of a node of plain values show from where exits come, and when the hook is needed."""

from dataclasses import replace

import pytest

from ebpf.errors import LedgerReadError
from ebpf.hooks import KVM_EXIT, KVM_VM_IOCTL
from ebpf.ledger import LedgerEntry
from ebpf.uapi import KVM_RUN
from probes.host.kvm_stats import NO_STATISTICS, StatisticsListing, StatisticsReading
from probes.host.process import VmmId
from probes.judge.exit_counts import ExitSource
from probes.report.collector import NodeCollector
from probes.report.model import Source
from probes.report.ports import HostEdges
from tests.support.doubles import BETA, BETA_NS, Node, Pods, Trials, World
from tests.support.facts import (
    ALL_HOOKS,
    VMM,
    entry,
    hooks,
    in_ioctl,
    kernel,
    kvm_process,
    tcg_process,
)

STATISTICS, TRACEPOINT = ExitSource.KVM_STATISTICS, ExitSource.TRACEPOINT
LISTING = StatisticsListing(((10, "anon_inode:kvm-vcpu-stats:0"),), 1)
FAILED = StatisticsReading(LISTING, None)


def reading(exits: int, *, vcpus: int = 1) -> StatisticsReading:
    """A reading of a process whose only statistics say this; vcpus: how many it holds."""
    return StatisticsReading(LISTING._replace(vcpus=vcpus), ((exits,),))


def alpha(*, vcpus_created: int = 1, **counts: int) -> LedgerEntry:
    return entry(vms_created=1, vcpus_created=vcpus_created, userspace_exits=1, **counts)


def beta(**counts: int) -> LedgerEntry:
    return entry(BETA.tgid, first_ns=BETA_NS, userspace_exits=1, **counts)


def two_vms() -> World:
    """A world in which alpha has statistics and beta has none."""
    other = kvm_process(BETA, guest_name="lab_beta")
    world = World(alpha(), beta(exits=3), processes=(kvm_process(), other))
    world.node.statistics[VMM.tgid] = reading(7)
    return world


def one_vm() -> World:
    """A world in which the only VM has statistics."""
    world = World(alpha(), processes=(kvm_process(),))
    world.node.statistics[VMM.tgid] = reading(7)
    return world


def exits(world: World) -> dict[VmmId, tuple[ExitSource | None, int | None]]:
    """Refresh; return the source and the exits of each process."""
    return {
        process.vmm: (process.exits_source, process.counters.get("exits"))
        for process in world.refresh().processes
    }


def failed(world: World) -> int:
    """Return in how many refreshes statistics could not be read."""
    return world.collector.refresh().health.errors_total[Source.KVM_STATISTICS]


# when the hook is needed


def test_statistics_of_all_vms_release_the_hook() -> None:
    """Where all VMs have statistics, the hook is needed until the first refresh knows that."""
    world = one_vm()
    assert exits(world) == {VMM: (STATISTICS, 7)}
    assert world.books.needed == [(KVM_EXIT,), ()]


def test_one_vm_without_statistics_needs_the_hook() -> None:
    """Each VM is counted by its own source, and the hook stays attached for one of them."""
    world = two_vms()
    assert exits(world) == {VMM: (STATISTICS, 7), BETA: (TRACEPOINT, 3)}
    assert {*world.books.needed} == {(KVM_EXIT,)}
    assert [vmi.exits_source for vmi in world.refresh().vmis] == [STATISTICS, TRACEPOINT]


def test_the_end_of_a_vm_releases_the_hook() -> None:
    """The refresh that finds the last VM without statistics gone needs no hook any longer."""
    world = two_vms()
    world.refresh()
    del world.node.processes[BETA.tgid]
    assert exits(world) == {VMM: (STATISTICS, 7)}
    assert world.books.needed[-2:] == [(KVM_EXIT,), ()]


def test_a_vm_without_statistics_that_starts_needs_the_hook_again() -> None:
    """The hook is needed from the first refresh that sees such a VM."""
    world = one_vm()
    world.refresh()
    world.node.processes[BETA.tgid] = kvm_process(BETA)
    world.books.says = kernel(alpha(), beta())
    assert exits(world)[BETA] == (TRACEPOINT, None)
    assert world.books.needed == [(KVM_EXIT,), (), (KVM_EXIT,)]


def test_a_vm_that_emulates_does_not_need_the_hook() -> None:
    """Where the hooks see each KVM_RUN, a VM that emulates has no source and needs no hook."""
    world = World(processes=(tcg_process(),))
    assert exits(world) == {VMM: (None, None)}
    assert world.books.needed[-1] == ()


# what is read


def test_statistics_are_read_only_where_they_count() -> None:
    """A VM that the hook counts is not read again, and the ledger's vCPUs go with each process."""
    world = two_vms()
    world.refresh()
    assert world.node.wanted == [(VMM, 1), (BETA, 0)]
    world.books.says = kernel(alpha(vcpus_created=2), beta())
    world.refresh()
    assert world.node.wanted == [(VMM, 2)]


@pytest.mark.parametrize(
    ("seen", "counted", "threads"),
    [(True, True, {*()}), (False, True, {77}), (False, False, None)],
)
def test_threads_are_followed_where_no_hook_sees_vcpus(
    *, seen: bool, counted: bool, threads: set[int] | None
) -> None:
    """Without the hook that sees new vCPUs, a reading follows new threads.

    They are unknown where a mark may be lost without being counted.
    """
    world = one_vm()
    attached = ALL_HOOKS if seen else ALL_HOOKS - {KVM_VM_IOCTL}
    world.books.says = replace(kernel(alpha(), hooks=hooks(attached)), misses_counted=counted)
    world.books.lives = {VMM.tgid, 77}
    world.refresh()
    assert world.node.new_threads == threads


# failures


@pytest.mark.parametrize(
    "bad",
    [
        FAILED,
        StatisticsReading(None, None),
        # Its statistics are gone, or there are more links than are read.
        StatisticsReading(NO_STATISTICS, None),
    ],
)
def test_a_failed_reading_keeps_total_and_source(bad: StatisticsReading) -> None:
    """A refresh in which readings fail counts once, and their totals stay as they were."""
    world = World(alpha(), beta(), processes=(kvm_process(), kvm_process(BETA)))
    world.node.statistics = {VMM.tgid: reading(7), BETA.tgid: reading(8)}
    assert failed(world) == 0
    world.node.statistics = {VMM.tgid: bad, BETA.tgid: bad}
    assert exits(world) == {VMM: (STATISTICS, 7), BETA: (STATISTICS, 8)}
    assert world.books.needed[-1] == ()
    world.node.statistics = {VMM.tgid: reading(70), BETA.tgid: reading(80)}
    assert failed(world) == 1
    assert exits(world) == {VMM: (STATISTICS, 70), BETA: (STATISTICS, 80)}


def test_a_vcpu_that_has_no_statistics_is_reported() -> None:
    """A vCPU that is plugged without statistics leaves the source, and each refresh has failed.

    The total goes on, and is known to lack that vCPU's exits.
    """
    world = one_vm()
    assert failed(world) == 0
    world.node.statistics[VMM.tgid] = reading(9, vcpus=2)
    assert exits(world) == {VMM: (STATISTICS, 9)}
    assert failed(world) == 2


def test_vcpus_that_are_created_one_by_one() -> None:
    """The source is chosen with the vCPUs of that moment, and later ones join the total."""
    world = one_vm()
    world.refresh()
    listing = StatisticsListing(
        tuple((10 + number, f"anon_inode:kvm-vcpu-stats:{number}") for number in range(4)), 4
    )
    world.node.statistics[VMM.tgid] = StatisticsReading(listing, ((7,), (1,), (2,), (3,)))
    world.books.says = kernel(alpha(vcpus_created=4))
    assert exits(world) == {VMM: (STATISTICS, 13)}
    assert failed(world) == 0


def test_an_unreadable_ledger_counts_nothing_twice() -> None:
    """Statistics are read although the ledger is not, and its return is no news of a VM."""
    world = one_vm()
    world.refresh()
    world.books.says = LedgerReadError("cannot read the ledger: gone")
    world.node.statistics[VMM.tgid] = reading(8)
    assert exits(world) == {VMM: (STATISTICS, 8)}
    world.books.says = kernel(alpha())
    world.node.statistics[VMM.tgid] = reading(9)
    assert exits(world) == {VMM: (STATISTICS, 9)}


def test_without_a_ledger() -> None:
    """Statistics count without any BPF. A VM without them has a source that counts nothing."""
    inside = replace(kvm_process(), threads=(in_ioctl(9, KVM_RUN),))
    other = replace(kvm_process(BETA), threads=(in_ioctl(9, KVM_RUN),))
    node = Node(inside, other)
    node.statistics[VMM.tgid] = reading(7)
    collector = NodeCollector(
        node="node-1",
        version="1.2.3",
        ledger=None,
        ledger_error="no BPF",
        host=HostEdges(processes=node, virtualization=Trials(), emulation=Pods(), device=Pods()),
    )
    for total in (7, 9):
        node.statistics[VMM.tgid] = reading(total)
        report = collector.refresh()
        found = {process.vmm: process for process in report.processes}
        assert (found[VMM].exits_source, found[VMM].counters) == (STATISTICS, {"exits": total})
        assert (found[BETA].exits_source, found[BETA].counters) == (TRACEPOINT, {})
        assert report.health.errors_total[Source.KVM_STATISTICS] == 0
    assert node.new_threads is None


# one process after another


def test_a_reused_number_begins_another_account() -> None:
    """A process that has the number of one that ended shares neither its total nor its source."""
    world = two_vms()
    world.refresh()
    one = VmmId(tgid=VMM.tgid, start_ticks=VMM.start_ticks + 1)
    two = VmmId(tgid=BETA.tgid, start_ticks=BETA.start_ticks + 1)
    world.node.processes = {VMM.tgid: kvm_process(one), BETA.tgid: kvm_process(two)}
    first_ns = (BETA_NS + 1) * 2
    world.books.says = kernel(
        entry(one.tgid, first_ns=first_ns, userspace_exits=1),
        entry(two.tgid, first_ns=first_ns, userspace_exits=1),
    )
    world.books.lives = {one.tgid, two.tgid}
    world.node.statistics = {two.tgid: reading(2)}
    assert exits(world) == {one: (TRACEPOINT, None), two: (STATISTICS, 2)}


def test_a_hook_that_is_attached_again_continues_from_the_record() -> None:
    """The exits of a VM that the hook counts are those of its record, and never fall.

    The record keeps what it has while the hook is detached.
    """
    world = one_vm()
    world.refresh()
    world.node.processes[BETA.tgid] = kvm_process(BETA)
    seen = []
    detached = tuple(each.not_needed() if each.is_of(KVM_EXIT) else each for each in hooks())
    again = tuple(
        replace(each, attached_total=2, attached_ns=BETA_NS + 1) if each.is_of(KVM_EXIT) else each
        for each in hooks()
    )
    for status, count in ((hooks(), 5), (detached, 5), (again, 5), (again, 9)):
        world.books.says = kernel(alpha(), beta(exits=count), hooks=status)
        seen.append(exits(world)[BETA])
        assert world.books.needed[-1] == (KVM_EXIT,)
    assert seen == [(TRACEPOINT, 5), (TRACEPOINT, 5), (TRACEPOINT, 5), (TRACEPOINT, 9)]


def test_a_verdict_in_doubt_keeps_the_account() -> None:
    """A VM whose verdict is not KVM for a while shows no exits, and goes on where it was."""
    world = one_vm()
    world.refresh()
    guest = world.node.processes[VMM.tgid]
    world.node.processes[VMM.tgid] = tcg_process(VMM)
    world.books.says = kernel()
    world.books.lives = {VMM.tgid}
    assert exits(world) == {VMM: (None, None)}
    world.node.processes[VMM.tgid] = guest
    world.books.says = kernel(alpha())
    world.books.lives = {VMM.tgid}
    world.node.statistics[VMM.tgid] = reading(11)
    assert exits(world) == {VMM: (STATISTICS, 11)}
