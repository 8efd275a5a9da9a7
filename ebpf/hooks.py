# SPDX-License-Identifier: Apache-2.0
"""Lists the hooks that hvprobe wants, in order of preference, and what each one proves. Pure data.

A hook is a function or tracepoint of the kernel at which a program of hvprobe runs. It may have
several attach points; hook_set.py tries them in order and reports which one it got. Nothing here
depends on a kernel version.
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


KPROBE_MULTI = "kprobe_multi"
"""The kind of program, and of link, that is attached to a function without perf_event_open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """A driver that must be loaded before its hooks can be attached.

    It may be unloaded while they are attached.
    """

    module: str
    """The module that contains the function or tracepoint (/sys/module)."""
    device: str
    """The device that it registers once it can be used (/sys/class/misc)."""


KVM = Driver(module="kvm", device="kvm")
MSHV = Driver(module="mshv_root", device="mshv")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachPoint:
    """One way to attach a hook."""

    backend: Backend
    target: str
    """Function name (kprobe), tracepoint name (raw), ``category:event`` (tracepoint)."""
    program: str | None = None
    """Function in the BPF text, if this point needs a different one from the hook's."""
    fields: tuple[str, ...] = ()
    """Fields of the tracepoint's record that the program reads, each 4 bytes (see field_flag)."""
    reads_result: bool = False
    """Whether the program can tell a successful KVM_RUN from a failed one."""
    by_link: bool = False
    """Whether a kprobe is attached by a link of type kprobe_multi rather than by a perf event."""

    @property
    def kind(self) -> str:
        """What its program is loaded as: its backend, or ``kprobe_multi``."""
        return KPROBE_MULTI if self.by_link else self.backend.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """A wanted hook: where its program may be attached, and what a hit proves."""

    name: str
    """The kernel's name of the function or tracepoint (label ``hook``)."""
    points: tuple[AttachPoint, ...]
    """Attach points in order of preference."""
    raw_first_if_exact: bool = False
    """Whether raw points come first where no thread can be preempted in them (btf.py)."""
    beside: AttachPoint | None = None
    """A further point, attached if possible, that fires where the first point's form is skipped."""
    proves: str
    """What a hit proves, in one clause."""
    driver: Driver | None = None
    """The driver it belongs to; None: the kernel proper, which is always present."""
    optional: bool = False
    """Whether the hook is wanted only if its driver's device exists when hvprobe starts."""
    on_demand: str | None = None
    """Why nothing may need the hook, in one clause: it is attached only while it is needed.

    None: the hook is always needed.
    """

    @property
    def program(self) -> str:
        """Function in the BPF text."""
        return f"on_{self.name}"

    def points_in_order(self, *, raw_is_exact: bool) -> tuple[AttachPoint, ...]:
        """Return the attach points, the one first that loses least on this kernel.

        raw_is_exact says whether no thread can be preempted in a program at a raw tracepoint. The
        kernel then never skips it, while it skips every other form on a CPU where a process is
        preempted in a call on a BPF map (bpf_disable_instrumentation), be it another program's.
        """
        if not (raw_is_exact and self.raw_first_if_exact):
            return self.points
        return tuple(
            sorted(self.points, key=lambda point: point.backend is not Backend.RAW_TRACEPOINT)
        )


def _kprobe(function: str) -> tuple[AttachPoint, ...]:
    """Prefer the perf event, which does not keep the function's module loaded.

    The link needs only bpf(2), so it can be had where a seccomp filter or
    kernel.perf_event_paranoid forbids perf_event_open. Since Linux 0dcac2725406 ("bpf: Add multi
    kprobe link") (v5.18), with CONFIG_FPROBE. Functions of modules are found, and their modules
    held, since Linux e22061b2d309 ("bpf: Take module reference on kprobe_multi link") (v6.2).
    """
    event = AttachPoint(backend=Backend.KPROBE, target=function)
    return event, replace(event, by_link=True)


def _tracepoint(category: str, event: str) -> tuple[AttachPoint, ...]:
    """Prefer the cheaper form, for tracepoints that fire where no thread can be preempted."""
    return (
        AttachPoint(backend=Backend.RAW_TRACEPOINT, target=event),
        AttachPoint(backend=Backend.TRACEPOINT, target=f"{category}:{event}"),
    )


def _raw(event: str, program: str | None = None) -> AttachPoint:
    return AttachPoint(backend=Backend.RAW_TRACEPOINT, target=event, program=program)


def _preemptible_tracepoint(category: str, event: str) -> tuple[AttachPoint, ...]:
    """Prefer the exact form, for tracepoints that fire where a thread may be preempted.

    Since Linux a46023d5616e ("tracing: Guard __DECLARE_TRACE() use of __DO_TRACE_CALL() with
    SRCU-fast") and f7d327654b88 ("bpf: Have __bpf_trace_run() use rcu_read_lock_dont_migrate()")
    (v7.0) a thread can be preempted inside a raw tracepoint's program. Until that program ends, the
    kernel skips it for every other thread on that CPU (recursion_misses in its fdinfo): on 7.2, 4
    of 100 returns of 8 vCPUs on 2 CPUs were not counted. The classic form runs with preemption off.
    The kernel skips it only while another process is preempted in a call on a BPF map.
    """
    return _tracepoint(category, event)[::-1]


def _described(category: str, event: str, *fields: str) -> tuple[AttachPoint, ...]:
    """Use only the form whose fields tracefs describes, for programs that need those fields."""
    target = f"{category}:{event}"
    return (AttachPoint(backend=Backend.TRACEPOINT, target=target, fields=fields),)


KVM_DEV_IOCTL = Hook(
    name="kvm_dev_ioctl",
    points=_kprobe("kvm_dev_ioctl"),
    proves="the process asked for a VM; nothing about running it",
    driver=KVM,
)
KVM_VM_IOCTL = Hook(
    name="kvm_vm_ioctl",
    points=_kprobe("kvm_vm_ioctl"),
    proves="the process asked for a vCPU; nothing about running it",
    driver=KVM,
)
KVM_VCPU_IOCTL = Hook(
    name="kvm_vcpu_ioctl",
    points=_kprobe("kvm_vcpu_ioctl"),
    proves="the process entered KVM_RUN",
    driver=KVM,
)
KVM_USERSPACE_EXIT = Hook(
    name="kvm_userspace_exit",
    # See _preemptible_tracepoint for why the classic form comes first on other kernels.
    raw_first_if_exact=True,
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
)
KVM_EXIT = Hook(
    name="kvm_exit",
    points=_tracepoint("kvm", "kvm_exit"),
    proves="a guest of the process ran on this CPU and left it",
    driver=KVM,
    on_demand="KVM's own statistics count the exits of every VM",
)
SCHED_PROCESS_FORK = Hook(
    name="sched_process_fork",
    points=_described("sched", "sched_process_fork", "child_pid"),
    beside=_raw("sched_process_fork", "on_sched_process_fork_seen"),
    proves="a process or thread began at a number, before it ran",
)
SCHED_PROCESS_EXEC = Hook(
    name="sched_process_exec",
    points=_preemptible_tracepoint("sched", "sched_process_exec"),
    beside=_raw("sched_process_exec"),
    proves="the process executed a program: what was known of it before is over",
)
SCHED_PROCESS_EXIT = Hook(
    name="sched_process_exit",
    points=_preemptible_tracepoint("sched", "sched_process_exit"),
    beside=_raw("sched_process_exit"),
    proves="the process's main thread ended",
)
SCHED_PROCESS_FREE = Hook(
    name="sched_process_free",
    points=_described("sched", "sched_process_free", "pid"),
    proves="the process is gone and its number may be used again",
)
MSHV_VP_IOCTL = Hook(
    name="mshv_vp_ioctl",
    points=_kprobe("mshv_vp_ioctl"),
    proves="the process entered MSHV_RUN_VP",
    driver=MSHV,
    optional=True,
)

HOOKS: tuple[Hook, ...] = (
    KVM_DEV_IOCTL,
    KVM_VM_IOCTL,
    KVM_VCPU_IOCTL,
    KVM_USERSPACE_EXIT,
    KVM_EXIT,
    SCHED_PROCESS_FORK,
    SCHED_PROCESS_EXEC,
    SCHED_PROCESS_EXIT,
    SCHED_PROCESS_FREE,
    MSHV_VP_IOCTL,
)
"""The hooks that hvprobe knows, in the order in which outputs list them."""

ALWAYS_WANTED: tuple[Hook, ...] = tuple(hook for hook in HOOKS if not hook.optional)
"""The hooks that are wanted on every node, whatever devices it has."""

PROGRAM_FILES: tuple[str, ...] = (
    "ledger.bpf.c",
    "kvm_ioctls.bpf.c",
    "mshv_ioctls.bpf.c",
    "vm_exits.bpf.c",
    "processes.bpf.c",
)
"""Package files that make up the BPF text, in order. The tables come first."""


def loadable(hooks: Sequence[Hook]) -> list[tuple[str, str]]:
    """Return each function of the BPF text with each kind of program it may be attached as."""
    return [
        (point.program or hook.program, point.kind)
        for hook in hooks
        for point in (*hook.points, hook.beside)
        if point is not None
    ]


def field_flag(point: AttachPoint, field: str) -> str:
    """Return the name of the macro that gives a program the offset of a field in the record."""
    return f"{point.target.partition(':')[2]}_{field}".upper()
