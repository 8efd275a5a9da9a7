# SPDX-License-Identifier: Apache-2.0
"""Readings of many processes' statistics: what is listed again, and what a bad process costs.

tests/support/statistics_world.py says what the processes are.
"""

import contextlib
import errno
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from probes.host import statistics_pass, statistics_reader, vcpu_statistics
from probes.host.kvm_stats import EXITS, NO_STATISTICS, Measure, StatisticsReading
from probes.host.process import VmmId
from probes.host.process_folder import ProcessFolder
from probes.host.statistics_reader import StatisticsReader
from probes.host.vcpu_statistics import StatisticsFiles
from probes.host.watched_reads import OutOfTimeError, WatchedReads
from tests.support.kvm_statistics import statistics
from tests.support.statistics_world import (
    DEADLINE_S,
    START_TICKS,
    STATISTICS,
    Files,
    World,
)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A reader of guests that the test starts."""
    made = World(tmp_path, monkeypatch)
    yield made
    made.close()


def open_fds() -> set[str]:
    found = set()
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that lists the folder
            found.add(f"{fd.name}: {fd.readlink()}")
    return found


def test_counts_of_every_vcpu(world: World) -> None:
    """Each reading has the present exits of each vCPU, and only the first one lists descriptors."""
    one, two = world.guest(5), world.guest(7, 9)
    found = world.read()
    assert found[one.vmm.tgid].counts == ((5,),)
    assert found[two.vmm.tgid].counts == ((7,), (9,))
    listing = found[two.vmm.tgid].listing
    assert listing is not None
    assert listing.fds == ((10, f"{STATISTICS}0"), (11, f"{STATISTICS}1"))
    assert listing.covers_every_vcpu
    two.exits[11] = 10
    assert world.exits(two) == [7, 10]
    assert world.listings == 2


def test_only_the_exits_are_read(world: World) -> None:
    """Unless more is wanted, a reading after the first one takes eight bytes of each vCPU."""
    guest = world.guest(5)
    world.read()
    world.files.sizes.clear()
    assert world.read()[guest.vmm.tgid].measures == (Measure(EXITS),)
    assert world.files.sizes == {8}


def test_optional_statistics(world: World) -> None:
    """Of the optional statistics those that this kernel has are read, with the exits.

    Readings of processes with statistics of another kind say so.
    """
    guest, other = world.guest(5, 6), world.guest(7)
    other.others = {"io_exits": 4, "mmio_exits": 3}
    world.reader._optional = ("io_exits", "halt_exits", "absent")
    found = world.read()
    assert found[guest.vmm.tgid].measures == (Measure(EXITS), Measure("halt_exits"))
    assert found[guest.vmm.tgid].counts == ((5, 1), (6, 1))
    assert found[other.vmm.tgid].measures == (Measure(EXITS), Measure("io_exits"))
    assert found[other.vmm.tgid].counts == ((7, 4),)


def test_a_process_without_statistics(world: World) -> None:
    """A process that holds vCPUs and no statistics is reported so, without an error."""
    guest = world.guest()
    guest.open(9, "anon_inode:kvm-vcpu:0")
    guest.open(8, f"/tmp/{STATISTICS}0")
    reading = world.read()[guest.vmm.tgid]
    assert not reading.failed
    assert reading == StatisticsReading(NO_STATISTICS._replace(vcpus=1), None)


@pytest.mark.parametrize("number", [errno.EPERM, errno.EMFILE])
def test_statistics_that_may_not_be_read(world: World, number: int) -> None:
    """Statistics that cannot be copied are a failed reading, and cost no other process anything."""
    guest, other = world.guest(OSError(number, "refused")), world.guest(3)
    found = world.read()
    assert found[guest.vmm.tgid].failed
    assert found[other.vmm.tgid].counts == ((3,),)


def test_a_vcpu_that_the_ledger_saw(world: World) -> None:
    """A process that has created a vCPU is listed again at once."""
    guest = world.guest(5)
    assert world.exits(guest, created=1) == [5]
    guest.plug(20, 1, 3)
    assert world.exits(guest, created=1) == [5]
    assert world.exits(guest, created=2) == [5, 3]
    assert world.exits(guest, created=2) == [5, 3]
    assert world.listings == 2


def test_a_vcpu_that_only_its_thread_shows(world: World) -> None:
    """Where new threads are unknown, another number of threads causes a listing."""
    guest = world.guest(5)
    assert world.exits(guest, new_threads=None) == [5]
    guest.plug(20, 1, 3)
    assert world.exits(guest, new_threads=None) == [5]
    guest.start_thread()
    if (guest.root / "task").stat().st_nlink != 4:
        pytest.skip("this file system does not count directories as /proc does")
    assert world.exits(guest, new_threads=None) == [5, 3]
    assert world.listings == 2


def test_a_vcpu_whose_thread_is_known_to_be_new(world: World) -> None:
    """A new thread causes a listing of its process alone, and one that has ended causes none."""
    guest, other = world.guest(5), world.guest(6)
    world.read()
    assert world.listings == 2
    guest.plug(20, 1, 3)
    thread, ended = guest.vmm.tgid + 1000, guest.vmm.tgid + 1001
    (world.proc / str(thread)).mkdir()
    (world.proc / str(thread) / "status").write_text(
        f"Name:\tx\nTgid:\t{guest.vmm.tgid}\nPid:\t1\n"
    )
    assert world.exits(guest, new_threads=(ended,)) == [5]
    assert world.listings == 2
    assert world.exits(guest, new_threads=(thread, ended)) == [5, 3]
    assert world.listings == 3
    assert world.exits(other) == [6]
    assert world.exits(guest) == [5, 3]
    assert world.listings == 3


def test_many_new_threads_are_not_looked_at(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of too many new threads the processes are not looked for: their numbers of threads decide."""
    monkeypatch.setattr(statistics_reader, "MAX_NEW_THREADS", 1)
    guest = world.guest(5)
    assert world.exits(guest, new_threads=None) == [5]
    guest.plug(20, 1, 3)
    guest.start_thread()
    if (guest.root / "task").stat().st_nlink != 4:
        pytest.skip("this file system does not count directories as /proc does")
    assert world.exits(guest, new_threads=(1, 2)) == [5, 3]


def test_a_vcpu_whose_statistics_open_a_moment_later(world: World) -> None:
    """A new vCPU without statistics causes one more listing, because QEMU opens them after it."""
    guest = world.guest(5)
    assert world.exits(guest, created=1) == [5]
    guest.open(101, "anon_inode:kvm-vcpu:1")
    assert world.exits(guest, created=2) == [5]
    guest.open(20, f"{STATISTICS}1")
    guest.exits[20] = 3
    assert world.exits(guest, created=2) == [5, 3]
    assert world.exits(guest, created=2) == [5, 3]
    assert world.listings == 3


def test_a_vcpu_that_never_has_statistics(world: World) -> None:
    """A vCPU that has none at the next reading either causes no further listing."""
    guest = world.guest(5)
    guest.open(101, "anon_inode:kvm-vcpu:1")
    for _ in range(4):
        assert world.exits(guest, created=2) == [5]
    assert world.listings == 2


def test_a_listing_without_time_is_made_up_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that was noticed without time for a listing causes one in the next reading."""
    guest = world.guest(5)
    world.read(new_threads=None)
    guest.plug(20, 1, 3)
    guest.start_thread()
    if (guest.root / "task").stat().st_nlink != 4:
        pytest.skip("this file system does not count directories as /proc does")

    def no_time(*_: object) -> str:
        raise OutOfTimeError

    with monkeypatch.context() as hurry:
        hurry.setattr(ProcessFolder, "target", no_time)
        assert world.exits(guest, new_threads=None) == [5]
    assert world.exits(guest, new_threads=None) == [5, 3]


def test_real_threads_are_links() -> None:
    """The task directory of a real process has two links and one for each thread."""
    stop = threading.Event()
    before = Path("/proc/self/task").stat().st_nlink
    others = [threading.Thread(target=stop.wait) for _ in range(3)]
    for other in others:
        other.start()
    try:
        assert Path("/proc/self/task").stat().st_nlink == before + 3
    finally:
        stop.set()
        for other in others:
            other.join()


def test_threads_that_come_and_go_are_bounded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many processes with another number of threads, each reading lists some."""
    monkeypatch.setattr(statistics_reader, "MAX_LISTED_FOR_THREADS", 1)
    guests = [world.guest(5), world.guest(6)]
    world.read(new_threads=None)
    for guest in guests:
        guest.start_thread()
    if (guests[0].root / "task").stat().st_nlink != 4:
        pytest.skip("this file system does not count directories as /proc does")
    assert world.listings == 2
    for listings in (3, 4, 4):
        world.read(new_threads=None)
        assert world.listings == listings


def test_a_closed_descriptor_is_noticed_at_once(world: World) -> None:
    """The reading that finds a descriptor closed, or another file there, is complete anyway."""
    guest = world.guest(5, 7)
    assert world.exits(guest) == [5, 7]
    guest.close(11)
    assert world.exits(guest) == [5]
    guest.plug(11, 4, 2)
    assert world.exits(guest, created=1) == [5, 2]
    guest.close(11)
    guest.open(11, "anon_inode:[eventfd]")
    assert world.exits(guest, created=1) == [5]


def test_a_process_that_has_ended(world: World) -> None:
    """A process that has ended is left out, before it was listed and afterwards."""
    guest, other = world.guest(5), world.guest(6)
    world.read()
    guest.exits[10] = OSError(errno.ESRCH, "no such process")
    assert world.read().keys() == {other.vmm.tgid}
    other.be(START_TICKS + 1)
    later = StatisticsReader(WatchedReads(world.proc))
    assert later.read([(other.vmm, 0)], new_threads=()) == {}
    later._files = StatisticsFiles()  # the first reader closes the double
    later.close()


def test_descriptors_are_kept_for_tracked_processes_only(world: World) -> None:
    """A pidfd is kept for each process that is wanted, and nothing of any other one."""
    before = open_fds()
    guests = [world.guest(5), world.guest(6)]
    world.read(new_threads=None)
    assert sum("pidfd" in fd for fd in open_fds() - before) == 2
    world.reader.read([(guests[0].vmm, 0)], new_threads=None)
    assert sum("pidfd" in fd for fd in open_fds() - before) == 1
    world.reader.read([], new_threads=None)
    assert open_fds() == before


def test_a_reused_number_is_another_process(world: World) -> None:
    """What is kept of a process is not used for the next one that has its number."""
    guest = world.guest(5)
    world.read()
    guest.vmm = VmmId(tgid=guest.vmm.tgid, start_ticks=START_TICKS + 1)
    assert world.read() == {}
    guest.be(START_TICKS + 1)
    assert world.exits(guest) == [5]


def test_a_read_that_does_not_return(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process whose read blocks costs a moment once, and the others nothing.

    It is neither listed nor read again until that read has returned, and then it does not come
    first. The thread that was left behind reads no other process.
    """
    monkeypatch.setattr(statistics_pass, "PATIENCE_S", 0.1)
    guests = [world.guest(5), world.guest(6), world.guest(7)]
    world.read()
    bad = guests[1]
    bad.plug(50, 1, 1)
    world.read(created=1)
    world.files.blocks[50] = threading.Event()
    listings = world.listings
    found = world.read(created=1)
    assert [found[guest.vmm.tgid].counts for guest in guests] == [((5,),), None, ((7,),)]
    assert found[bad.vmm.tgid].failed
    assert world.reader._unread == frozenset()
    reads = world.files.reads[bad.vmm.tgid]
    assert world.read(created=1)[bad.vmm.tgid].failed
    assert world.files.reads[bad.vmm.tgid] == reads
    assert world.listings == listings
    others = +world.files.reads
    (left_behind, _), *_ = world.reader._passes._stuck
    world.files.blocks.pop(50).set()
    left_behind.join(DEADLINE_S)
    assert world.files.reads - others == Counter()
    wait_for(lambda: world.exits(bad, created=1) == [6, 1])


def test_too_many_reads_that_do_not_return(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """With too many threads left behind nothing is read, and all readings fail."""
    monkeypatch.setattr(statistics_pass, "PATIENCE_S", 0.1)
    monkeypatch.setattr(statistics_pass, "MAX_STUCK", 1)
    bad, other = world.guest(5), world.guest(6)
    world.read()
    world.files.blocks[10] = threading.Event()
    found = world.read()
    assert found[bad.vmm.tgid].failed
    assert found[other.vmm.tgid] == StatisticsReading(None, None)


def test_the_time_of_a_reading_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What there was no time for is reported as not read, and comes first in the next reading."""
    one, two = world.guest(5), world.guest(6)
    world.read()
    with monkeypatch.context() as hurry:
        hurry.setattr(statistics_reader, "MAX_PASS_S", 0)
        assert {
            tgid: (reading.listing, reading.counts) for tgid, reading in world.read().items()
        } == {guest.vmm.tgid: (None, None) for guest in (one, two)}
    assert world.reader._unread == {one.vmm.tgid, two.vmm.tgid}
    assert world.exits(two) == [6]


def test_no_more_processes_are_kept_than_allowed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process beyond the bound is one without statistics."""
    monkeypatch.setattr(statistics_reader, "MAX_KEPT", 1)
    world.guest(5)
    world.read()
    beyond = world.guest(6)
    assert world.read()[beyond.vmm.tgid] == StatisticsReading(NO_STATISTICS, None)


def test_a_listing_that_is_cut_off_is_made_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if time is over after the descriptors are listed and before one is read."""
    guest = world.guest(5)

    def out_of_time(*_: object) -> bytes:
        raise OutOfTimeError

    with monkeypatch.context() as slow:
        slow.setattr(Files, "_read_one", out_of_time)
        assert world.read()[guest.vmm.tgid].counts is None
    assert world.exits(guest) == [5]


def test_malformed_statistics_are_not_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics that hvprobe does not understand are a failed reading."""
    guest = world.guest(5)
    monkeypatch.setattr(Files, "_read_one", lambda *_: b"x" * 100)
    assert world.read()[guest.vmm.tgid].failed


def wait_for(condition: Callable[[], bool]) -> None:
    stop = threading.Event()
    for _ in range(DEADLINE_S * 50):
        if condition():
            return
        stop.wait(0.02)
    pytest.fail("it does not become true")


# real descriptors


@pytest.fixture
def files() -> Iterator[StatisticsFiles]:
    opened = StatisticsFiles()
    yield opened
    opened.close()


def test_a_kept_link_shows_the_present_copy(files: StatisticsFiles, tmp_path: Path) -> None:
    """Each copy gets the number of the one before, whose link is kept, and is examined itself."""
    own = os.pidfd_open(os.getpid())
    paths = [tmp_path / name for name in ("one", "two")]
    for path in paths:
        path.write_text(path.name)
    with paths[0].open("rb") as one, paths[1].open("rb") as two:
        try:
            files.read(own, one.fileno(), str(paths[0]), 3, 0)
        except OSError:
            pytest.skip("this needs pidfd_getfd(2)")
        for _ in range(3):
            assert files.read(own, two.fileno(), str(paths[1]), 3, 0) == b"two"
            assert files.read(own, one.fileno(), str(paths[0]), 3, 0) == b"one"
            with pytest.raises(OSError, match="Stale"):
                files.read(own, two.fileno(), str(paths[0]), 3, 0)
        assert len(files._links) == 1
    os.close(own)


def test_few_links_are_kept(
    files: StatisticsFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the bound a copy's link is looked up by its name."""
    monkeypatch.setattr(vcpu_statistics, "MAX_LINKS", 0)
    own = os.pidfd_open(os.getpid())
    (tmp_path / "file").write_text("text")
    with (tmp_path / "file").open("rb") as file:
        try:
            assert files.read(own, file.fileno(), str(tmp_path / "file"), 4, 0) == b"text"
        except OSError:
            pytest.skip("this needs pidfd_getfd(2)")
    assert files._links == {}
    os.close(own)


def test_another_file_is_never_read(
    files: StatisticsFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy is read only if the kernel calls it what was listed, and is closed in every case."""
    (tmp_path / "file").write_bytes(statistics({"exits": 5}))
    own = os.pidfd_open(os.getpid())
    with (tmp_path / "file").open("rb") as file:
        try:
            whole = files.read(own, file.fileno(), str(tmp_path / "file"), 4096, 0)
        except OSError:
            pytest.skip("this needs pidfd_getfd(2)")
        before = open_fds()  # with the link of the copy, which is kept
        assert whole == statistics({"exits": 5})
        monkeypatch.setattr(os, "pread", None)
        monkeypatch.setattr(os, "fstat", None)
        with pytest.raises(OSError, match="Stale"):
            files.read(own, file.fileno(), f"{STATISTICS}0", 8, 0)
        with pytest.raises(OSError, match="Bad file"):
            files.read(own, 9999, f"{STATISTICS}0", 8, 0)
        monkeypatch.undo()
        assert open_fds() == before
    os.close(own)
