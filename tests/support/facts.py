# SPDX-License-Identifier: Apache-2.0
"""Facts for the unit tests, invented or captured.

Each builder returns a plain, consistent value, so that a test names only what matters to it.
Captured processes of tests/fixtures/proc are rebuilt as a /proc tree in a folder of the test.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ebpf.counters import trusted
from ebpf.hook_status import HookStatus
from ebpf.hooks import HOOKS, KVM_USERSPACE_EXIT, Backend, Hook
from ebpf.ledger import PLACES, KernelSnapshot, LedgerEntry
from probes.host.hypervisors import HYPERVISORS, HypervisorType
from probes.host.node import Accelerator, Cause, KernelFeatures, NodeVirtualization, Problem
from probes.host.process import (
    AcceleratorFds,
    HeldFds,
    QemuCommandLine,
    VmmId,
    VmmProcess,
    VmmThread,
)
from probes.judge.evidence import Evidence, HypervisorEvidence
from probes.judge.reasons import Reason
from probes.judge.tracked import State, TrackedProcess
from probes.judge.verdict import Verdict
from probes.report.model import CounterTrust, ProbeHealth

CAPTURES = Path(__file__).resolve().parents[1] / "fixtures" / "proc"

ATTACHED_NS = 50_000_000_000
"""When the hooks of kernel() were attached; STARTED_NS is after it."""
STARTED_NS = 60_000_000_000
VMM = VmmId(tgid=4711, start_ticks=6000)


def kvm_fds(
    *vcpus: int, devices: tuple[int, ...] = (3,), vms: tuple[int, ...] = (8,), complete: bool = True
) -> AcceleratorFds:
    """Return the descriptors of a QEMU that holds these vCPUs of KVM."""
    held = HeldFds(devices=frozenset(devices), vms=frozenset(vms), vcpus=frozenset(vcpus))
    return AcceleratorFds(held={HypervisorType.KVM: held} if held.any else {}, complete=complete)


KVM_FDS = kvm_fds(9)
"""Descriptors of a QEMU with one vCPU."""
NO_FDS = AcceleratorFds(complete=True)
COUNTER_NAMES = tuple(PLACES)
ALL_HOOKS = frozenset(HOOKS)


def evidence(**changes: Any) -> Evidence:  # noqa: ANN401 - any field
    """Return evidence of a QEMU that holds no descriptor, with the given changes.

    A change of ``HypervisorEvidence`` is named with the hypervisor in front: kvm_vcpus, mshv_held.
    """
    seen = {
        hypervisor.type: HypervisorEvidence(
            **{
                name: changes.pop(f"{hypervisor.type}_{name}")
                for name in HypervisorEvidence.__slots__
                if f"{hypervisor.type}_{name}" in changes
            }
        )
        for hypervisor in HYPERVISORS
    }
    nothing = Evidence(
        named_like_qemu=True,
        capability_probe=False,
        asked_for=(),
        claimed=frozenset(),
        unread=None,
        fds_complete=True,
        threads_seen=True,
        seen=seen,
        guest_ticks=0,
        tcg_threads=0,
        tcg_cpu_ticks=0,
        ledger=None,
        hooks_prove_running=True,
        hooks_read_results=True,
        hooks_since_start=True,
        entries_since_start=True,
        ledger_lost_events=False,
    )
    return replace(nothing, **changes)


def entry(tgid: int = VMM.tgid, **changes: Any) -> LedgerEntry:  # noqa: ANN401 - any field
    """Return the record of a process of which nothing has been counted, with the given changes."""
    nothing = LedgerEntry(
        tgid=tgid,
        first_ns=STARTED_NS + 1_000_000,
        leader_exit_ns=None,
        vms_created=0,
        vcpus_created=0,
    )
    changes.setdefault("completed_runs", changes.get("userspace_exits", 0))
    counts = tuple(changes.pop(name, 0) for name in COUNTER_NAMES)
    return nothing._replace(counts=counts, **changes)


def counted(**counters: int | None) -> dict[str, int]:
    """Return the counters of a report. A counter that is None is absent: it has not counted."""
    return {name: count for name, count in counters.items() if count is not None}


def trusts(**changes: CounterTrust) -> dict[str, CounterTrust]:
    """Return the trust of a node on which every counter is proven, with the given changes."""
    return {counter.name: CounterTrust.PROVEN for counter in trusted()} | changes


def hooks(
    attached: frozenset[Hook] = ALL_HOOKS, *, attached_ns: int = ATTACHED_NS
) -> tuple[HookStatus, ...]:
    """Return the status of every hook: attached at its best point if it is among those given."""
    return tuple(
        HookStatus(
            hook=hook,
            backend=hook.points[0].backend,
            attached_ns=attached_ns,
            attached_total=1,
            reads_result=hook is KVM_USERSPACE_EXIT,
            missed_total=0,
        )
        if hook in attached
        else HookStatus(hook=hook, backend=Backend.NONE, reason=f"{hook.name} is not here")
        for hook in HOOKS
    )


def kernel(*entries: LedgerEntry, **changes: Any) -> KernelSnapshot:  # noqa: ANN401 - any field
    """Return a snapshot with these records and all hooks attached, with the given changes."""
    snapshot = KernelSnapshot(
        taken_ns=90_000_000_000,
        attached_ns=ATTACHED_NS,
        entries={entry.tgid: entry for entry in entries},
        capacity=4096,
        dropped_total=0,
        hooks=hooks(attached_ns=changes.get("attached_ns", ATTACHED_NS)),
    )
    return replace(snapshot, **changes)


def thread(comm: str, *, tid: int = VMM.tgid + 1, cpu_ticks: int = 0) -> VmmThread:
    """Return a thread that sleeps in no ioctl(2)."""
    return VmmThread(tid=tid, comm=comm, cpu_ticks=cpu_ticks)


def in_ioctl(fd: int, request: int, *, comm: str = "CPU 0/KVM", tid: int = 4712) -> VmmThread:
    """Return a thread that sleeps in ioctl(fd, request)."""
    return VmmThread(tid=tid, comm=comm, cpu_ticks=0, ioctl_fd=fd, ioctl_request=request)


def process(vmm: VmmId = VMM, **changes: Any) -> VmmProcess:  # noqa: ANN401 - any field
    """Return a QEMU that holds no descriptor of an accelerator and has no vCPU thread."""
    plain = VmmProcess(
        vmm=vmm,
        comm="qemu-system-x86",
        program="qemu-system-x86_64",
        named_like_qemu=True,
        command_line=QemuCommandLine(),
        cgroup="0::/\n",
        fds=NO_FDS,
        threads=(thread("qemu-system-x86", tid=vmm.tgid),),
        stats_exits=None,
        guest_ticks=0,
    )
    return replace(plain, **changes)


def tcg_process(vmm: VmmId = VMM, *, guest_name: str = "lab_beta", ticks: int = 40) -> VmmProcess:
    """Return a QEMU that emulates one vCPU."""
    return process(
        vmm,
        command_line=QemuCommandLine(guest_name=guest_name, accelerators=("tcg",)),
        threads=(
            thread("qemu-system-x86", tid=vmm.tgid),
            thread("CPU 0/TCG", tid=vmm.tgid + 1, cpu_ticks=ticks),
        ),
    )


def kvm_process(vmm: VmmId = VMM, *, guest_name: str = "default_alpha") -> VmmProcess:
    """Return a QEMU that holds one KVM vCPU. Only the ledger can prove that it runs."""
    return process(
        vmm,
        command_line=QemuCommandLine(guest_name=guest_name, accelerators=("kvm",)),
        fds=KVM_FDS,
        threads=(
            thread("qemu-system-x86", tid=vmm.tgid),
            thread("CPU 0/KVM", tid=vmm.tgid + 1),
        ),
    )


RUNS_ON_KVM = Verdict(
    type=HypervisorType.KVM, verified=True, reasons=(Reason.USERSPACE_EXITS_RECORDED,)
)
IS_A_PROBE = Verdict(
    type=HypervisorType.UNKNOWN, verified=False, reasons=(Reason.CAPABILITY_PROBE,)
)


def tracked(vmm: VmmId = VMM, **changes: Any) -> TrackedProcess:  # noqa: ANN401 - any field
    """Return a QEMU with a verified KVM verdict and no record in the ledger."""
    plain = TrackedProcess(
        vmm=vmm,
        state=State.FOLLOWED,
        comm="qemu-system-x86",
        program="qemu-system-x86_64",
        guest_name="default_alpha",
        pod=None,
        named_like_qemu=True,
        vcpus=1,
        started_unix_s=1.5,
        verdict=RUNS_ON_KVM,
        record_ns=None,
    )
    return replace(plain, **changes)


KVM_AVAILABLE = Accelerator(type=HypervisorType.KVM, available=True)
KVM_ABSENT = Accelerator(
    type=HypervisorType.KVM,
    available=False,
    problem=Problem(cause=Cause.DEVICE_ABSENT, detail="/dev/kvm: not here"),
)
KVM_UNTRIED = Accelerator(
    type=HypervisorType.KVM,
    available=None,
    problem=Problem(cause=Cause.ACCESS_DENIED, detail="may not try"),
)


CAPABLE = KernelFeatures(
    kprobes=True,
    btf=True,
    tracefs=True,
    kvm_device=True,
    lockdown="none",
    capabilities_missing=(),
    initial_pid_namespace=True,
)
"""A kernel and privileges that permit everything."""


def provided_by(module: str | None, *, nested: bool | None) -> NodeVirtualization:
    """Return a node on which this module provides KVM; None: the node has no KVM."""
    modules = {HypervisorType.KVM: module} if module is not None else {}
    return NodeVirtualization(modules=modules, nested=nested)


INTEL_HOST = provided_by("kvm_intel", nested=False)


def health(**changes: Any) -> ProbeHealth:  # noqa: ANN401 - any field
    """Return a health with all hooks attached and every counter proven, with the given changes."""
    well = ProbeHealth(
        hooks=hooks(),
        trusts=trusts(),
        ledger_entries=2,
        ledger_capacity=4096,
        ledger_dropped_total=0,
        ledger_error=None,
        bcc_version="0.26.0",
        errors_total={},
    )
    return replace(well, **changes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """One process of tests/fixtures/proc, whose README.md describes the format."""

    machine: str
    tgid: int
    exe: str | None
    stat: str
    cmdline: str
    cgroup: str
    fd: Mapping[str, str]
    task: Mapping[str, Mapping[str, Any]]

    @property
    def vmm(self) -> VmmId:
        """Identity of the process, from field 22 of its stat line."""
        fields = self.stat.rpartition(")")[2].split()
        return VmmId(tgid=self.tgid, start_ticks=int(fields[19]))


def captured(name: str) -> Capture:
    """Return a captured process by the name of its file."""
    return Capture(**json.loads((CAPTURES / f"{name}.json").read_text()))


def plant(proc: Path, capture: Capture) -> Path:
    """Rebuild a captured process below the test's own /proc, and return its directory."""
    root = proc / str(capture.tgid)
    root.mkdir(parents=True)
    for name in ("stat", "cmdline", "cgroup"):
        (root / name).write_bytes(getattr(capture, name).encode())
    (root / "comm").write_text(capture.stat.partition("(")[2].rpartition(")")[0] + "\n")
    if capture.exe is not None:
        (root / "exe").symlink_to(capture.exe)
    _plant_fds(root, capture.fd)
    for tid, files in capture.task.items():
        task = root / "task" / tid
        task.mkdir(parents=True)
        for name in ("comm", "stat", "syscall"):
            (task / name).write_bytes(files[name].encode())
        _plant_fds(task, files.get("fd", capture.fd))
    return root


def _plant_fds(directory: Path, fds: Mapping[str, str]) -> None:
    (directory / "fd").mkdir()
    for number, target in fds.items():
        (directory / "fd" / number).symlink_to(target)


def plant_node(proc: Path) -> Path:
    """Write what a /proc has besides processes, and return it."""
    proc.mkdir(parents=True, exist_ok=True)
    (proc / "stat").write_text("cpu  1 0 1 1 0 0 0 0 0 0\nbtime 1700000000\n")
    return proc
