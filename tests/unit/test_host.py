# SPDX-License-Identifier: Apache-2.0
"""The reader of /proc reads captured processes, real ones, and some that end during the read."""

import contextlib
import ctypes
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from queue import Queue

import pytest

from probes.host import process_reader, thread_tables, vcpu_statistics, watched_reads
from probes.host import reader as reader_module
from probes.host.hypervisors import HypervisorType
from probes.host.process import (
    AcceleratorFds,
    Inspections,
    QemuCommandLine,
    Scan,
    Unread,
    VmmId,
    VmmProcess,
)
from probes.host.process_folder import ProcessFolder
from probes.host.process_reader import ProcessDraft
from probes.host.read_queue import ReadQueue
from probes.host.reader import Host
from probes.host.thread_tables import TableComparer
from probes.host.vcpu_statistics import is_vcpu_statistics
from probes.host.watched_reads import WatchedReads
from tests.support.facts import Capture, captured, kvm_fds, plant
from tests.support.kvm_statistics import statistics

KVM = HypervisorType.KVM

KVM_RUN = 0xAE80
DEADLINE_S = 10.0


@pytest.fixture
def host(proc: Path) -> Host:
    """Return a reader of the test's own /proc with the architecture of the captures."""
    reader = Host(proc_root=proc)
    reader.machine = "x86_64"
    return reader


def inspect(host: Host, vmm: VmmId) -> VmmProcess | None:
    found = host.inspect([vmm])
    assert not found.pending
    return found.processes.get(vmm)


def inspected(host: Host, proc: Path, name: str) -> VmmProcess:
    capture = captured(name)
    plant(proc, capture)
    found = inspect(host, capture.vmm)
    assert found is not None
    assert found.unread is None
    return found


def running_now(process: VmmProcess) -> set[int | None]:
    return {thread.ioctl_fd for thread in process.threads if thread.ioctl_request == KVM_RUN}


# captured processes


def test_guest_inside_kvm_run(host: Host, proc: Path) -> None:
    """Identity, name, descriptors, threads and system calls of a real QEMU are read."""
    capture = captured("kvm_inside_run")
    found = inspected(host, proc, "kvm_inside_run")
    assert found.vmm == capture.vmm
    assert (found.comm, found.program) == ("qemu-system-x86", "qemu-system-x86_64")
    assert found.named_like_qemu
    assert found.command_line == QemuCommandLine(
        guest_name="default_alpha", accelerators=("kvm",), machine=None
    )
    assert found.cgroup == "0::/\n"
    assert found.fds == kvm_fds(9)
    assert [thread.tid for thread in found.threads] == sorted(int(tid) for tid in capture.task)
    vcpu = next(thread for thread in found.threads if thread.comm == "CPU 0/KVM")
    assert (vcpu.ioctl_fd, vcpu.ioctl_request) == (9, KVM_RUN)
    assert vcpu.cpu_ticks > 0


def test_worker_repeats_its_creators_line(host: Host, proc: Path) -> None:
    """Two vCPUs and KVM's worker thread: three threads in KVM_RUN, on two descriptors."""
    found = inspected(host, proc, "kvm_two_vcpus")
    assert sum(thread.ioctl_request == KVM_RUN for thread in found.threads) == 3
    assert running_now(found) == {9, 11} == found.fds.of(KVM).vcpus
    assert found.guest_ticks == 1


def test_paused_guest(host: Host, proc: Path) -> None:
    """A paused guest has vCPUs and their threads, and no thread is inside an ioctl(2)."""
    found = inspected(host, proc, "kvm_paused")
    assert len(found.fds.of(KVM).vcpus) == 2
    assert running_now(found) == set()
    assert {"CPU 0/KVM", "CPU 1/KVM"} <= {thread.comm for thread in found.threads}
    assert all(thread.ioctl_fd is None for thread in found.threads)


def test_capability_probe(host: Host, proc: Path) -> None:
    """libvirt's probe has a VM, no vCPU, no guest name, and machine none."""
    found = inspected(host, proc, "capability_probe")
    assert found.command_line == QemuCommandLine(
        guest_name=None, accelerators=("kvm", "tcg"), machine="none"
    )
    assert found.fds.of(KVM).vms
    assert not found.fds.of(KVM).vcpus


@pytest.mark.parametrize(
    ("name", "threads"),
    [
        ("tcg_multi", {"qemu-system-x86", "call_rcu", "CPU 0/TCG"}),
        ("tcg_single", {"qemu-system-x86", "ALL CPUs/TCG"}),
        ("tcg_unnamed_threads", {"qemu-system-x86"}),
    ],
)
def test_emulated_guests(host: Host, proc: Path, name: str, threads: set[str]) -> None:
    """Emulated guests hold no accelerator in complete tables, and have their threads' names.

    No thread's system call is read.
    """
    found = inspected(host, proc, name)
    assert found.fds == AcceleratorFds(complete=True)
    assert found.guest_ticks == 0
    assert {thread.comm for thread in found.threads} <= threads | {"call_rcu"}
    assert threads <= {thread.comm for thread in found.threads} | {"call_rcu"}
    assert all(thread.ioctl_fd is None for thread in found.threads)


def test_another_architectures_system_calls(host: Host, proc: Path) -> None:
    """x86's number of ioctl(2) means nothing on a node of another architecture."""
    host.machine = "aarch64"
    assert running_now(inspected(host, proc, "kvm_inside_run")) == set()


def test_zombie_leader_with_live_threads(host: Host, proc: Path) -> None:
    """A process whose main thread has ended lives on.

    Its descriptors are those of a living thread. An empty command line and a missing program are
    no errors.
    """
    capture = captured("zombie_leader")
    found = inspected(host, proc, "zombie_leader")
    assert host.identify(capture.tgid) == capture.vmm
    assert found.comm == "qemu-kvm"
    assert found.named_like_qemu
    assert found.program is None
    assert found.command_line == QemuCommandLine()
    assert found.fds.of(KVM).vcpus == frozenset({5})
    assert found.fds.complete


def test_workers_empty_table_is_not_the_process_s(host: Host, proc: Path) -> None:
    """A zombie leader's descriptors are not read from KVM's worker thread.

    The worker shares no descriptors with its process (see kvm_two_vcpus), and its place in the list
    is random.
    """
    capture = captured("zombie_leader")
    worker = next(task for task in captured("kvm_two_vcpus").task.values() if task.get("fd") == {})
    workers = {str(tid): dict(worker) for tid in range(9858, 9898)}
    plant(proc, with_tasks(capture, workers))
    found = inspect(host, capture.vmm)
    assert found is not None
    assert found.fds.of(KVM).vcpus == frozenset({5})


def with_tasks(capture: Capture, tasks: dict[str, dict[str, object]]) -> Capture:
    return replace(capture, task={**capture.task, **tasks})


def test_zombie_leader_whose_threads_went_too(host: Host, proc: Path) -> None:
    """Without a thread to read them from, descriptors are unknown rather than absent."""
    capture = captured("zombie_leader")
    leader = str(capture.tgid)
    gone = replace(capture, task={leader: capture.task[leader]})
    root = plant(proc, gone)
    (root / "fd").rmdir()
    found = inspect(host, capture.vmm)
    assert found is not None
    assert found.fds == AcceleratorFds(complete=False)


@pytest.mark.parametrize("name", ["a) R 1 (b", "x)", "CPU 0/KVM\n) Z"])
def test_hostile_names(host: Host, proc: Path, name: str) -> None:
    """Names of processes and threads are returned unchanged and shift no field."""
    capture = captured("kvm_inside_run")
    text = capture.stat.replace("(qemu-system-x86)", f"({name})")
    plant(proc, replace(capture, stat=text, exe="/tmp/x (deleted)", cmdline="x\0"))
    found = inspect(host, capture.vmm)
    assert found is not None
    assert (found.comm, found.program) == (name, "x")
    assert not found.named_like_qemu


# processes that go, or will not be read


def test_no_such_process(host: Host) -> None:
    """A missing process is a value rather than an error."""
    assert host.identify(4711) is None
    assert inspect(host, VmmId(tgid=4711, start_ticks=1)) is None


def test_vanished_midway(host: Host, proc: Path) -> None:
    """A folder without files, as the kernel shows it while a process ends, is no process."""
    (proc / "4711").mkdir()
    assert host.identify(4711) is None
    assert inspect(host, VmmId(tgid=4711, start_ticks=1)) is None


def test_vanished_after_its_stat_was_read(host: Host, proc: Path) -> None:
    """If only stat could be read, everything else is unknown rather than absent."""
    capture = captured("kvm_inside_run")
    root = proc / str(capture.tgid)
    root.mkdir()
    (root / "stat").write_text(capture.stat)
    found = inspect(host, capture.vmm)
    assert found is not None
    assert found.program is None
    assert found.cgroup is None
    assert found.fds == AcceleratorFds(complete=False)
    assert found.threads == ()


def test_dead_processes_are_not_identified(host: Host, proc: Path) -> None:
    """A zombie whose threads have all gone only waits to be reaped."""
    capture = captured("zombie_leader")
    stat = capture.stat.replace(" 20 0 2 0 ", " 20 0 1 0 ")
    assert stat != capture.stat
    plant(proc, replace(capture, stat=stat))
    assert host.identify(capture.tgid) is None
    assert inspect(host, capture.vmm) is None


def test_number_used_again(host: Host, proc: Path) -> None:
    """Facts about the next owner of a number are not returned for its former owner."""
    capture = captured("kvm_inside_run")
    plant(proc, capture)
    before = capture.vmm._replace(start_ticks=capture.vmm.start_ticks - 1)
    assert inspect(host, before) is None
    assert host.identify(capture.tgid) == capture.vmm


def test_garbled_stat(host: Host, proc: Path) -> None:
    """A process with a malformed stat line is no process."""
    (proc / "4711").mkdir()
    (proc / "4711" / "stat").write_text("4711 (qemu")
    assert host.identify(4711) is None


def test_a_process_that_may_not_be_identified(
    host: Host, proc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process whose stat may not be opened has not ended: it is pending until it has."""
    capture = captured("kvm_inside_run")
    plant(proc, capture)
    opened = os.open

    def refuse(path: str, flags: int, *, dir_fd: int | None = None) -> int:
        if path == "stat":
            raise PermissionError(path)
        return opened(path, flags, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", refuse)
    refused = host.scan([capture.vmm.tgid], every_fd=True)
    assert refused == Scan(pending={capture.vmm.tgid: Unread.DENIED})
    (proc / str(capture.vmm.tgid)).rename(proc / "gone")
    assert host.scan([capture.vmm.tgid], every_fd=True) == Scan()


def test_unreadable_descriptors(host: Host, proc: Path) -> None:
    """An fd folder that cannot be listed leaves the table unread rather than empty."""
    capture = captured("tcg_multi")
    root = plant(proc, capture)
    for link in (root / "fd").iterdir():
        link.unlink()
    (root / "fd").rmdir()
    (root / "fd").write_text("")
    found = inspect(host, capture.vmm)
    assert found is not None
    assert found.fds == AcceleratorFds(complete=False)


def test_one_unreadable_descriptor(host: Host, proc: Path) -> None:
    """One link that cannot be read makes the table incomplete; the other links still count."""
    capture = captured("kvm_inside_run")
    root = plant(proc, capture)
    (root / "fd" / "77").mkdir()
    found = inspect(host, capture.vmm)
    assert found is not None
    assert found.fds.of(KVM).vcpus == frozenset({9})
    assert not found.fds.complete


def test_threads_that_end_meanwhile(host: Host, proc: Path) -> None:
    """A thread without files is left out; one without a syscall file sleeps in nothing known."""
    capture = captured("kvm_two_vcpus")
    root = plant(proc, capture)
    (root / "task" / "9999").mkdir()
    (root / "task" / "8119" / "syscall").unlink()
    (root / "task" / "8118" / "syscall").write_text("16 nine 0xae80 0x0 0x0")
    found = inspect(host, capture.vmm)
    assert found is not None
    assert 9999 not in {thread.tid for thread in found.threads}
    asleep = {thread.tid: thread.ioctl_fd for thread in found.threads}
    assert (asleep[8118], asleep[8119]) == (None, None)


def test_an_odd_process_costs_only_itself(host: Host, proc: Path) -> None:
    """A process that cannot be read is absent; the others are there."""
    (proc / "4711" / "stat").mkdir(parents=True)
    other = plant(proc, captured("kvm_inside_run"))
    assert host.identify(4711) is None
    assert host.identify(captured("kvm_inside_run").tgid) is not None, other


# scans


def test_scan_by_name(host: Host, proc: Path) -> None:
    """Only processes that are named like QEMU are found."""
    for name in ("kvm_inside_run", "tcg_multi", "zombie_leader"):
        plant(proc, captured(name))
    plant(proc, other_process())
    named = [captured(name).vmm for name in ("kvm_inside_run", "tcg_multi", "zombie_leader")]
    assert host.scan(host.tgids(), every_fd=False) == Scan(
        found={vmm.tgid: vmm for vmm in named}, others={4711: other_process().vmm}
    )


def test_scan_by_descriptors(host: Host, proc: Path) -> None:
    """A scan of all descriptors also finds users of KVM with other names."""
    emulated = captured("tcg_multi")
    plant(proc, emulated)
    plant(proc, other_process())
    idle = replace(other_process(), tgid=4712, fd={"0": "/dev/null"})
    idle = replace(idle, stat=idle.stat.replace("4711 ", "4712 ", 1))
    plant(proc, idle)
    (proc / "4713").mkdir()
    assert host.scan(host.tgids(), every_fd=True) == Scan(
        found={emulated.tgid: emulated.vmm, 4711: other_process().vmm}, others={4712: idle.vmm}
    )


def other_process() -> Capture:
    """Return a VMM of another name that holds KVM descriptors."""
    capture = captured("kvm_inside_run")
    stat = capture.stat.replace(f"{capture.tgid} (qemu-system-x86)", "4711 (firecracker)", 1)
    return replace(capture, tgid=4711, stat=stat, cmdline="firecracker\0", exe="/firecracker")


RENAMED = {
    "by its program": ("vm", "/usr/bin/qemu-system-x86_64", "vm\0"),
    "by a program that was removed": ("vm", "/usr/libexec/qemu-kvm (deleted)", "vm\0"),
    "by its arguments": ("vm", "/tmp/vm", "vm\0-accel\0tcg\0"),
    "from memory": ("3", "/memfd:x (deleted)", "x\0-machine\0q35,accel=tcg\0"),
}


@pytest.mark.parametrize(("comm", "exe", "cmdline"), RENAMED.values(), ids=RENAMED.keys())
def test_scan_and_inspection_know_vmms_by_one_rule(
    host: Host, proc: Path, comm: str, exe: str, cmdline: str
) -> None:
    """Scan and inspection agree about which names are like QEMU's."""
    capture = captured("tcg_multi")
    stat = capture.stat.replace("(qemu-system-x86)", f"({comm})", 1)
    plant(proc, replace(capture, stat=stat, exe=exe, cmdline=cmdline))
    assert host.scan([capture.tgid], every_fd=False).found == {capture.tgid: capture.vmm}
    found = inspect(host, capture.vmm)
    assert found is not None
    assert found.named_like_qemu


def test_kernel_threads_are_no_vmms(host: Host, proc: Path) -> None:
    """A kernel thread is no VMM, although its name may contain kvm."""
    capture = captured("tcg_multi")
    fields = capture.stat.rpartition(")")[2].split()
    fields[6] = str(int(fields[6]) | 0x200000)
    stat = f"{capture.tgid} (kvm) {' '.join(fields)}\n"
    plant(proc, replace(capture, stat=stat))
    scan = host.scan([capture.tgid], every_fd=True)
    assert scan == Scan(others={capture.tgid: capture.vmm})


def test_scan_of_none(host: Host) -> None:
    """Processes that have ended are in no list."""
    assert host.scan([4711], every_fd=True) == Scan()
    assert host.scan([], every_fd=True) == Scan()


def test_tgids(host: Host, proc: Path, tmp_path: Path) -> None:
    """The numbers of all processes are returned; none if there is no /proc."""
    plant(proc, captured("tcg_multi"))
    (proc / "4713").mkdir()
    assert host.tgids() == {captured("tcg_multi").tgid, 4713}
    assert Host(proc_root=tmp_path / "nothing").tgids() == frozenset()


def test_own_process_is_no_vmm() -> None:
    """The agent's own process is no VMM, whatever its descriptors and arguments are."""
    host = Host()
    tgid = os.getpid()
    scan = host.scan([tgid], every_fd=True)
    assert set(scan.others) == {tgid}


# bounds


def test_more_threads_than_are_read(
    host: Host, proc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the bound, threads and tables are marked as incomplete."""
    monkeypatch.setattr(process_reader, "MAX_THREADS", 2)
    capture = captured("tcg_multi")
    plant(proc, capture)
    found = inspect(host, capture.vmm)
    assert found is not None
    assert len(found.threads) == 2
    assert not found.threads_complete
    assert not found.fds.complete
    assert found.unread is Unread.TOO_MANY


def test_as_many_threads_as_are_read(
    host: Host, proc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many threads as the bound allows are complete."""
    capture = captured("tcg_multi")
    monkeypatch.setattr(process_reader, "MAX_THREADS", len(capture.task))
    plant(proc, capture)
    found = inspect(host, capture.vmm)
    assert found is not None
    assert found.threads_complete
    assert found.fds.complete
    assert found.unread is None


def test_more_descriptors_than_are_read(
    host: Host, proc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound applies to the tables of all threads together; beyond it they are incomplete."""
    capture = captured("tcg_multi")
    tables = len(capture.task)
    monkeypatch.setattr(thread_tables, "MAX_DESCRIPTORS", tables * len(capture.fd))
    plant(proc, capture)
    found = inspect(host, capture.vmm)
    assert found is not None
    assert found.fds.complete
    monkeypatch.setattr(thread_tables, "MAX_DESCRIPTORS", tables * len(capture.fd) - 1)
    found = inspect(host, capture.vmm)
    assert found is not None
    assert not found.fds.complete
    assert found.threads_complete
    assert found.unread is Unread.TOO_MANY


def test_scan_of_more_descriptors_than_are_read(
    host: Host, proc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the table was not read to the end, it is unknown whether the process is a VMM."""
    monkeypatch.setattr(thread_tables, "MAX_DESCRIPTORS", 1)
    idle = replace(other_process(), fd={"0": "/dev/null", "1": "/dev/null"})
    plant(proc, idle)
    assert host.scan([4711], every_fd=True) == Scan(pending={4711: Unread.TOO_MANY})


def test_huge_command_line(host: Host, proc: Path) -> None:
    """Only the beginning of a command line larger than any VM's is read."""
    capture = captured("tcg_multi")
    cmdline = "qemu\0-name\0guest=a_b\0-append\0" + "x" * (1 << 20) + "\0-name\0guest=c_d\0"
    plant(proc, replace(capture, cmdline=cmdline))
    found = inspect(host, capture.vmm)
    assert found is not None
    assert found.command_line.guest_name == "a_b"


# all tables, all threads


def test_descriptors_of_another_threads_table(host: Host, proc: Path) -> None:
    """A thread with a table of its own holds its process's descriptors as the main thread does."""
    capture = captured("tcg_multi")
    tid = max(capture.task, key=int)
    own = {**capture.task[tid], "fd": {"7": "/dev/kvm", "8": "anon_inode:kvm-vm"}}
    plant(proc, with_tasks(capture, {tid: own}))
    found = inspect(host, capture.vmm)
    assert found is not None
    assert (found.fds.of(KVM).devices, found.fds.of(KVM).vms) == (frozenset({7}), frozenset({8}))
    assert found.fds.complete


def test_system_calls_are_read_without_descriptors(host: Host, proc: Path) -> None:
    """The vCPU's descriptor may have been closed since its thread entered the guest."""
    capture = replace(captured("kvm_inside_run"), fd={})
    plant(proc, capture)
    found = inspect(host, capture.vmm)
    assert found is not None
    assert not found.fds.any
    assert running_now(found) == {9}


def test_threads_on_a_processor(host: Host, proc: Path) -> None:
    """A thread on a CPU shows no system call and is marked as running."""
    capture = captured("kvm_two_vcpus")
    root = plant(proc, capture)
    (root / "task" / "8118" / "syscall").write_text("running\n")
    found = inspect(host, capture.vmm)
    assert found is not None
    assert {thread.tid for thread in found.threads if thread.running} == {8118}
    assert found.threads_complete


@pytest.mark.parametrize(
    ("name", "reads"),
    [("CPU 0/KVM", 3), ("worker", 3), ("CPU 1/TCG", 1), ("ALL CPUs/TCG", 1), ("CPU x/TCG", 3)],
)
def test_a_running_thread_is_asked_again(
    host: Host, proc: Path, monkeypatch: pytest.MonkeyPatch, name: str, reads: int
) -> None:
    """A running thread is read again, because it may sleep by then, unless it emulates a vCPU."""
    capture = captured("kvm_inside_run")
    stat = re.sub(r"\(.*\)", f"({name})", str(capture.task["6839"]["stat"]))
    plant(proc, with_tasks(capture, {"6839": {**capture.task["6839"], "stat": stat}}))
    asked: list[str] = []
    read = ProcessFolder.read

    def running_at_first(folder: ProcessFolder, file: str) -> bytes | None:
        if file == "task/6839/syscall":
            asked.append(file)
            return b"running\n" if len(asked) < 3 else read(folder, file)
        return read(folder, file)

    monkeypatch.setattr(ProcessFolder, "read", running_at_first)
    found = inspect(host, capture.vmm)
    assert found is not None
    thread = next(thread for thread in found.threads if thread.tid == 6839)
    assert len(asked) == reads
    assert (thread.running, thread.ioctl_request) == (
        (False, KVM_RUN) if reads == 3 else (True, None)
    )


def test_parent(host: Host, proc: Path) -> None:
    """The parent is field 4 of stat."""
    capture = captured("kvm_inside_run")
    stat = re.sub(r"\) (\w) \d+ ", r") \1 4242 ", capture.stat, count=1)
    plant(proc, replace(capture, stat=stat))
    found = inspect(host, capture.vmm)
    assert found is not None
    assert found.parent_tgid == 4242


@pytest.mark.parametrize(
    ("target", "statistics"),
    [
        ("anon_inode:kvm-vcpu-stats:0", True),
        ("anon_inode:[kvm-vcpu-stats:0]", True),
        ("anon_inode:kvm-vcpu:0", False),
        ("anon_inode:kvm-vm", False),
        ("/tmp/anon_inode:kvm-vcpu-stats:0", False),
        ("/dev/kvm", False),
        ("", False),
    ],
)
def test_only_statistics_are_read(target: str, *, statistics: bool) -> None:
    """A descriptor that has another file by now is not read."""
    assert is_vcpu_statistics(target) is statistics


# reads that do not return


class Fifo:
    """A file whose reader sleeps until the test writes to it, at the latest at its end."""

    def __init__(self, path: Path) -> None:
        path.unlink()
        os.mkfifo(path)
        self._path = path

    def release(self, text: bytes = b"") -> None:
        """Write to the file, so that its readers return."""
        with contextlib.suppress(OSError):  # no reader is there
            fd = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK)
            os.write(fd, text)
            os.close(fd)

    def replace(self, content: bytes) -> None:
        """Write to the file, so that its readers return, and replace it with an ordinary file."""
        writer = os.open(self._path, os.O_RDWR | os.O_NONBLOCK)
        self._path.unlink()
        self._path.write_bytes(content)
        os.write(writer, content)
        os.close(writer)


@pytest.fixture
def block() -> Iterator[Callable[[Path], Fifo]]:
    """Make a file of the tree block its readers until the test is over."""
    made: list[Fifo] = []

    def make(path: Path) -> Fifo:
        made.append(Fifo(path))
        return made[-1]

    yield make
    for fifo in made:
        fifo.release()


Block = Callable[[Path], Fifo]


def test_blocked_process_costs_only_itself(
    host: Host, proc: Path, block: Block, caplog: pytest.LogCaptureFixture
) -> None:
    """A process that blocks is marked and keeps what was read before; the others are read.

    It is logged once, and not read again while its reader is stuck.
    """
    blocker, bystander = captured("tcg_multi"), captured("kvm_two_vcpus")
    block(plant(proc, blocker) / "cmdline")
    plant(proc, bystander)
    for _ in range(3):
        found = host.inspect([blocker.vmm, bystander.vmm])
        assert not found.pending
        blocked = found.processes[blocker.vmm]
        assert (blocked.blocked, blocked.unread) == (True, Unread.BLOCKED)
        assert (blocked.comm, blocked.program) == ("qemu-system-x86", "qemu-system-x86_64")
        assert blocked.named_like_qemu
        assert blocked.cgroup is not None
        assert not blocked.fds.complete
        assert not blocked.threads_complete
        other = found.processes[bystander.vmm]
        assert other.unread is None
        assert running_now(other) == {9, 11}
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert f"process {blocker.tgid} ('qemu-system-x86')" in message
    assert "cmdline" in message


def test_process_that_blocks_the_reader_of_its_identity(
    host: Host, proc: Path, block: Block
) -> None:
    """A blocked process still has its name and cgroup, because their files never block."""
    blocker, bystander = captured("tcg_multi"), captured("kvm_two_vcpus")
    block(plant(proc, blocker) / "stat")
    plant(proc, bystander)
    assert host.scan([blocker.tgid, bystander.tgid], every_fd=True) == Scan(
        found={bystander.tgid: bystander.vmm}, pending={blocker.tgid: Unread.BLOCKED}
    )
    for _ in range(2):
        found = host.inspect([blocker.vmm, bystander.vmm])
        assert found.processes[blocker.vmm].blocked
        assert found.processes[blocker.vmm].comm == "qemu-system-x86"
        assert found.processes[blocker.vmm].cgroup == blocker.cgroup
        assert found.processes[bystander.vmm].unread is None
    assert host.identify(blocker.tgid) is None


def test_process_that_no_longer_blocks(host: Host, proc: Path, block: Block) -> None:
    """Once the read returns, the process is read again completely."""
    blocker = captured("tcg_multi")
    root = plant(proc, blocker)
    fifo = block(root / "cmdline")
    assert host.inspect([blocker.vmm]).processes[blocker.vmm].blocked
    fifo.replace(blocker.cmdline.encode())
    deadline = time.monotonic() + DEADLINE_S
    found = inspect(host, blocker.vmm)
    while found is not None and found.blocked and time.monotonic() < deadline:
        found = inspect(host, blocker.vmm)
    assert found is not None
    assert found.unread is None
    assert found.command_line.accelerators == ("tcg",)


def test_named_process_is_found_though_it_blocks(host: Host, proc: Path, block: Block) -> None:
    """A name like QEMU's is enough; of a process with another name, the kind is unknown."""
    named, renamed = captured("tcg_multi"), other_process()
    block(plant(proc, named) / "cmdline")
    block(plant(proc, renamed) / "cmdline")
    assert host.scan([named.tgid, renamed.tgid], every_fd=True) == Scan(
        found={named.tgid: named.vmm}, pending={renamed.tgid: Unread.BLOCKED}
    )


def test_number_of_one_that_blocked_used_again(host: Host, proc: Path, block: Block) -> None:
    """The next owner of a number is read although a reader is stuck in the former owner."""
    blocker = captured("tcg_multi")
    root = plant(proc, blocker)
    block(root / "cmdline")
    assert host.inspect([blocker.vmm]).processes[blocker.vmm].blocked
    for name in ("comm", "cgroup"):
        (root / name).unlink()
    root.rename(proc / "ended")
    heir = replace(captured("kvm_two_vcpus"), tgid=blocker.tgid)
    plant(proc, heir)
    assert host.inspect([blocker.vmm]) == Inspections()
    found = inspect(host, heir.vmm)
    assert found is not None
    assert found.unread is None


@pytest.mark.parametrize("pod", [True, False])
def test_stuck_readers_are_bounded(
    host: Host, proc: Path, block: Block, monkeypatch: pytest.MonkeyPatch, *, pod: bool
) -> None:
    """Many blocking processes of a pod leave only that pod's processes unread.

    Without pods it takes more of them. Then nothing can be read, and every process is marked.
    """
    monkeypatch.setattr(watched_reads, "MAX_READERS", 16)
    many = [blocker_of(number, pod=pod) for number in range(5000, 5000 + 20)]
    for each in many:
        block(plant(proc, each) / "cmdline")
    bystander = captured("kvm_two_vcpus")
    plant(proc, bystander)
    before = threading.active_count()
    for _ in range(6):
        host.inspect([blocker.vmm for blocker in many])
    stuck = threading.active_count() - before
    found = host.inspect([*(blocker.vmm for blocker in many), bystander.vmm])
    assert {
        process.unread for process in found.processes.values() if process.vmm != bystander.vmm
    } == {Unread.BLOCKED}
    if pod:
        assert stuck <= watched_reads.MAX_STUCK_IN_POD * 2
        assert found.processes[bystander.vmm].unread is None
    else:
        assert stuck == watched_reads.MAX_READERS
        assert found.processes[bystander.vmm].unread is Unread.BLOCKED


def blocker_of(number: int, *, pod: bool) -> Capture:
    capture = captured("tcg_multi")
    stat = capture.stat.replace(f"{capture.tgid} ", f"{number} ", 1)
    uid = "1b2c3d4e-5f60-7182-93a4-b5c6d7e8f901"
    cgroup = f"0::/kubepods/besteffort/pod{uid}/{'a' * 64}\n" if pod else capture.cgroup
    return replace(capture, tgid=number, stat=stat, cgroup=cgroup)


# time that runs out


class Hourglass:
    """A reader of /proc to which some processes cost time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, slow: frozenset[int]) -> None:
        self.order: list[int] = []
        read = ProcessDraft.read_names

        def slowly(draft: ProcessDraft, folder: ProcessFolder) -> None:
            self.order.append(draft.tgid)
            while draft.tgid in slow:
                time.sleep(0.01)
                folder.at("sand")
            read(draft, folder)

        monkeypatch.setattr(ProcessDraft, "read_names", slowly)


def test_the_rest_comes_first_the_next_time(
    host: Host, proc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes that were not read in time are marked, and come first in the next batch."""
    early, late = captured("tcg_multi"), blocker_of(7000, pod=False)
    plant(proc, early)
    plant(proc, late)
    monkeypatch.setattr(reader_module, "MAX_INSPECT_S", 0.2)
    glass = Hourglass(monkeypatch, frozenset({early.tgid}))
    found = host.inspect([early.vmm, late.vmm])
    assert found == Inspections(pending={early.vmm: Unread.NO_TIME, late.vmm: Unread.NO_TIME})
    assert glass.order == [early.tgid]
    monkeypatch.setattr(reader_module, "MAX_INSPECT_S", DEADLINE_S)
    monkeypatch.setattr(watched_reads, "MAX_PROCESS_S", 0.2)
    found = host.inspect([early.vmm, late.vmm])
    assert found.pending == {early.vmm: Unread.TOO_MANY}
    assert found.processes[late.vmm].unread is None


def test_everyone_s_turn_comes() -> None:
    """With time for two thirds of the processes, each one is read in one of any two batches.

    New processes, however many there are, come after those that waited.
    """
    queue = ReadQueue()
    asked = range(6)
    rounds: list[set[int]] = []
    for number in range(9):
        batch = [*asked, 100 + number, 200 + number, 300 + number]
        order = sorted(batch, key=lambda tgid: (queue.since(tgid), tgid))
        rounds.append(set(order[:4]))
        queue.took(batch, dict.fromkeys(order[4:], Unread.NO_TIME))
    assert all(one | other == set(asked) for one, other in pairwise(rounds))


def test_processes_with_many_threads_come_last(
    host: Host, proc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes that take long are read after those that do not."""
    heavy, light = captured("tcg_multi"), blocker_of(7000, pod=False)
    plant(proc, replace(heavy, stat=heavy.stat.replace(" 20 0 3 0 ", " 20 0 3000 0 ")))
    plant(proc, light)
    glass = Hourglass(monkeypatch, frozenset())
    host.scan([heavy.tgid, light.tgid], every_fd=False)
    for _ in range(2):
        host.inspect([heavy.vmm, light.vmm])
    assert glass.order == [light.tgid, heavy.tgid] * 2


def test_processes_with_many_threads_have_their_turn(
    host: Host, proc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes with many threads get some of the time, however many others there are."""
    heavy, light = captured("tcg_multi"), blocker_of(7000, pod=False)
    plant(proc, replace(heavy, stat=heavy.stat.replace(" 20 0 3 0 ", " 20 0 3000 0 ")))
    plant(proc, light)
    host.scan([heavy.tgid, light.tgid], every_fd=False)
    monkeypatch.setattr(reader_module, "MAX_INSPECT_S", 2.0)
    Hourglass(monkeypatch, frozenset({light.tgid}))
    monkeypatch.setattr(watched_reads, "MAX_PROCESS_S", DEADLINE_S)
    found = host.inspect([heavy.vmm, light.vmm])
    assert found.pending == {light.vmm: Unread.NO_TIME}
    assert found.processes[heavy.vmm].unread is None


def test_a_refused_process_has_not_ended(
    host: Host, proc: Path, block: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process whose name could not be read is pending rather than gone."""
    blocker = captured("tcg_multi")
    root = plant(proc, blocker)
    for name in ("stat", "comm"):
        block(root / name)
    monkeypatch.setattr(WatchedReads, "leave_behind", lambda *_: None)
    found = host.inspect([blocker.vmm])
    assert found == Inspections(pending={blocker.vmm: Unread.BLOCKED})


def test_an_error_within_a_reader_is_the_caller_s(
    host: Host, proc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception in a reader's thread reaches the caller."""
    plant(proc, captured("tcg_multi"))
    monkeypatch.setattr(ProcessDraft, "read_names", lambda *_: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        host.inspect([captured("tcg_multi").vmm])


# real processes


@contextlib.contextmanager
def child(program: str) -> Iterator[subprocess.Popen[str]]:
    """Start a Python process that runs the program until its input is closed."""
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
    """The test's own process is read from the real /proc, with all threads and descriptors."""
    host = Host()
    tgid = os.getpid()
    vmm = host.identify(tgid)
    assert vmm is not None
    stop = threading.Event()
    other = threading.Thread(target=stop.wait)
    other.start()
    try:
        found = inspect(host, vmm)
    finally:
        stop.set()
        other.join()
    assert found is not None
    assert found.vmm.tgid == tgid
    assert found.program == Path(sys.executable).resolve().name
    assert not found.named_like_qemu
    assert found.fds == AcceleratorFds(complete=True)
    assert {tgid, other.native_id} <= {thread.tid for thread in found.threads}
    assert found.guest_ticks == 0


def test_statistics_of_another_file_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The content of a file counts only if the kernel says that the file is KVM's."""
    (tmp_path / "file").write_bytes(statistics({"exits": 5}))
    with (tmp_path / "file").open("rb") as file:
        fds = {file.fileno()}
        steps: list[str] = []
        assert vcpu_statistics.stats_exits(os.getpid(), fds, steps.append) is None
        assert len(steps) == 1
        monkeypatch.setattr(vcpu_statistics, "is_vcpu_statistics", lambda _: True)
        if vcpu_statistics.stats_exits(os.getpid(), fds, steps.append) != 5:
            pytest.skip("this needs pidfd_getfd(2)")
        monkeypatch.setattr(vcpu_statistics, "MAX_VCPUS", 0)
        assert vcpu_statistics.stats_exits(os.getpid(), fds, steps.append) is None
        assert vcpu_statistics.stats_exits(os.getpid(), set(), steps.append) is None


def test_tables_of_threads() -> None:
    """Threads that share a table are distinguished from a thread with its own table."""
    tables = TableComparer(os.uname().machine, numbers_are_ours=True)
    if not tables.able:
        pytest.skip("this needs kcmp(2)")
    stop = threading.Event()
    names: Queue[int] = Queue()

    def run(unshare: int) -> None:
        assert ctypes.CDLL(None).unshare(unshare) == 0
        names.put(threading.get_native_id())
        stop.wait()

    threads = [threading.Thread(target=run, args=(flags,)) for flags in (0, 0x400, 0, 0x400)]
    tids = [os.getpid()]
    try:
        for each in threads:
            each.start()
            tids.append(names.get(timeout=DEADLINE_S))
        assert list(tables.distinct(tids)) == [tids[0], tids[2], tids[4]]
    finally:
        stop.set()
        for each in threads:
            each.join()


def test_tables_are_not_compared_across_namespaces() -> None:
    """In another PID namespace than /proc's, no table is taken as shared."""
    tables = TableComparer(os.uname().machine, numbers_are_ours=False)
    assert not tables.able
    assert list(tables.distinct([os.getpid(), os.getpid()])) == [os.getpid()] * 2


def test_start_is_not_later_than_it_was() -> None:
    """A process's start is never later than its first event, on the clock of the hooks.

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
    """If a real process's main thread has ended, another thread's descriptors are read."""
    program = """
import ctypes, os, threading
threading.Thread(target=lambda: (print("ready", flush=True), input())).start()
ctypes.CDLL(None).syscall({"x86_64": 60}.get(os.uname().machine, 93), 0)
"""
    host = Host()
    with child(program) as started:
        vmm = wait_until_zombie(host, started.pid)
        found = inspect(host, vmm)
    assert found is not None
    assert found.fds == AcceleratorFds(complete=True)
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
    assert inspect(host, vmm) is None
