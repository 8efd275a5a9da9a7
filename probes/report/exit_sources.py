# SPDX-License-Identifier: Apache-2.0
"""Defines the words for what counts the VM exits of processes, which all outputs share. Pure.

Owns the words. Must not choose a source: probes.judge.exit_counts does that.
"""

import collections
from collections.abc import Mapping

from ebpf.hooks import KVM_EXIT
from probes.judge.exit_counts import ExitSource
from probes.report.model import NodeReport

EXIT_SOURCES: Mapping[ExitSource, str] = {
    ExitSource.KVM_STATISTICS: "KVM's statistics",
    ExitSource.TRACEPOINT: f"the hook {KVM_EXIT.name}",
}
"""The words for what counts the exits of a process."""


def exit_sources(report: NodeReport) -> str | None:
    """Say what counts the exits of the processes of a report; None: none of them has a source."""
    found = collections.Counter(
        process.exits_source for process in report.processes if process.exits_source is not None
    )
    words = dict(EXIT_SOURCES)
    if not any(hook.attached for hook in report.health.hooks if hook.is_of(KVM_EXIT)):
        words[ExitSource.TRACEPOINT] += ", which is not attached"
    if len(found) < 2:
        return next((words[source] for source in found), None)
    return ", ".join(
        f"{said} ({found[source]} of {found.total()})" for source, said in words.items()
    )


def statistics_count_all(report: NodeReport) -> bool:
    """Return whether KVM's statistics count the exits of all processes that have a source."""
    sources = {process.exits_source for process in report.processes} - {None}
    return sources == {ExitSource.KVM_STATISTICS}
