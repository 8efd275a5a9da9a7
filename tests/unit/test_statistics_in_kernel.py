# SPDX-License-Identifier: Apache-2.0
"""Which statistics are read in the kernel's memory, and when the numbers there are believed.

tests/support/statistics_world.py says what the processes are.
"""

import contextlib
import errno
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from probes.host import statistics_pass
from probes.host.kvm_stats import EXITS, Measure, StatisticsReading
from probes.host.process import VmmId
from probes.host.statistics_in_kernel import StatisticsInKernel
from probes.host.statistics_listing import ReadableProcess
from tests.support.statistics_world import START_TICKS, STATISTICS, World

COPIES_OF_A_PROOF = 3
"""Of the layout, and the counts before and after those in memory."""


@pytest.fixture
def world(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    """A reader of guests that the test starts, which reads in memory.

    The fixture's parameter names statistics beside exits.
    """
    optional = getattr(request, "param", ())
    made = World(tmp_path, monkeypatch, optional=optional, in_memory=True)
    yield made
    made.close()


def test_after_a_proof_nothing_is_copied(world: World) -> None:
    """A process is read both ways once, and later in memory only, whatever its exits are."""
    one, two = world.guest(5), world.guest(7, 9)
    for expected in ([7, 9], [8, 90], [8, 91]):
        two.exits |= {10: expected[0], 11: expected[1]}
        assert world.exits(two) == expected
        assert world.exits(one) == [5]
    assert world.files.reads[one.vmm.tgid] == COPIES_OF_A_PROOF
    assert world.files.reads[two.vmm.tgid] == 2 * COPIES_OF_A_PROOF - 1  # one layout
    assert world.memory.reads == 6


@pytest.mark.parametrize("world", [("io_exits", "missing", "halt_exits")], indirect=True)
def test_every_wanted_count_is_read(world: World) -> None:
    """The counts come in the order of what they measure, with those that this kernel has."""
    guest = world.guest(5, 7)
    guest.others = {"halt_exits": 11, "signal_exits": 12, "io_exits": 13}
    for _ in range(2):
        reading = world.read()[guest.vmm.tgid]
        assert reading.counts == ((5, 13, 11), (7, 13, 11))
        assert reading.measures == (Measure(EXITS), Measure("io_exits"), Measure("halt_exits"))
    assert world.memory.reads == 2


def test_a_guest_that_never_ran_proves_nothing(world: World) -> None:
    """Zeros may be anything, so a process is read through copies until a vCPU has exited."""
    guest = world.guest(0, 0)
    world.memory.shift = 1
    assert world.exits(guest) == [0, 0]
    assert world.exits(guest) == [0, 0]
    assert world.memory.reads == 0
    world.memory.shift = 0
    guest.exits[11] = 3
    assert world.exits(guest) == [0, 3]
    assert world.memory.reads == 1
    copies = world.files.reads[guest.vmm.tgid]
    assert world.exits(guest) == [0, 3]
    assert (world.memory.reads, world.files.reads[guest.vmm.tgid]) == (2, copies)


@pytest.mark.parametrize("shift", [-1, 1])
def test_wrong_numbers_are_never_used(world: World, shift: int) -> None:
    """Copies are read instead, until the descriptors of the process are listed again."""
    guest = world.guest(5)
    world.memory.shift = shift
    for exits in (5, 6, 6, 8):
        guest.exits[10] = exits
        assert world.exits(guest) == [exits]
    assert world.memory.reads == 1
    world.memory.shift = 0
    assert world.exits(guest) == [8]
    assert world.memory.reads == 1
    guest.plug(11, 1, 70)
    assert world.exits(guest, created=1) == [8, 70]
    copies = world.files.reads[guest.vmm.tgid]
    assert world.exits(guest, created=1) == [8, 70]
    assert world.files.reads[guest.vmm.tgid] == copies


def test_exits_during_the_proof_are_no_difference(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest runs on between the readings that are compared."""
    guest = world.guest(5)
    read_one = type(world.files)._read_one

    def exits_once_more(*arguments: object) -> bytes:
        exits = guest.exits[10]
        assert isinstance(exits, int)
        guest.exits[10] = exits + 1
        return read_one(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(type(world.files), "_read_one", exits_once_more)
    world.read()
    copies = world.files.reads[guest.vmm.tgid]
    assert world.exits(guest) == [5 + COPIES_OF_A_PROOF]
    assert world.files.reads[guest.vmm.tgid] == copies


def test_statistics_that_have_moved_are_found_again(world: World) -> None:
    """What is not in memory where it was is read through a copy, or listed again."""
    guest, other = world.guest(5), world.guest(7)
    for _ in range(2):
        world.read()
    guest.close(10)
    guest.open(12, f"{STATISTICS}0")
    guest.exits[12] = 6
    assert world.exits(guest) == [6]
    assert world.exits(other) == [7]
    copies = world.files.reads[guest.vmm.tgid]
    assert world.exits(guest) == [6]
    assert world.files.reads[guest.vmm.tgid] == copies


def test_a_process_that_has_ended_has_no_reading(world: World) -> None:
    """The others of the same call are not affected."""
    guest, other = world.guest(5), world.guest(7)
    for _ in range(2):
        world.read()
    guest.exits[10] = ProcessLookupError(errno.ESRCH, "no such process")
    found = world.read()
    assert guest.vmm.tgid not in found
    assert found[other.vmm.tgid].counts == ((7,),)


def pidfds() -> int:
    """How many processes this one has pidfds of."""
    found = 0
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that lists the folder
            found += "pidfd" in str(fd.readlink())
    return found


def test_of_a_proven_process_nothing_stays_open(world: World) -> None:
    """Not even a pidfd, which is opened again when a descriptor has to be copied."""
    before = pidfds()
    guest, idle = world.guest(5), world.guest(0)
    for _ in range(3):
        world.read()
    assert pidfds() == before + 1  # of the one that nothing is proven of
    idle.exits[10] = 1
    for _ in range(2):
        world.read()
    assert pidfds() == before
    guest.plug(11, 1, 70)
    assert world.exits(guest, created=1) == [5, 70]
    assert pidfds() == before + 1
    assert world.exits(guest, created=1) == [5, 70]
    assert pidfds() == before


@pytest.mark.parametrize("reads", [1, 2, 3])
def test_a_process_that_ends_at_any_time_has_no_reading(world: World, reads: int) -> None:
    """Whether its pidfd is open then or not."""
    guest, other = world.guest(5), world.guest(7)
    for _ in range(reads):
        world.read()
    guest.child.kill()
    guest.child.wait()
    world.memory.gone.add(guest.vmm.tgid)
    world.files.gone.add(guest.vmm.tgid)
    for _ in range(2):
        found = world.read()
        assert guest.vmm.tgid not in found
        assert found[other.vmm.tgid].counts == ((7,),)


def test_a_number_that_another_process_has(world: World) -> None:
    """Statistics of an earlier process are not those of the one that has its number now."""
    guest = world.guest(5)
    for _ in range(2):
        assert world.exits(guest) == [5]
    guest.vmm = VmmId(tgid=guest.vmm.tgid, start_ticks=START_TICKS + 1)
    guest.be(START_TICKS + 1)
    guest.exits[10] = 2
    assert world.exits(guest) == [2]
    assert world.exits(guest) == [2]


def test_what_has_no_room_is_read_through_copies(world: World) -> None:
    """All counts are right whatever the kernel's table can hold."""
    world.memory.capacity = 3
    guests = [world.guest(1, 2), world.guest(3, 4), world.guest(5)]
    for _ in range(3):
        assert [world.exits(guest) for guest in guests] == [[1, 2], [3, 4], [5]]
    reads = [world.files.reads[guest.vmm.tgid] for guest in guests]
    world.read()
    more = [world.files.reads[guest.vmm.tgid] for guest in guests]
    assert [after - before for before, after in zip(reads, more, strict=True)] == [0, 2, 0]


def test_a_place_that_becomes_free_is_used(world: World) -> None:
    """A process that had no room is read in memory once another one has ended."""
    world.memory.capacity = 1
    first, second = world.guest(5), world.guest(7)
    for _ in range(2):
        world.read()
    world.files.guests.remove(first)
    first.child.kill()
    first.child.wait()
    for _ in range(2):
        assert world.exits(second) == [7]
    copies = world.files.reads[second.vmm.tgid]
    assert world.exits(second) == [7]
    assert world.files.reads[second.vmm.tgid] == copies


def test_a_refused_call_costs_nothing_but_time(world: World) -> None:
    """Copies are read while the kernel refuses to run the program."""
    guest = world.guest(5)
    for _ in range(2):
        world.read()
    world.memory.refused = True
    guest.exits[10] = 6
    assert world.exits(guest) == [6]
    world.memory.refused = False
    guest.exits[10] = 7
    copies = world.files.reads[guest.vmm.tgid]
    assert world.exits(guest) == [7]
    assert world.files.reads[guest.vmm.tgid] == copies


def test_a_name_too_long_for_the_table_is_read_through_copies(world: World) -> None:
    """It would be cut off, and then be another name."""
    guest = world.guest()
    number = int("7" * 20)
    guest.plug(10, number, 5)
    for _ in range(2):
        assert world.exits(guest) == [5]
    assert world.memory.reads == 0


def test_a_process_whose_copies_block_is_still_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory does not wait for the process, so once it is proven its count goes on."""
    monkeypatch.setattr(statistics_pass, "PATIENCE_S", 0.1)
    guest, late = world.guest(5), world.guest(0)
    for _ in range(2):
        world.read()
    world.files.blocks[10] = threading.Event()
    guest.exits[10], late.exits[10] = 6, 1
    for _ in range(2):
        found = world.read()
        assert found[guest.vmm.tgid].counts == ((6,),)
        assert found[late.vmm.tgid].failed


def test_a_proof_copies_by_the_present_pidfd(world: World) -> None:
    """A pidfd that was closed may be any other descriptor by now."""
    guest = world.guest(5)
    reading = world.read()[guest.vmm.tgid]
    (process,) = world.reader._todo()
    reader = StatisticsInKernel(world.memory)
    reader.place([process._replace(pidfd=-1)])
    reader.place([process])
    asked: list[ReadableProcess] = []

    def read_copies(processes: Sequence[ReadableProcess]) -> dict[int, StatisticsReading]:
        asked.extend(processes)
        return {guest.vmm.tgid: reading}

    reader.prove({guest.vmm.tgid: reading}, read_copies)
    assert asked == [process]
    assert reader.read() == {guest.vmm.tgid: reading}
