# SPDX-License-Identifier: Apache-2.0
"""Checks what hvprobe can learn of VMs that were there before it. Pure.

Owns what reading other processes depends on: capabilities, security modules, Yama. Must not read
anything itself.
"""

from probes.host.node import KernelFeatures
from probes.judge.reasons import Outcome, Reason
from probes.report.model import NodeReport

_READ_OTHERS = frozenset({"CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"})
"""Capabilities that reading other users' processes below /proc needs."""
_FROM_NOW_ON = (
    "judged only by what they do from now on: file descriptors and system calls of other users' "
    "processes cannot be read"
)
_NO_ATTACH = 3
"""The value of kernel.yama.ptrace_scope at which no process may trace another one."""


def earlier_vms(report: NodeReport, kernel: KernelFeatures) -> tuple[Outcome, str, str | None]:
    """Return how VMs that started before hvprobe are judged, with the remedy if that is too little.

    Their descriptors need the right to read another process (PTRACE_MODE_READ), and the system
    calls of their threads, like copies of KVM's statistics, the right to trace it
    (PTRACE_MODE_ATTACH).
    """
    if not report.proc_readable or _READ_OTHERS & set(kernel.capabilities_missing):
        return Outcome.DEGRADED, _FROM_NOW_ON, f"give hvprobe {' and '.join(sorted(_READ_OTHERS))}"
    unreadable = sum(
        Reason.FDS_UNREADABLE in process.verdict.reasons for process in report.processes
    )
    if unreadable or not kernel.descriptors_readable:
        who, remedy = _denied_by(kernel)
        which = f" ({unreadable} now)" if unreadable else ""
        return Outcome.DEGRADED, f"{_FROM_NOW_ON}{which}, which {who} denies", remedy
    if not kernel.system_calls_readable:
        return _without_system_calls(kernel)
    finding = "judged by their file descriptors and the system calls of their vCPU threads"
    return Outcome.GOOD, finding, None


def _without_system_calls(kernel: KernelFeatures) -> tuple[Outcome, str, str]:
    who, remedy = _denied_by(kernel)
    if kernel.ptrace_scope is not None and kernel.ptrace_scope >= _NO_ATTACH:
        who = f"kernel.yama.ptrace_scope={kernel.ptrace_scope}"
        remedy = "set it to 2 or less in sysctl.d; it can be lowered only by a reboot of the node"
    finding = (
        "judged by their file descriptors and by what they do from now on; the system calls of "
        f"their vCPU threads and KVM's statistics cannot be read, which {who} denies"
    )
    return Outcome.DEGRADED, finding, remedy


def _denied_by(kernel: KernelFeatures) -> tuple[str, str]:
    """Return who denies reading other processes although the capabilities are there."""
    if kernel.confinement is not None:
        return kernel.confinement.phrase, kernel.confinement.remedy
    return "a security module", "the audit log of the node names the denial"
