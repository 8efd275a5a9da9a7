# SPDX-License-Identifier: Apache-2.0
"""What the vCPU threads of a VM are in: read from a made-up /proc, and as lines of the view."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from probes.host import vcpu_thread_reader
from probes.host.hypervisors import HYPERVISORS, HypervisorType
from probes.host.process import VmmId
from probes.host.procfs import IOCTL_SYSCALL
from probes.host.vcpu_thread_reader import VcpuThreadReader
from probes.host.vcpu_threads import ThreadsReading, VcpuThread
from probes.render.live.thread_lines import MAX_SHOWN, thread_lines
from tests.support.facts import VMM

KVM = HYPERVISORS[0]
HALTED = VcpuThread(
    tid=4712,
    comm="CPU 0/KVM",
    emulates=False,
    on_cpu=False,
    run_call_of=HypervisorType.KVM,
    cpu_s=3.0,
    guest_s=2.0,
)
RUNS = replace(HALTED, on_cpu=True, run_call_of=None)


class Process:
    """A process in a made-up /proc."""

    def __init__(self, proc: Path, vmm: VmmId) -> None:
        self._folder = proc / str(vmm.tgid)
        self._vmm = vmm
        self._folder.mkdir()
        (self._folder / "stat").write_text(self._stat("qemu-kvm", "S", 0, 0))

    def add(self, tid: int, comm: str, *, call: str, state: str = "S", guest: int = 0) -> None:
        """Add a thread that has consumed 5 s, and guest ticks of guest time."""
        folder = self._folder / "task" / str(tid)
        (folder / "fd").mkdir(parents=True)
        (folder / "fd/9").symlink_to("anon_inode:kvm-vcpu:0")
        (folder / "fd/8").symlink_to("/dev/null")
        ticks = 5 * os.sysconf("SC_CLK_TCK")
        (folder / "stat").write_text(self._stat(comm, state, ticks, guest))
        (folder / "syscall").write_text(call)

    def _stat(self, comm: str, state: str, cpu: int, guest: int) -> str:
        fields = ["0"] * 50
        fields[0], fields[11], fields[17] = state, str(cpu), "3"
        fields[19], fields[40] = str(self._vmm.start_ticks), str(guest)
        return f"{self._vmm.tgid} ({comm}) {' '.join(fields)}\n"


def run_call(fd: int) -> str:
    number = IOCTL_SYSCALL[os.uname().machine]
    return f"{number} {fd:#x} {KVM.run_request:#x} 0x0 0x0 0x0 0x0 0x7ff 0x7ff\n"


def test_which_threads_are_vcpus(tmp_path: Path) -> None:
    """A thread in KVM_RUN, one that has run guest code, and one with a vCPU's name are vCPUs."""
    process = Process(tmp_path, VMM)
    process.add(10, "qemu-kvm", call="7 0x1 0x2 0x3\n")
    process.add(11, "unnamed", call=run_call(9))
    process.add(12, "unnamed", call="running\n", state="R", guest=200)
    process.add(13, "CPU 3/TCG", call="running\n", state="R")
    process.add(14, "liar", call=run_call(8))
    process.add(15, "liar", call=run_call(7))
    process.add(16, "kvm-nx-lpage-re", call=run_call(9))
    process.add(17, "CPU 4/KVM", call="202 nonsense x y\n")
    reading = VcpuThreadReader(proc_root=tmp_path).read(VMM)
    assert reading is not None
    assert reading.complete
    found = [(each.tid, each.run_call_of, each.on_cpu, each.emulates) for each in reading.threads]
    assert found == [
        (11, HypervisorType.KVM, False, False),
        (12, None, True, False),
        (13, None, True, True),
        (17, None, False, False),
    ]
    assert {each.cpu_s for each in reading.threads} == {5.0}
    assert reading.threads[1].guest_s == 200 / os.sysconf("SC_CLK_TCK")


def test_another_process_with_the_number(tmp_path: Path) -> None:
    """A process that has ended, or another one with its number, has no threads."""
    reader = VcpuThreadReader(proc_root=tmp_path)
    assert reader.read(VMM) is None
    Process(tmp_path, VMM._replace(start_ticks=VMM.start_ticks + 1))
    assert reader.read(VMM) is None


def test_reading_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only so many threads are looked at, and so many vCPUs are read."""
    process = Process(tmp_path, VMM)
    for tid in range(10, 16):
        process.add(tid, f"CPU {tid}/KVM", call=run_call(9))
    reader = VcpuThreadReader(proc_root=tmp_path)
    for limit in ("MAX_VCPUS_READ", "MAX_THREADS_READ"):
        with monkeypatch.context() as patched:
            patched.setattr(vcpu_thread_reader, limit, 4)
            reading = reader.read(VMM)
            assert reading is not None
            assert len(reading.threads) == 4
            assert not reading.complete


def reading(at_s: float, *threads: VcpuThread, complete: bool = True) -> ThreadsReading:
    return ThreadsReading(vmm=VMM, at_s=at_s, threads=threads, complete=complete)


def lines(now: ThreadsReading, before: ThreadsReading | None = None) -> list[str]:
    return [line.plain for line in thread_lines(now, before, ascii_only=False)]


@pytest.mark.parametrize(
    ("thread", "cpu_s", "guest_s", "shown"),
    [
        (HALTED, 0.1, 0.0, "5%    0%   3s  KVM: halted"),
        (RUNS, 2.0, 1.9, "100%   95%   3s  guest code"),
        (RUNS, 2.0, 0.2, "100%   10%   3s  outside guest code"),
        (RUNS, 0.0, 0.0, "0%    0%   3s  on a CPU"),
        (replace(RUNS, on_cpu=False), 0.0, 0.0, "0%    0%   3s  user space: asleep"),
        (replace(RUNS, emulates=True), 2.0, 0.0, "100%    0%   3s  emulating the guest"),
        (replace(RUNS, emulates=True, on_cpu=False), 0, 0, "0%    0%   3s  user space: asleep"),
    ],
)
def test_what_a_thread_is_in(thread: VcpuThread, cpu_s: float, guest_s: float, shown: str) -> None:
    """The shares of a CPU between two readings say what a thread on a CPU does there."""
    last = replace(thread, cpu_s=thread.cpu_s - cpu_s, guest_s=thread.guest_s - guest_s)
    heading, line = lines(reading(12.0, thread), reading(10.0, last))
    assert heading.split() == ["NAME", "TID", "CPU", "GUEST", "TIME", "IN"]
    assert line.split()[:3] == ["CPU", "0/KVM", "4712"]
    assert line.endswith(shown)
    assert len(line) <= 64


def test_a_thread_that_was_read_once() -> None:
    """Without an earlier reading of the thread, nothing is said of its shares."""
    other = replace(RUNS, tid=1)
    for before in (None, reading(10.0, other), reading(12.0, RUNS)):
        assert lines(reading(12.0, RUNS), before)[1].endswith("    -     -   3s  on a CPU")


def test_many_threads() -> None:
    """Of many threads the first are shown, and how many more there are."""
    threads = [replace(HALTED, tid=tid) for tid in range(1, 101)]
    assert lines(reading(1.0, *threads))[-1] == f"… {100 - MAX_SHOWN} more"
    assert len(lines(reading(1.0, *threads))) == MAX_SHOWN + 2
    assert lines(reading(1.0, *threads, complete=False))[-1] == "… more"


def test_a_thread_cannot_control_the_terminal() -> None:
    """The name of a thread is made visible."""
    evil = replace(HALTED, comm="\x1b[2J\u202e[red]")
    (line,) = lines(reading(1.0, evil))[1:]
    assert line.isprintable()
    assert line.startswith(r"\x1b[2J\u202e")
