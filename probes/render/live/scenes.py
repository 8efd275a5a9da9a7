# SPDX-License-Identifier: Apache-2.0
"""Reports and exit reasons, one after the other → scenes of the live view.

Owns the history of what was shown, and which processes' exits are counted by reason. Must not know
how a report is made, nor how exits are counted.
"""

from collections.abc import Callable, Collection
from typing import Protocol

from probes.render.live.frames import Scene
from probes.render.live.history import History, Reasons
from probes.render.live.options import Selection
from probes.report.model import NodeReport


class ExitReasons(Protocol):
    """Exits counted by reason (ebpf.exit_reasons.session.ReasonsSession)."""

    def choose(self, tgids: Collection[int]) -> None:
        """Count the exits of these processes from now on, and of no others."""
        ...

    def read(self) -> Reasons:
        """The counts of the chosen processes."""
        ...

    @property
    def lost_total(self) -> int:
        """Exits whose reason found no room."""
        ...


def scenes(
    look: Callable[[], NodeReport], selection: Selection, exits: ExitReasons | None
) -> Callable[[], Scene]:
    """A function that makes the next scene. exits: None where exit reasons are not wanted."""
    history = History()

    def next_scene() -> Scene:
        report = selection.of(look())
        reasons = None
        if exits is not None:
            # Those chosen by number are counted from now on, whatever they are yet.
            exits.choose({process.vmm.tgid for process in report.processes} | selection.tgids)
            reasons = exits.read()
        history.add(report, reasons)
        return Scene(
            report=report,
            history=history,
            reasons=reasons,
            reasons_lost_total=exits.lost_total if exits else 0,
        )

    return next_scene
