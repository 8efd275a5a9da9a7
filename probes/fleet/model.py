# SPDX-License-Identifier: Apache-2.0
"""Holds what is known of a cluster: its agents, its nodes and its VMs. Pure.

Must not know how anything was read, how answers are decoded (answers.py), nor which of two answers
about one VM counts (merge.py).
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from probes.fleet.answers import SnapshotAnswer
from probes.host.hypervisors import HypervisorType
from probes.judge.reasons import Severity
from probes.vmi.model import Vmi


class FleetError(Exception):
    """The view of the cluster cannot be made.

    The message is one line: what failed, on what, why, what to do.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentPod:
    """The pod of an agent, as the API server lists it."""

    namespace: str
    name: str
    node: str | None
    """spec.nodeName, or the node that it is meant for; None: neither is known yet."""
    port: int
    https: bool
    not_running: str | None
    """Why it cannot answer; None: it runs."""
    ready: bool
    created: str
    """metadata.creationTimestamp, which sorts as text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeAnswer:
    """What one node answered, or why it did not."""

    node: str
    agent: AgentPod | None
    """None: no agent runs there."""
    snapshot: SnapshotAnswer | None = None
    """None: there is no answer that can be used."""
    failure: str | None = None
    """Why there is none, in one line; None: there is one. May hold foreign text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterVmis:
    """The VMIs that the API server lists."""

    vmis: tuple[Vmi, ...] = ()
    error: str | None = None
    """Why they are not known, in one line; None: they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VmRow:
    """One VM of the cluster."""

    namespace: str
    name: str
    node: str
    type: HypervisorType
    verified: bool | None
    """None: no agent says anything about it."""
    severity: Severity
    cause: str | None
    """Code of the cause of emulation; None: its type is not tcg, or the agent does not say."""
    reason: str
    """Why the verdict is what it is, or why there is none. May hold foreign text."""
    remedy: str | None
    fallback: bool | None
    exits_per_second: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRow:
    """One node that has an agent or VMs."""

    node: str
    pod: str | None
    """``namespace/name`` of the agent's pod; None: there is none."""
    version: str | None
    """Version of its agent; None: it did not say."""
    accelerators: Mapping[str, bool | None]
    """Whether each accelerator can be used, by type; None: unknown."""
    module: str | None
    nested: bool | None
    hooks_attached: int | None
    """Of the hooks that it wants; None: no answer."""
    hooks_wanted: int | None
    vms: Mapping[HypervisorType, int]
    """VMs by type, of which those without an answer are unknown."""
    failure: str | None
    """Why it is missing; None: it answered."""
    note: str | None
    """What else there is to know of its answer; None: nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """The cluster: one row for each VM and each node, what needs attention first."""

    vms: tuple[VmRow, ...]
    nodes: tuple[NodeRow, ...]

    @property
    def missing(self) -> tuple[NodeRow, ...]:
        """The nodes of which nothing is known but why."""
        return tuple(node for node in self.nodes if node.failure is not None)

    @property
    def by_type(self) -> Mapping[HypervisorType, int]:
        """VMs by type."""
        return Counter(vm.type for vm in self.vms)
