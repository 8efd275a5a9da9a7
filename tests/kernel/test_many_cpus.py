# SPDX-License-Identifier: Apache-2.0
"""Nodes with hundreds of CPUs, and CPUs that go and come back while vCPUs move between them.

On a machine with few CPUs the tables of a large one are made from a list of CPUs that the test
writes. The guest of ``make test-many-cpus`` really has as many as QEMU can give it.
"""

import os
import platform
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ebpf.hook_status import HookStatus
from ebpf.hooks import KVM_EXIT, KVM_VCPU_IOCTL
from ebpf.programs import possible_cpus
from ebpf.session import Session
from tests.support.debugfs import kvm_exits
from tests.support.kernel_ledger import (
    entry_with,
    rubbish_left,
    slot_of,
    stated_bytes,
    tables,
    wait_for_removal,
)
from tests.support.kernel_world import KvmLoad, wait_for
from tests.support.sys_tree import CPUS_ONLINE, CPUS_POSSIBLE, sysfs_with

SYS = Path("/sys")
CPUS = SYS / "devices/system/cpu"
MANY = 512
EXITS, STEP = 2003, 97
MAX_INSTRUCTIONS = 1_000_000
"""Instructions that the verifier follows at most (BPF_COMPLEXITY_LIMIT_INSNS)."""


@pytest.fixture
def hotplugged() -> Iterator[list[int]]:
    """CPUs that may be taken offline. All are online again after the test."""
    if os.environ.get("HVPROBE_MODULE_TESTS") != "1":
        pytest.skip("takes CPUs offline: only in a machine of its own (HVPROBE_MODULE_TESTS=1)")
    found = sorted(int(file.parent.name[3:]) for file in CPUS.glob("cpu[0-9]*/online"))
    found = [cpu for cpu in found if cpu]
    if not found:
        pytest.skip("this machine has no CPU that can be taken offline")
    yield found
    for cpu in found:
        switch(cpu, online=True)


def switch(cpu: int, *, online: bool) -> None:
    (CPUS / f"cpu{cpu}/online").write_text("1" if online else "0")


def move(tgid: int, cpus: set[int]) -> None:
    """Let the threads of a process run on these CPUs alone."""
    for task in Path(f"/proc/{tgid}/task").iterdir():
        os.sched_setaffinity(int(task.name), cpus)


def status(session: Session, name: str) -> HookStatus:
    (found,) = [status for status in session.hooks if status.hook.name == name]
    return found


def verified_instructions(session: Session) -> int | None:
    """The most instructions that the verifier followed in a program; None: it does not say."""
    found = [
        int(line[1])
        for fd in session._programs._loaded.programs.values()
        if (line := re.search(r"^verified_insns:\s*(\d+)", fdinfo(fd), re.MULTILINE))
    ]
    return max(found, default=None)


def fdinfo(fd: int) -> str:
    return Path(f"/proc/self/fdinfo/{fd}").read_text()


def states_memory() -> bool:
    """Whether this kernel states how much memory a map takes, and not an estimate (Linux 6.4)."""
    release = re.match(r"(\d+)\.(\d+)", platform.release())
    assert release is not None
    return (int(release[1]), int(release[2])) >= (6, 4)


def check_counts(session: Session, load: KvmLoad, made: int) -> None:
    """Compare all counts of a process with what it made and with KVM's own count."""
    returns = made + load.totals["eintr"]
    entry = wait_for(lambda: entry_with(session, load.tgid, returns), "all returns are counted")
    assert entry.counters["userspace_exits"] == returns
    if status(session, KVM_VCPU_IOCTL.name).attached:
        assert entry.counters["runs"] == load.totals["kvm_run"]
    oracle = kvm_exits(load.tgid)
    if oracle is not None and entry.counters["exits"]:
        assert entry.counters["exits"] == oracle


@pytest.mark.every_kernel
def test_a_node_with_many_cpus(
    kvmload: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """The programs for 512 CPUs pass the verifier, count exactly, and clear what they counted.

    The tables take as much memory as hvprobe says.
    """
    most = max(MANY, 1 + possible_cpus(SYS)[-1])
    sys_root = sysfs_with(tmp_path / "sys", {CPUS_POSSIBLE: f"0-{most - 1}\n"})
    with Session(sys_root=sys_root) as session:
        session.need([KVM_EXIT])
        lost = [each.reason for each in session.hooks if not each.attached and not each.inactive]
        assert all("no kprobes" in (reason or "") for reason in lost), lost
        instructions = verified_instructions(session)
        record_property("instructions", f"{instructions} for {most} CPUs")
        if states_memory():
            assert session.memory_bytes == pytest.approx(stated_bytes(session), rel=0.02)
        memory_mib = session.memory_bytes / (1 << 20)
        record_property("memory", f"{memory_mib:.1f} MiB for {most} CPUs, {session.capacity} slots")
        assert instructions is None or instructions < MAX_INSTRUCTIONS // 4
        with KvmLoad(kvmload, "--vcpus", "4", "--userspace-exits", str(EXITS)) as load:
            load.finish_counted_part()
            check_counts(session, load, EXITS)
            slot = slot_of(session, load.tgid)
        wait_for_removal(session, load.tgid)
        assert rubbish_left(session, load.tgid, slot) == 0


@pytest.mark.parametrize("opened_on", ["the first CPU", "a CPU that goes"])
def test_vcpus_move_while_cpus_go_and_come_back(
    kvmload: Path,
    tmp_path: Path,
    hotplugged: list[int],
    opened_on: str,
    record_property: Callable[[str, object], None],
) -> None:
    """Nothing is lost or counted twice, whichever CPU the perf events are opened on."""
    files = {} if opened_on == "the first CPU" else {CPUS_ONLINE: f"{hotplugged[-1]}\n"}
    sys_root = sysfs_with(tmp_path / "sys", files) if files else SYS
    arguments = ("--vcpus", "4", "--userspace-exits", str(EXITS), "--step")
    with ExitStack() as stack:
        session = stack.enter_context(Session(sys_root=sys_root))
        session.need([KVM_EXIT])  # before the load makes its first exit
        load = stack.enter_context(KvmLoad(kvmload, *arguments))
        load.finish_counted_part()
        everywhere = os.sched_getaffinity(0)
        made = EXITS
        for cpu in hotplugged:
            for cpus, online in (({cpu}, True), ({cpu}, False), (everywhere, False), ({0}, True)):
                switch(cpu, online=True)
                move(load.tgid, cpus)
                switch(cpu, online=online)
                load.step(STEP)
                made += STEP
                session.read()
        check_counts(session, load, made)
        places = tables(session)._arrays._places
        counted = places.across(load.tgid % tables(session)._arrays._places_per_cpu, 1)
        if status(session, KVM_EXIT.name).attached and any(counted):
            assert len(counted) - counted.count(0) > 1, "it ran on several CPUs"
        record_property(
            "cpus", f"{len(possible_cpus(SYS))} possible, {1 + len(hotplugged)} present"
        )
