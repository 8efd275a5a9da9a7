# SPDX-License-Identifier: Apache-2.0
"""KVM's own statistics count the exits of a VM that holds them, and no program is at kvm_exit.

The expected totals are those of KVM's counters in debugfs, or else of the workload, which reads its
own statistics through descriptors that hvprobe never sees.
"""

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ebpf.hooks import KVM_EXIT
from probes.host.hypervisors import HypervisorType
from probes.host.vcpu_counts import HALT_POLLING, VCPU_COUNTS
from probes.judge.exit_counts import ExitSource
from probes.report.model import CounterTrust, ProcessReport
from tests.support.attack_world import called_qemu
from tests.support.bpf_links import own_links, raw_tracepoint_links
from tests.support.debugfs import kvm_exits, kvm_statistic, kvm_vms
from tests.support.kernel_agent import Agent
from tests.support.kernel_node import Node
from tests.support.kernel_world import MACHINE, QEMU, KvmLoad, Qemu, of_this_run, wait_for

EXITS, KERNEL_EXITS, VCPUS = 2003, 307, 2
RETURNS = EXITS + VCPUS
"""Exits to user space: each vCPU ends its share of kernel exits with one more."""
IN_SOFTWARE = Path("/sys/module/kvm_pvm").exists()
"""Whether KVM runs guests without help of the processor, and counts port I/O otherwise."""
_CLASSES: dict[str, dict[str, int | None]] = {
    "x86_64": {
        "halt": 0,
        "io": None if IN_SOFTWARE else RETURNS + KERNEL_EXITS,
        "mmio": 0,
        "irq": None,
        "hypercall": 0,
    },
    "aarch64": {"halt": 0, "mmio": RETURNS, "hypercall": KERNEL_EXITS},
}
CLASSES = _CLASSES[MACHINE]
"""The classes that KVM's statistics of this architecture have, and how many exits of each kvmload's
guest makes; None: it does not decide that."""
STATISTICS = ("--statistics", "--step", "--userspace-exits", str(EXITS))
FIRST_WITH_STATISTICS = (8, 1)
"""The first QEMU that holds statistics of its vCPUs open."""


@pytest.fixture(scope="module", autouse=True)
def statistics_exist(kvmload: Path) -> None:
    """Skips the tests on a kernel without KVM_GET_STATS_FD, which is older than v5.14."""
    run = subprocess.run(
        [kvmload, *STATISTICS],
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    if "KVM_GET_STATS_FD" in run.stderr:
        pytest.skip(f"this kernel has no statistics of vCPUs: {run.stderr.strip()}")
    assert run.returncode == 0, run.stderr


@pytest.fixture(
    scope="module",
    params=["in memory", pytest.param("through copies", marks=pytest.mark.host_only)],
)
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    """The node, with both ways of reading statistics where this kernel permits both."""
    in_memory = request.param == "in memory"
    with Node(in_memory=in_memory) as watching:
        watching.report()
        yield watching


def counted(node: Node, tgid: int) -> ProcessReport | None:
    """Renode; the process once the source of its exits is known."""
    process = node.process(tgid)
    return process if process is not None and process.exits_source is not None else None


def exits(node: Node, load: KvmLoad) -> int | None:
    """Renode; the exits of a VM that has statistics."""
    process = wait_for(lambda: counted(node, load.tgid), "the source of its exits is known")
    assert process.exits_source is ExitSource.KVM_STATISTICS
    return process.counters.get("exits")


def in_debugfs(tgid: int, names: tuple[str, ...]) -> float | None:
    """The sum of these statistics of a VM; None: this kernel lacks one."""
    known = [total for name in names if (total := kvm_statistic(tgid, name)) is not None]
    return sum(known) if len(known) == len(names) else None


def links_of(node: Node) -> set[int]:
    """Renode; the links at kvm_exit that the kernel lists and that are of this process."""
    node.report()
    return raw_tracepoint_links(KVM_EXIT.name) & own_links()


@pytest.mark.parametrize(
    "vcpus",
    [pytest.param(1, marks=pytest.mark.host_only), pytest.param(8, marks=pytest.mark.every_kernel)],
)
def test_the_count_is_kvms_own(node: Node, kvmload: Path, vcpus: int) -> None:
    """No exit is missing or doubled, and nothing is attached to kvm_exit."""
    others = links_of(node)
    with KvmLoad(kvmload, *STATISTICS, "--vcpus", str(vcpus)) as load:
        load.finish_counted_part()
        assert exits(node, load) == load.totals["exits"] >= EXITS
        assert kvm_exits(load.tgid) in (None, load.totals["exits"])
        for steps in (1, 2, 101):
            load.step(steps)
            assert exits(node, load) == load.totals["exits"]
        assert links_of(node) <= others
        if not others:
            assert node.report().health.trusts["exits"] is CounterTrust.INACTIVE
            assert not node.has(KVM_EXIT)


@pytest.mark.every_kernel
def test_vcpus_and_vms_come_and_go(node: Node, kvmload: Path) -> None:
    """Unplugging, plugging in and a reset of a confidential guest lose no exit."""
    with KvmLoad(kvmload, *STATISTICS, "--vcpus", "4") as load:
        load.finish_counted_part()
        assert exits(node, load) == load.totals["exits"]
        for word in ("close", "9", "open", "10", "plug", "11", "reset", "12", "reset", "13"):
            load.order(word)
            assert exits(node, load) == load.totals["exits"], word


@pytest.mark.host_only
def test_an_agent_that_starts_later_counts_everything(
    kvmload: Path, new_node: Callable[[], Node]
) -> None:
    """The count is that of the VM, so that a restart of the agent changes nothing."""
    with KvmLoad(kvmload, *STATISTICS) as load:
        load.finish_counted_part()
        for steps in (13, 17):
            node = new_node()
            assert exits(node, load) == load.totals["exits"] >= EXITS
            load.step(steps)
            assert exits(node, load) == load.totals["exits"]


@pytest.mark.every_kernel
def test_the_hook_is_attached_for_a_vm_without_statistics(node: Node, kvmload: Path) -> None:
    """It counts that VM while it lives; the other one keeps its source and its count."""
    others = links_of(node)
    with KvmLoad(kvmload, *STATISTICS) as load:
        load.finish_counted_part()
        assert exits(node, load) == load.totals["exits"]
        assert links_of(node) <= others
        with KvmLoad(kvmload, "--userspace-exits", "7", "--step") as old:
            old.finish_counted_part()
            process = wait_for(lambda: counted(node, old.tgid), "its source is known")
            assert process.exits_source is ExitSource.TRACEPOINT
            wait_for(lambda: links_of(node), "the hook is attached")
            old.step(EXITS)
            load.step(5)
            assert exits(node, load) == load.totals["exits"]
            assert node.has(KVM_EXIT)
            hooked = node.process(old.tgid)
            assert hooked is not None
            fires = node.report().health.trusts["exits"] is CounterTrust.PROVEN
            assert (hooked.counters.get("exits", 0) >= EXITS) == fires
        wait_for(lambda: links_of(node) <= others, "the hook is as it was before")
        assert exits(node, load) == load.totals["exits"]


@pytest.mark.every_kernel
def test_what_is_counted_beside_exits(kvmload: Path) -> None:
    """With --vcpu-stats each count is KVM's own, and a statistic that this kernel lacks is absent.

    The guest has exited for reasons that KVM handles itself as well, and is outside KVM_RUN now, so
    that the counts stand still.
    """
    with (
        Node(vcpu_statistics=True) as node,
        KvmLoad(kvmload, *STATISTICS, "--kernel-exits", "307", "--vcpus", "2") as load,
    ):
        load.finish_counted_part()
        assert exits(node, load) == load.totals["exits"]
        process = node.process(load.tgid)
        assert process is not None
        assert process.vcpu_statistics is not None
        counts = process.vcpu_statistics.counts
        if kvm_exits(load.tgid) is None:
            pytest.skip("this kernel's debugfs cannot be read")
        for row in VCPU_COUNTS:
            choices = (in_debugfs(load.tgid, names) for names in row.choices)
            expected = next((total for total in choices if total is not None), None)
            if expected is not None and row.group is HALT_POLLING:
                expected *= 1e-9
            assert counts.get(row.name) == pytest.approx(expected), row.name
        assert counts


@pytest.mark.every_kernel
def test_what_an_agent_says_beside_exits(kvmload: Path, tmp_path: Path) -> None:
    """With --vcpu-stats an agent has the classes of exits that this architecture's KVM counts.

    Those that the guest makes are exact: port I/O on x86, stores outside memory and hypercalls on
    arm64. A class that the architecture lacks has no series.
    """
    name = of_this_run("classes")
    program = called_qemu(kvmload, tmp_path)
    workload = ("--kernel-exits", str(KERNEL_EXITS), "--vcpus", str(VCPUS))
    with (
        Agent("--standalone", "--node", "classes", "--vcpu-stats") as agent,
        KvmLoad(program, "-name", f"guest=default_{name}", *STATISTICS, *workload) as load,
    ):
        load.finish_counted_part()

        def counts(metric: str, label: str) -> dict[str, float]:
            found = ((dict(labels), value) for labels, value in agent.samples(metric).items())
            return {of[label]: value for of, value in found if of["name"] == name}

        def classes() -> dict[str, float]:
            return counts("kubevirt_vmi_vcpu_exits_by_class_total", "class")

        shown = wait_for(classes, "the exits of the VM are counted by class")
        assert shown.keys() == CLASSES.keys()
        assert shown == {each: shown[each] if of is None else of for each, of in CLASSES.items()}
        polled = counts("kubevirt_vmi_vcpu_halt_polling_seconds_total", "result")
        assert polled == {"success": 0, "fail": 0}
        total = counts("kubevirt_vmi_vcpu_exits_total", "name")
        assert total == {name: load.totals["exits"]}


@pytest.mark.host_only
def test_a_vm_is_released_when_its_process_ends(node: Node, kvmload: Path) -> None:
    """The agent keeps no copy of a descriptor, which would hold the VM and all that it holds."""
    if kvm_vms(1) is None:
        pytest.skip("this kernel's debugfs cannot be read")
    for _ in range(10):
        with KvmLoad(kvmload, *STATISTICS) as load:
            load.finish_counted_part()
            assert exits(node, load) == load.totals["exits"]
            assert kvm_vms(load.tgid) == 1
        assert kvm_vms(load.tgid) == 0


@pytest.mark.every_kernel
def test_qemu(node: Node) -> None:
    """A real QEMU's exits equal KVM's counters to the last one while the guest is stopped.

    QEMU holds statistics since 8.1. An older one is counted by the hook.
    """
    version = re.search(
        r"version (\d+)\.(\d+)", subprocess.check_output([QEMU, "--version"], text=True)
    )
    assert version is not None
    has_statistics = (int(version[1]), int(version[2])) >= FIRST_WITH_STATISTICS
    others = links_of(node)
    with Qemu("test_alpha", "-smp", "2") as qemu:
        node.wait_for_verdict(qemu.tgid, HypervisorType.KVM, verified=True)
        process = wait_for(lambda: counted(node, qemu.tgid), "its source is known")
        if not has_statistics:
            assert process.exits_source is ExitSource.TRACEPOINT
            assert links_of(node)
            return
        assert process.exits_source is ExitSource.KVM_STATISTICS
        assert links_of(node) <= others
        os.kill(qemu.tgid, signal.SIGSTOP)
        wait_for(lambda: _is_stopped(qemu.tgid), "all of its threads have stopped")
        stopped = node.process(qemu.tgid)
        assert stopped is not None
        total = stopped.counters["exits"]
        assert total > 0
        assert kvm_exits(qemu.tgid) in (None, total)


def _is_stopped(tgid: int) -> bool:
    threads = Path(f"/proc/{tgid}/task").iterdir()
    return all(
        (thread / "stat").read_text().rpartition(")")[2].split()[0] == "T" for thread in threads
    )
