# SPDX-License-Identifier: Apache-2.0
"""Lists what was seen of a process for and against its verdict, each with where. Pure.

Owns what a piece means for the verdict. It is called only for the process that a person asks about.
Must not judge: probes.judge.verdict decides what counts.
"""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from ebpf.hook_status import HookStatus
from probes.host.hypervisors import HypervisorType
from probes.judge.reasons import Reason, Severity
from probes.judge.verdict import Verdict
from probes.report.model import ProcessReport
from probes.report.why_places import place_of
from probes.report.why_seen import Seen, seen_of

_LIMITS = frozenset(
    {
        Reason.KVM_RUN_REFUSED,
        Reason.KVM_RUN_RESULT_UNREAD,
        Reason.TCG_IDLE,
        Reason.HOOKS_MISSING,
        Reason.LEDGER_INCOMPLETE,
        Reason.THREADS_UNSEEN,
        Reason.CAPABILITY_PROBE,
    }
)
"""Reasons that limit what is known. Those of severity UNKNOWN do so as well."""


class Side(StrEnum):
    """What a piece of evidence means for the verdict."""

    FOR = "for"
    AGAINST = "against"
    LIMIT = "limit"
    """It limits what can be known."""
    OPEN = "open"
    """The type is unknown, so the piece is neither for nor against it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One piece of evidence. Its words may hold foreign text."""

    side: Side
    words: str
    where: str
    """Where it was seen: a hook, a file of /proc, KVM's statistics."""
    points_to: tuple[HypervisorType, ...] = ()
    """The types that it suggests; empty: none."""
    reason: Reason | None = None
    """The reason of the verdict that it is; None: the verdict does not name it."""


def pieces(process: ProcessReport, hooks: Collection[HookStatus]) -> tuple[Piece, ...]:
    """Return the evidence about a process: the reasons of its verdict first, then the rest."""
    seen = tuple(seen_of(process))
    verdict, tgid = process.verdict, process.vmm.tgid
    named = {each.reason: each for each in seen if each.reason in verdict.reasons}
    rest = [each for each in seen if each.reason not in verdict.reasons]
    return (
        *(
            _piece_of_reason(reason, named.get(reason), verdict, hooks, tgid)
            for reason in verdict.reasons
        ),
        *(
            Piece(
                side=_side(each, verdict),
                words=_with_detail(each.words, each.detail),
                where=place_of(each.place, tgid=tgid, hooks=hooks, counter=each.counter),
                points_to=each.points_to,
            )
            for each in rest
        ),
    )


def reason_pieces(verdict: Verdict, hooks: Collection[HookStatus]) -> tuple[Piece, ...]:
    """Return the evidence about a VM that has no process: the reasons of its verdict."""
    return tuple(_piece_of_reason(reason, None, verdict, hooks, None) for reason in verdict.reasons)


def _piece_of_reason(
    reason: Reason,
    seen: Seen | None,
    verdict: Verdict,
    hooks: Collection[HookStatus],
    tgid: int | None,
) -> Piece:
    side = Side.FOR
    if reason.severity is Severity.CONTRADICTION:
        side = Side.AGAINST
    elif reason.severity is Severity.UNKNOWN or reason in _LIMITS:
        side = Side.LIMIT
    elif verdict.type is HypervisorType.UNKNOWN:
        side = Side.OPEN
    return Piece(
        side=side,
        words=_with_detail(reason.sentence, seen.detail if seen else ""),
        where=place_of(reason, tgid=tgid, hooks=hooks, counter=seen.counter if seen else None),
        points_to=seen.points_to if seen else (),
        reason=reason,
    )


def _side(seen: Seen, verdict: Verdict) -> Side:
    if verdict.type is HypervisorType.UNKNOWN:
        return Side.OPEN
    if verdict.type in seen.points_to:
        return Side.FOR
    return Side.AGAINST if seen.contradicts else Side.LIMIT


def _with_detail(words: str, detail: str) -> str:
    return f"{words}: {detail}" if detail else words
