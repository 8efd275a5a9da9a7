# SPDX-License-Identifier: Apache-2.0
"""Says where each kind of evidence is seen: a hook, a file of /proc, KVM's statistics. Pure data.

Must not know what evidence means.
"""

from collections.abc import Collection, Mapping
from enum import Enum

from ebpf.counters import COMPLETED_RUNS, EXITS, MSHV_RUNS, RUNS, Counter
from ebpf.hook_status import HookStatus
from probes.judge.reasons import Reason


class Place(Enum):
    """Where something is seen; ``{proc}`` is the folder of the process."""

    HOOK = "the hook {hook}"
    LEDGER = "the hooks' kernel table"
    HOOKS = "the hooks of this node"
    STATISTICS = "statistics in {proc}/fd"
    SYSCALLS = "{proc}/task/*/syscall"
    DESCRIPTORS = "{proc}/task/*/fd"
    STAT = "{proc}/stat"
    THREAD_TIMES = "{proc}/task/*/stat"
    THREAD_NAMES = "{proc}/task/*/comm"
    COMMAND_LINE = "{proc}/cmdline"
    CGROUP = "{proc}/cgroup"
    PROC = "{proc}"
    NODE = "/proc of this node"
    API_SERVER = "status.activePods of the VMI"


_HOOKED: Mapping[Reason, Counter] = {
    Reason.VM_EXITS_RECORDED: EXITS,
    Reason.USERSPACE_EXITS_RECORDED: COMPLETED_RUNS,
    Reason.MSHV_RUN_RECORDED: MSHV_RUNS,
    Reason.KVM_RUN_REFUSED: RUNS,
    Reason.KVM_RUN_RESULT_UNREAD: RUNS,
}
"""The counter behind each reason that a hook gives."""
_PLACES: Mapping[Reason, Place] = {
    **dict.fromkeys(_HOOKED, Place.HOOK),
    Reason.RUN_RECORDED: Place.LEDGER,
    Reason.INSIDE_KVM_RUN: Place.SYSCALLS,
    Reason.INSIDE_MSHV_RUN: Place.SYSCALLS,
    Reason.INSIDE_RUN: Place.SYSCALLS,
    Reason.VCPU_STATISTICS: Place.STATISTICS,
    Reason.KVM_RUN_WORKER: Place.SYSCALLS,
    Reason.GUEST_TIME: Place.STAT,
    Reason.TCG_COMPUTES: Place.THREAD_TIMES,
    Reason.HOOKS_LATE: Place.DESCRIPTORS,
    Reason.CAPABILITY_PROBE: Place.COMMAND_LINE,
    Reason.HOLDS_VCPUS: Place.DESCRIPTORS,
    Reason.HOLDS_MSHV_VPS: Place.DESCRIPTORS,
    Reason.TCG_IDLE: Place.THREAD_TIMES,
    Reason.ASKED_FOR_TCG: Place.COMMAND_LINE,
    Reason.HOOKS_MISSING: Place.HOOKS,
    Reason.LEDGER_INCOMPLETE: Place.LEDGER,
    Reason.THREADS_UNSEEN: Place.SYSCALLS,
    Reason.KVM_RUN_UNHELD: Place.SYSCALLS,
    Reason.RUN_UNHELD: Place.SYSCALLS,
    Reason.NO_VCPU_YET: Place.DESCRIPTORS,
    Reason.NO_VCPU_THREADS: Place.THREAD_NAMES,
    Reason.FDS_UNREADABLE: Place.DESCRIPTORS,
    Reason.READ_BLOCKED: Place.PROC,
    Reason.TOO_MUCH_TO_READ: Place.PROC,
    Reason.NOT_READ_YET: Place.NODE,
    Reason.NO_PROCESS: Place.NODE,
    Reason.NO_POD: Place.API_SERVER,
    Reason.POD_CONTESTED: Place.API_SERVER,
    Reason.SEVERAL_PROCESSES: Place.CGROUP,
    Reason.CLAIMS_WITHOUT_FDS: Place.THREAD_NAMES,
    Reason.GUEST_TIME_WITHOUT_FDS: Place.STAT,
    Reason.CONTRADICTS_THREAD_NAMES: Place.THREAD_NAMES,
    Reason.CONTRADICTS_COMMAND_LINE: Place.COMMAND_LINE,
}


def place_of(
    seen_in: Place | Reason,
    *,
    tgid: int | None,
    hooks: Collection[HookStatus],
    counter: Counter | None = None,
) -> str:
    """Say where something, or what a reason rests on, was seen.

    tgid is the process; None: there is none. counter is the one whose hook counted it.
    """
    if isinstance(seen_in, Reason):
        counter = counter or _HOOKED.get(seen_in)
        seen_in = _PLACES[seen_in]
    hook = counter_place(counter, hooks) if counter is not None else ""
    proc = "/proc/PID" if tgid is None else f"/proc/{tgid}"
    return seen_in.value.format(hook=hook, proc=proc)


def counter_place(counter: Counter, hooks: Collection[HookStatus]) -> str:
    """Return the name of a counter's hook, and how that is attached."""
    status = next((each for each in hooks if each.is_of(counter.hook)), None)
    form = status.form if status is not None and status.attached else "not attached now"
    return f"{counter.hook.name}, {form}"
