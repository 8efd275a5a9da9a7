"""Judged processes, names and probe health → NodeReport. Pure.

Owns what a counter's silence means and what counts as a fallback. Must not read anything, and
must not judge: verdicts arrive finished.
"""

from collections.abc import Iterable, Mapping
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


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedProcess:
    """A VMM process with all that outputs want to know of it."""

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
    ledger: LedgerEntry | None
    ledger_lost_events: bool = False
    """Whether a missing ledger entry may be one there was no room for."""


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
    attributions: Mapping[VmName, Attribution],
    trusts: CounterTrusts,
) -> tuple[ProcessReport, ...]:
    """Every VMM process, by tgid."""
    names = {it.vmm: vm for vm, it in attributions.items() if it.vmm is not None}
    return tuple(
        _process_report(process, vm=names.get(process.vmm), trusts=trusts)
        for process in sorted(processes, key=lambda process: process.vmm)
    )


def vmi_reports(
    attributions: Mapping[VmName, Attribution],
    processes: Iterable[ProcessReport],
    *,
    accelerators: tuple[Accelerator, ...],
    machine: str,
) -> tuple[VmiReport, ...]:
    """Every VM that has a name on this node, by namespace and name.

    machine: the node's architecture, ``uname -m``.
    """
    by_vmm: dict[VmmId | None, ProcessReport] = {it.vmm: it for it in processes}
    return tuple(
        _vmi_report(
            attributions[vm],
            by_vmm.get(attributions[vm].vmm),
            accelerators=accelerators,
            machine=machine,
        )
        for vm in sorted(attributions)
    )


def _process_report(
    process: JudgedProcess, *, vm: VmName | None, trusts: CounterTrusts
) -> ProcessReport:
    state = ProcessState.ATTRIBUTED if vm else ProcessState.UNATTRIBUTED
    if process.capability_probe:
        state = ProcessState.PROBE
    accelerated = process.verdict.type in (HypervisorType.KVM, HypervisorType.MSHV)

    def count(trust: CounterTrust, value: int) -> int | None:
        counted = value > 0 or (trust is CounterTrust.PROVEN and not process.ledger_lost_events)
        return value if accelerated and counted and trust is not CounterTrust.MISSING else None

    ledger = process.ledger
    return ProcessReport(
        vmm=process.vmm,
        comm=process.comm,
        guest_name=process.guest_name,
        vm=vm,
        state=state,
        verdict=process.verdict,
        vcpus=process.vcpus,
        started_unix_s=process.started_unix_s,
        runs=count(trusts.runs, ledger.runs if ledger else 0),
        userspace_exits=count(trusts.userspace_exits, ledger.userspace_exits if ledger else 0),
        exits=count(trusts.exits, ledger.exits if ledger else 0),
    )


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
    else:
        verdict = process.verdict
    native = attribution.architecture in (None, machine)
    return VmiReport(
        vm=attribution.vm,
        verdict=verdict,
        fallback=_fallback(verdict, accelerators, native=native),
        vmm=attribution.vmm if process else None,
        userspace_exits=process.userspace_exits if process else None,
        exits=process.exits if process else None,
    )


def _fallback(
    verdict: Verdict, accelerators: tuple[Accelerator, ...], *, native: bool
) -> bool | None:
    """Emulated for no reason? None: emulated, and not known whether the node could do better."""
    if verdict.type is not HypervisorType.TCG or not native:
        return False
    known = [it.available for it in accelerators if it.available is not None]
    return any(known) if known else None
