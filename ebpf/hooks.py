# SPDX-License-Identifier: Apache-2.0
"""The hooks hvprobe wants, in order of preference, and what each one proves. Pure data.

A hook is one question to the kernel. It can be answered by several attach points; session.py
tries them in order and reports which one it got. Nothing here depends on a kernel version.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum


class Backend(StrEnum):
    """How a hook is attached (label ``backend`` of hvprobe_hook_attached)."""

    KPROBE = "kprobe"
    RAW_TRACEPOINT = "raw_tracepoint"
    TRACEPOINT = "tracepoint"
    NONE = "none"


class Question(StrEnum):
    """What a hook tells about a process."""

    CREATES_VM = "creates_vm"
    CREATES_VCPU = "creates_vcpu"
    RUNS_VCPU = "runs_vcpu"
    USERSPACE_EXITS = "userspace_exits"
    EXITS = "exits"
    FORKS = "forks"
    EXECUTES = "executes"
    ENDS = "ends"
    IS_FREED = "is_freed"
    RUNS_MSHV_VP = "runs_mshv_vp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """What has to be loaded before a hook can be attached, and may be unloaded under it."""

    module: str
    """The module that has the function or tracepoint (/sys/module)."""
    device: str
    """The device it registers when it can be used (/sys/class/misc)."""


KVM = Driver(module="kvm", device="kvm")
MSHV = Driver(module="mshv_root", device="mshv")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachPoint:
    """One way to attach a hook."""

    backend: Backend
    target: str
    """Function name (kprobe), tracepoint name (raw), ``category:event`` (tracepoint)."""
    program: str | None = None
    """Function in the BPF text, where this point needs another than the hook's."""
    fields: tuple[str, ...] = ()
    """Fields of the tracepoint's record that the program reads, each 4 bytes (see field_flag)."""
    reads_result: bool = False
    """Whether the program tells a KVM_RUN that ran the vCPU from one that failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """A wanted hook: the program that answers the question and where it may be attached."""

    name: str
    """The kernel's own name of the function or tracepoint (label ``hook``)."""
    question: Question
    program: str
    """Function in the BPF text."""
    points: tuple[AttachPoint, ...]
    """In order of preference."""
    beside: AttachPoint | None = None
    """Attached as well where that is possible: it is not skipped when the first point's form is."""
    proves: str
    """What is known when it fires, in one clause."""
    driver: Driver | None = None
    """Whose hook it is; None: the kernel proper, which is always there."""
    optional: bool = False
    """Wanted only where its driver's device exists when hvprobe starts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HookStatus:
    """A wanted hook and how it is attached now."""

    hook: Hook
    backend: Backend
    reason: str | None = None
    """Why it is not attached, one line; None when it is."""
    attached_total: int = 0
    """How often it was attached: above 1, its driver came back."""
    inactive: bool = False
    """Not attached because its driver is not loaded: no process can do what it would see."""
    attached_ns: int | None = None
    """Host CLOCK_MONOTONIC (clock.py) when it was attached last; None: it is not attached."""
    reads_result: bool = False
    """Whether the attach point in use tells a KVM_RUN that ran the vCPU from one that failed."""
    refused: bool = False
    """Whether the kernel refused to attach it for want of a permission."""

    @property
    def attached(self) -> bool:
        """Whether the hook counts at all."""
        return self.backend is not Backend.NONE

    def attached_at(self, point: AttachPoint, now_ns: int) -> "HookStatus":
        """The status once the program is attached at a point."""
        return replace(
            self,
            backend=point.backend,
            reason=None,
            attached_total=self.attached_total + 1,
            inactive=False,
            attached_ns=now_ns,
            reads_result=point.reads_result,
            refused=False,
        )

    def failed(self, reason: str, *, refused: bool = False) -> "HookStatus":
        """The status when the program can be attached at no point."""
        return replace(self._detached(reason, inactive=False), refused=refused)

    def driver_gone(self, driver: Driver) -> "HookStatus":
        """The status while no process can use the hook's driver."""
        reason = f"/dev/{driver.device} is absent, so there is nothing to observe"
        return self._detached(reason, inactive=True)

    def _detached(self, reason: str, *, inactive: bool) -> "HookStatus":
        return replace(
            self,
            backend=Backend.NONE,
            reason=reason,
            inactive=inactive,
            attached_ns=None,
            reads_result=False,
            refused=False,
        )


def _kprobe(function: str) -> tuple[AttachPoint, ...]:
    return (AttachPoint(backend=Backend.KPROBE, target=function),)


def _tracepoint(category: str, event: str) -> tuple[AttachPoint, ...]:
    """The cheapest form first: for tracepoints that fire where nothing can be preempted."""
    return (
        AttachPoint(backend=Backend.RAW_TRACEPOINT, target=event),
        AttachPoint(backend=Backend.TRACEPOINT, target=f"{category}:{event}"),
    )


def _raw(event: str, program: str | None = None) -> AttachPoint:
    return AttachPoint(backend=Backend.RAW_TRACEPOINT, target=event, program=program)


def _preemptible_tracepoint(category: str, event: str) -> tuple[AttachPoint, ...]:
    """The exact form first: for tracepoints that fire where a thread may be preempted.

    Since Linux a46023d5616e ("tracing: Guard __DECLARE_TRACE() use of __DO_TRACE_CALL() with
    SRCU-fast") and f7d327654b88 ("bpf: Have __bpf_trace_run() use rcu_read_lock_dont_migrate()")
    (v7.0) a thread can be preempted inside a raw tracepoint's program. Until that program ends, the
    kernel skips it for every other thread on that CPU (recursion_misses in its fdinfo): on 7.2, 4
    of 100 returns of 8 vCPUs on 2 CPUs went uncounted. The classic form runs with preemption off.
    It is skipped where another process was preempted in a call on a BPF map.
    """
    return _tracepoint(category, event)[::-1]


def _described(category: str, event: str, *fields: str) -> tuple[AttachPoint, ...]:
    """The only form whose fields tracefs describes: for programs that cannot do without them."""
    target = f"{category}:{event}"
    return (AttachPoint(backend=Backend.TRACEPOINT, target=target, fields=fields),)


HOOKS: tuple[Hook, ...] = (
    Hook(
        name="kvm_dev_ioctl",
        question=Question.CREATES_VM,
        program="on_kvm_dev_ioctl",
        points=_kprobe("kvm_dev_ioctl"),
        proves="the process asked for a VM; nothing about running it",
        driver=KVM,
    ),
    Hook(
        name="kvm_vm_ioctl",
        question=Question.CREATES_VCPU,
        program="on_kvm_vm_ioctl",
        points=_kprobe("kvm_vm_ioctl"),
        proves="the process asked for a vCPU; nothing about running it",
        driver=KVM,
    ),
    Hook(
        name="kvm_vcpu_ioctl",
        question=Question.RUNS_VCPU,
        program="on_kvm_vcpu_ioctl",
        points=_kprobe("kvm_vcpu_ioctl"),
        proves="the process entered KVM_RUN",
        driver=KVM,
    ),
    Hook(
        name="kvm_userspace_exit",
        question=Question.USERSPACE_EXITS,
        program="on_kvm_userspace_exit",
        # The classic form comes first for the reason that _preemptible_tracepoint gives.
        points=(
            AttachPoint(
                backend=Backend.TRACEPOINT,
                target="kvm:kvm_userspace_exit",
                program="on_kvm_userspace_exit_record",
                fields=("reason", "errno"),
                reads_result=True,
            ),
            AttachPoint(
                backend=Backend.RAW_TRACEPOINT,
                target="kvm_userspace_exit",
                program="on_kvm_userspace_exit_raw",
                reads_result=True,
            ),
            AttachPoint(backend=Backend.TRACEPOINT, target="kvm:kvm_userspace_exit"),
        ),
        proves="KVM_RUN returned to the process",
        driver=KVM,
    ),
    Hook(
        name="kvm_exit",
        question=Question.EXITS,
        program="on_kvm_exit",
        points=_tracepoint("kvm", "kvm_exit"),
        proves="a guest of the process ran on this CPU and left it",
        driver=KVM,
    ),
    Hook(
        name="sched_process_fork",
        question=Question.FORKS,
        program="on_sched_process_fork",
        points=_described("sched", "sched_process_fork", "child_pid"),
        beside=_raw("sched_process_fork", "on_sched_process_fork_seen"),
        proves="a process or thread began at a number, before it ran",
    ),
    Hook(
        name="sched_process_exec",
        question=Question.EXECUTES,
        program="on_sched_process_exec",
        points=_preemptible_tracepoint("sched", "sched_process_exec"),
        beside=_raw("sched_process_exec"),
        proves="the process executed a program: what was known of it before is over",
    ),
    Hook(
        name="sched_process_exit",
        question=Question.ENDS,
        program="on_sched_process_exit",
        points=_preemptible_tracepoint("sched", "sched_process_exit"),
        beside=_raw("sched_process_exit"),
        proves="the process's main thread ended",
    ),
    Hook(
        name="sched_process_free",
        question=Question.IS_FREED,
        program="on_sched_process_free",
        points=_described("sched", "sched_process_free", "pid"),
        proves="the process is gone and its number may be used again",
    ),
    Hook(
        name="mshv_vp_ioctl",
        question=Question.RUNS_MSHV_VP,
        program="on_mshv_vp_ioctl",
        points=_kprobe("mshv_vp_ioctl"),
        proves="the process entered MSHV_RUN_VP",
        driver=MSHV,
        optional=True,
    ),
)

ALWAYS_WANTED: tuple[Hook, ...] = tuple(hook for hook in HOOKS if not hook.optional)
"""The hooks that are wanted on every node, whatever devices it has."""

PROGRAM_FILES: tuple[str, ...] = (
    "ledger.bpf.c",
    "kvm_ioctls.bpf.c",
    "mshv_ioctls.bpf.c",
    "vm_exits.bpf.c",
    "processes.bpf.c",
)
"""Package files that make up the BPF text, in order: the tables come first."""


def loadable(hooks: Sequence[Hook]) -> list[tuple[str, Backend]]:
    """Each function of the BPF text with each kind of program it may be attached as."""
    return [
        (point.program or hook.program, point.backend)
        for hook in hooks
        for point in (*hook.points, hook.beside)
        if point is not None
    ]


def field_flag(point: AttachPoint, field: str) -> str:
    """Name of the macro that gives the program a field's place in the record."""
    return f"{point.target.partition(':')[2]}_{field}".upper()


def unattached(
    reason: str, hooks: Sequence[Hook] = ALWAYS_WANTED, *, refused: bool = False
) -> tuple[HookStatus, ...]:
    """Each of these hooks, not attached for the same one-line reason.

    refused: whether that is because the kernel denied a permission.
    """
    return tuple(
        HookStatus(hook=hook, backend=Backend.NONE, reason=reason, refused=refused)
        for hook in hooks
    )
