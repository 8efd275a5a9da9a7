"""Judged processes, names and probe health → NodeReport. Pure.

Owns what a counter's silence means and what counts as a fallback. Must not read anything, and
must not judge: verdicts arrive finished.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

from ebpf.hooks import Question
from ebpf.ledger import KernelSnapshot, LedgerEntry
from probes.cgroup import PodCgroup
from probes.identity import Attribution, VmName
from probes.node import Accelerator
from probes.report import CounterTrust, ProcessReport, ProcessState, VmiReport
from probes.verdict import Reason, Verdict
from probes.vmm import HypervisorType, VmmId

BLIND_AFTER = 100
"""Userspace exits without a single VM exit after which the VM exit hook is called blind.

On real hardware a return to user space follows a VM exit but for the rare call that is interrupted
before it enters the guest; a hundred in a row without one is no accident.
"""


FiredHook = tuple[Question, int]
"""A hook that has counted something, and how often it was attached by then."""

_COUNTERS: Mapping[Question, Callable[[LedgerEntry], int]] = {
    Question.USERSPACE_EXITS: attrgetter("userspace_exits"),
    Question.EXITS: attrgetter("exits"),
}
"""What each hook whose silence has to be explained counts."""

_ACCELERATED = frozenset({HypervisorType.KVM, HypervisorType.MSHV})


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedProcess:
    """A VMM process with all that outputs want to know of it, but its counters.

    The same object for as long as nothing of it changes.
    """

    vmm: VmmId
    comm: str
    program: str | None
    guest_name: str | None
    pod: PodCgroup | None
    """Read with the rest, so for good once the verdict is settled: a container's processes are put
    into its cgroup before they execute its program, and nothing moves them out of the pod."""
    named_like_qemu: bool
    capability_probe: bool
    vcpus: int | None
    started_unix_s: float
    verdict: Verdict
    record_ns: int | None
    """When its record in the ledger began, as the record says; None: it has none."""
    command_line_unread: bool = False
    """Whether its command line could not be read, so that it may bear any VM's name."""
    parent_tgid: int = 0
    """Thread group id of its parent."""
    vcpus_created: int = 0
    """vCPUs that its record tells of."""
    main_thread_ended: bool = False
    """Whether its main thread had ended when it was read."""

    def owns(self, entry: LedgerEntry) -> bool:
        """Whether a record of its number is the one it was judged with.

        Then it has executed no other program since, because that ends a record.
        """
        return self.record_ns == entry.first_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterTrusts:
    """What is known of each counter's hook, for those who check the node."""

    userspace_exits: CounterTrust
    exits: CounterTrust


def counter_trusts(
    kernel: KernelSnapshot, *, fired: Collection[FiredHook], exits_missed: bool
) -> CounterTrusts:
    """Judge the hooks by what they were seen to do since they were attached last.

    fired: hooks that have counted anything so far. exits_missed: whether guests ran, in this
    refresh or before, without the VM exit hook noticing (missed_exits).
    """

    def trust(question: Question, *, blind: bool = False) -> CounterTrust:
        hooks = [hook for hook in kernel.hooks if hook.hook.question is question and hook.attached]
        if not hooks:
            return CounterTrust.MISSING
        if any((question, hook.attached_total) in fired for hook in hooks):
            return CounterTrust.PROVEN
        return CounterTrust.BLIND if blind else CounterTrust.UNTRIED

    return CounterTrusts(
        userspace_exits=trust(Question.USERSPACE_EXITS),
        exits=trust(Question.EXITS, blind=exits_missed),
    )


def missed_exits(kernel: KernelSnapshot) -> bool:
    """Whether processes ran guests so often that VM exits must have been among them."""
    return sum(entry.completed_runs for entry in kernel.entries.values()) >= BLIND_AFTER


def hooks_fired(kernel: KernelSnapshot) -> frozenset[FiredHook]:
    """Hooks that have counted anything for a process since they were attached last.

    A record that began before that may have been counted by the same hook under another module.
    """
    seen: set[FiredHook] = set()
    for hook in kernel.hooks:
        since_ns = hook.attached_ns
        counter = _COUNTERS.get(hook.hook.question)
        if counter is None or since_ns is None:
            continue
        young = (entry for entry in kernel.entries.values() if entry.first_ns >= since_ns)
        if any(counter(entry) for entry in young):
            seen.add((hook.hook.question, hook.attached_total))
    return frozenset(seen)


def process_reports(
    processes: Iterable[TrackedProcess],
    *,
    entries: Mapping[int, LedgerEntry],
    names: Mapping[VmmId, VmName],
) -> tuple[ProcessReport, ...]:
    """Every VMM process, in the order given, with its counters.

    entries: the ledger, by tgid. names: the VMs that processes are.
    """
    return tuple(
        _process_report(
            process,
            entry=entries.get(process.vmm.tgid),
            vm=names.get(process.vmm),
        )
        for process in processes
    )


def vmi_reports(
    vms: Sequence[Attribution],
    processes: Iterable[ProcessReport],
    *,
    accelerators: tuple[Accelerator, ...],
    machine: str,
    pending: int,
) -> tuple[VmiReport, ...]:
    """Every VM that has a name on this node, in the order given.

    machine: the node's architecture, ``uname -m``. pending: processes not read yet, one of which
    may be a VM that has none.
    """
    by_vmm: dict[VmmId | None, ProcessReport] = {it.vmm: it for it in processes}
    return tuple(
        _vmi_report(
            vm, by_vmm.get(vm.vmm), accelerators=accelerators, machine=machine, pending=pending
        )
        for vm in vms
    )


def _process_report(
    process: TrackedProcess,
    *,
    entry: LedgerEntry | None,
    vm: VmName | None,
) -> ProcessReport:
    state = ProcessState.ATTRIBUTED if vm else ProcessState.UNATTRIBUTED
    if process.capability_probe:
        state = ProcessState.PROBE
    counted = entry
    if process.verdict.type not in _ACCELERATED or entry is None or not process.owns(entry):
        counted = None
    return ProcessReport(
        vmm=process.vmm,
        comm=process.comm,
        guest_name=process.guest_name,
        vm=vm,
        state=state,
        verdict=process.verdict,
        vcpus=process.vcpus,
        started_unix_s=process.started_unix_s,
        runs=_counted(counted.runs) if counted else None,
        userspace_exits=_counted(counted.userspace_exits) if counted else None,
        exits=_counted(counted.exits) if counted else None,
    )


def _counted(value: int) -> int | None:
    """What was counted was counted. A 0 proves nothing: the hook may never see this process."""
    return value or None


def _vmi_report(
    attribution: Attribution,
    process: ProcessReport | None,
    *,
    accelerators: tuple[Accelerator, ...],
    machine: str,
    pending: int,
) -> VmiReport:
    if process is None:
        reason = attribution.missing or Reason.NO_PROCESS
        if reason is Reason.NO_PROCESS and pending:
            reason = Reason.NOT_READ_YET
        verdict = Verdict(type=HypervisorType.UNKNOWN, verified=False, reasons=(reason,))
        return VmiReport(
            vm=attribution.vm,
            verdict=verdict,
            fallback=False,
            vmm=None,
            userspace_exits=None,
            exits=None,
        )
    native = attribution.architecture in (None, machine)
    return VmiReport(
        vm=attribution.vm,
        verdict=process.verdict,
        fallback=_fallback(process.verdict, accelerators, native=native),
        vmm=process.vmm,
        userspace_exits=process.userspace_exits,
        exits=process.exits,
    )


def _fallback(
    verdict: Verdict, accelerators: tuple[Accelerator, ...], *, native: bool
) -> bool | None:
    """Emulated for no reason? None: emulated, and not known whether the node could do better."""
    if verdict.type is not HypervisorType.TCG or not native:
        return False
    known = [it.available for it in accelerators if it.available is not None]
    return any(known) if known else None
