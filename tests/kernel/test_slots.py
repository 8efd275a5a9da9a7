"""The counters' slots: nothing is lost or doubled when one changes hands, nor when a CPU goes."""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from kernel_world import KvmLoad, wait_for

from ebpf.ledger import LedgerEntry
from ebpf.session import Session

CPU1_ONLINE = Path("/sys/devices/system/cpu/cpu1/online")
EXITS = 503


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
    entry = session.read().entries.get(load.tgid)
    made = load.totals["userspace_exits"] + load.totals["eintr"]
    return entry if entry is not None and entry.userspace_exits >= made else None


def test_processes_that_drive_each_other_out(kvmload: Path) -> None:
    """With one place for all of them, every event of one drives out another: counts are exact."""
    with (
        Session(recent_places=1) as session,
        loads(kvmload, 5, "--vcpus", "2", "--userspace-exits", str(EXITS), "--step") as running,
    ):
        for load in running:
            load.step(1)
        for load in running:
            entry = wait_for(lambda load=load: counted(session, load), "the last exit is seen")
            assert entry.userspace_exits == EXITS + 1 + load.totals["eintr"]


def test_a_slot_begins_at_zero(kvmload: Path) -> None:
    """Many more processes than slots, one after another: each gets counters that are its own.

    Were a slot not given back, the ledger would be full soon; were it not cleared, the next
    process would begin with the last one's counts. The slot given back last is the next one's.
    """
    with Session(capacity=8) as session:
        for _ in range(24):
            with KvmLoad(kvmload, "--userspace-exits", str(EXITS)) as load:
                load.finish_counted_part()
                entry = wait_for(lambda load=load: counted(session, load), "the exits are seen")
                assert entry.userspace_exits == EXITS + load.totals["eintr"]
                tgid = load.tgid
            wait_for(lambda tgid=tgid: tgid not in session.read().entries, "its record is removed")
        assert session.read().dropped_total == 0


def test_a_full_ledger_gives_what_becomes_free(kvmload: Path) -> None:
    """Events without room are counted as dropped; those with a record go on counting exactly."""
    with Session(capacity=2) as session:
        with loads(kvmload, 2, "--userspace-exits", str(EXITS), "--step") as running:
            for load in running:
                wait_for(lambda load=load: counted(session, load), "the exits are seen")
            with KvmLoad(kvmload, "--userspace-exits", "7") as third:
                third.finish_counted_part()
                wait_for(lambda: session.read().dropped_total >= 7, "the third has no room")
                assert third.tgid not in session.read().entries
            for load in running:
                load.step(3)
                entry = wait_for(lambda load=load: counted(session, load), "the steps are seen")
                assert entry.userspace_exits == EXITS + 3 + load.totals["eintr"]
        wait_for(lambda: not session.read().entries, "both records are removed")
        with loads(kvmload, 2, "--userspace-exits", str(EXITS)) as running:
            for load in running:
                entry = wait_for(lambda load=load: counted(session, load), "the exits are seen")
                assert entry.userspace_exits == EXITS + load.totals["eintr"]


def test_adopted_processes(kvmload: Path) -> None:
    """A process that has no record gets one, with zeros; its events count from then on.

    When it ends the kernel's hooks remove the record, or forget() does, and the slot is given
    back: there are only three.
    """
    with KvmLoad(kvmload, "--userspace-exits", str(EXITS), "--step") as load:
        load.finish_counted_part()
        with Session(capacity=3) as session:
            assert load.tgid not in session.read().entries
            assert session.adopt(load.tgid)
            adopted = session.read().entries[load.tgid]
            assert adopted[2:] == (None, None, 0, 0, 0, 0, 0, 0), "nothing is known but when"
            assert session.adopt(load.tgid), "it has one: nothing to do"
            assert session.read().entries[load.tgid] == adopted
            load.step(5)
            wait_for(
                lambda: session.read().entries[load.tgid].userspace_exits == 5, "5 exits are seen"
            )
            for tgid in (os.getpid(), os.getppid()):
                assert session.adopt(tgid)
            assert not session.adopt(1), "three slots, three processes"
            session.forget(os.getpid())
            assert session.adopt(1)
            assert set(session.read().entries) == {load.tgid, os.getppid(), 1}
            load.kill()
            wait_for(lambda: load.tgid not in session.read().entries, "its record is removed")
            assert session.adopt(os.getpid()), "its slot is free"


def test_only_the_record_that_was_read_is_forgotten(kvmload: Path) -> None:
    """A process that got the number since keeps its record: forget() means the one before."""
    with Session() as session, KvmLoad(kvmload, "--userspace-exits", "7") as load:
        load.finish_counted_part()
        session.forget(load.tgid)
        entry = wait_for(lambda: counted(session, load), "nobody had read that record")
        session.forget(load.tgid)
        assert load.tgid not in session.read().entries
        assert entry.userspace_exits == 7 + load.totals["eintr"]


def test_a_reader_between_processes(kvmload: Path) -> None:
    """Read as fast as can be while slots change hands: no process ever has more than its own.

    There is room for those that have ended and that the kernel has not freed yet.
    """
    with Session(capacity=64) as session:
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
                assert entry.userspace_exits >= most.get(tgid, 0), "it went backwards"
                most[tgid] = entry.userspace_exits
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
                assert entry.userspace_exits == 2003 + 97 * step + load.totals["eintr"]
        finally:
            CPU1_ONLINE.write_text("1")
