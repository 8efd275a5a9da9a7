# SPDX-License-Identifier: Apache-2.0
"""The table of scenarios: what is started, and what hvprobe must report. Runs on all kernels.

Each row says what must be reported when the hooks were attached before the process (early) and
when the process was there first (late).
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from ebpf.hooks import KVM_DEV_IOCTL, Hook
from probes.host.hypervisors import HypervisorType
from tests.support.kernel_world import (
    KVM_RUN_ON_DEV_NULL,
    QEMU,
    RENAME_PROCESS,
    RENAME_THREAD,
    KvmLoad,
    PythonProcess,
    Qemu,
    Started,
    guest_time,
    machine_arguments,
    thread_times,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The programs and folders with which scenarios start their processes."""

    kvmload: Path
    scratch: Path


class Proof(Enum):
    """Whether the verdict must be verified."""

    ALWAYS = "always"
    NEVER = "never"
    WITH_TRACE = "if and only if what it did has left a trace in /proc"
    """A worker thread of KVM, which since Linux 6.14 is a thread of the process, or guest time."""
    WITH_CPU_TIME = "if and only if its TCG threads consumed CPU time"
    """CPU time of threads; setting up a paused guest takes a tick of it on slow machines."""

    def holds(self, tgid: int) -> bool:
        """Ask the kernel which case this process is."""
        if self is Proof.WITH_TRACE:
            worker = any(comm.startswith("kvm-nx-lpage") for comm, _ in thread_times(tgid))
            return worker or guest_time(tgid) > 0
        if self is Proof.WITH_CPU_TIME:
            return any(ticks for comm, ticks in thread_times(tgid) if comm.endswith("/TCG"))
        return self is Proof.ALWAYS


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """The verdict a process must get."""

    type: HypervisorType
    proof: Proof


KVM = Expected(type=HypervisorType.KVM, proof=Proof.ALWAYS)
KVM_INFERRED = Expected(type=HypervisorType.KVM, proof=Proof.NEVER)
KVM_BY_TRACE = Expected(type=HypervisorType.KVM, proof=Proof.WITH_TRACE)
TCG = Expected(type=HypervisorType.TCG, proof=Proof.ALWAYS)
TCG_BY_CPU_TIME = Expected(type=HypervisorType.TCG, proof=Proof.WITH_CPU_TIME)
UNKNOWN = Expected(type=HypervisorType.UNKNOWN, proof=Proof.NEVER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One scenario: a process to start, and the verdicts it must get."""

    name: str
    start: Callable[[World], Started]
    early: Expected | None
    """Verdict if the hooks came first; None: the process must not be shown at all."""
    late: Expected | None
    seen_early_by: Hook | None = None
    """Hook without which a process that starts after the hooks is not shown at all."""
    runs: int | None = None
    """KVM_RUN calls that the ledger must show, exactly; None: not known beforehand."""
    userspace_exits: int | None = None


def _load(*arguments: str) -> Callable[[World], Started]:
    return lambda world: KvmLoad(world.kvmload, *arguments).finish_counted_part()


def _fell_back(world: World) -> Started:
    """Start a QEMU that prefers kvm and falls back to tcg because /dev/kvm is unavailable."""
    script = 'mount --bind /dev/null /dev/kvm && exec "$@"'
    return Started(
        [
            *("unshare", "--mount", "sh", "-c", script, "sh"),
            *(QEMU, "-accel", "kvm", "-accel", "tcg", *machine_arguments("tcg")),
            *("-name", "guest=lab_fellback,debug-threads=on", "-display", "none", "-nodefaults"),
        ]
    )


def _impostor(world: World) -> Started:
    """Start a program called qemu-kvm, with QEMU's command line, that is no QEMU."""
    program = world.scratch / "qemu-kvm"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
    program.chmod(0o755)
    return Started([program, "86400"])


SCENARIOS = (
    Scenario(
        name="kvm guest",
        start=lambda _: Qemu("default_alpha"),
        early=KVM,
        late=KVM,
    ),
    Scenario(
        name="kvm guest without thread names",
        start=lambda _: Qemu("default_unnamed", debug_threads=False),
        early=KVM,
        late=KVM,
    ),
    Scenario(
        name="kvm guest, paused from the start",
        start=lambda _: Qemu("lab_paused", "-S"),
        early=KVM_INFERRED,
        late=KVM_INFERRED,
    ),
    Scenario(
        name="migration target",
        start=lambda _: Qemu("lab_incoming", "-incoming", "defer", "-S"),
        early=KVM_INFERRED,
        late=KVM_INFERRED,
    ),
    Scenario(
        name="tcg guest, multi-threaded",
        start=lambda _: Qemu("lab_beta", "-smp", "2", accel=("tcg,thread=multi",)),
        early=TCG,
        late=TCG,
    ),
    Scenario(
        name="tcg guest, single-threaded",
        start=lambda _: Qemu("lab_gamma", "-smp", "2", accel=("tcg,thread=single",)),
        early=TCG,
        late=TCG,
    ),
    Scenario(
        name="tcg guest, paused from the start",
        start=lambda _: Qemu("lab_delta", "-S", accel=("tcg",)),
        early=TCG_BY_CPU_TIME,
        late=TCG_BY_CPU_TIME,
    ),
    Scenario(
        name="asked for kvm, fell back to tcg",
        start=_fell_back,
        early=TCG,
        late=TCG,
    ),
    Scenario(
        name="libvirt's capability probe",
        start=lambda _: Started(
            [
                *(QEMU, "-S", "-no-user-config", "-nodefaults", "-nographic"),
                *("-machine", "none,accel=kvm:tcg", "-monitor", "none"),
            ]
        ),
        early=UNKNOWN,
        late=UNKNOWN,
    ),
    Scenario(name="impostor program qemu-kvm", start=_impostor, early=UNKNOWN, late=UNKNOWN),
    Scenario(
        name="process renamed to qemu-kvm",
        start=lambda _: PythonProcess(RENAME_PROCESS),
        early=UNKNOWN,
        late=UNKNOWN,
    ),
    Scenario(
        name="thread renamed to CPU 0/KVM",
        start=lambda _: PythonProcess(RENAME_THREAD),
        early=None,
        late=None,
    ),
    Scenario(
        name="thread renamed to CPU 0/KVM in a program called qemu-kvm",
        start=lambda _: PythonProcess(RENAME_PROCESS + RENAME_THREAD),
        early=UNKNOWN,
        late=UNKNOWN,
    ),
    Scenario(
        name="KVM's ioctl numbers on /dev/null",
        start=lambda _: PythonProcess(KVM_RUN_ON_DEV_NULL),
        early=None,
        late=None,
    ),
    Scenario(
        name="KVM user that is no QEMU",
        start=_load("--userspace-exits", "1009", "--then", "hold"),
        early=KVM,
        late=KVM_BY_TRACE,
        runs=1009,
        userspace_exits=1009,
    ),
    Scenario(
        name="KVM user with a VM and no vCPU",
        start=_load("--create-vm-only"),
        seen_early_by=KVM_DEV_IOCTL,
        early=UNKNOWN,
        late=UNKNOWN,
    ),
    Scenario(
        name="several VMs in one process",
        start=_load("--vms", "3", "--vcpus", "2", "--userspace-exits", "2003", "--then", "hold"),
        early=KVM,
        late=KVM_BY_TRACE,
        runs=2003,
        userspace_exits=2003,
    ),
    Scenario(
        name="halted in the kernel",
        start=_load("--userspace-exits", "7", "--then", "halt"),
        early=KVM,
        late=KVM,
        runs=8,
        userspace_exits=7,
    ),
    Scenario(
        name="computing without any exit to user space",
        start=_load("--userspace-exits", "7", "--then", "spin"),
        early=KVM,
        late=KVM,
        runs=8,
        userspace_exits=7,
    ),
)
