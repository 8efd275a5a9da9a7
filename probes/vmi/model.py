# SPDX-License-Identifier: Apache-2.0
"""Holds what hvprobe keeps of a VirtualMachineInstance, and the index of those on this node.

Pure. Owns what is kept of a VMI, the immutable snapshot that attribution reads, and the status of
the watch that maintains it. Must not know the API's JSON (kube/vmi_object.py), HTTP, threads or
processes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from probes.host.cgroup import PodUid


class VmiPhase(Enum):
    """status.phase. A phase that this version does not know counts as UNKNOWN, never as RUNNING."""

    UNSET = ""
    PENDING = "Pending"
    SCHEDULING = "Scheduling"
    SCHEDULED = "Scheduled"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    WAITING_FOR_SYNC = "WaitingForSync"
    UNKNOWN = "Unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Vmi:
    """One VirtualMachineInstance, as the API server last reported it."""

    namespace: str
    name: str
    phase: VmiPhase
    node_name: str | None
    """status.nodeName: where the guest runs; during a migration this is the source, until
    handover."""
    active_pods: tuple[tuple[PodUid, str], ...]
    """(pod uid, node) of its launcher pods, sorted; two during a migration."""
    architecture: str | None
    """Architecture of the guest in Go's words (``amd64``, ``arm64``); None: in objects of old
    KubeVirts."""
    uid: str | None = None
    """metadata.uid, which the API server gives each object and no other one ever has."""

    @property
    def key(self) -> tuple[str, str]:
        """(namespace, name), which is unique at any one time."""
        return (self.namespace, self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchStatus:
    """The state of the watch that keeps an index current."""

    up: bool
    """Whether the server follows our resourceVersion.

    That means that a watch after the last failure delivered an event or a bookmark, or ended in
    order. An open connection alone is no proof.
    """
    synced: bool
    """Whether a complete list was received at least once."""
    last_sync_unix_s: float | None
    """When the API server last confirmed the VMIs that are known; None: never."""
    restarts: int
    """Watches reopened after anything but an orderly end, since start."""
    error: str | None
    """Why it is not up, in one line; None: it is up, or was never tried."""
    malformed_total: int
    """Objects skipped because they cannot be VMIs, since start."""

    @property
    def is_current(self) -> bool:
        """Whether the VMIs are current: either followed, or just listed."""
        return self.up or (self.synced and self.error is None)


@dataclass(frozen=True, slots=True, kw_only=True)
class VmiIndex:
    """The VMIs of this node at one moment. Built by ``VmiIndex.of``."""

    vmis: Mapping[tuple[str, str], Vmi]
    """VMIs by (namespace, name)."""
    contested_pods: frozenset[PodUid]
    """Pods that two VMIs claim, so that they belong to neither."""

    @classmethod
    def of(cls, vmis: Iterable[Vmi]) -> VmiIndex:
        """Index ``vmis``, of which no two may have the same key."""
        by_key = {vmi.key: vmi for vmi in vmis}
        claims = Counter(uid for vmi in by_key.values() for uid, _node in vmi.active_pods)
        return cls(
            vmis=MappingProxyType(by_key),
            contested_pods=frozenset(uid for uid, count in claims.items() if count > 1),
        )


EMPTY_INDEX = VmiIndex.of(())
