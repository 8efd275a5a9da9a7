# SPDX-License-Identifier: Apache-2.0
"""Known workloads of prime counts: what the ledger says is what was made, to the last one."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ebpf.hook_status import HookStatus
from ebpf.hooks import KVM_EXIT, KVM_VCPU_IOCTL
from ebpf.ledger import LedgerEntry
from ebpf.session import Session
from probes.report.model import CounterTrust
from tests.support.debugfs import kvm_exits
from tests.support.kernel_ledger import entry_with
from tests.support.kernel_node import Node
from tests.support.kernel_world import KvmLoad, wait_for

CHURN = 11
CHURN_EXITS = 7
FIRST, SECOND, THIRD, FOURTH = 101, 103, 107, 109
"""Returns to user space while the hook is not needed, needed, not needed, and needed again."""


def status(session: Session) -> HookStatus:
    (found,) = [status for status in session.hooks if status.is_of(KVM_EXIT)]
    return found


def finished_entry(node: Node, load: KvmLoad) -> LedgerEntry:
    """The ledger's entry once the last exit of the counted part is in it."""
    made = load.totals["userspace_exits"] + load.totals["eintr"]

    def last_is_in() -> LedgerEntry | None:
        entry = node.session.read().entries.get(load.tgid)
        return entry if entry is not None and entry.counters["userspace_exits"] >= made else None

    return wait_for(last_is_in, f"{made} userspace exits of {load.tgid}")


@pytest.mark.every_kernel
@pytest.mark.parametrize("vcpus", [1, 2, 8])
@pytest.mark.parametrize("exits", [2003, 10007])
def test_every_exit_is_counted(
    node: Node,
    kvmload: Path,
    vcpus: int,
    exits: int,
    record_property: Callable[[str, object], None],
) -> None:
    """With processes coming and going beside it, no exit is lost and none is counted twice.

    Userspace exits and KVM_RUN entries equal the workload; VM exits equal KVM's own counter, where
    the kernel has the hooks and lets the counter be read.
    """
    node.count_exits()
    with KvmLoad(
        kvmload, "--vcpus", str(vcpus), "--userspace-exits", str(exits), "--churn", str(CHURN)
    ) as load:
        load.finish_counted_part()
        entry = finished_entry(node, load)
        assert load.totals["userspace_exits"] == exits
        assert entry.counters["userspace_exits"] == exits + load.totals["eintr"]
        if node.has(KVM_VCPU_IOCTL):
            assert entry.counters["runs"] == load.totals["kvm_run"]
            assert (entry.vms_created, entry.vcpus_created) == (1, vcpus)
        record_property(
            "userspace_exits", f"{entry.counters['userspace_exits']} of {load.totals['kvm_run']}"
        )
        if node.has(KVM_VCPU_IOCTL):
            record_property("kvm_run", f"{entry.counters['runs']} of {load.totals['kvm_run']}")
        oracle = kvm_exits(load.tgid)
        if oracle is not None and node.report().health.trusts["exits"] is CounterTrust.PROVEN:
            counted = node.session.read().entries[load.tgid].counters["exits"]
            record_property("vm_exits", f"{counted} of {oracle}")
            assert counted == oracle
            assert oracle >= exits


@pytest.mark.every_kernel
def test_exits_handled_in_the_kernel_are_counted(node: Node, kvmload: Path) -> None:
    """A guest that hardly ever returns to user space still shows every VM exit."""
    node.count_exits()
    kernel_exits = 1009
    with KvmLoad(kvmload, "--userspace-exits", "7", "--kernel-exits", str(kernel_exits)) as load:
        load.finish_counted_part()
        entry = finished_entry(node, load)
        assert entry.counters["userspace_exits"] == 8 + load.totals["eintr"]
        if node.report().health.trusts["exits"] is not CounterTrust.PROVEN:
            pytest.skip("kvm_exit does not fire on this kernel")
        assert entry.counters["exits"] >= kernel_exits + 8
        oracle = kvm_exits(load.tgid)
        assert oracle is None or node.session.read().entries[load.tgid].counters["exits"] == oracle


@pytest.mark.every_kernel
def test_a_blind_hook_is_said_to_be_blind(node: Node, kvmload: Path) -> None:
    """After exits to user space either VM exits were counted, or the hook is called blind.

    A blind hook's count is missing from the report, never 0.
    """
    node.count_exits()
    with KvmLoad(kvmload, "--userspace-exits", "1009") as load:
        load.finish_counted_part()
        entry = finished_entry(node, load)
        health = node.report().health
        shown = node.process(load.tgid)
        assert shown is not None
        if entry.counters["exits"]:
            assert (health.trusts["exits"], shown.counters.get("exits")) == (
                CounterTrust.PROVEN,
                entry.counters["exits"],
            )
        else:
            assert (health.trusts["exits"], shown.counters.get("exits")) == (
                CounterTrust.BLIND,
                None,
            )
        assert health.trusts["userspace_exits"] is CounterTrust.PROVEN
    assert node.report().health.trusts["exits"] is health.trusts["exits"], (
        "not forgotten with the VM"
    )


@pytest.mark.every_kernel
def test_counts_never_go_backwards(node: Node, kvmload: Path) -> None:
    """Each step is there in full at the next look."""
    with KvmLoad(kvmload, "--step", "--paused") as load:
        load.finish_counted_part()
        for steps in (1, 2, 3, 101, 1):
            load.step(steps)
            entry = finished_entry(node, load)
            assert (
                entry.counters["userspace_exits"]
                == load.totals["userspace_exits"] + load.totals["eintr"]
            )


def test_an_attach_later_counts_from_then_on(kvmload: Path) -> None:
    """Hooks attached after the VM count what comes after them, and only that.

    So does an agent that was restarted: its counters begin again, as those of any process do.
    """
    with KvmLoad(kvmload, "--step", "--userspace-exits", "1009") as load:
        load.finish_counted_part()
        with Node() as late:
            assert load.tgid not in late.session.read().entries
            load.step(13)
            wait_for(lambda: load.tgid in late.session.read().entries, "the first exit is seen")
            wait_for(
                lambda: late.session.read().entries[load.tgid].counters["userspace_exits"] >= 13,
                "the last exit is seen",
            )
            assert late.session.read().entries[load.tgid].counters["userspace_exits"] == 13


def test_two_sets_of_hooks_do_not_disturb_each_other(node: Node, kvmload: Path) -> None:
    """A second hvprobe beside the first one counts the same, and leaves the first's counts."""
    with Node() as second, KvmLoad(kvmload, "--userspace-exits", "2003") as load:
        load.finish_counted_part()
        first_entry, second_entry = finished_entry(node, load), finished_entry(second, load)
        assert (
            first_entry.counters["userspace_exits"]
            == second_entry.counters["userspace_exits"]
            == 2003
        )


@pytest.mark.every_kernel
def test_exits_are_counted_while_the_hook_is_needed(node: Node, kvmload: Path) -> None:
    """The hook is attached and detached at once, and what it has counted stays in the record."""

    def exits(returns: int) -> int:
        entry: LedgerEntry = wait_for(
            lambda: entry_with(session, load.tgid, returns), "all returns are counted"
        )
        return entry.counters["exits"]

    session = node.session
    session.need(())
    with KvmLoad(kvmload, "--paused", "--step") as load:
        load.finish_counted_part()
        assert (status(session).attached, status(session).unneeded) == (False, True)
        load.step(FIRST)
        assert exits(FIRST) == 0
        session.need([KVM_EXIT])
        if not status(session).attached:
            pytest.skip(f"kvm_exit is not attached: {status(session).reason}")
        attached_total = status(session).attached_total
        load.step(SECOND)
        counted = exits(FIRST + SECOND)
        session.need(())
        assert (status(session).attached, status(session).unneeded) == (False, True)
        load.step(THIRD)
        assert exits(FIRST + SECOND + THIRD) == counted
        session.need([KVM_EXIT])
        assert status(session).attached_total == attached_total + 1
        load.step(FOURTH)
        again = exits(FIRST + SECOND + THIRD + FOURTH)
        if not again:
            pytest.skip("kvm_exit does not fire on this kernel")
        assert counted >= SECOND
        assert again - counted >= FOURTH
