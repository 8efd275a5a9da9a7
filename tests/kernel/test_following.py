"""Real processes that the kernel follows for hvprobe: /proc is left alone, nothing is missed."""

import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from kernel_node import Node
from kernel_world import KvmLoad, Qemu, Started, wait_for

from probes.host import Host
from probes.report import ProcessReport
from probes.roster import IN_TURN
from probes.vmm import HypervisorType, VmmId, VmmProcess

LOOKS = 5


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often each tgid was asked for in /proc from now on."""
    counted: Counter[int] = Counter()
    identify, inspect = Host.identify, Host.inspect

    def counting_identify(host: Host, tgid: int) -> VmmId | None:
        counted[tgid] += 1
        return identify(host, tgid)

    def counting_inspect(host: Host, vmm: VmmId) -> VmmProcess | None:
        counted[vmm.tgid] += 1
        return inspect(host, vmm)

    monkeypatch.setattr(Host, "identify", counting_identify)
    monkeypatch.setattr(Host, "inspect", counting_inspect)
    return counted


def settled(node: Node, started: Started, kind: HypervisorType) -> ProcessReport:
    """The process once it is verified, and a look later."""
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
            load.tgid: settled(node, load, HypervisorType.KVM),
            tcg.tgid: settled(node, tcg, HypervisorType.TCG),
        }
        assert recorded(node, load)
        assert recorded(node, tcg)
        readings.clear()
        for _ in range(LOOKS):
            for tgid, process in before.items():
                assert node.process(tgid) == process
        in_turn = 2 * LOOKS // IN_TURN + 1
        assert readings[load.tgid] <= in_turn
        assert readings[tcg.tgid] <= in_turn
        for started in (load, tcg):
            started.popen.send_signal(signal.SIGKILL)
            started.popen.wait()
            assert node.process(started.tgid) is None
            wait_for(lambda it=started: not recorded(node, it), "the record is gone")  # type: ignore[misc]


def test_processes_seen_from_the_start_are_followed(
    node: Node, kvmload: Path, readings: Counter[int]
) -> None:
    """Counters go on, /proc is not asked."""
    with (
        KvmLoad(kvmload, "--userspace-exits", "7", "--step").finish_counted_part() as load,
        Qemu("lab_new", accel=("tcg",)) as tcg,
    ):
        load.step(13)
        settled(node, load, HypervisorType.KVM)
        settled(node, tcg, HypervisorType.TCG)
        readings.clear()
        for _ in range(LOOKS):
            load.step(100)
            found = node.process(load.tgid)
            assert found is not None
            assert found.userspace_exits == load.totals["userspace_exits"] + load.totals["eintr"]
        in_turn = 2 * LOOKS // IN_TURN + 1
        assert readings[load.tgid] <= in_turn
        assert readings[tcg.tgid] <= in_turn
    assert node.process(load.tgid) is None
    assert node.process(tcg.tgid) is None


def test_adopted_process_that_executes_something_else(
    new_node: Callable[[], Node], kvmload: Path, readings: Counter[int]
) -> None:
    """No hook ever saw it: what it executes ends the record, and with it the VMM.

    Nothing stays of it, neither a record nor the reading of something that is no VMM.
    """
    arguments = ("--userspace-exits", "7", "--then", "halt", "--", "sleep", "1000")
    with KvmLoad(kvmload, *arguments).finish_counted_part() as process:
        node = new_node()
        settled(node, process, HypervisorType.KVM)
        assert recorded(node, process)
        process.say("go on\n")
        wait_for(lambda: not recorded(node, process), "it has executed sleep")
        assert node.process(process.tgid) is None
        assert not recorded(node, process)
        readings.clear()
        for _ in range(LOOKS):
            assert node.process(process.tgid) is None
        assert readings[process.tgid] == 0


def test_main_thread_that_ended_before_the_hooks(
    new_node: Callable[[], Node], kvmload: Path
) -> None:
    """Its end will not be marked in the record: it leaves all the same, and so does the record."""
    with KvmLoad(
        kvmload, "--userspace-exits", "7", "--then", "leave-leader"
    ).finish_counted_part() as load:
        stat = Path(f"/proc/{load.tgid}/stat")
        wait_for(lambda: stat.read_text().rpartition(")")[2].split()[0] == "Z", "it has ended")
        node = new_node()
        settled(node, load, HypervisorType.KVM)
        assert recorded(node, load)
        load.popen.send_signal(signal.SIGKILL)
        load.popen.wait()
        assert node.process(load.tgid) is None
        assert not recorded(node, load)
