# SPDX-License-Identifier: Apache-2.0
"""The counters' slots: nothing is lost or doubled when one changes hands, nor when a CPU goes."""

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path

import pytest

from ebpf.bpf_syscall import Update
from ebpf.clock import monotonic_ns
from ebpf.hooks import KVM_DEV_IOCTL
from ebpf.ledger import LedgerEntry
from ebpf.session import Session
from ebpf.tables import default_capacity, memory_bytes
from tests.support.debugfs import kvm_exits
from tests.support.kernel_ledger import (
    entry_with,
    exits_counted,
    fill_with_rubbish,
    free_slots,
    rubbish_left,
    tables,
    take_slots,
    wait_for_removal,
)
from tests.support.kernel_world import KvmLoad, wait_for

CPU1_ONLINE = Path("/sys/devices/system/cpu/cpu1/online")
EXITS = 503
FREED_S = 1.0
"""After this the kernel has freed a process that has ended."""


@contextlib.contextmanager
def loads(kvmload: Path, count: int, *arguments: str) -> Iterator[list[KvmLoad]]:
    """Several processes that have made their exits and live."""
    with contextlib.ExitStack() as stack:
        started = [stack.enter_context(KvmLoad(kvmload, *arguments)) for _ in range(count)]
        for load in started:
            load.finish_counted_part()
        yield started


def counted(session: Session, load: KvmLoad) -> LedgerEntry | None:
    """The process's record once its last exit is in it."""
    return entry_with(session, load.tgid, load.totals["userspace_exits"] + load.totals["eintr"])


def check_exits(entries: Collection[LedgerEntry]) -> None:
    """Compare VM exits with KVM's own count, where kvm_exit fires and that count can be read."""
    fires = any(entry.counters["exits"] for entry in entries)
    for entry in entries:
        oracle = kvm_exits(entry.tgid)
        assert not fires or oracle is None or entry.counters["exits"] == oracle


@pytest.mark.every_kernel
def test_processes_that_share_a_place(kvmload: Path) -> None:
    """With one place on each CPU, one process has it and the others do not: counts are exact."""
    with (
        exits_counted(exit_places=1) as session,
        loads(kvmload, 5, "--vcpus", "2", "--userspace-exits", str(EXITS), "--step") as running,
    ):
        for load in running:
            load.step(1)
        entries: list[LedgerEntry] = []
        for load in running:
            entry = wait_for(partial(counted, session, load), "the last exit is seen")
            assert entry.counters["userspace_exits"] == EXITS + 1 + load.totals["eintr"]
            entries.append(entry)
        check_exits(entries)


def test_a_slot_begins_at_zero(kvmload: Path) -> None:
    """Many more processes than slots, one after another: each gets counters that are its own.

    Were a slot not given back, the ledger would be full soon; were it or a place not cleared, the
    next process would begin with the last one's counts. The slot given back last is the next one's,
    and there is one place on each CPU.
    """
    with exits_counted(capacity=64, exit_places=1) as session:
        take_slots(session, common=4, reserved=4)
        for _ in range(24):
            with KvmLoad(kvmload, "--vcpus", "2", "--userspace-exits", str(EXITS)) as load:
                load.finish_counted_part()
                entry = wait_for(partial(counted, session, load), "the exits are seen")
                assert entry.counters["userspace_exits"] == EXITS + load.totals["eintr"]
                check_exits([entry])
                tgid = load.tgid
            wait_for_removal(session, tgid)
        assert session.read().dropped_total == 0


def test_what_a_record_held_goes_with_it(kvmload: Path) -> None:
    """Each of its numbers, on each CPU; and no other process's."""
    with (
        Session() as session,
        loads(kvmload, 2, "--userspace-exits", str(EXITS), "--step") as (load, bystander),
    ):
        wait_for(lambda: counted(session, load), "the exits are seen")
        slot = fill_with_rubbish(session, load.tgid)
        assert rubbish_left(session, load.tgid, slot)
        load.kill()
        wait_for_removal(session, load.tgid)
        wait_for(lambda: rubbish_left(session, load.tgid, slot) == 0, "its slot is empty")
        bystander.step(1)
        entry = wait_for(lambda: counted(session, bystander), "the step is seen")
        assert entry.counters["userspace_exits"] == EXITS + 1 + bystander.totals["eintr"]


def test_a_full_ledger_gives_what_becomes_free(kvmload: Path) -> None:
    """Events without room are counted as dropped; those with a record go on counting exactly."""
    with Session(capacity=64) as session:
        take_slots(session, common=1, reserved=1)
        with loads(kvmload, 2, "--userspace-exits", str(EXITS), "--step") as running:
            for load in running:
                wait_for(partial(counted, session, load), "the exits are seen")
            with KvmLoad(kvmload, "--userspace-exits", "7") as third:
                third.finish_counted_part()
                wait_for(lambda: session.read().dropped_total >= 7, "the third has no room")
                assert third.tgid not in session.read().entries
            for load in running:
                load.step(3)
                entry = wait_for(partial(counted, session, load), "the steps are seen")
                assert entry.counters["userspace_exits"] == EXITS + 3 + load.totals["eintr"]
            ended = {load.tgid for load in running}
        wait_for_removal(session, *ended)
        with loads(kvmload, 2, "--userspace-exits", str(EXITS)) as running:
            for load in running:
                entry = wait_for(partial(counted, session, load), "the exits are seen")
                assert entry.counters["userspace_exits"] == EXITS + load.totals["eintr"]


@pytest.mark.host_only
def test_processes_that_only_create_vms_leave_room(kvmload: Path) -> None:
    """They get common slots; a process that uses a vCPU gets a reserved one when those are gone."""
    with Session(capacity=64) as session, contextlib.ExitStack() as stack:
        take_slots(session, common=0, reserved=1)
        vm_only = stack.enter_context(KvmLoad(kvmload, "--create-vm-only"))
        vm_only.finish_counted_part()
        load = stack.enter_context(KvmLoad(kvmload, "--userspace-exits", str(EXITS)))
        load.finish_counted_part()
        entry = wait_for(lambda: counted(session, load), "it has a record")
        assert entry.counters["userspace_exits"] == EXITS + load.totals["eintr"]
        snapshot = session.read()
        assert vm_only.tgid not in snapshot.entries
        kprobes = any(status.attached for status in snapshot.hooks if status.is_of(KVM_DEV_IOCTL))
        assert (snapshot.dropped_total > 0) == kprobes


@pytest.mark.host_only
def test_a_slot_that_no_hash_entry_can_be_made_for_is_given_back(kvmload: Path) -> None:
    """The way that the second of two threads takes which come to a new record at once."""
    with Session(capacity=64) as session:
        kept = take_slots(session, common=2, reserved=1)
        slots = tables(session)._slots
        with contextlib.suppress(OSError):  # E2BIG: the hash is full
            for number in itertools.count(1 << 30):
                slots.set(number.to_bytes(4, "little"), bytes(4))
        with KvmLoad(kvmload, "--vcpus", "2", "--userspace-exits", "7") as load:
            load.finish_counted_part()
            wait_for(lambda: session.read().dropped_total >= 7, "there is no room for it")
        assert sorted(free_slots(session)) == sorted(kept)


@pytest.mark.host_only
def test_a_record_that_is_forgotten_begins_again(kvmload: Path) -> None:
    """Only the one that is meant is removed; its slot is there again, often as it is needed."""
    with Session(capacity=64) as session, KvmLoad(kvmload, "--paused", "--step") as load:
        load.finish_counted_part()
        take_slots(session, common=2, reserved=0)
        for _ in range(8):
            load.step(7)
            entry = wait_for(lambda: session.read().entries.get(load.tgid), "it has a record")
            assert entry.counters["userspace_exits"] == 7
            for first_ns in (entry.first_ns - 1, entry.first_ns + 1):
                session.forget(load.tgid, first_ns)
            assert session.read().entries[load.tgid] == entry
            session.forget(load.tgid, entry.first_ns)
            assert load.tgid not in session.read().entries
            session.forget(load.tgid, entry.first_ns)
        assert session.read().dropped_total == 0


@pytest.mark.host_only
def test_a_removal_at_work_is_left_alone(kvmload: Path) -> None:
    """The kernel frees the process while the reader removes its record: one of them removes it."""
    with Session(capacity=64) as session:
        kept = take_slots(session, common=2, reserved=0)
        claims = tables(session)._claims
        with KvmLoad(kvmload, "--userspace-exits", "7") as load:
            load.finish_counted_part()
            entry = wait_for(lambda: counted(session, load), "the exits are seen")
            key = load.tgid.to_bytes(4, "little")
            assert claims.set(key, monotonic_ns().to_bytes(8, "little"), Update.NOEXIST)
        time.sleep(FREED_S)
        assert session.read().entries[load.tgid].leader_exit_ns is not None
        session.forget(load.tgid, entry.first_ns)
        assert load.tgid in session.read().entries
        assert claims.delete(key)
        session.forget(load.tgid, entry.first_ns)
        assert load.tgid not in session.read().entries
        assert sorted(free_slots(session)) == sorted(kept)


@pytest.mark.host_only
def test_the_room_follows_the_machine() -> None:
    """Unless it is given."""
    with Session() as session:
        cpus = tables(session)._sizes.cpus
        assert session.read().capacity == default_capacity(memory_bytes=memory_bytes(), cpus=cpus)


def test_forgetting_a_process_that_runs_harms_no_other(kvmload: Path) -> None:
    """Its programs are at work when its slot is taken: none of its events is another process's."""
    with (
        Session(capacity=64) as session,
        KvmLoad(kvmload, "--vcpus", "2", "--then", "leave-leader").finish_counted_part() as busy,
        loads(kvmload, 1, "--userspace-exits", str(EXITS)) as (bystander,),
    ):
        for _ in range(10):
            entry = wait_for(lambda: session.read().entries.get(busy.tgid), "it has a record")
            session.forget(busy.tgid, entry.first_ns)
            session.read()
            with KvmLoad(kvmload, "--userspace-exits", "7") as load:
                load.finish_counted_part()
                for counted_load, made in ((load, 7), (bystander, EXITS)):
                    entry = wait_for(partial(counted, session, counted_load), "the exits are seen")
                    assert entry.counters["userspace_exits"] == made + counted_load.totals["eintr"]


@pytest.mark.host_only
def test_a_reader_between_processes(kvmload: Path) -> None:
    """Read as fast as can be while slots change hands: no process ever has more than its own.

    There is room for those that have ended and that the kernel has not freed yet.
    """
    with Session(capacity=256) as session:
        ended = threading.Event()

        made: dict[int, int] = {}

        def begin_and_end() -> None:
            for _ in range(20):
                with KvmLoad(kvmload, "--userspace-exits", str(EXITS)) as load:
                    load.finish_counted_part()
                    made[load.tgid] = load.totals["userspace_exits"] + load.totals["eintr"]
            ended.set()

        most: dict[int, int] = {}
        worker = threading.Thread(target=begin_and_end)
        worker.start()
        while not ended.is_set():
            for tgid, entry in session.read().entries.items():
                assert entry.counters["userspace_exits"] >= most.get(tgid, 0), "it went backwards"
                most[tgid] = entry.counters["userspace_exits"]
        worker.join()
        seen = set(most) & set(made)
        assert len(seen) > 10
        assert {tgid: most[tgid] for tgid in seen if most[tgid] > made[tgid]} == {}
        assert session.read().dropped_total == 0


@pytest.mark.skipif(
    os.environ.get("HVPROBE_MODULE_TESTS") != "1" or not CPU1_ONLINE.exists(),
    reason="takes a CPU off line: only in a machine of its own (HVPROBE_MODULE_TESTS=1)",
)
def test_counts_survive_a_cpu_that_goes(kvmload: Path) -> None:
    """What a CPU counted stays counted when it is taken off line, and goes on when it is back."""
    with (
        Session() as session,
        KvmLoad(kvmload, "--vcpus", "4", "--userspace-exits", "2003", "--step") as load,
    ):
        load.finish_counted_part()
        try:
            for step, online in enumerate("0101", start=1):
                CPU1_ONLINE.write_text(online)
                load.step(97)
                entry = wait_for(lambda: counted(session, load), "the steps are seen")
                assert entry.counters["userspace_exits"] == 2003 + 97 * step + load.totals["eintr"]
        finally:
            CPU1_ONLINE.write_text("1")
