# SPDX-License-Identifier: Apache-2.0
"""EDGE: reads the statistics of one process after another, in a thread that its caller watches.

Owns when a process has held up the thread for too long. A copy of a descriptor may wait for a
process that wants it to (vcpu_statistics). Must not know which processes are wanted, nor what
happens to a process that holds up the thread.
"""

import errno
import threading
import time
from collections.abc import Sequence

from probes.host.kvm_stats import StatisticsReading
from probes.host.statistics_listing import KeptProcess
from probes.host.vcpu_statistics import StatisticsFiles
from probes.host.watched_reads import OVERTIME_S, waits_for_processor

PATIENCE_S = 0.3
"""How long one process may hold up a pass."""
_POLL_S = 0.02

Found = StatisticsReading | int | None
"""A reading; ESRCH: the process has ended; None: its statistics could not be read."""


class StatisticsPass(threading.Thread):
    """Reads one process after another, until there are none, time is over, or it is left behind."""

    def __init__(self, files: StatisticsFiles, todo: Sequence[KeptProcess], until: float) -> None:
        super().__init__(name="hvprobe-statistics", daemon=True)
        self._files = files
        self._todo = todo
        self._until = until
        self._ended = threading.Event()
        self.at = 0
        """Index of the process that is read now."""
        self.given_up = False
        self.found: dict[int, Found] = {}
        """What was found, by tgid."""

    def run(self) -> None:
        """Read until the end."""
        try:
            monotonic, found, until = time.monotonic, self.found, self._until
            for index, kept in enumerate(self._todo):
                self.at = index
                if self.given_up or monotonic() >= until:
                    break
                reading = self._reading(kept)
                if not self.given_up:
                    found[kept.vmm.tgid] = reading
        finally:
            self._ended.set()

    def wait(self) -> bool:
        """Wait for the end; return False as soon as one process has held it up too long.

        Time is counted in polls of the waiting thread: if the entire machine pauses, no process is
        to blame.
        """
        seen, polls = -1, 0
        while not self._ended.wait(_POLL_S):
            polls = polls + 1 if seen == self.at else 0
            seen = self.at
            if polls * _POLL_S >= PATIENCE_S and (
                not waits_for_processor(self) or time.monotonic() >= self._until + OVERTIME_S
            ):
                return False
        return True

    def _reading(self, kept: KeptProcess) -> Found:
        """Read the counts of each vCPU of a process."""
        span, listing = kept.span, kept.listing
        if span is None or listing is None:
            return None
        try:
            parts = self._files.read_each(kept.pidfd, listing.fds, span.size, span.offset)
        except OSError as err:
            return errno.ESRCH if err.errno == errno.ESRCH else None
        counts = span.counts(parts)
        return None if counts is None else StatisticsReading(listing, counts, span.measures)
