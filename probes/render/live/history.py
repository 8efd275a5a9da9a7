# SPDX-License-Identifier: Apache-2.0
"""Remembers the last minute of each process's counters and computes rates. Pure.

Owns which reports are compared. Must not know how rates are shown.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from ebpf import counters
from ebpf.exit_reasons.reasons import ReasonCount
from probes.host.process import VmmId
from probes.render.rates import per_second, rates_of
from probes.report.model import NodeReport, ProcessReport, VcpuStatistics

MINUTE_S = 60.0
STEP_S = 1.0
"""Length of the steps in which rates of the last minute are kept, however often reports arrive."""

GUEST_CPU = "guest CPU"
"""Name of the rate of CPU time in guest code, in seconds per second."""

Reasons = Mapping[int, tuple[ReasonCount, ...]]
"""Exit reasons by tgid; a process that was not requested is absent."""


Rates = Mapping[str, float]
"""Events per second between the last two reports, by the counter's name.

Absent: the counter has not counted, or only one report has it.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasonRate:
    """A reason with its rate; per_second None: observed only once."""

    count: ReasonCount
    per_second: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sample:
    """One process in one report."""

    at_s: float
    counters: Mapping[str, int]
    statistics: VcpuStatistics | None

    @property
    def requested(self) -> Mapping[str, float]:
        """What was read on request, by its name."""
        if self.statistics is None:
            return {}
        guest_cpu_s = self.statistics.guest_cpu_s
        more = {} if guest_cpu_s is None else {GUEST_CPU: guest_cpu_s}
        return {**self.statistics.counts, **more}

    @property
    def activity(self) -> str | None:
        """Name of the counter from which the last minute is drawn; None: no such counter counts."""
        return most_telling(self.counters)


@dataclass(slots=True, kw_only=True)
class _Past:
    """What is remembered about one process."""

    now: _Sample
    before: _Sample | None = None
    steps: deque[tuple[float, float]] = field(default_factory=deque)
    """(time, rate) of each step of the last minute."""
    step_began: _Sample


def most_telling(counted: Mapping[str, object]) -> str | None:
    """Return the name of the counter that best shows a guest's activity; None: none has counted."""
    for counter in counters.ranked():
        if counter.shows_activity and counter.name in counted:
            return counter.name
    return None


class History:
    """Remembers reports and returns rates after each add()."""

    def __init__(self) -> None:
        self._processes: dict[VmmId, _Past] = {}
        self._at_s = 0.0
        self._began_s: float | None = None
        self._reasons: Reasons = {}
        self._reasons_before: dict[tuple[int, str, int, str], int] = {}
        self._reasons_elapsed_s: float | None = None

    def add(self, report: NodeReport, reasons: Reasons | None = None) -> None:
        """Add the next report and forget the processes that have ended."""
        elapsed_s = report.taken_unix_s - self._at_s if self._began_s is not None else None
        self._at_s = report.taken_unix_s
        if self._began_s is None:
            self._began_s = self._at_s
        self._processes = {process.vmm: self._past(process) for process in report.processes}
        self._reasons_before = {
            (tgid, count.isa, count.code, count.name): count.total
            for tgid, counts in self._reasons.items()
            for count in counts
        }
        self._reasons = reasons or {}
        self._reasons_elapsed_s = elapsed_s

    def rates(self, vmm: VmmId) -> Rates:
        """Return the rates between the last two reports."""
        past = self._processes.get(vmm)
        if past is None or past.before is None:
            return {}
        now, before = past.now, past.before
        return rates_of(before.counters, now.counters, now.at_s - before.at_s)

    def statistics_rates(self, vmm: VmmId) -> Rates:
        """Return the rates of what was read on request, by its name, also of GUEST_CPU."""
        past = self._processes.get(vmm)
        if past is None or past.before is None:
            return {}
        now, before = past.now, past.before
        return rates_of(before.requested, now.requested, now.at_s - before.at_s)

    def minute(self, vmm: VmmId, parts: int) -> tuple[float | None, ...]:
        """Return the mean activity in each part of the last minute, the oldest part first.

        Activity is the rate of the counter that ``most_telling`` returns. None: there was no report
        in that part.
        """
        past = self._processes.get(vmm)
        sums, seen = [0.0] * parts, [0] * parts
        # A copy, because a refresh in another thread may add to the original now.
        for at_s, rate in tuple(past.steps) if past else ():
            part = int((at_s - (self._at_s - MINUTE_S)) / MINUTE_S * parts - 1e-9)
            if 0 <= part < parts:
                sums[part] += rate
                seen[part] += 1
        return tuple(sums[i] / seen[i] if seen[i] else None for i in range(parts))

    def reasons(self, tgid: int) -> tuple[ReasonRate, ...]:
        """Return the exits of one process by reason, the most frequent first."""
        return tuple(
            ReasonRate(count=count, per_second=self._reason_rate(tgid, count))
            for count in self._reasons.get(tgid, ())
        )

    def _reason_rate(self, tgid: int, count: ReasonCount) -> float | None:
        before = self._reasons_before.get((tgid, count.isa, count.code, count.name), 0)
        if not self._reasons_elapsed_s or self._reasons_elapsed_s <= 0:
            return None
        return max(count.total - before, 0) / self._reasons_elapsed_s

    def _past(self, process: ProcessReport) -> _Past:
        sample = _Sample(
            at_s=self._at_s, counters=process.counters, statistics=process.vcpu_statistics
        )
        past = self._processes.get(process.vmm)
        if past is None:
            return _Past(now=sample, step_began=sample)
        past.before, past.now = past.now, sample
        seconds = sample.at_s - past.step_began.at_s
        if seconds >= STEP_S * 0.95:
            name = sample.activity
            if name is not None and name == past.step_began.activity:
                before, now = past.step_began.counters[name], sample.counters[name]
                rate = per_second(before, now, seconds)
                past.steps.extend([] if rate is None else [(sample.at_s, rate)])
            past.step_began = sample
        while past.steps and past.steps[0][0] <= sample.at_s - MINUTE_S:
            past.steps.popleft()
        return past
