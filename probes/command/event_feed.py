# SPDX-License-Identifier: Apache-2.0
"""Hands what is new in each report to the writer of Events.

Owns the history of one agent. Must not know what makes an event (emulation_events.py), nor how one
is written.
"""

import logging
import time
from collections.abc import Callable

from probes.report.emulation_events import EmulationHistory
from probes.report.model import NodeReport
from probes.vmi.event import VmiEvent

log = logging.getLogger(__name__)


class EventFeed:
    """Refreshes a report, and hands over the events that it makes. Not for use by two threads."""

    def __init__(
        self,
        refresh: Callable[[], NodeReport],
        write: Callable[[VmiEvent], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take reports from refresh(). write() must not wait."""
        self._refresh = refresh
        self._write = write
        self._clock = clock
        self._history = EmulationHistory()
        self._broken = False

    def refresh(self) -> NodeReport:
        """Return a new report. A defect in what makes events never costs one."""
        report = self._refresh()
        if not self._broken:
            try:
                self._follow(report)
            except Exception:  # a report is worth more than an event
                self._broken = True
                log.exception("from now on no Events are written, because of a defect in hvprobe")
        return report

    def _follow(self, report: NodeReport) -> None:
        self._history, events = self._history.after(report, self._clock())
        for event in events:
            self._write(event)
