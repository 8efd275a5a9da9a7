"""What this node can prove, from a report. Pure; doctor_view.py shows it.

Owns the questions a person asks of a node and their remedies. Must not find anything out itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum, StrEnum

from ebpf.errors import NOT_PERMITTED
from ebpf.hooks import HookStatus, Question
from probes.node import KernelAbilities
from probes.report import CounterTrust, NodeReport
from probes.vmm import HypervisorType

_READ_OTHERS = frozenset({"CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"})
"""What it takes to read other users' processes below /proc."""


class Outcome(StrEnum):
    """How a check ended."""

    GOOD = "ok"
    LESS = "less"
    """Something is missing, and something else stands in for it."""
    BAD = "no"


class Ability(IntEnum):
    """What the node can do for a verdict; the value is the exit code of ``hvprobe doctor``."""

    VERIFIED = 0
    INFERRED = 1
    NOTHING = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One question, answered."""

    question: str
    outcome: Outcome
    finding: str
    remedy: str | None = None


def checks(report: NodeReport, kernel: KernelAbilities) -> tuple[Check, ...]:
    """All checks of a node, most important first."""
    return (
        *_accelerator(report),
        _runs(report, kernel),
        *_counters(report),
        _late(report, kernel),
        _processes(report),
        _names(report),
        _permission(report, kernel),
        _kernel(kernel),
    )


def ability(report: NodeReport) -> Ability:
    """Whether verdicts on this node are verified, inferred, or not to be had at all."""
    if not report.proc_readable:
        return Ability.NOTHING
    runs = [
        it
        for it in report.health.hooks
        if it.hook.question in (Question.RUNS_VCPU, Question.USERSPACE_EXITS)
    ]
    seen = any(it.attached for it in runs) or (runs and all(it.inactive for it in runs))
    return Ability.VERIFIED if seen else Ability.INFERRED


def _attached(report: NodeReport, *questions: Question) -> list[HookStatus]:
    return [it for it in report.health.hooks if it.hook.question in questions and it.attached]


def _accelerator(report: NodeReport) -> Iterator[Check]:
    for accelerator in report.accelerators:
        if accelerator.type is not HypervisorType.KVM:
            continue
        module = report.virtualization.module or "no module"
        nested = ", the node is itself a VM" if report.virtualization.nested else ""
        outcome = {True: Outcome.GOOD, False: Outcome.BAD, None: Outcome.LESS}
        finding, _, remedy = (accelerator.reason or f"yes, by {module}{nested}").partition("; ")
        yield Check(
            question="does KVM work here",
            outcome=outcome[accelerator.available],
            finding=finding,
            remedy=remedy or None,
        )


def _runs(report: NodeReport, kernel: KernelAbilities) -> Check:
    question = "which process uses KVM"
    hooks = _attached(report, Question.RUNS_VCPU, Question.USERSPACE_EXITS)
    wanted = [it for it in report.health.hooks if it.hook.question is Question.RUNS_VCPU]
    if wanted and all(it.inactive for it in wanted):
        return Check(
            question=question,
            outcome=Outcome.GOOD,
            finding="none can: no KVM module is loaded; hooks are attached once one is",
        )
    if hooks and not kernel.kprobes:
        return Check(
            question=question,
            outcome=Outcome.GOOD,
            finding=f"seen by {hooks[0].hook.name} ({hooks[0].backend.value}) at its first return "
            "from KVM_RUN; this kernel has no kprobes (CONFIG_KPROBES) to see it enter",
        )
    if hooks:
        named = " and ".join(f"{it.hook.name} ({it.backend.value})" for it in hooks)
        return Check(question=question, outcome=Outcome.GOOD, finding=f"seen by {named}")
    if report.health.ledger_error:
        return Check(
            question=question,
            outcome=Outcome.LESS,
            finding=f"what /proc shows of it now; no BPF: {report.health.ledger_error}",
        )
    missing = "; ".join(
        it.reason or it.hook.name
        for it in report.health.hooks
        if it.hook.question in (Question.RUNS_VCPU, Question.USERSPACE_EXITS)
    )
    return Check(question=question, outcome=Outcome.LESS, finding=f"no hook: {missing}")


def _counters(report: NodeReport) -> Iterator[Check]:
    for question, trust in (
        ("how many VM exits", report.health.exits_trust),
        ("how many returns to user space", report.health.userspace_exits_trust),
    ):
        yield {
            CounterTrust.PROVEN: Check(
                question=question, outcome=Outcome.GOOD, finding="counted, and seen to count"
            ),
            CounterTrust.UNTRIED: Check(
                question=question,
                outcome=Outcome.GOOD,
                finding="attached; no VM has made one yet, so no count is shown",
            ),
            CounterTrust.BLIND: Check(
                question=question,
                outcome=Outcome.LESS,
                finding="attached, but this kernel never calls it: no count is shown",
                remedy="none: the vendor module in use has no VM exit of its own to report",
            ),
            CounterTrust.MISSING: Check(
                question=question, outcome=Outcome.LESS, finding="not counted: no hook attached"
            ),
        }[trust]


def _processes(report: NodeReport) -> Check:
    question = "which processes become VMMs"
    if not report.proc_readable:
        return Check(
            question=question,
            outcome=Outcome.BAD,
            finding="the host's /proc cannot be read",
            remedy="run as root; in a container mount it and give its place with --proc",
        )
    hooks = _attached(report, Question.EXECUTES)
    if hooks:
        return Check(
            question=question, outcome=Outcome.GOOD, finding=f"told by {hooks[0].hook.name}"
        )
    return Check(
        question=question,
        outcome=Outcome.LESS,
        finding="no hook: all of /proc is read at each look",
    )


def _late(report: NodeReport, kernel: KernelAbilities) -> Check:
    question = "which VMs that ran before hvprobe"
    if not report.proc_readable or _READ_OTHERS & set(kernel.capabilities_missing):
        return Check(
            question=question,
            outcome=Outcome.LESS,
            finding="only by what they do from now on: descriptors and system calls of other "
            "users' processes cannot be read",
            remedy=f"give {' and '.join(sorted(_READ_OTHERS))}",
        )
    return Check(
        question=question,
        outcome=Outcome.GOOD,
        finding="by their descriptors and the system call their vCPU threads are in",
    )


def _permission(report: NodeReport, kernel: KernelAbilities) -> Check:
    question = "may hvprobe do what it needs"
    wrong = [f"{name} is missing" for name in kernel.capabilities_missing]
    if not kernel.initial_pid_namespace:
        wrong.append("it runs in a PID namespace of its own")
    if kernel.lockdown == "confidentiality":
        wrong.append("lockdown=confidentiality forbids BPF to read kernel memory")
    # A refusal tells more than what can be looked up: filters and security modules show nowhere.
    told = [report.health.ledger_error, *(it.reason for it in report.health.hooks)]
    if not wrong and any(NOT_PERMITTED in reason for reason in told if reason):
        return Check(
            question=question,
            outcome=Outcome.LESS,
            finding="not all: the kernel refused something, and the line that says so says why",
        )
    if not wrong:
        return Check(question=question, outcome=Outcome.GOOD, finding="yes")
    return Check(
        question=question,
        outcome=Outcome.LESS,
        finding=", ".join(wrong),
        remedy="run as root; in a container add the capabilities named and hostPID: true",
    )


def _kernel(kernel: KernelAbilities) -> Check:
    """What there is to build on; kprobes and tracefs have something that stands in for them."""
    parts = {
        "KVM": kernel.kvm_device,
        "kprobes": kernel.kprobes,
        "tracefs": kernel.tracefs,
        "BTF (not needed)": kernel.btf,
    }
    finding = ", ".join(f"{name} {'yes' if there else 'no'}" for name, there in parts.items())
    return Check(
        question="what this kernel offers",
        outcome=Outcome.GOOD if kernel.kprobes and kernel.tracefs else Outcome.LESS,
        finding=f"{finding}, lockdown {kernel.lockdown or 'not told'}",
        remedy=None if kernel.tracefs else "mount tracefs on /sys/kernel/tracing",
    )


def _names(report: NodeReport) -> Check:
    question = "where VMI names come from"
    watch = report.health.vmi_watch
    if watch is None:
        return Check(
            question=question,
            outcome=Outcome.GOOD,
            finding="libvirt's domain names, <namespace>_<name>: no cluster is asked",
        )
    if watch.is_current:
        return Check(question=question, outcome=Outcome.GOOD, finding="the API server")
    why = watch.error or "it has not answered yet"
    if watch.synced:
        return Check(
            question=question,
            outcome=Outcome.LESS,
            finding=f"the API server, as last known: {why}",
        )
    return Check(
        question=question,
        outcome=Outcome.BAD,
        finding=f"from nowhere, no VM has a name: {why}",
        remedy="or give --standalone to name VMs by libvirt's domain names",
    )
