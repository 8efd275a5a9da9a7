# SPDX-License-Identifier: Apache-2.0
"""Computes a rate from two totals of a counter. Pure.

Owns when there is a rate at all. Must not know what is counted.
"""

from collections.abc import Mapping

from probes.report.model import NodeReport
from probes.vmi.attribution import VmName


def rates_by_vm(
    report: NodeReport, previous: NodeReport | None
) -> dict[VmName, Mapping[str, float]]:
    """Return rates by VM, between two reports.

    A VM that was restarted between the reports is a different process, so it has no rate.
    """
    if previous is None:
        return {}
    seconds = report.taken_unix_s - previous.taken_unix_s
    before = {vmi.vm: vmi for vmi in previous.vmis}
    return {
        vmi.vm: rates_of(old.counters, vmi.counters, seconds)
        for vmi in report.vmis
        if (old := before.get(vmi.vm)) is not None and old.vmm == vmi.vmm
    }


def rates_of(
    before: Mapping[str, float], now: Mapping[str, float], seconds: float
) -> dict[str, float]:
    """Return events per second by the counter's name, without counters that have no rate."""
    rates: dict[str, float] = {}
    for name, total in now.items():
        rate = per_second(before.get(name), total, seconds)
        if rate is not None:
            rates[name] = rate
    return rates


def per_second(before: float | None, now: float | None, seconds: float) -> float | None:
    """Return events per second between two readings; None: there is no rate.

    There is none if a total is missing, if no time has passed (the clock was set), or if the total
    decreased because the hook was attached again or the process was replaced.
    """
    if before is None or now is None or seconds <= 0 or now < before:
        return None
    return (now - before) / seconds
