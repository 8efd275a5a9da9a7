# SPDX-License-Identifier: Apache-2.0
"""Turns successive reports and exit reasons into the data of frames.

Owns the history of what was shown, and which processes' exits are counted by reason. Must not know
how a report is made, nor how exits are counted.
"""

from collections.abc import Callable, Collection
from typing import Protocol

from probes.render.live.frames import FrameData
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


def frame_source(
    refresh: Callable[[], NodeReport], selection: Selection, exits: ExitReasons | None
) -> Callable[[], FrameData]:
    """Return a function that makes the data of the next frame.

    exits is None where exit reasons are not wanted.
    """
    history = History()

    def next_frame_data() -> FrameData:
        report = selection.of(refresh())
        reasons = None
        if exits is not None:
            # Processes chosen by number are counted from now on, even if they are no VMMs yet.
            exits.choose({process.vmm.tgid for process in report.processes} | selection.tgids)
            reasons = exits.read()
        history.add(report, reasons)
        return FrameData(
            report=report,
            history=history,
            reasons=reasons,
            reasons_lost_total=exits.lost_total if exits else 0,
        )

    return next_frame_data
