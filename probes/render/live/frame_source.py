# SPDX-License-Identifier: Apache-2.0
"""Turns successive reports and exit reasons into the data of frames.

Owns the history of what was shown, and which processes' exits are counted by reason. Must not know
how a report is made, nor how exits are counted.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

from ebpf.errors import BpfUnavailableError
from probes.host.process import VmmId
from probes.host.vcpu_threads import ThreadsReading
from probes.render.live.frame_data import FrameData
from probes.render.live.history import History, Reasons
from probes.render.live.options import Selection
from probes.report.model import NodeReport


class ExitReasons(Protocol):
    """Counts exits by reason (ebpf.exit_reasons.session.ReasonsSession)."""

    def choose(self, tgids: Collection[int]) -> None:
        """Count the exits of these processes from now on, and of no others."""
        ...

    def read(self) -> Reasons:
        """Return the counts of the chosen processes."""
        ...

    @property
    def lost_total(self) -> int:
        """Exits whose reason was dropped because the table was full."""
        ...

    def close(self) -> None:
        """Stop counting, and give back what it took."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """Where the application's data come from."""

    next_data: Callable[[], FrameData]
    """Refreshes and returns the data of the next frame. It is called in a thread, may raise, and
    ends soon after stop()."""
    stop: Callable[[], None]
    """Ends a refresh that is under way; its result is no longer wanted."""
    count_of: Callable[[int | None], None] = lambda _: None
    """Has the exits of one process counted by reason from the next refresh; None: of none."""
    watch: Callable[[VmmId | None], None] = lambda _: None
    """Has the vCPU threads of one process read from the next refresh; None: of none."""


class FrameSource:
    """Makes the data of one frame after another. One thread at a time calls it."""

    def __init__(
        self,
        refresh: Callable[[], NodeReport],
        selection: Selection,
        open_exits: Callable[[], ExitReasons],
        read_threads: Callable[[VmmId], ThreadsReading | None] = lambda _: None,
    ) -> None:
        """Make a source that counts no exits by reason yet, and reads no threads.

        open_exits begins to count them, and raises BpfUnavailableError when that is impossible.
        read_threads reads the vCPU threads of a process.
        """
        self._refresh = refresh
        self._selection = selection
        self._open_exits = open_exits
        self._history = History()
        self._exits: ExitReasons | None = None
        self._counts_all = False
        self._wanted: int | None = None
        self._refused: tuple[int, str] | None = None
        """The process for which counting was impossible, and why."""
        self._read_threads = read_threads
        self._watched: VmmId | None = None
        self._threads: ThreadsReading | None = None
        """What was read last."""

    def count_all(self) -> None:
        """Count the exits of all processes that are shown. Raises BpfUnavailableError."""
        self._exits = self._open_exits()
        self._counts_all = True

    def count_of(self, tgid: int | None) -> None:
        """Have the next frames count the exits of one process; None: of no process.

        Any thread may call it. Without effect where the exits of all processes are counted.
        """
        self._wanted = tgid

    def watch(self, vmm: VmmId | None) -> None:
        """Have the next frames show the vCPU threads of one process; None: of no process.

        Any thread may call it.
        """
        self._watched = vmm

    def __call__(self) -> FrameData:
        """Refresh, and return the data of the next frame."""
        complete = self._refresh()
        report = self._selection.of(complete)
        reasons = self._reasons_of_all(report) if self._counts_all else self._reasons_of_one()
        self._history.add(report, reasons)
        before, watched = self._threads, self._watched
        self._threads = None if watched is None else self._read_threads(watched)
        return FrameData(
            report=report,
            complete=complete,
            history=self._history,
            reasons=reasons,
            reasons_error=self._refused[1] if self._refused else None,
            reasons_lost_total=self._exits.lost_total if self._exits else 0,
            threads=self._threads,
            threads_before=before if before and before.vmm == watched else None,
        )

    def close(self) -> None:
        """Stop counting exits by reason. May be called again."""
        if self._exits is not None:
            self._exits.close()
        self._exits = None

    def _reasons_of_all(self, report: NodeReport) -> Reasons | None:
        if self._exits is None:
            return None
        # Processes chosen by number are counted from now on, even if they are no VMMs yet.
        shown = {process.vmm.tgid for process in report.processes}
        self._exits.choose(shown | self._selection.tgids)
        return self._exits.read()

    def _reasons_of_one(self) -> Reasons | None:
        wanted = self._wanted
        if wanted is None:
            self._refused = None
            self.close()
            return None
        if self._refused is not None and self._refused[0] == wanted:
            return None
        try:
            self._exits = self._exits or self._open_exits()
        except BpfUnavailableError as err:
            self._refused = (wanted, str(err))
            return None
        self._refused = None
        self._exits.choose({wanted})
        return self._exits.read()
