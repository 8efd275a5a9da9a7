# SPDX-License-Identifier: Apache-2.0
"""Says how many runs of the hooks' programs the kernel skipped. Pure.

Owns the words and the emphasis that doctor, page and live view share. Must not lay anything out.
"""

from dataclasses import dataclass

from probes.judge.reasons import Outcome
from probes.report.model import ProbeHealth

MISSED_LABEL = "missed runs"


@dataclass(frozen=True, slots=True, kw_only=True)
class MissedRuns:
    """Runs that the kernel skipped, of all hooks together."""

    total: int | None
    """Their number since hvprobe started; None: this kernel does not count them."""
    value: str
    why: str
    """What follows from the value, or why there is none, as a clause."""
    outcome: Outcome = Outcome.GOOD
    remedy: str | None = None


def missed_runs(health: ProbeHealth) -> MissedRuns | None:
    """Return the runs that were missed; None: there is no ledger, so there are no programs."""
    if health.ledger_error is not None:
        return None
    counted = {
        status.hook.name: status.missed_total
        for status in health.hooks
        if status.missed_total is not None
    }
    if not counted:
        return MissedRuns(total=None, value="unknown", why="this kernel does not count them")
    total = sum(counted.values())
    if not total:
        return MissedRuns(
            total=0, value="none", why="the kernel skipped no run of a hook's program"
        )
    named = ", ".join(f"{hook} {missed}" for hook, missed in counted.items() if missed)
    return MissedRuns(
        total=total,
        value=str(total),
        why=f"the kernel skipped runs, so what these hooks count is too low: {named}",
        outcome=Outcome.DEGRADED,
        remedy="find the program on this node that makes many calls on BPF maps (bpftool prog)",
    )
