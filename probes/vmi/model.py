# SPDX-License-Identifier: Apache-2.0
"""Holds what hvprobe keeps of a VirtualMachineInstance, and the index of those on this node.

Pure. Owns which fields of a kubevirt.io/v1 object count, what makes an object unusable, the
immutable snapshot that attribution reads, and the status of the watch that maintains it. Must not
know HTTP, threads or processes.

Field names are those of KubeVirt's staging/src/kubevirt.io/api/core/v1/types.go. Nothing that a
tenant may write (labels, annotations, spec beyond the architecture) is kept or trusted.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from probes.host.cgroup import PodUid, canonical_pod_uid
from probes.vmi.foreign_text import one_line


class MalformedVmi(ValueError):
    """An object cannot be a VMI.

    The message is one line: which object, which field, and its content.
    """


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


def parse_vmi(obj: Mapping[str, object]) -> Vmi:
    """Make a VMI from the decoded JSON of one object. Raises MalformedVmi when it holds none."""
    namespace, name = vmi_key(obj)
    where = f"VMI {namespace}/{name}"
    spec = _mapping(obj, "spec", where)
    status = _mapping(obj, "status", where)
    return Vmi(
        namespace=sys.intern(namespace),
        name=name,
        phase=_phase(_text(status, "phase", where)),
        node_name=_interned(_text(status, "nodeName", where)),
        active_pods=_active_pods(status, where),
        architecture=_interned(_text(spec, "architecture", where)),
        uid=_text(_mapping(obj, "metadata", where), "uid", where),
    )


def vmi_key(obj: Mapping[str, object]) -> tuple[str, str]:
    """Return (namespace, name) of an object, which is all that a deletion needs.

    Raises MalformedVmi when it has none.
    """
    metadata = _mapping(obj, "metadata", "VMI")
    namespace = _text(metadata, "namespace", "VMI")
    name = _text(metadata, "name", "VMI")
    if namespace is None or name is None:
        missing = "namespace" if namespace is None else "name"
        raise MalformedVmi(f"VMI: metadata.{missing} is missing")
    if not (namespace.isprintable() and name.isprintable()):
        raise MalformedVmi(f"VMI: {_shown(f'{namespace}/{name}')} is not a Kubernetes name")
    return (namespace, name)


def _phase(text: str | None) -> VmiPhase:
    try:
        return VmiPhase(text or "")
    except ValueError:
        return VmiPhase.UNKNOWN


def _active_pods(status: Mapping[str, object], where: str) -> tuple[tuple[PodUid, str], ...]:
    """Parse status.activePods, ``{pod uid: node}``."""
    pods: list[tuple[PodUid, str]] = []
    for text, node in _mapping(status, "activePods", where).items():
        uid = canonical_pod_uid(text)
        if uid is None:
            raise MalformedVmi(f"{where}: activePods has {_shown(text)}, which is not a pod uid")
        if not isinstance(node, str):
            raise MalformedVmi(f"{where}: activePods[{uid}] is a {_kind(node)}, not a node's name")
        pods.append((uid, sys.intern(node)))
    return tuple(sorted(pods))


def _mapping(parent: Mapping[str, object], key: str, where: str) -> Mapping[str, object]:
    """Read an object-valued field.

    Absent and null both mean an empty object, as in Go's decoder.
    """
    value = parent.get(key)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise MalformedVmi(f"{where}: {key} is a {_kind(value)}, not an object")
    return value


def _text(parent: Mapping[str, object], key: str, where: str) -> str | None:
    """Read a string-valued field. Absent, null and empty all mean None."""
    value = parent.get(key)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise MalformedVmi(f"{where}: {key} is a {_kind(value)}, not a string")
    return value


def _interned(text: str | None) -> str | None:
    """Intern a text, because node names and architectures repeat in every VMI of a node."""
    return None if text is None else sys.intern(text)


def _kind(value: object) -> str:
    return type(value).__name__


def _shown(text: str) -> str:
    """Quote foreign text for one line of an error."""
    return one_line(repr(text), longest=80)
