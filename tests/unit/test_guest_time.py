# SPDX-License-Identifier: Apache-2.0
"""CPU time in guest code: read of living processes, never falling, absent where it is unknown."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from probes.host import guest_times
from probes.host.process import VmmId
from probes.host.reader import Host
from probes.judge.guest_time import GuestTime, guest_times_after
from tests.support.facts import VMM, Capture, captured, plant, plant_node

BETA = VmmId(tgid=5000, start_ticks=7000)
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def with_guest_ticks(capture: Capture, ticks: int) -> Capture:
    name, _, rest = capture.stat.rpartition(")")
    fields = rest.split()
    fields[40] = str(ticks)
    return replace(capture, stat=f"{name}) {' '.join(fields)}\n")


@pytest.fixture
def capture(tmp_path: Path) -> Capture:
    """A captured QEMU that has spent 250 ticks in guest code, planted below tmp_path."""
    plant_node(tmp_path)
    planted = with_guest_ticks(captured("kvm_inside_run"), 250)
    plant(tmp_path, planted)
    return planted


def test_guest_time_is_read(tmp_path: Path, capture: Capture) -> None:
    """The time is that of the process in field 43 of its stat file, in seconds."""
    host = Host(proc_root=tmp_path, vcpu_statistics=True)
    gone = VmmId(tgid=4_000_000, start_ticks=1)
    assert host.read_guest_times([capture.vmm, gone]) == {capture.tgid: 250 / TICKS_PER_S}
    assert host.read_guest_times([]) == {}


def test_another_process_is_not_read(tmp_path: Path, capture: Capture) -> None:
    """The time of a process that has the number of an ended one is not that one's."""
    host = Host(proc_root=tmp_path, vcpu_statistics=True)
    before = capture.vmm._replace(start_ticks=capture.vmm.start_ticks - 1)
    assert host.read_guest_times([before]) == {}


def test_guest_time_is_read_on_request(tmp_path: Path, capture: Capture) -> None:
    """Without the request no file is opened."""
    host = Host(proc_root=tmp_path)
    (tmp_path / str(capture.tgid) / "stat").unlink()
    os.mkfifo(tmp_path / str(capture.tgid) / "stat")
    assert host.read_guest_times([capture.vmm]) == {}


def test_there_may_be_no_time(
    tmp_path: Path, capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process for which there is no time is left out."""
    monkeypatch.setattr(guest_times, "MAX_GUEST_TIMES_S", -1)
    host = Host(proc_root=tmp_path, vcpu_statistics=True)
    assert host.read_guest_times([capture.vmm]) == {}


def shown(*readings: float | None) -> list[float | None]:
    """What is reported of a process after each of these readings."""
    times: dict[int, GuestTime] = {}
    found: list[float | None] = []
    for read_s in readings:
        times = guest_times_after(times, [VMM], {} if read_s is None else {VMM.tgid: read_s})
        found.append(times[VMM.tgid].now_s if VMM.tgid in times else None)
    return found


@pytest.mark.parametrize(
    ("readings", "reported"),
    [
        ((0.0, 0.0, 0.01), [None, None, 0.01]),
        ((1.0, 0.5, 1.5), [1.0, 1.0, 1.5]),
        ((1.0, None, 0.5, 2.0), [1.0, None, 1.0, 2.0]),
        ((None, 3.0), [None, 3.0]),
        ((1.0, 0.0), [1.0, 1.0]),
    ],
)
def test_guest_time_never_falls(
    readings: tuple[float | None, ...], reported: list[float | None]
) -> None:
    """A lower reading is not reported, an unreadable one is absent, and a 0 proves nothing."""
    assert shown(*readings) == reported


def test_each_process_has_its_own_time() -> None:
    """A process with a reused number begins again, and one that has ended is forgotten."""
    before = guest_times_after({}, [VMM, BETA], {VMM.tgid: 5.0, BETA.tgid: 9.0})
    heir = VMM._replace(start_ticks=VMM.start_ticks + 1)
    after = guest_times_after(before, [heir], {VMM.tgid: 1.0, BETA.tgid: 9.0})
    assert after == {VMM.tgid: GuestTime(heir, 1.0, 1.0)}
