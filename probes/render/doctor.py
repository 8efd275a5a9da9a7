# SPDX-License-Identifier: Apache-2.0
"""Checks from a report what this node can prove. Pure; doctor_view.py shows the result.

Owns the checks of a node and their remedies. Must not read anything itself.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

from ebpf.confinement import CONFIDENTIALITY
from ebpf.hook_status import HookStatus
from ebpf.hooks import KVM, KVM_EXIT, SCHED_PROCESS_EXEC, Hook
from probes.host.hypervisors import BY_TYPE, HYPERVISORS, Hypervisor, all_are_watched
from probes.host.node import KernelFeatures
from probes.judge.accelerator_absence import AbsenceFound
from probes.judge.exit_counts import ExitSource
from probes.judge.reasons import Outcome, Severity
from probes.render.doctor_privileges import earlier_vms, permissions
from probes.report.missed_runs import MISSED_LABEL, missed_runs
from probes.report.model import CounterTrust, NodeReport
from probes.report.vocabulary import (
    Subject,
    WatchState,
    counter_states,
    deciding_reason,
    say,
    subjects,
    watch_error,
    watch_state,
)

_URGENT_LISTED = 5
"""How many urgent VMs one line names."""


class Ability(IntEnum):
    """How certain verdicts on this node can be. The value is the doctor's exit code."""

    VERIFIED = 0
    INFERRED = 1
    NOTHING = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of the doctor."""

    label: str
    """What is checked, as a noun phrase."""
    outcome: Outcome
    finding: str
    remedy: str | None = None


def checks(
    report: NodeReport, kernel: KernelFeatures, absence: AbsenceFound | None = None
) -> tuple[Check, ...]:
    """Return all checks of a node, the most important first.

    absence says why the node has no KVM; None: it has, or that was not read.
    """
    return (
        *_accelerator(report, absence),
        *_activity(report),
        *_counters(report),
        *_missed(report),
        _late(report, kernel),
        _processes(report),
        _names(report),
        _verdicts(report),
        _permissions(report, kernel),
        _features(kernel),
    )


def ability(report: NodeReport) -> Ability:
    """Return whether verdicts on this node are verified, inferred or impossible."""
    if not report.proc_readable:
        return Ability.NOTHING
    return Ability.VERIFIED if all_are_watched(report.health.hooks) else Ability.INFERRED


def _hooks(report: NodeReport, *hooks: Hook) -> list[HookStatus]:
    return [status for status in report.health.hooks if any(map(status.is_of, hooks))]


def _accelerator(report: NodeReport, absence: AbsenceFound | None) -> Iterator[Check]:
    for accelerator in report.accelerators:
        hypervisor, problem = BY_TYPE[accelerator.type], accelerator.problem
        finding = problem.detail if problem else ""
        remedy = problem.remedy if problem else None
        if accelerator.available:
            works = _works(report, hypervisor)
            finding = f"{works}; {finding}" if finding else works
        elif absence and hypervisor.driver is KVM and accelerator.available is False:
            finding, remedy = f"{absence.sentence} ({finding})", absence.remedy
        yield Check(
            label=hypervisor.label,
            outcome=say(accelerator.available, Outcome.GOOD, Outcome.BAD, Outcome.DEGRADED),
            finding=finding,
            remedy=remedy,
        )


def _works(report: NodeReport, hypervisor: Hypervisor) -> str:
    module = report.virtualization.modules.get(hypervisor.type)
    nested = "; the node itself is a VM" if report.virtualization.nested else ""
    return f"works{f', provided by {module}' if module else ''}{nested}"


def _activity(report: NodeReport) -> Iterator[Check]:
    for hypervisor in HYPERVISORS:
        if hypervisor.expected or _hooks(report, *hypervisor.watched_by):
            outcome, finding = _activity_seen(hypervisor, report)
            label = f"{hypervisor.label} activity"
            yield Check(label=label, outcome=outcome, finding=finding)


def _activity_seen(hypervisor: Hypervisor, report: NodeReport) -> tuple[Outcome, str]:
    """Return whether hooks observe which process runs a vCPU, with a sentence that says how."""
    entered = _hooks(report, hypervisor.entry_seen_by)
    if entered and all(status.nothing_to_observe for status in entered):
        absent = f"no {hypervisor.label} module is loaded"
        return Outcome.GOOD, f"not applicable: {absent}; hooks will be attached when one is"
    wanted = _hooks(report, *hypervisor.watched_by)
    attached = [status for status in wanted if status.attached]
    if attached:
        named = " and ".join(f"{status.hook.name} ({status.form})" for status in attached)
        return Outcome.GOOD, f"detected by {named}{_entry_unseen(entered)}{_links_in_use(attached)}"
    if report.health.ledger_error:
        return (
            Outcome.DEGRADED,
            f"only what /proc shows, because BPF is unavailable: {report.health.ledger_error}",
        )
    missing = "; ".join(status.reason or status.hook.name for status in wanted)
    return Outcome.DEGRADED, f"no hook is attached: {missing}"


def _entry_unseen(entered: Sequence[HookStatus]) -> str:
    """Return a clause that says why the entry of a run is not observed; empty: it is."""
    unseen = [status for status in entered if not status.attached]
    if not unseen:
        return ""
    return f", from the first return of KVM_RUN, not at its entry: {unseen[0].reason}"


def _links_in_use(attached: Sequence[HookStatus]) -> str:
    """Return a clause that says why hooks are attached by links; empty: none is."""
    by_link = [status for status in attached if status.by_link]
    return f"; links replace the usual kprobes: {by_link[0].passed_over}" if by_link else ""


def _counters(report: NodeReport) -> Iterator[Check]:
    for counter in counter_states(report.health):
        words = counter.words
        outcome, finding = words.outcome, f"{words.value}: {counter.why}"
        if counter.hook == KVM_EXIT.name and counter.trust is CounterTrust.MISSING:
            outcome, finding = _without_exit_hook(report, outcome, finding, counter.why)
        yield Check(label=counter.label, outcome=outcome, finding=finding, remedy=words.remedy)


def _without_exit_hook(
    report: NodeReport, outcome: Outcome, finding: str, why: str
) -> tuple[Outcome, str]:
    """Return what is known of exits without the hook: KVM's statistics may count them."""
    sources = [process.exits_source for process in report.processes if process.exits_source]
    counted = sources.count(ExitSource.KVM_STATISTICS)
    if not counted:
        return outcome, finding
    if counted == len(sources):
        return Outcome.GOOD, f"counted by KVM's statistics; {why}"
    return outcome, f"counted of {counted} of {len(sources)} VMs, by KVM's statistics; {why}"


def _missed(report: NodeReport) -> Iterator[Check]:
    """Check whether the kernel ran the hooks' programs at every event."""
    missed = missed_runs(report.health)
    if missed is not None:
        yield Check(
            label=MISSED_LABEL,
            outcome=missed.outcome,
            finding=f"{missed.value}: {missed.why}",
            remedy=missed.remedy,
        )


def _processes(report: NodeReport) -> Check:
    label = "new VMM processes"
    if not report.proc_readable:
        return Check(
            label=label,
            outcome=Outcome.BAD,
            finding="the host's /proc cannot be read",
            remedy="run as root; in a container mount it and pass its path with --proc",
        )
    hooks = [status for status in _hooks(report, SCHED_PROCESS_EXEC) if status.attached]
    if hooks:
        return Check(label=label, outcome=Outcome.GOOD, finding=f"reported by {hooks[0].hook.name}")
    return Check(
        label=label,
        outcome=Outcome.DEGRADED,
        finding="no hook reports them: each refresh reads all of /proc",
    )


def _late(report: NodeReport, kernel: KernelFeatures) -> Check:
    outcome, finding, remedy = earlier_vms(report, kernel)
    label = "VMs started before hvprobe"
    return Check(label=label, outcome=outcome, finding=finding, remedy=remedy)


def _permissions(report: NodeReport, kernel: KernelFeatures) -> Check:
    outcome, finding, remedy = permissions(report, kernel)
    return Check(label="permissions", outcome=outcome, finding=finding, remedy=remedy)


def _features(kernel: KernelFeatures) -> Check:
    """Check the kernel features that hvprobe uses.

    It has a substitute for kprobes and for tracefs.
    """
    parts = {
        "KVM": kernel.kvm_device,
        "kprobes": kernel.kprobes,
        "tracefs": kernel.tracefs,
        "BTF (not needed)": kernel.btf,
    }
    finding = ", ".join(f"{name} {'yes' if there else 'no'}" for name, there in parts.items())
    return Check(
        label="kernel features",
        outcome=Outcome.GOOD if kernel.kprobes and kernel.tracefs else Outcome.DEGRADED,
        finding=f"{finding}, lockdown {kernel.lockdown or 'unknown'}",
        remedy=None
        if kernel.tracefs or kernel.lockdown == CONFIDENTIALITY
        else "mount tracefs on /sys/kernel/tracing",
    )


def _names(report: NodeReport) -> Check:
    watch = report.health.vmi_watch
    state = watch_state(watch)
    why = watch_error(watch) if watch else ""
    findings = {
        WatchState.STANDALONE: "libvirt's domain names, <namespace>_<name>; no cluster is used",
        WatchState.CURRENT: "from the API server",
        WatchState.LAST_KNOWN: f"from the API server, as last known: {why}",
        WatchState.UNKNOWN: f"unavailable: no VM can be named: {why}",
    }
    remedy = "or use --standalone to name VMs by libvirt's domain names"
    return Check(
        label="VMI names",
        outcome=state.outcome,
        finding=findings[state],
        remedy=remedy if state is WatchState.UNKNOWN else None,
    )


def _verdicts(report: NodeReport) -> Check:
    """List the VMs that need attention, with the order and emphasis of page and live view."""
    found = subjects(report)
    urgent = [subject for subject in found if subject.severity.urgent]
    counts = Counter(subject.severity for subject in found)
    rest = [
        f"{counts[severity]} {severity.label}"
        for severity in Severity
        if counts[severity] and not severity.urgent
    ]
    parts = [*_named(urgent), *([", ".join(rest)] if rest else [])]
    return Check(
        label="VM verdicts",
        outcome=found[0].severity.outcome if found else Outcome.GOOD,
        finding="; ".join(parts) or "no VM and no VMM process",
        remedy=_remedy(urgent[0]) if urgent else None,
    )


def _named(urgent: Sequence[Subject]) -> list[str]:
    named = [
        f"{subject.severity.label}: {subject.name}{f' ({subject.vmm.tgid})' if subject.vmm else ''}"
        for subject in urgent[:_URGENT_LISTED]
    ]
    more = len(urgent) - _URGENT_LISTED
    return [*named, f"{more} more urgent"] if more > 0 else named


def _remedy(subject: Subject) -> str | None:
    if subject.severity is Severity.FALLBACK and subject.cause is not None:
        return subject.cause.cause.remedy
    return deciding_reason(subject.verdict).remedy
