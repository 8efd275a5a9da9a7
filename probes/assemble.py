"""Judged processes, names and probe health → NodeReport. Pure.

Owns what a counter's silence means and what counts as a fallback. Must not read anything, and
must not judge: verdicts arrive finished.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

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


_ACCELERATED = frozenset({HypervisorType.KVM, HypervisorType.MSHV})


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedProcess:
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
    """When its record in the ledger began, as the record says; None: it had none."""
    adopted_ns: int | None = None
    """CLOCK_MONOTONIC by which a record had been made for it; None: it was not adopted."""
    vcpus_created: int = 0
    """vCPUs that its record tells of."""
    main_thread_ended: bool = False
    """Whether its main thread had ended when it was read: nothing tells then when it ends."""
    ledger_lost_events: bool = False
    """Whether a missing ledger entry may be one there was no room for."""

    def owns(self, entry: LedgerEntry) -> bool:
        """Whether a record of its tgid is the one it was judged with, or was given then.

        Then it has executed no other program since, for that ends a record.
        """
        if self.record_ns is not None:
            return entry.first_ns == self.record_ns
        return (
            self.adopted_ns is not None
            and entry.exec_ns is None
            and entry.first_ns <= self.adopted_ns
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterTrusts:
    """How far each counter can be believed."""

    runs: CounterTrust
    userspace_exits: CounterTrust
    exits: CounterTrust


def counter_trusts(
    kernel: KernelSnapshot, *, fired: frozenset[Question], exits_missed: bool
) -> CounterTrusts:
    """Judge the counters by what they were seen to do.

    fired: questions whose hook has counted anything on this node so far. exits_missed: whether
    guests ran, at this look or before, without the VM exit hook noticing (missed_exits).
    """

    def trust(question: Question, *, blind: bool = False) -> CounterTrust:
        if not any(it.attached for it in kernel.hooks if it.hook.question is question):
            return CounterTrust.MISSING
        if question in fired:
            return CounterTrust.PROVEN
        return CounterTrust.BLIND if blind else CounterTrust.UNTRIED

    return CounterTrusts(
        runs=trust(Question.RUNS_VCPU),
        userspace_exits=trust(Question.USERSPACE_EXITS),
        exits=trust(Question.EXITS, blind=exits_missed),
    )


def missed_exits(kernel: KernelSnapshot) -> bool:
    """Whether processes returned to user space so often that VM exits must have been among them."""
    return sum(entry.userspace_exits for entry in kernel.entries.values()) >= BLIND_AFTER


def questions_fired(kernel: KernelSnapshot) -> frozenset[Question]:
    """Questions whose hook has counted anything for a process in this snapshot."""
    entries = kernel.entries.values()
    return frozenset(
        question
        for question, seen in (
            (Question.RUNS_VCPU, any(entry.runs for entry in entries)),
            (Question.USERSPACE_EXITS, any(entry.userspace_exits for entry in entries)),
            (Question.EXITS, any(entry.exits for entry in entries)),
        )
        if seen
    )


def process_reports(
    processes: Iterable[JudgedProcess],
    *,
    entries: Mapping[int, LedgerEntry],
    names: Mapping[VmmId, VmName],
    trusts: CounterTrusts,
) -> tuple[ProcessReport, ...]:
    """Every VMM process, in the order given, with its counters.

    entries: the ledger, by tgid. names: the VMs that processes are.
    """
    return tuple(
        _process_report(
            process,
            entry=entries.get(process.vmm.tgid),
            vm=names.get(process.vmm),
            trusts=trusts,
        )
        for process in processes
    )


def vmi_reports(
    vms: Sequence[Attribution],
    processes: Iterable[ProcessReport],
    *,
    accelerators: tuple[Accelerator, ...],
    machine: str,
) -> tuple[VmiReport, ...]:
    """Every VM that has a name on this node, in the order given.

    machine: the node's architecture, ``uname -m``.
    """
    by_vmm: dict[VmmId | None, ProcessReport] = {it.vmm: it for it in processes}
    return tuple(
        _vmi_report(vm, by_vmm.get(vm.vmm), accelerators=accelerators, machine=machine)
        for vm in vms
    )


def _process_report(
    process: JudgedProcess,
    *,
    entry: LedgerEntry | None,
    vm: VmName | None,
    trusts: CounterTrusts,
) -> ProcessReport:
    state = ProcessState.ATTRIBUTED if vm else ProcessState.UNATTRIBUTED
    if process.capability_probe:
        state = ProcessState.PROBE
    runs = userspace_exits = exits = None
    if process.verdict.type in _ACCELERATED:
        lost = process.ledger_lost_events
        if entry is not None and process.owns(entry):
            runs = _count(entry.runs, trusts.runs, lost=lost)
            userspace_exits = _count(entry.userspace_exits, trusts.userspace_exits, lost=lost)
            exits = _count(entry.exits, trusts.exits, lost=lost)
        else:
            runs = _count(0, trusts.runs, lost=lost)
            userspace_exits = _count(0, trusts.userspace_exits, lost=lost)
            exits = _count(0, trusts.exits, lost=lost)
    return ProcessReport(
        vmm=process.vmm,
        comm=process.comm,
        guest_name=process.guest_name,
        vm=vm,
        state=state,
        verdict=process.verdict,
        vcpus=process.vcpus,
        started_unix_s=process.started_unix_s,
        runs=runs,
        userspace_exits=userspace_exits,
        exits=exits,
    )


def _count(value: int, trust: CounterTrust, *, lost: bool) -> int | None:
    """What was counted was counted; a 0 has to be believed: none is a false one."""
    if value > 0:
        return None if trust is CounterTrust.MISSING else value
    return 0 if trust is CounterTrust.PROVEN and not lost else None


def _vmi_report(
    attribution: Attribution,
    process: ProcessReport | None,
    *,
    accelerators: tuple[Accelerator, ...],
    machine: str,
) -> VmiReport:
    if process is None:
        reason = attribution.missing or Reason.NO_PROCESS
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
