# SPDX-License-Identifier: Apache-2.0
"""Explains one VM or process of a report: everything that is known about it, as one value. Pure.

Owns what belongs to an explanation, how a VM is found by name or process, and which names are
nearest to one that is not there. It is called only when a person asks. Must not lay anything out.
"""

import difflib
import heapq
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from probes.host.cgroup import PodUid
from probes.host.process import VmmId
from probes.judge.cause import CauseFound
from probes.judge.reasons import Severity
from probes.judge.verdict import Verdict
from probes.report.model import NodeReport, ProcessReport, ProcessState, VmiReport
from probes.report.vocabulary import full_name, severity_of, watch_error
from probes.report.why_evidence import Piece, pieces, reason_pieces
from probes.vmi.attribution import VmName, valid_vm_name, vm_name

WHY_SCHEMA = "hvprobe-why/v1"
MAX_OTHERS = 8
"""The most processes of a VM that are explained beside the one that runs it."""
MAX_NEAREST = 3
TGID_MAX = 1 << 22
"""The highest process number of Linux (include/linux/threads.h, PID_MAX_LIMIT)."""
_COMPARED = 32
"""How many names are compared thoroughly, which takes a millisecond for long ones."""
_PID = re.compile(r"0*([1-9][0-9]{0,6})", re.ASCII)

Subject = VmName | int
"""What a person asks about: a VM by its name, or a process by its number."""


class Attributed(StrEnum):
    """How a process was found to be a VM."""

    DOMAIN_NAME = "libvirt_domain_name"
    """By libvirt's domain name on its command line, without a cluster."""
    POD = "pod_uid"
    """By the pod in whose cgroup it is, which the VMI lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessExplanation:
    """One process that belongs to what was asked about."""

    process: ProcessReport
    is_main: bool
    """Whether the explanation's verdict is that of this process."""
    evidence: tuple[Piece, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Everything that is known about one VM, or about a process that is no VM."""

    report: NodeReport
    """The report that it is taken from."""
    vm: VmName | None
    """None: it is about a process that runs no VM with a name here."""
    vmi: VmiReport | None
    """The VM's part of the report."""
    tgid: int | None
    """The process; None: none was found for the VM."""
    verdict: Verdict
    severity: Severity
    fallback: bool | None
    cause: CauseFound | None
    evidence: tuple[Piece, ...]
    """The evidence about a VM without a process; empty: its processes have it."""
    processes: tuple[ProcessExplanation, ...]
    """The process that runs the VM first, then others of the VM, at most MAX_OTHERS."""
    others_left_out: int
    attributed: Attributed | None
    """How the process was found to be the VM; None: it runs none."""
    pods: tuple[PodUid, ...]
    """The VM's pods on this node, by the API server."""
    pod_of: VmName | None
    """The VM in whose pod the process is, without being that VM."""

    @property
    def title(self) -> str:
        """``namespace/name``, or the process."""
        return full_name(self.vm) if self.vm is not None else f"process {self.tgid}"


def parse_subject(text: str) -> Subject | None:
    """Parse ``NAMESPACE/NAME`` or a process number; None: it is neither."""
    number = _PID.fullmatch(text)
    if number is not None:
        tgid = int(number[1])
        return tgid if tgid <= TGID_MAX else None
    namespace, slash, name = text.partition("/")
    return valid_vm_name(namespace, name) if slash else None


def explain(report: NodeReport, subject: Subject) -> Explanation | None:
    """Explain a VM or a process; None: the report has none of this name or number.

    The number of the process that runs a VM explains the VM.
    """
    if isinstance(subject, VmName):
        vmi = next((each for each in report.vmis if each.vm == subject), None)
        return None if vmi is None else _of_vmi(report, vmi)
    process = next((each for each in report.processes if each.vmm.tgid == subject), None)
    if process is None:
        return None
    vmi = next((each for each in report.vmis if each.vmm == process.vmm), None)
    return _of_process(report, process) if vmi is None else _of_vmi(report, vmi)


def names_are_known(report: NodeReport) -> bool:
    """Whether the VMs of a report are all that run there: not before the API server answers."""
    watch = report.health.vmi_watch
    return watch is None or watch.synced


def absence(report: NodeReport, subject: Subject) -> str:
    """Say in one line that a report has no such VM or process, with the nearest names."""
    if not isinstance(subject, VmName):
        line = f"process {subject} is no VMM on node {report.node}"
        if report.health.processes_denied:
            return f"{line} that may be read; hvprobe doctor says what denies reading others"
        if report.health.processes_pending:
            return f"{line}, as far as its processes are read; try again, not all are"
        return (
            f"{line}: it has ended, or it is no QEMU and uses no accelerator; hvprobe live lists "
            "all that are"
        )
    watch = report.health.vmi_watch
    if watch is not None and not names_are_known(report):
        return (
            f"the VMs of node {report.node} are unknown: {watch_error(watch)}; give a process ID, "
            "or use --standalone"
        )
    found = nearest(subject, (vmi.vm for vmi in report.vmis))
    names = ", ".join(full_name(vm) for vm in found)
    there = f"the nearest names are {names}" if names else "no VM here has a similar name"
    return f"no VM {full_name(subject)} runs on node {report.node}; {there}"


def nearest(wanted: VmName, names: Iterable[VmName]) -> tuple[VmName, ...]:
    """Return the names that resemble one most, at most MAX_NEAREST.

    The same name in another namespace comes first, because a wrong namespace is the usual mistake.
    """
    names = tuple(names)
    same = [vm for vm in names if vm.name == wanted.name]
    text, by_text = full_name(wanted), {full_name(vm): vm for vm in names if vm.name != wanted.name}
    compared = heapq.nlargest(_COMPARED, by_text, key=lambda other: _in_common(text, other))
    similar = difflib.get_close_matches(text, compared, n=MAX_NEAREST)
    return (*same, *(by_text[other] for other in similar))[:MAX_NEAREST]


def _in_common(text: str, other: str) -> int:
    """Return how many characters two texts have in common at their beginnings and ends."""
    shorter = min(len(text), len(other))
    both = ((text, other), (text[::-1], other[::-1]))
    return sum(
        next((at for at, (one, two) in enumerate(zip(*pair, strict=False)) if one != two), shorter)
        for pair in both
    )


def _of_vmi(report: NodeReport, vmi: VmiReport) -> Explanation:
    own = [process for process in report.processes if process.vmm == vmi.vmm]
    others = list(_others(report, vmi))
    return Explanation(
        report=report,
        vm=vmi.vm,
        vmi=vmi,
        tgid=vmi.vmm.tgid if vmi.vmm else None,
        verdict=vmi.verdict,
        severity=severity_of(vmi.verdict, fallback=vmi.fallback),
        fallback=vmi.fallback,
        cause=vmi.cause,
        evidence=() if own else reason_pieces(vmi.verdict, report.health.hooks),
        processes=_explained(report, [*own, *others[:MAX_OTHERS]], vmi.vmm),
        others_left_out=max(len(others) - MAX_OTHERS, 0),
        attributed=_attributed(report) if own else None,
        pods=vmi.pods,
        pod_of=None,
    )


def _of_process(report: NodeReport, process: ProcessReport) -> Explanation:
    """Explain a process that runs no VM with a name here."""
    uid = _pod_uid(process)
    near = next((vmi.vm for vmi in report.vmis if uid is not None and uid in vmi.pods), None)
    return Explanation(
        report=report,
        vm=None,
        vmi=None,
        tgid=process.vmm.tgid,
        verdict=process.verdict,
        severity=severity_of(
            process.verdict, fallback=None, probe=process.state is ProcessState.PROBE
        ),
        fallback=None,
        cause=process.cause,
        evidence=(),
        processes=_explained(report, [process], process.vmm),
        others_left_out=0,
        attributed=None,
        pods=(),
        pod_of=near,
    )


def _explained(
    report: NodeReport, processes: Iterable[ProcessReport], main: VmmId | None
) -> tuple[ProcessExplanation, ...]:
    return tuple(
        ProcessExplanation(
            process=process,
            is_main=process.vmm == main,
            evidence=pieces(process, report.health.hooks),
        )
        for process in processes
    )


def _others(report: NodeReport, vmi: VmiReport) -> Iterator[ProcessReport]:
    """Yield the other processes in the VM's pods, or those with its name where there is none."""
    in_cluster = report.health.vmi_watch is not None
    for process in report.processes:
        if process.vmm == vmi.vmm:
            continue
        if in_cluster:
            belongs = _pod_uid(process) in vmi.pods
        else:
            belongs = vm_name(process.guest_name) == vmi.vm
        if belongs:
            yield process


def _pod_uid(process: ProcessReport) -> PodUid | None:
    pod = process.tracked.pod if process.tracked else None
    return pod.uid if pod else None


def _attributed(report: NodeReport) -> Attributed:
    return Attributed.DOMAIN_NAME if report.health.vmi_watch is None else Attributed.POD
