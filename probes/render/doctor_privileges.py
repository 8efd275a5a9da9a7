# SPDX-License-Identifier: Apache-2.0
"""Checks what hvprobe's privileges let it learn, and who denies the rest. Pure.

Owns what hooks and reading other processes depend on: capabilities, lockdown, security modules,
Yama. Must not read anything itself.
"""

from ebpf.confinement import CONFIDENTIALITY
from probes.host.node import KernelFeatures
from probes.judge.reasons import Outcome, Reason
from probes.report.model import NodeReport

_READ_OTHERS = frozenset({"CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"})
"""Capabilities that reading other users' processes below /proc needs."""
_FROM_NOW_ON = (
    "judged only by what they do from now on: file descriptors and system calls of other users' "
    "processes cannot be read"
)
_NOT_SEEN = "VMs among {} processes are not seen, because not even their names can be read"
_NO_ATTACH = 3
"""The value of kernel.yama.ptrace_scope at which no process may trace another one."""
_LOWER_SCOPE = "set it to 2 or less in sysctl.d; it can be lowered only by a reboot of the node"


def earlier_vms(report: NodeReport, kernel: KernelFeatures) -> tuple[Outcome, str, str | None]:
    """Return how VMs that started before hvprobe are judged, with the remedy if that is too little.

    Their descriptors need the right to read another process (PTRACE_MODE_READ), and the system
    calls of their threads, like copies of KVM's statistics, the right to trace it
    (PTRACE_MODE_ATTACH).
    """
    if not report.proc_readable or _READ_OTHERS & set(kernel.capabilities_missing):
        return Outcome.DEGRADED, _FROM_NOW_ON, f"give hvprobe {' and '.join(sorted(_READ_OTHERS))}"
    denied = _denied(report)
    if denied:
        who, remedy = "a security module", "the audit log of the node names the denial"
        if kernel.confinement is not None:
            who, remedy = kernel.confinement.phrase, kernel.confinement.remedy
        return Outcome.DEGRADED, f"{denied}, which {who} denies", remedy
    if kernel.ptrace_scope is not None and kernel.ptrace_scope >= _NO_ATTACH:
        finding = (
            "judged by their file descriptors and by what they do from now on; system calls of "
            "their vCPU threads and KVM's statistics cannot be read, which "
            f"kernel.yama.ptrace_scope={kernel.ptrace_scope} denies"
        )
        return Outcome.DEGRADED, finding, _LOWER_SCOPE
    finding = "judged by their file descriptors and the system calls of their vCPU threads"
    return Outcome.GOOD, finding, None


def _denied(report: NodeReport) -> str:
    """Say what cannot be read of other processes; empty: nothing is denied."""
    if report.health.processes_denied:
        return _NOT_SEEN.format(report.health.processes_denied)
    unreadable = sum(
        Reason.FDS_UNREADABLE in process.verdict.reasons for process in report.processes
    )
    return f"{_FROM_NOW_ON} ({unreadable} now)" if unreadable else ""


def permissions(report: NodeReport, kernel: KernelFeatures) -> tuple[Outcome, str, str | None]:
    """Return what is missing of hvprobe's privileges, with the remedy."""
    wrong = [f"{name} is missing" for name in kernel.capabilities_missing]
    remedies = []
    if not kernel.initial_pid_namespace:
        wrong.append("hvprobe runs in a PID namespace of its own")
    if wrong:
        remedies.append("run as root; in a container add the named capabilities and hostPID: true")
    if kernel.lockdown == CONFIDENTIALITY:
        wrong.append("lockdown=confidentiality forbids kprobes and leaves tracefs empty")
        remedies.append("nothing has to be done while KVM activity is detected")
    if wrong:
        return Outcome.DEGRADED, ", ".join(wrong), "; ".join(remedies)
    refused = [status for status in report.health.hooks if status.refused]
    if not refused:
        return Outcome.GOOD, "complete", None
    # Without BPF each hook has the reason that the line about the hypervisor's activity gives.
    if report.health.ledger_error or refused[0].reason is None:
        return (
            Outcome.DEGRADED,
            "incomplete: the kernel denied an operation; see the failing check",
            None,
        )
    names = refused[0].hook.name + (f" and {len(refused) - 1} more" if refused[1:] else "")
    return Outcome.DEGRADED, f"incomplete: not attached: {names}: {refused[0].reason}", None
