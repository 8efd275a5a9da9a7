# SPDX-License-Identifier: Apache-2.0
"""EDGE: reads the statistics of one process after another, in a thread that its caller watches.

Owns when a process has held up the thread for too long: the thread is left behind, and another one
continues with the next process. A copy of a descriptor may wait for a process that wants it to
(vcpu_statistics). Must not know which processes are wanted.
"""

import errno
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from probes.host.kvm_stats import StatisticsReading
from probes.host.statistics_listing import ReadableProcess
from probes.host.vcpu_statistics import StatisticsFiles
from probes.host.watched_reads import OVERTIME_S, waits_for_processor

MAX_STUCK = 64
"""The most threads that are left behind at a time. With more, nothing is read."""
PATIENCE_S = 0.3
"""How long one process may hold up a pass."""
_POLL_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What passes have found."""

    readings: dict[int, StatisticsReading] = field(default_factory=dict)
    """The readings by tgid."""
    unread: dict[int, bool] = field(default_factory=dict)
    """The tgids whose statistics a pass could not read, and whether the process has ended."""

    def take(self, later: Self) -> None:
        """Take over what a later pass has found, even while its thread may still add to it."""
        self.readings.update(later.readings)
        self.unread.update(later.unread)


class StatisticsPass(threading.Thread):
    """Reads one process after another, until there are none, time is over, or it is left behind."""

    def __init__(
        self, files: StatisticsFiles, todo: Sequence[ReadableProcess], until: float
    ) -> None:
        super().__init__(name="hvprobe-statistics", daemon=True)
        self._files = files
        self._todo = todo
        self._until = until
        self._ended = threading.Event()
        self.at = 0
        """Index of the process that is read now."""
        self.given_up = False
        self.found = Found()

    def run(self) -> None:
        """Read until the end."""
        try:
            self._read()
        finally:
            self._ended.set()

    def _read(self) -> None:
        # One loop, without calls and attributes that can be spared: it runs for every VM.
        monotonic, read_each, until = time.monotonic, self._files.read_each, self._until
        readings, unread = self.found.readings, self.found.unread
        for index, (tgid, pidfd, listing, span, _) in enumerate(self._todo):
            self.at = index
            if monotonic() >= until:
                break
            counts, ended = None, False
            if pidfd is None:
                unread[tgid] = ended
                continue
            try:
                counts = span.counts(read_each(pidfd, listing.fds, span.size, span.offset))
            except OSError as err:
                ended = err.errno == errno.ESRCH
            if self.given_up:
                break
            if counts is None:
                unread[tgid] = ended
            else:
                readings[tgid] = StatisticsReading(listing, counts, span.measures)

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


class Passes:
    """Reads processes in passes, and knows those that hold up a thread."""

    def __init__(self, files: StatisticsFiles) -> None:
        self._files = files
        self._stuck: list[tuple[StatisticsPass, int]] = []
        """The passes that were left behind, each with the process that it is at."""

    def held(self) -> frozenset[int]:
        """Return the processes that hold up a thread, which is still waiting for them."""
        self._stuck = [(stuck, tgid) for stuck, tgid in self._stuck if stuck.is_alive()]
        return frozenset(tgid for _, tgid in self._stuck)

    def run(self, todo: Sequence[ReadableProcess], until: float) -> Found:
        """Read these processes, and leave behind a thread that makes no progress."""
        found = Found()
        while todo and len(self._stuck) < MAX_STUCK:
            turn = StatisticsPass(self._files, todo, until)
            turn.start()
            if turn.wait():
                found.take(turn.found)
                break
            turn.given_up = True
            tgid = todo[turn.at].tgid
            found.take(turn.found)
            found.unread[tgid] = False
            self._stuck.append((turn, tgid))
            todo = todo[turn.at + 1 :]
        return found
