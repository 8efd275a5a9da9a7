# SPDX-License-Identifier: Apache-2.0
"""Real processes that the kernel follows for hvprobe: /proc is left alone, nothing is missed."""

import signal
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path

import pytest

from probes.host.hypervisors import HypervisorType
from probes.host.process import Inspections, Scan, VmmId
from probes.host.reader import Host
from probes.judge.tracker import RECHECK_EVERY
from probes.report.model import ProcessReport
from tests.support.kernel_node import Node
from tests.support.kernel_world import KvmLoad, Qemu, Started, wait_for

LOOKS = 5
AT_MOST = LOOKS // RECHECK_EVERY + 1
"""Times that a process is looked at in so many refreshes although nothing happens to it."""


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often each tgid was looked at or read in /proc from now on."""
    counted: Counter[int] = Counter()
    scan, inspect = Host.scan, Host.inspect

    def counting_scan(host: Host, tgids: Collection[int], *, every_fd: bool) -> Scan:
        counted.update(tgids)
        return scan(host, tgids, every_fd=every_fd)

    def counting_inspect(host: Host, vmms: Collection[VmmId]) -> Inspections:
        counted.update(vmm.tgid for vmm in vmms)
        return inspect(host, vmms)

    monkeypatch.setattr(Host, "scan", counting_scan)
    monkeypatch.setattr(Host, "inspect", counting_inspect)
    return counted


def final(node: Node, started: Started, kind: HypervisorType) -> ProcessReport:
    """The process once it is verified, and a refresh later."""
    node.wait_for_verdict(started.tgid, kind, verified=True)
    found = node.process(started.tgid)
    assert found is not None
    return found


def recorded(node: Node, started: Started) -> bool:
    return started.tgid in node.session.read().entries


def test_processes_older_than_the_hooks_are_followed(
    new_node: Callable[[], Node], kvmload: Path, readings: Counter[int]
) -> None:
    """One sleeps in a KVM_RUN, one emulates: no hook will ever fire for them but for their end."""
    with (
        KvmLoad(kvmload, "--userspace-exits", "7", "--then", "halt").finish_counted_part() as load,
        Qemu("lab_old", accel=("tcg",)) as tcg,
    ):
        node = new_node()
        before = {
            load.tgid: final(node, load, HypervisorType.KVM),
            tcg.tgid: final(node, tcg, HypervisorType.TCG),
        }
        assert not recorded(node, load)
        assert not recorded(node, tcg)
        readings.clear()
        for _ in range(LOOKS):
            for tgid, process in before.items():
                assert node.process(tgid) == process
        assert readings[load.tgid] <= 2 * AT_MOST
        assert readings[tcg.tgid] <= 2 * AT_MOST
        for started in (load, tcg):
            started.popen.send_signal(signal.SIGKILL)
            started.popen.wait()
            assert node.process(started.tgid) is None


def test_processes_seen_from_the_start_are_followed(
    node: Node, kvmload: Path, readings: Counter[int]
) -> None:
    """Counters go on, /proc is not read."""
    with (
        KvmLoad(kvmload, "--userspace-exits", "7", "--step").finish_counted_part() as load,
        Qemu("lab_new", accel=("tcg",)) as tcg,
    ):
        load.step(13)
        final(node, load, HypervisorType.KVM)
        final(node, tcg, HypervisorType.TCG)
        readings.clear()
        for _ in range(LOOKS):
            load.step(100)
            found = node.process(load.tgid)
            assert found is not None
            assert (
                found.counters["userspace_exits"]
                == load.totals["userspace_exits"] + load.totals["eintr"]
            )
        assert readings[load.tgid] <= AT_MOST
        assert readings[tcg.tgid] <= AT_MOST
    assert node.process(load.tgid) is None
    assert node.process(tcg.tgid) is None


def test_a_process_that_executes_something_else(
    new_node: Callable[[], Node], kvmload: Path, readings: Counter[int]
) -> None:
    """No hook ever saw it run a guest: what it executes is marked, and it is no VMM any longer."""
    arguments = ("--userspace-exits", "7", "--then", "halt", "--", "sleep", "1000")
    with KvmLoad(kvmload, *arguments).finish_counted_part() as process:
        node = new_node()
        final(node, process, HypervisorType.KVM)
        stat = Path(f"/proc/{process.tgid}/stat")
        process.say("go on\n")
        # It has its new name a moment before execve(2) ends, but sleeps only afterwards.
        wait_for(lambda: "(sleep) S " in stat.read_text(), "it executes sleep")
        assert node.process(process.tgid) is None
        assert not recorded(node, process)
        readings.clear()
        for _ in range(LOOKS):
            assert node.process(process.tgid) is None
        assert readings[process.tgid] <= AT_MOST


def test_an_ended_process_that_its_parent_has_not_collected(
    new_node: Callable[[], Node],
) -> None:
    """/proc lists it and the ledger never had a record: its end is marked, so it leaves."""
    with Qemu("lab_old", accel=("tcg",)) as tcg:
        node = new_node()
        final(node, tcg, HypervisorType.TCG)
        tcg.popen.send_signal(signal.SIGKILL)
        stat = Path(f"/proc/{tcg.tgid}/stat")
        wait_for(lambda: stat.read_text().rpartition(")")[2].split()[0] == "Z", "it has ended")
        wait_for(lambda: node.process(tcg.tgid) is None, "its other threads have ended as well")
        assert stat.exists(), "it is not collected"
        tcg.popen.wait()


def test_main_thread_that_ended_before_the_hooks(
    new_node: Callable[[], Node], kvmload: Path
) -> None:
    """Its threads run the guest; when they end it leaves."""
    with KvmLoad(
        kvmload, "--userspace-exits", "7", "--then", "leave-leader"
    ).finish_counted_part() as load:
        stat = Path(f"/proc/{load.tgid}/stat")
        wait_for(lambda: stat.read_text().rpartition(")")[2].split()[0] == "Z", "it has ended")
        node = new_node()
        final(node, load, HypervisorType.KVM)
        load.popen.send_signal(signal.SIGKILL)
        load.popen.wait()
        assert node.process(load.tgid) is None
        assert not recorded(node, load)
