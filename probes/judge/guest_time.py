# SPDX-License-Identifier: Apache-2.0
"""Follows the CPU time that processes spend in guest code. Pure.

Owns what a reading of the kernel's accounts is worth. Must not read anything.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from probes.host.process import VmmId


class GuestTime(NamedTuple):
    """The guest time of one process, as far as it is known."""

    vmm: VmmId
    highest_s: float
    """The most that was ever read."""
    now_s: float | None
    """What a report says now; None: it is unreadable now."""


def guest_times_after(
    before: Mapping[int, GuestTime], vmms: Iterable[VmmId], readings: Mapping[int, float]
) -> dict[int, GuestTime]:
    """Return the guest times of these processes by tgid after a reading, in seconds by tgid.

    No time falls while its process lives: the kernel adds up the times of living and ended threads
    while they end. A 0 proves nothing, because a kernel may not account guest time at all (kvm_pvm
    does not).
    """
    after: dict[int, GuestTime] = {}
    for vmm in vmms:
        old = before.get(vmm.tgid)
        highest_s = old.highest_s if old is not None and old.vmm == vmm else 0.0
        read_s = readings.get(vmm.tgid)
        highest_s = max(highest_s, read_s or 0.0)
        if highest_s:
            after[vmm.tgid] = GuestTime(vmm, highest_s, None if read_s is None else highest_s)
    return after
