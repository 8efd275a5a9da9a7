# SPDX-License-Identifier: Apache-2.0
"""Decides whether the hook at tracepoint kvm_exit is needed. Pure.

Owns which processes need it. Must not choose what counts their exits, nor know how a hook is
attached.
"""

from collections.abc import Mapping

from probes.host.hypervisors import HypervisorType
from probes.judge.exit_counts import ExitAccount, ExitSource
from probes.judge.reasons import Reason
from probes.judge.tracked import TrackedProcess, Tracking

_UNSEEN = frozenset(
    {
        Reason.KVM_RUN_REFUSED,
        Reason.KVM_RUN_RESULT_UNREAD,
        Reason.KVM_RUN_UNHELD,
        Reason.READ_BLOCKED,
        Reason.TOO_MUCH_TO_READ,
        Reason.FDS_UNREADABLE,
        Reason.GUEST_TIME_WITHOUT_FDS,
        Reason.CLAIMS_WITHOUT_FDS,
    }
)
"""Reasons of a process that may run vCPUs which hvprobe cannot see."""


def exit_hook_needed(
    accounts: Mapping[int, ExitAccount], tracking: Tracking, *, entries_are_seen: bool
) -> bool:
    """Return whether the hook at tracepoint kvm_exit is needed.

    It counts the exits of processes that have no statistics. It may also be the only proof that a
    process runs a guest: one whose vCPUs have no statistics or cannot be seen, or one that hides
    its vCPUs and pretends to emulate, where no hook sees every entry of KVM_RUN.
    """
    return any(
        account.source is ExitSource.TRACEPOINT
        if (account := accounts.get(process.vmm.tgid)) is not None
        else _may_run_uncounted(process, entries_are_seen=entries_are_seen)
        for process in tracking.processes
    )


def _may_run_uncounted(process: TrackedProcess, *, entries_are_seen: bool) -> bool:
    """Return whether a process without an account may run a guest that only the hook shows."""
    match process.verdict.type:
        case HypervisorType.KVM:
            return process.statistics < (process.vcpus or 0)
        case HypervisorType.TCG:
            return not entries_are_seen
        case _:
            return not _UNSEEN.isdisjoint(process.verdict.reasons)
