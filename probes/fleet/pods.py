# SPDX-License-Identifier: Apache-2.0
"""Decodes the pods of agents, and chooses the one that speaks for a node. Pure.

Owns which fields of a core/v1 Pod are read: where it runs, whether it can answer, and how, as the
readiness probe that kubelet uses says. Must not know how an agent is asked.
"""

from collections.abc import Iterable

import msgspec

from probes.fleet.model import AgentPod
from probes.vmi.foreign_text import one_line

DEFAULT_PORT = 9747
PORT_NAME = "metrics"
"""Name of the agent's port in deploy/base/daemonset.yaml."""
NO_NODE = "(pod {pod})"
"""Stands for the node of a pod that has none. No node can have this name."""
_PORT_MAX = 65535


class PodError(ValueError):
    """An object is no pod.

    The message is one line.
    """


class _Part(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """A part of a pod, of which only some fields are read."""


class _Metadata(_Part, frozen=True):
    namespace: str
    name: str
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None


class _Port(_Part, frozen=True):
    container_port: int
    name: str | None = None


class _Get(_Part, frozen=True):
    scheme: str | None = None


class _Probe(_Part, frozen=True):
    http_get: _Get | None = None


class _Container(_Part, frozen=True):
    ports: tuple[_Port, ...] | None = None
    readiness_probe: _Probe | None = None


class _Field(_Part, frozen=True):
    key: str = ""
    values: tuple[str, ...] | None = None


class _Term(_Part, frozen=True):
    match_fields: tuple[_Field, ...] | None = None


class _Selector(_Part, frozen=True):
    node_selector_terms: tuple[_Term, ...] | None = None


class _NodeAffinity(_Part, frozen=True):
    required_during_scheduling_ignored_during_execution: _Selector | None = None


class _Affinity(_Part, frozen=True):
    node_affinity: _NodeAffinity | None = None


class _Spec(_Part, frozen=True):
    node_name: str | None = None
    affinity: _Affinity | None = None
    containers: tuple[_Container, ...] | None = None


class _Reasoned(_Part, frozen=True):
    reason: str | None = None


class _State(_Part, frozen=True):
    waiting: _Reasoned | None = None
    terminated: _Reasoned | None = None


class _ContainerStatus(_Part, frozen=True):
    state: _State | None = None
    ready: bool = False


class _Status(_Part, frozen=True):
    phase: str | None = None
    reason: str | None = None
    container_statuses: tuple[_ContainerStatus, ...] | None = None


class _Pod(_Part, frozen=True):
    metadata: _Metadata
    spec: _Spec = _Spec()
    status: _Status | None = None


_POD = msgspec.json.Decoder(_Pod)


def parse_pod(obj: bytes | msgspec.Raw) -> AgentPod:
    """Make the pod of an agent from one object. Raises PodError when it is none."""
    try:
        pod = _POD.decode(obj)
    except (ValueError, RecursionError) as err:
        raise PodError(one_line(str(err))) from err
    port, https = _address(pod.spec.containers or ())
    status = pod.status or _Status()
    return AgentPod(
        namespace=pod.metadata.namespace,
        name=pod.metadata.name,
        node=pod.spec.node_name or _meant_for(pod.spec.affinity),
        port=port,
        https=https,
        not_running=_not_running(pod, status),
        ready=any(container.ready for container in status.container_statuses or ()),
        created=pod.metadata.creation_timestamp or "",
    )


def by_node(pods: Iterable[AgentPod]) -> dict[str, AgentPod]:
    """Return the pod that speaks for each node: one that runs and is ready, then the youngest.

    During an update a node has two. A pod that is meant for no node yet stands for itself.
    """
    chosen: dict[str, AgentPod] = {}
    for pod in sorted(pods, key=_preference):
        chosen[pod.node or NO_NODE.format(pod=pod.name)] = pod
    return chosen


def namespaces_of(pods: Iterable[AgentPod]) -> tuple[str, ...]:
    """Return the namespaces in which there are agents."""
    return tuple(sorted({pod.namespace for pod in pods}))


def _preference(pod: AgentPod) -> tuple[bool, bool, str, str]:
    return (pod.not_running is None, pod.ready, pod.created, pod.name)


def _meant_for(affinity: _Affinity | None) -> str | None:
    """Return the node for which the DaemonSet's controller made a pod; None: it does not say."""
    by_node = affinity.node_affinity if affinity else None
    required = by_node.required_during_scheduling_ignored_during_execution if by_node else None
    for term in (required.node_selector_terms if required else None) or ():
        for field in term.match_fields or ():
            if field.key == "metadata.name" and field.values:
                return field.values[0]
    return None


def _address(containers: Iterable[_Container]) -> tuple[int, bool]:
    """Return the port of the agent, and whether it speaks TLS."""
    for container in containers:
        for port in container.ports or ():
            if port.name == PORT_NAME and 0 < port.container_port <= _PORT_MAX:
                probe = container.readiness_probe
                get = probe.http_get if probe else None
                return port.container_port, get is not None and get.scheme == "HTTPS"
    return DEFAULT_PORT, False


def _not_running(pod: _Pod, status: _Status) -> str | None:
    where = f"its agent {pod.metadata.namespace}/{pod.metadata.name}"
    if pod.metadata.deletion_timestamp is not None:
        return f"{where} is being deleted"
    if status.phase == "Running":
        for container in status.container_statuses or ():
            state = container.state or _State()
            stopped = state.waiting or state.terminated
            if stopped is not None:
                return f"{where} does not run: {_word(stopped.reason, 'no reason given')}"
        return None
    return f"{where} does not run: {_word(status.reason or status.phase, 'Pending')}"


def _word(text: str | None, default: str) -> str:
    return one_line(text or "", longest=80) or default
