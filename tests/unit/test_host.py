"""/proc as a tree of files: captured processes, real ones, and those that go while being read."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from facts import Capture, captured, plant

from probes.host import Host
from probes.vmm import AcceleratorFds, QemuCommandLine, VmmId, VmmProcess

KVM_RUN = 0xAE80
DEADLINE_S = 10.0


@pytest.fixture
def host(proc: Path) -> Host:
    """Reads the test's own /proc as a node of the architecture the captures come from."""
    reader = Host(proc_root=proc)
    reader.machine = "x86_64"
    return reader


def inspected(host: Host, proc: Path, name: str) -> VmmProcess:
    capture = captured(name)
    plant(proc, capture)
    found = host.inspect(capture.vmm)
    assert found is not None
    return found


def running_now(process: VmmProcess) -> set[int | None]:
    return {it.ioctl_fd for it in process.threads if it.ioctl_request == KVM_RUN}


# captured processes


def test_guest_inside_kvm_run(host: Host, proc: Path) -> None:
    """Everything of a real QEMU: identity, name, descriptors, threads and what they sleep in."""
    capture = captured("kvm_inside_run")
    found = inspected(host, proc, "kvm_inside_run")
    assert found.vmm == capture.vmm
    assert (found.comm, found.program) == ("qemu-system-x86", "qemu-system-x86_64")
    assert found.named_like_qemu
    assert found.command_line == QemuCommandLine(
        guest_name="default_alpha", accelerators=("kvm",), machine=None
    )
    assert found.cgroup == "0::/\n"
    assert found.fds == AcceleratorFds(
        kvm_devices=frozenset({3}),
        kvm_vms=frozenset({8}),
        kvm_vcpus=frozenset({9}),
        whole=True,
    )
    assert [it.tid for it in found.threads] == sorted(int(tid) for tid in capture.task)
    vcpu = next(it for it in found.threads if it.comm == "CPU 0/KVM")
    assert (vcpu.ioctl_fd, vcpu.ioctl_request) == (9, KVM_RUN)
    assert vcpu.cpu_ticks > 0


def test_worker_repeats_its_creators_line(host: Host, proc: Path) -> None:
    """Two vCPUs and KVM's worker thread: three threads in KVM_RUN, on two descriptors."""
    found = inspected(host, proc, "kvm_two_vcpus")
    assert sum(it.ioctl_request == KVM_RUN for it in found.threads) == 3
    assert running_now(found) == {9, 11} == found.fds.kvm_vcpus
    assert found.guest_ticks == 1


def test_paused_guest(host: Host, proc: Path) -> None:
    """vCPUs and their threads are there, and none is inside an ioctl(2)."""
    found = inspected(host, proc, "kvm_paused")
    assert len(found.fds.kvm_vcpus) == 2
    assert running_now(found) == set()
    assert {"CPU 0/KVM", "CPU 1/KVM"} <= {it.comm for it in found.threads}
    assert all(it.ioctl_fd is None for it in found.threads)


def test_capability_probe(host: Host, proc: Path) -> None:
    """libvirt's probe: a VM, no vCPU, no guest name, machine none."""
    found = inspected(host, proc, "capability_probe")
    assert found.command_line == QemuCommandLine(
        guest_name=None, accelerators=("kvm", "tcg"), machine="none"
    )
    assert found.fds.kvm_vms
    assert not found.fds.kvm_vcpus


@pytest.mark.parametrize(
    ("name", "threads"),
    [
        ("tcg_multi", {"qemu-system-x86", "call_rcu", "CPU 0/TCG"}),
        ("tcg_single", {"qemu-system-x86", "ALL CPUs/TCG"}),
        ("tcg_unnamed_threads", {"qemu-system-x86"}),
    ],
)
def test_emulated_guests(host: Host, proc: Path, name: str, threads: set[str]) -> None:
    """No accelerator in a table that was read whole, and threads by their names, if any.

    No thread's system call is asked for.
    """
    found = inspected(host, proc, name)
    assert found.fds == AcceleratorFds(whole=True)
    assert found.guest_ticks == 0
    assert {it.comm for it in found.threads} <= threads | {"call_rcu"}
    assert threads <= {it.comm for it in found.threads} | {"call_rcu"}
    assert all(it.ioctl_fd is None for it in found.threads)


def test_another_architectures_system_calls(host: Host, proc: Path) -> None:
    """x86's number of ioctl(2) says nothing on a node of another architecture."""
    host.machine = "aarch64"
    assert running_now(inspected(host, proc, "kvm_inside_run")) == set()


def test_zombie_leader_with_live_threads(host: Host, proc: Path) -> None:
    """When the main thread has ended the process lives on.

    Its descriptors are those of a living thread; an empty command line and a missing program are
    no error.
    """
    capture = captured("zombie_leader")
    found = inspected(host, proc, "zombie_leader")
    assert host.identify(capture.tgid) == capture.vmm
    assert found.comm == "qemu-kvm"
    assert found.named_like_qemu
    assert found.program is None
    assert found.command_line == QemuCommandLine()
    assert found.fds.kvm_vcpus == frozenset({5})
    assert found.fds.whole


def test_workers_empty_table_is_not_the_process_s(host: Host, proc: Path) -> None:
    """Of a zombie leader's threads KVM's worker is not the one to believe.

    It shares no descriptors with its process (see kvm_two_vcpus), and may come in any order.
    """
    capture = captured("zombie_leader")
    worker = next(it for it in captured("kvm_two_vcpus").task.values() if it.get("fd") == {})
    workers = {str(tid): dict(worker) for tid in range(9858, 9898)}
    plant(proc, with_tasks(capture, workers))
    found = host.inspect(capture.vmm)
    assert found is not None
    assert found.fds.kvm_vcpus == frozenset({5})


def with_tasks(capture: Capture, tasks: dict[str, dict[str, object]]) -> Capture:
    return replace(capture, task={**capture.task, **tasks})


def test_zombie_leader_whose_threads_went_too(host: Host, proc: Path) -> None:
    """Nothing left to read descriptors from: they are not known, which is not the same as none."""
    capture = captured("zombie_leader")
    leader = str(capture.tgid)
    gone = replace(capture, task={leader: capture.task[leader]})
    root = plant(proc, gone)
    (root / "fd").rmdir()
    found = host.inspect(capture.vmm)
    assert found is not None
    assert found.fds == AcceleratorFds(whole=False)


@pytest.mark.parametrize("name", ["a) R 1 (b", "x)", "CPU 0/KVM\n) Z"])
def test_hostile_names(host: Host, proc: Path, name: str) -> None:
    """Names of a process and of a thread are given as they stand and shift nothing."""
    capture = captured("kvm_inside_run")
    text = capture.stat.replace("(qemu-system-x86)", f"({name})")
    plant(proc, replace(capture, stat=text, exe="/tmp/x (deleted)"))
    found = host.inspect(capture.vmm)
    assert found is not None
    assert (found.comm, found.program) == (name, "x")
    assert not found.named_like_qemu


# processes that go, or will not be read


def test_no_such_process(host: Host) -> None:
    """A process that is not there is a value, not an error."""
    assert host.identify(4711) is None
    assert host.inspect(VmmId(tgid=4711, start_ticks=1)) is None


def test_vanished_midway(host: Host, proc: Path) -> None:
    """A folder without files, as it is seen while a process goes."""
    (proc / "4711").mkdir()
    assert host.identify(4711) is None
    assert host.inspect(VmmId(tgid=4711, start_ticks=1)) is None


def test_vanished_after_its_stat_was_read(host: Host, proc: Path) -> None:
    """Only stat could be read: nothing else is known, and no absence is claimed."""
    capture = captured("kvm_inside_run")
    root = proc / str(capture.tgid)
    root.mkdir()
    (root / "stat").write_text(capture.stat)
    found = host.inspect(capture.vmm)
    assert found is not None
    assert found.program is None
    assert found.cgroup is None
    assert found.fds == AcceleratorFds(whole=False)
    assert found.threads == ()


def test_dead_processes_are_not_identified(host: Host, proc: Path) -> None:
    """A zombie whose threads have all gone only waits to be reaped."""
    capture = captured("zombie_leader")
    stat = capture.stat.replace(" 20 0 2 0 ", " 20 0 1 0 ")
    assert stat != capture.stat
    plant(proc, replace(capture, stat=stat))
    assert host.identify(capture.tgid) is None
    assert host.inspect(capture.vmm) is None


def test_number_used_again(host: Host, proc: Path) -> None:
    """Facts of a process that took over the number are not given for the one before."""
    capture = captured("kvm_inside_run")
    plant(proc, capture)
    before = replace(capture.vmm, start_ticks=capture.vmm.start_ticks - 1)
    assert host.inspect(before) is None
    assert host.identify(capture.tgid) == capture.vmm


def test_garbled_stat(host: Host, proc: Path) -> None:
    """What is no stat line is no process."""
    (proc / "4711").mkdir()
    (proc / "4711" / "stat").write_text("4711 (qemu")
    assert host.identify(4711) is None


def test_unreadable_descriptors(host: Host, proc: Path) -> None:
    """An fd folder that cannot be listed leaves the table unread, not empty."""
    capture = captured("tcg_multi")
    root = plant(proc, capture)
    for link in (root / "fd").iterdir():
        link.unlink()
    (root / "fd").rmdir()
    (root / "fd").write_text("")
    found = host.inspect(capture.vmm)
    assert found is not None
    assert found.fds == AcceleratorFds(whole=False)


def test_one_unreadable_descriptor(host: Host, proc: Path) -> None:
    """One link that cannot be followed makes the table not whole; what was read still counts."""
    capture = captured("kvm_inside_run")
    root = plant(proc, capture)
    (root / "fd" / "77").mkdir()
    found = host.inspect(capture.vmm)
    assert found is not None
    assert found.fds.kvm_vcpus == frozenset({9})
    assert not found.fds.whole


def test_threads_that_end_meanwhile(host: Host, proc: Path) -> None:
    """A thread without files is left out; one without a syscall file sleeps in nothing known."""
    capture = captured("kvm_two_vcpus")
    root = plant(proc, capture)
    (root / "task" / "9999").mkdir()
    (root / "task" / "8119" / "syscall").unlink()
    (root / "task" / "8118" / "syscall").write_text("16 nine 0xae80 0x0 0x0")
    found = host.inspect(capture.vmm)
    assert found is not None
    assert 9999 not in {it.tid for it in found.threads}
    asleep = {it.tid: it.ioctl_fd for it in found.threads}
    assert (asleep[8118], asleep[8119]) == (None, None)


def test_an_odd_process_costs_only_itself(host: Host, proc: Path) -> None:
    """What cannot be read of one process, for whatever reason, is not there; others are."""
    (proc / "4711" / "stat").mkdir(parents=True)
    other = plant(proc, captured("kvm_inside_run"))
    assert host.identify(4711) is None
    assert host.identify(captured("kvm_inside_run").tgid) is not None, other


# sweeps


def test_sweep_by_name(host: Host, proc: Path) -> None:
    """Processes named like QEMU are found, whatever they do; others are not."""
    for name in ("kvm_inside_run", "tcg_multi", "zombie_leader"):
        plant(proc, captured(name))
    plant(proc, other_process())
    assert host.sweep(every_fd=False) == {
        captured(name).tgid for name in ("kvm_inside_run", "tcg_multi", "zombie_leader")
    }


def test_sweep_by_descriptors(host: Host, proc: Path) -> None:
    """Looking into every table also finds who uses KVM under another name."""
    plant(proc, captured("tcg_multi"))
    plant(proc, other_process())
    idle = replace(other_process(), tgid=4712, fd={"0": "/dev/null"})
    plant(proc, replace(idle, stat=idle.stat.replace("4711 ", "4712 ", 1)))
    (proc / "4713").mkdir()
    assert host.sweep(every_fd=True) == {captured("tcg_multi").tgid, 4711}


def other_process() -> Capture:
    """A VMM of another name that holds KVM descriptors."""
    capture = captured("kvm_inside_run")
    stat = capture.stat.replace(f"{capture.tgid} (qemu-system-x86)", "4711 (firecracker)", 1)
    return replace(capture, tgid=4711, stat=stat, cmdline="firecracker\0", exe="/firecracker")


def test_sweep_sees_the_full_name(host: Host, proc: Path) -> None:
    """The kernel cuts names at 15 bytes; the command line completes them."""
    capture = captured("tcg_multi")
    plant(proc, replace(capture, cmdline="/usr/bin/qemu-system-x86_64\0-S\0"))
    assert host.sweep(every_fd=False) == {capture.tgid}


# real processes


@contextlib.contextmanager
def child(program: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process of our own that runs the program until its input is closed."""
    with subprocess.Popen(
        [sys.executable, "-S", "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as started:
        try:
            assert started.stdout is not None
            assert started.stdout.readline() == "ready\n"
            yield started
        finally:
            started.kill()


def test_own_process() -> None:
    """This very process, read from the real /proc: its threads and its descriptors, whole."""
    host = Host()
    tgid = os.getpid()
    vmm = host.identify(tgid)
    assert vmm is not None
    stop = threading.Event()
    other = threading.Thread(target=stop.wait)
    other.start()
    try:
        found = host.inspect(vmm)
    finally:
        stop.set()
        other.join()
    assert found is not None
    assert found.vmm.tgid == tgid
    assert found.program == Path(sys.executable).resolve().name
    assert not found.named_like_qemu
    assert found.fds == AcceleratorFds(whole=True)
    assert {tgid, other.native_id} <= {it.tid for it in found.threads}
    assert found.guest_ticks == 0


def test_start_is_not_later_than_it_was() -> None:
    """A process's start is never put after what it did, on the clock that the hooks use.

    The earliest possible time is meant, within two clock ticks.
    """
    before_ns = time.monotonic_ns()
    host = Host()
    with child("print('ready', flush=True); input()") as started:
        ready_ns = time.monotonic_ns()
        vmm = host.identify(started.pid)
        assert vmm is not None
        start_ns = host.start_monotonic_ns(vmm)
    two_ticks_ns = 2 * 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    assert before_ns - two_ticks_ns <= start_ns <= ready_ns


def test_real_zombie_leader() -> None:
    """A real process whose main thread has ended: its other thread's descriptors are read."""
    program = """
import ctypes, os, threading
threading.Thread(target=lambda: (print("ready", flush=True), input())).start()
ctypes.CDLL(None).syscall({"x86_64": 60}.get(os.uname().machine, 93), 0)
"""
    host = Host()
    with child(program) as started:
        vmm = wait_until_zombie(host, started.pid)
        found = host.inspect(vmm)
    assert found is not None
    assert found.fds == AcceleratorFds(whole=True)
    assert found.command_line == QemuCommandLine()


def wait_until_zombie(host: Host, tgid: int) -> VmmId:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        if Path(f"/proc/{tgid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            vmm = host.identify(tgid)
            assert vmm is not None
            return vmm
        time.sleep(0.002)
    pytest.fail(f"the main thread of {tgid} did not end within {DEADLINE_S} s")


def test_real_process_that_ended() -> None:
    """A process that was killed and reaped is gone for inspection as for identification."""
    host = Host()
    with child("print('ready', flush=True); input()") as started:
        vmm = host.identify(started.pid)
        assert vmm is not None
    assert host.identify(started.pid) != vmm
    assert host.inspect(vmm) is None
