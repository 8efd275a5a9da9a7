# SPDX-License-Identifier: Apache-2.0
"""Decodes the JSON of a VirtualMachineInstance into what hvprobe keeps of it. Pure.

Owns which fields of a kubevirt.io/v1 object are read, and what makes an object unusable. Must not
know HTTP, threads, or what a VMI is used for.

Field names are those of KubeVirt's staging/src/kubevirt.io/api/core/v1/types.go. msgspec skips all
other fields without building them, so nothing that a tenant may write (labels, annotations, spec
beyond the architecture) is read. Absent and null mean the same, as in Go's decoder.
"""

from __future__ import annotations

import sys

import msgspec

from probes.host.cgroup import PodUid, canonical_pod_uid
from probes.vmi.foreign_text import one_line
from probes.vmi.model import Vmi, VmiPhase

Json = bytes | msgspec.Raw
"""One JSON value that is not decoded yet."""


class MalformedVmi(ValueError):
    """An object cannot be a VMI.

    The message is one line: which object, which field, and what is in it.
    """


class _Fields(msgspec.Struct, frozen=True, gc=False):
    """An object of which only some fields are read."""


class _Metadata(_Fields, frozen=True):
    namespace: str | None = None
    name: str | None = None
    uid: str | None = None


class _Spec(_Fields, frozen=True):
    architecture: str | None = None


class _Status(_Fields, frozen=True, rename="camel"):
    phase: str | None = None
    node_name: str | None = None
    active_pods: dict[str, str] | None = None


class _Named(_Fields, frozen=True):
    metadata: _Metadata | None = None


class _Object(_Named, frozen=True):
    spec: _Spec | None = None
    status: _Status | None = None


_NAMED = msgspec.json.Decoder(_Named)
_OBJECT = msgspec.json.Decoder(_Object)


def parse_vmi(obj: Json) -> Vmi:
    """Make a VMI from one object. Raises MalformedVmi when it holds none."""
    try:
        found = _OBJECT.decode(obj)
    except (ValueError, RecursionError) as err:
        namespace, name = vmi_key(obj)
        raise MalformedVmi(f"VMI {namespace}/{name}: {one_line(str(err))}") from err
    namespace, name = _key(found)
    spec, status = found.spec or _Spec(), found.status or _Status()
    return Vmi(
        namespace=sys.intern(namespace),
        name=name,
        phase=_phase(status.phase),
        node_name=_interned(status.node_name),
        active_pods=_pods(status.active_pods or {}, f"VMI {namespace}/{name}"),
        architecture=_interned(spec.architecture),
        uid=(found.metadata and found.metadata.uid) or None,
    )


def vmi_key(obj: Json) -> tuple[str, str]:
    """Return (namespace, name) of an object, which is all that a deletion needs.

    Raises MalformedVmi when it has none.
    """
    try:
        named = _NAMED.decode(obj)
    except (ValueError, RecursionError) as err:
        raise MalformedVmi(f"VMI: {one_line(str(err))}") from err
    return _key(named)


def _key(named: _Named) -> tuple[str, str]:
    metadata = named.metadata or _Metadata()
    namespace, name = metadata.namespace, metadata.name
    if not namespace or not name:
        missing = "name" if namespace else "namespace"
        raise MalformedVmi(f"VMI: metadata.{missing} is missing")
    if not (namespace.isprintable() and name.isprintable()):
        raise MalformedVmi(f"VMI: {_shown(f'{namespace}/{name}')} is not a Kubernetes name")
    return (namespace, name)


def _phase(text: str | None) -> VmiPhase:
    try:
        return VmiPhase(text or "")
    except ValueError:
        return VmiPhase.UNKNOWN


def _pods(active_pods: dict[str, str], where: str) -> tuple[tuple[PodUid, str], ...]:
    """Parse status.activePods, ``{pod uid: node}``."""
    pods: list[tuple[PodUid, str]] = []
    for text, node in active_pods.items():
        uid = canonical_pod_uid(text)
        if uid is None:
            raise MalformedVmi(f"{where}: activePods has {_shown(text)}, which is not a pod uid")
        pods.append((uid, sys.intern(node)))
    return tuple(sorted(pods))


def _interned(text: str | None) -> str | None:
    """Intern a text, because node names and architectures repeat in every VMI of a node."""
    return sys.intern(text) if text else None


def _shown(text: str) -> str:
    """Quote foreign text for one line of an error."""
    return one_line(repr(text), longest=80)
