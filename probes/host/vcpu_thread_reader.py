# SPDX-License-Identifier: Apache-2.0
"""EDGE: reads what the vCPU threads of one process are in now, for a person who looks at one VM.

Owns which threads are vCPUs, and how many are read. Must not say what a time is worth.
"""

import os
import re
import time
from pathlib import Path

from probes.host.hypervisors import HYPERVISORS, HypervisorType
from probes.host.process import VmmId
from probes.host.process_folder import ProcessFolder
from probes.host.process_reader import read_stat
from probes.host.procfs import MalformedProcError, ProcStat, classify_fds, parse_ioctl
from probes.host.vcpu_threads import ThreadsReading, VcpuThread
from probes.host.watched_reads import WatchedReads

MAX_THREADS_READ = 1024
"""The most threads of a process that are looked at."""
MAX_VCPUS_READ = 512
"""The most vCPU threads that are read: more than a person looks at."""
MAX_READ_S = 0.4
"""How long all threads of the process may take."""

_NAMES = "|".join(hypervisor.thread_suffix for hypervisor in HYPERVISORS)
_VCPU = re.compile(rf"(?:CPU \d+|ALL CPUs)/(?:(TCG)|{_NAMES})")
"""QEMU's names for vCPU threads (accel/*/*-accel-ops*.c)."""
_WORKERS = tuple(
    hypervisor.worker_thread for hypervisor in HYPERVISORS if hypervisor.worker_thread is not None
)


class VcpuThreadReader:
    """Reads the vCPU threads of one process at a time, from a given /proc."""

    def __init__(self, *, proc_root: Path = Path("/proc")) -> None:
        self._reads = WatchedReads(proc_root, effect="What its vCPU threads are in is not shown")
        self._machine = os.uname().machine
        self._ticks_per_s = os.sysconf("SC_CLK_TCK")

    def read(self, vmm: VmmId) -> ThreadsReading | None:
        """Return the vCPU threads of a process; None: it has ended, or blocks its readers.

        A thread is a vCPU's if it sleeps in a run call, has run guest code, or is named like one.
        """
        found: list[VcpuThread] = []
        same = complete = False
        at_s = time.monotonic()

        def read(_: int, folder: ProcessFolder) -> None:
            nonlocal same, complete
            stat = read_stat(folder, "stat")
            same = stat is not None and stat.start_ticks == vmm.start_ticks
            if same:
                complete = self._read_threads(folder, found)

        self._reads.run([vmm.tgid], read, until=at_s + MAX_READ_S)
        if not same:
            return None
        # A copy, because a reader that is stuck may still add to it.
        return ThreadsReading(vmm=vmm, at_s=at_s, threads=tuple(found), complete=complete)

    def _read_threads(self, folder: ProcessFolder, found: list[VcpuThread]) -> bool:
        """Read the threads, and return whether these are all."""
        try:
            tids = sorted(int(name) for name in folder.names("task"))
        except OSError:
            return False
        for tid in tids[:MAX_THREADS_READ]:
            stat = read_stat(folder, f"task/{tid}/stat")
            if stat is None or stat.comm.startswith(_WORKERS):
                continue
            if len(found) == MAX_VCPUS_READ:
                return False
            thread = self._thread(folder, tid, stat)
            if thread is not None:
                found.append(thread)
        return len(tids) <= MAX_THREADS_READ

    def _thread(self, folder: ProcessFolder, tid: int, stat: ProcStat) -> VcpuThread | None:
        """Return a thread; None: it is no vCPU's."""
        inside = self._run_call(folder, tid)
        name = _VCPU.fullmatch(stat.comm)
        if inside is None and name is None and not stat.guest_ticks:
            return None
        return VcpuThread(
            tid=tid,
            comm=stat.comm,
            emulates=name is not None and name[1] is not None,
            on_cpu=stat.state == "R",
            run_call_of=inside,
            cpu_s=stat.cpu_ticks / self._ticks_per_s,
            guest_s=stat.guest_ticks / self._ticks_per_s,
        )

    def _run_call(self, folder: ProcessFolder, tid: int) -> HypervisorType | None:
        """Return in whose run call, on a descriptor of a vCPU, a thread sleeps."""
        raw = folder.read(f"task/{tid}/syscall")
        try:
            call = parse_ioctl((raw or b"").decode(errors="replace"), machine=self._machine)
            if call is None:
                return None
            fd, request = call
            for hypervisor in HYPERVISORS:
                if request == hypervisor.run_request:
                    target = folder.target(f"task/{tid}/fd/{fd}")
                    held = classify_fds([(fd, target)], complete=True).of(hypervisor.type)
                    return hypervisor.type if held.vcpus else None
        except (MalformedProcError, OSError):
            return None
        return None
