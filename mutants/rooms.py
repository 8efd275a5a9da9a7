# SPDX-License-Identifier: Apache-2.0
"""The pure rooms that are mutated, and for each the tests that have to notice."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """One module and its tests."""

    module: str
    tests: tuple[str, ...]


def _room(module: str, *tests: str) -> Room:
    return Room(module=module, tests=tuple(f"tests/unit/test_{name}.py" for name in tests))


ROOMS: Mapping[str, Room] = {
    "evidence": _room("probes/judge/evidence.py", "evidence", "verdict"),
    "verdict": _room("probes/judge/verdict.py", "verdict"),
    "emulation_tracker": _room("probes/judge/emulation_tracker.py", "emulation_tracker"),
    "cause": _room("probes/judge/cause.py", "cause"),
    "attribution": _room("probes/vmi/attribution.py", "attribution", "attribution_pods"),
    "changes": _room("probes/judge/changes.py", "changes", "tracker"),
    "builder": _room("probes/report/builder.py", "builder", "collector", "tracker"),
    "hook_history": _room("probes/report/hook_history.py", "hook_history", "collector"),
    "exit_counts": _room("probes/judge/exit_counts.py", "exit_counts", "exit_collector"),
    "tracker": _room("probes/judge/tracker.py", "tracker", "collector"),
    "cgroup": _room("probes/host/cgroup.py", "cgroup"),
    "vmi": _room("probes/vmi/kube/vmi_object.py", "vmi"),
    "emulation_events": _room("probes/report/emulation_events.py", "emulation_events"),
    "event_queue": _room("probes/vmi/kube/event_queue.py", "event_queue"),
    "emulation": _room("probes/host/emulation.py", "emulation", "emulation_facts"),
    "procfs": _room("probes/host/procfs.py", "procfs"),
    "hooks": _room("ebpf/hooks.py", "hooks"),
    "hook_status": _room("ebpf/hook_status.py", "hooks"),
    "ledger": _room("ebpf/ledger.py", "ledger", "tables"),
    "timing": _room("probes/vmi/kube/timing.py", "kube_timing"),
}
"""By the name that ``make mutants ARGS=...`` takes."""
