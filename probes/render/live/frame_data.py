# SPDX-License-Identifier: Apache-2.0
"""Defines what a frame is made of, and what it must fit into. Pure values."""

from dataclasses import dataclass

from probes.host.vcpu_threads import ThreadsReading
from probes.render.live.history import History, Reasons
from probes.report.model import NodeReport


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameData:
    """Everything that a frame shows."""

    report: NodeReport
    """The report, reduced to what was selected."""
    history: History
    reasons: Reasons | None = None
    """Exit reasons by tgid; None: not requested."""
    complete: NodeReport | None = None
    """The report before it was reduced; None: nothing was left out."""
    reasons_error: str | None = None
    """Why exits are not counted by reason although the user wants it; None: no error."""
    reasons_lost_total: int = 0
    """Exits whose reason was dropped because the table was full."""
    threads: ThreadsReading | None = None
    """The vCPU threads of the VM whose screen is open; None: they were not read."""
    threads_before: ThreadsReading | None = None
    """The same of the refresh before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TerminalSize:
    """The size and the abilities of the terminal."""

    width: int
    height: int
    ascii_only: bool = False
