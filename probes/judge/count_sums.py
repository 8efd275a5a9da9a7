# SPDX-License-Identifier: Apache-2.0
"""Calculates with the counts of vCPUs. Pure.

Owns what it means that a count has grown, or has begun again. Must not know which vCPUs there are:
exit_counts.py does. All counts of a process have the same length.
"""

import operator
from collections.abc import Sequence

Counts = tuple[int, ...]
"""The counts of one vCPU, or totals of a process, in the order in which they are wanted: the exits
come first."""


def grew(before: Sequence[Counts], now: Sequence[Counts]) -> bool:
    """Return whether no count of any vCPU is lower than before."""
    if len(now) == 1 == len(now[0]):  # much faster, and usual: the exits of a VM of one vCPU
        return now[0] >= before[0]
    return all(
        all(map(operator.ge, later, earlier)) for earlier, later in zip(before, now, strict=True)
    )


def begun_again(before: Counts, now: Counts) -> Counts:
    """Return what the counts that have begun again were before, and 0 for the others.

    If the exits of a vCPU have begun again, it is a new vCPU, and so have all its counts. Any other
    count can begin again alone: root may clear one statistic through debugfs (virt/kvm/kvm_main.c,
    kvm_stat_data_clear and vcpu_stat_clear).
    """
    if now[0] < before[0]:
        return before
    return tuple(
        earlier if later < earlier else 0 for earlier, later in zip(before, now, strict=True)
    )


def added(total: Counts, *more: Counts) -> Counts:
    """Return the sum of each count."""
    if len(more) == 1:  # much faster, and usual: a VM of one vCPU
        one = more[0]
        return (total[0] + one[0],) if len(total) == 1 else tuple(map(operator.add, total, one))
    return tuple(map(sum, zip(total, *more, strict=True)))


def subtracted(one: Counts, other: Counts) -> Counts:
    """Return each count of one less that of the other."""
    return tuple(map(operator.sub, one, other))
