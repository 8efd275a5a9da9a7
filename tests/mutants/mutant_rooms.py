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
    "evidence": _room("probes/evidence.py", "evidence", "verdict"),
    "verdict": _room("probes/verdict.py", "verdict"),
    "identity": _room("probes/identity.py", "identity", "identity_pods"),
    "changes": _room("probes/changes.py", "changes", "tracker"),
    "assemble": _room("probes/assemble.py", "assemble", "observer", "tracker"),
    "tracker": _room("probes/tracker.py", "tracker", "observer"),
    "cgroup": _room("probes/cgroup.py", "cgroup"),
    "vmi": _room("probes/vmi.py", "vmi"),
    "procfs": _room("probes/procfs.py", "procfs"),
    "hooks": _room("ebpf/hooks.py", "hooks"),
    "ledger": _room("ebpf/ledger.py", "ledger", "tables"),
    "timing": _room("probes/kube/timing.py", "kube_timing"),
}
"""By the name that ``make mutants ARGS=...`` takes."""
