# SPDX-License-Identifier: Apache-2.0
"""Reading statistics in memory: what is released when it fails, and when numbers are not used.

Programs are doubles whose maps are files in memory. tests/kernel/test_statistics_in_kernel.py has
the real ones.
"""

import contextlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from ebpf.errors import BpfUnavailableError
from ebpf.statistics import session
from ebpf.statistics.session import StatisticsSession

MAP_BYTES = 1 << 16
FOUND, COUNT = 48, 56
"""Where a vCPU's element has the words that the program writes."""


class Kernel:
    """What the doubles did, and what they are to do."""

    def __init__(self) -> None:
        self.maps = {name: os.memfd_create(name) for name in ("vcpus", "wanted")}
        for fd in self.maps.values():
            os.truncate(fd, MAP_BYTES)
        self.refuses = False
        self.loaded = self.closed = 0
        self.link = -1
        self.runs = 0
        self.says = b"\1"

    def run(self, link: int, _: int) -> bytes:
        """Find every vCPU, and count 7 and 8 of each."""
        assert link == self.link
        self.runs += 1
        at = 0
        while int.from_bytes(os.pread(self.maps["vcpus"], 4, at), "little"):
            os.pwrite(self.maps["vcpus"], struct.pack("=QQQ", 1, 7, 8), at + FOUND)
            at += COUNT + 16
        return self.says


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    made = Kernel()

    class Programs:
        def __init__(self, *_: object, **__: object) -> None:
            made.loaded += 1

        def map_fd(self, name: str) -> int:
            return made.maps[name]

        def iterate(self, program: str, map_name: str) -> int:
            assert (program, map_name) == ("bpf_iter__bpf_map_elem", "vcpus")
            if made.refuses:
                raise BpfUnavailableError("refused")
            made.link = os.eventfd(0)
            return made.link

        def close(self) -> None:
            made.closed += 1

    monkeypatch.setattr(session, "Programs", Programs)
    monkeypatch.setattr(session, "run_iterator", made.run)
    yield made
    for fd in made.maps.values():
        with contextlib.suppress(OSError):  # a test has closed it
            os.close(fd)


def element(opened: StatisticsSession, fd: int) -> bytes:
    made = opened.element(tgid=1, start_ticks=2, fd=fd, name="kvm-vcpu-stats:0")
    assert made is not None
    return made


def test_what_is_wanted_is_what_is_returned(kernel: Kernel) -> None:
    """As many counts as are wanted, of as many vCPUs as are placed."""
    opened = StatisticsSession(counts=2, capacity=5)
    opened.want([16, 24])
    opened.place(element(opened, 3) + element(opened, 4))
    assert opened.read() == ([1, 1], [(7, 8), (7, 8)])
    opened.want([16])
    opened.place(element(opened, 3))
    assert opened.read() == ([1], [(7,)])
    opened.place(b"")
    assert opened.read() == ([], [])
    assert kernel.runs == 2
    opened.close()
    assert kernel.closed == 1


@pytest.mark.parametrize("says", [b"", b"\0"])
def test_an_incomplete_run_is_an_error(kernel: Kernel, says: bytes) -> None:
    """The numbers of an earlier run are still there, and are not returned."""
    opened = StatisticsSession(counts=2, capacity=5)
    opened.want([16, 24])
    opened.place(element(opened, 3))
    opened.read()
    kernel.says = says
    with pytest.raises(OSError, match="not read all"):
        opened.read()
    opened.close()


def test_a_refused_iterator_leaves_nothing(kernel: Kernel) -> None:
    kernel.refuses = True
    with pytest.raises(BpfUnavailableError, match="refused"):
        StatisticsSession()
    assert (kernel.loaded, kernel.closed) == (1, 1)


def test_a_table_that_cannot_be_mapped_leaves_nothing(kernel: Kernel) -> None:
    """Not the link either, which would keep the program loaded."""
    os.close(kernel.maps["vcpus"])
    with pytest.raises(BpfUnavailableError, match="its tables cannot be used"):
        StatisticsSession(capacity=5)
    assert kernel.closed == 1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(kernel.link)


@pytest.mark.parametrize(
    ("mode", "loads"),
    [("[none] integrity confidentiality", 1), ("none integrity [confidentiality]", 0)],
)
def test_lockdown_forbids_it(kernel: Kernel, tmp_path: Path, mode: str, loads: int) -> None:
    """The reason is named, and nothing is compiled to find it out."""
    (tmp_path / "kernel/security").mkdir(parents=True)
    (tmp_path / "kernel/security/lockdown").write_text(mode)
    if loads:
        StatisticsSession(capacity=5, sys_root=tmp_path).close()
    else:
        with pytest.raises(BpfUnavailableError, match="lockdown=confidentiality forbids"):
            StatisticsSession(capacity=5, sys_root=tmp_path)
    assert kernel.loaded == loads
