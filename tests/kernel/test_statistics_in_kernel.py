# SPDX-License-Identifier: Apache-2.0
"""What the kernel's memory says of a vCPU's statistics is what a descriptor of them says.

The VM is paused, so that its numbers stand still. Most tests hold copies of its descriptors in this
process, where they can be closed and replaced at will.
"""

import contextlib
import fcntl
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ebpf.statistics.session import StatisticsSession
from probes.host.kvm_stats import MAX_BYTES, Layout, layout_of
from probes.host.process_folder import ProcessFolder
from probes.host.statistics_listing import listing_of
from probes.host.vcpu_statistics import copied
from tests.support.debugfs import kvm_vms
from tests.support.kernel_node import Node
from tests.support.kernel_statistics import open_statistics
from tests.support.kernel_world import KvmLoad, wait_for

pytestmark = pytest.mark.every_kernel

COUNTS = 8
"""How many counts the session reads at a time."""
VCPUS = 3
READS = 2000
FAR = 500
"""A number that no other descriptor of this process gets while one is closed."""


@pytest.fixture(scope="module")
def session() -> Iterator[StatisticsSession]:
    opened = open_statistics(counts=COUNTS)
    if opened is None:
        pytest.skip("this kernel does not let its memory be read this way")
    with contextlib.closing(opened):
        yield opened


@pytest.fixture(autouse=True)
def memory_can_be_read(session: StatisticsSession) -> None:
    """Skips each test, before it starts a VM, where memory cannot be read."""


class Copies:
    """Copies of the statistics of a paused VM, in this process."""

    def __init__(self, load: KvmLoad) -> None:
        self.links = dict(descriptors(load.tgid))
        pidfd = os.pidfd_open(load.tgid)
        try:
            self.fds = {copied(pidfd, fd): name for fd, name in self.links.items()}
        finally:
            os.close(pidfd)
        first = min(self.fds)
        layout = layout_of(os.pread(first, MAX_BYTES, 0))
        assert layout is not None
        self.layout: Layout = layout

    def exits(self, fd: int) -> int:
        value = self.layout.value(os.pread(fd, MAX_BYTES, 0), "exits")
        assert value is not None
        return value

    @property
    def offset_of_exits(self) -> int:
        return self.layout.statistics["exits"].offset - self.layout.data

    def element(self, session: StatisticsSession, fd: int) -> bytes:
        """The element of a copy, named as it was when it was made."""
        return element(session, os.getpid(), fd, self.fds[fd])

    def close(self) -> None:
        for fd in self.fds:
            with contextlib.suppress(OSError):
                os.close(fd)


def descriptors(tgid: int) -> list[tuple[int, str]]:
    """The statistics that a process holds: descriptor and name of the file."""
    with ProcessFolder(f"/proc/{tgid}", lambda _: None) as folder:
        listing = listing_of(folder)
    return [(fd, target.removeprefix("anon_inode:")) for fd, target in listing.fds]


def start_ticks(tgid: int) -> int:
    return int(Path(f"/proc/{tgid}/stat").read_text().rpartition(")")[2].split()[19])


def element(session: StatisticsSession, tgid: int, fd: int, name: str) -> bytes:
    made = session.element(tgid=tgid, start_ticks=start_ticks(tgid), fd=fd, name=name)
    assert made is not None
    return made


@pytest.fixture
def load(kvmload: Path) -> Iterator[KvmLoad]:
    workload = ("--userspace-exits", "31", "--kernel-exits", "7", "--vcpus", str(VCPUS))
    with KvmLoad(kvmload, "--statistics", "--step", *workload) as started:
        started.finish_counted_part()
        yield started


@pytest.fixture
def copies(load: KvmLoad) -> Iterator[Copies]:
    with contextlib.closing(Copies(load)) as made:
        yield made


def test_every_statistic_is_that_of_the_descriptor(
    session: StatisticsSession, load: KvmLoad, copies: Copies
) -> None:
    """Every number of every vCPU, wherever it is among the statistics."""
    elements = [element(session, load.tgid, fd, name) for fd, name in descriptors(load.tgid)]
    session.place(b"".join(elements))
    single = [each for each in copies.layout.statistics.values() if each.values == 1]
    assert len(single) > COUNTS
    raws = [os.pread(fd, MAX_BYTES, 0) for fd in copies.fds]
    for begin in range(0, len(single), COUNTS):
        some = single[begin : begin + COUNTS]
        session.want([each.offset - copies.layout.data for each in some])
        expected = [
            tuple(int.from_bytes(raw[each.offset :][:8], "little") for each in some) for raw in raws
        ]
        assert session.read() == ([1] * VCPUS, expected)
    assert sum(copies.exits(fd) for fd in copies.fds) == load.totals["exits"]


def test_a_read_is_of_now(session: StatisticsSession, load: KvmLoad, copies: Copies) -> None:
    """Exits that come between two reads are in the second one."""
    session.want([copies.offset_of_exits])
    session.place(
        b"".join(element(session, load.tgid, fd, name) for fd, name in copies.links.items())
    )
    for steps in (1, 5, 100):
        load.step(steps)
        found, counts = session.read()
        assert found == [1] * VCPUS
        assert sum(exits for (exits,) in counts) == load.totals["exits"]


def test_only_the_named_file_of_the_named_process_is_read(
    session: StatisticsSession, copies: Copies, tmp_path: Path
) -> None:
    """Not another vCPU's, not a file that calls itself so, not one of a process that has ended."""
    session.want([copies.offset_of_exits])
    fd, other = sorted(copies.fds)[:2]
    name, own, ticks = copies.fds[fd], os.getpid(), start_ticks(os.getpid())
    disguised = tmp_path / f"anon_inode:{name}"
    disguised.write_bytes(os.pread(fd, MAX_BYTES, 0))
    plain = tmp_path / name
    plain.write_bytes(disguised.read_bytes())
    (tmp_path / "pipe").mkdir()
    pipe = tmp_path / "pipe" / name  # what is behind it is memory, where numbers can be read
    os.mkfifo(pipe)
    ended = subprocess.Popen(["true"])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)  # it keeps its number
    tgids = [own, own, own, own, own, own, own, ended.pid, 1 << 30]
    fds = [fd, fd, fd, other, 1 << 20, (1 << 32) - 1, fd, fd, fd]
    all_ticks = [ticks, ticks + 1, ticks, ticks, ticks, ticks, ticks, start_ticks(ended.pid), ticks]
    names = [name, name, f"{name}0", name, name, name, name[:-1], name, name]
    elements = [
        session.element(tgid=tgid, start_ticks=start, fd=each, name=called)
        for tgid, start, each, called in zip(tgids, all_ticks, fds, names, strict=True)
    ]
    session.place(b"".join(each for each in elements if each is not None))
    found, counts = session.read()
    ended.wait()
    assert found == [1, 0, 0, 0, 0, 0, 0, 0, 0]
    assert counts[0] == (copies.exits(fd),)
    session.place(copies.element(session, fd))
    kept = os.dup(fd)
    try:
        for imposter in (plain, disguised, pipe):
            opened = os.open(imposter, os.O_RDWR)
            os.dup2(opened, fd)
            os.close(opened)
            assert session.read()[0] == [0]
        event = os.eventfd(0)
        os.dup2(event, fd)
        os.close(event)
        assert session.read()[0] == [0]
        os.dup2(other, fd)
        assert session.read()[0] == [0]
        os.close(fd)
        assert session.read()[0] == [0]
        os.dup2(kept, fd)
        assert session.read() == ([1], [(copies.exits(fd),)])
    finally:
        os.close(kept)


def test_a_descriptor_that_changes_all_the_time(session: StatisticsSession, copies: Copies) -> None:
    """Whatever a process does with its descriptors: a number that is found is the right one."""
    kept, other = sorted(copies.fds)[:2]
    fd = fcntl.fcntl(kept, fcntl.F_DUPFD_CLOEXEC, FAR)
    copies.fds[fd] = copies.fds[kept]
    expected = copies.exits(fd)
    session.want([copies.offset_of_exits])
    session.place(copies.element(session, fd))
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            for source in (other, kept):
                os.dup2(source, fd)
            os.close(fd)
            os.dup2(kept, fd)

    thread = threading.Thread(target=change)
    thread.start()
    seen = {0: 0, 1: 0}
    try:
        while min(seen.values()) == 0 or sum(seen.values()) < READS:
            (found,), ((exits,),) = session.read()
            seen[found] += 1
            assert exits == expected or not found
    finally:
        stop.set()
        thread.join()


def test_a_vm_that_ends_meanwhile_is_not_held(session: StatisticsSession, kvmload: Path) -> None:
    """Its numbers are right to the end, and nothing of it is left when its process has ended."""
    for _ in range(5):
        with KvmLoad(kvmload, "--statistics", "--step", "--userspace-exits", "31") as load:
            load.finish_counted_part()
            with contextlib.closing(Copies(load)) as copies:
                session.want([copies.offset_of_exits])
                links = copies.links.items()
            session.place(b"".join(element(session, load.tgid, fd, name) for fd, name in links))
            assert session.read() == ([1], [(load.totals["exits"],)])
            killer = threading.Thread(target=load.kill)
            killer.start()
            found = [1]
            while found == [1]:
                found, counts = session.read()
                assert counts == [(load.totals["exits"],)] or found == [0]
            killer.join()
        assert kvm_vms(load.tgid) in (None, 0)


def test_a_name_must_fit(session: StatisticsSession) -> None:
    """The longest name of a vCPU fits; one that would be cut off is no element."""
    longest = f"kvm-vcpu-stats:{(1 << 32) - 1}"
    assert session.element(tgid=1, start_ticks=1, fd=1, name=longest) is not None
    assert session.element(tgid=1, start_ticks=1, fd=1, name="x" * 31) is not None
    assert session.element(tgid=1, start_ticks=1, fd=1, name="x" * 32) is None


def test_tables_of_every_size(copies: Copies) -> None:
    """No vCPU, some, and as many as there is room for; the last ones are read as the first."""
    capacity = 5
    session = open_statistics(capacity=capacity)
    assert session is not None
    with contextlib.closing(session):
        session.want([copies.offset_of_exits])
        fd = min(copies.fds)
        for vcpus in (0, 1, capacity, 2, capacity, 0):
            session.place(copies.element(session, fd) * vcpus)
            assert session.read() == ([1] * vcpus, [(copies.exits(fd),)] * vcpus)


def test_nothing_is_copied_once_it_is_proven(
    load: KvmLoad, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way: an agent's reader believes memory after a comparison, and copies no more."""
    with Node() as node:

        def exits() -> int | None:
            process = node.process(load.tgid)
            return None if process is None else process.counters.get("exits")

        assert wait_for(exits, "its exits are counted") == load.totals["exits"]
        node.report()
        monkeypatch.setattr("probes.host.vcpu_statistics.StatisticsFiles.read_each", None)
        for steps in (3, 40):
            load.step(steps)
            assert exits() == load.totals["exits"]
