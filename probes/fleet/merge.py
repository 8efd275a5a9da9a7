# SPDX-License-Identifier: Apache-2.0
"""Merges what all agents answer with what the API server knows. Pure.

Owns which answer counts if two agents report one VM, and that nothing is dropped: a node without an
answer, and a VM that no agent reports, are rows with the reason. Must not know how anything was
read, nor what is shown of it.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from probes.fleet.answers import SnapshotAnswer, VmAnswer, shown_version
from probes.fleet.model import ClusterVmis, Fleet, NodeAnswer, NodeRow, VmRow
from probes.host.hypervisors import HypervisorType
from probes.judge.reasons import Severity
from probes.judge.verdict import Verdict
from probes.report.vocabulary import severity_of
from probes.vmi.model import Vmi, VmiPhase

NO_AGENT = "no agent runs on this node"

_Key = tuple[str, str]
_Claim = tuple[NodeAnswer, SnapshotAnswer, VmAnswer]


def with_silent_nodes(
    answers: Sequence[NodeAnswer], cluster: ClusterVmis, named: Iterable[str] = ()
) -> tuple[NodeAnswer, ...]:
    """Return the answers, and one for each node that has no agent: it runs VMs, or was named."""
    known = {answer.node for answer in answers}
    hosts = {vmi.node_name for vmi in _running(cluster) if vmi.node_name is not None}
    silent = sorted({*hosts, *named} - known)
    return (
        *answers,
        *(NodeAnswer(node=node, agent=None, failure=NO_AGENT) for node in silent),
    )


def merged(answers: Sequence[NodeAnswer], cluster: ClusterVmis, *, version: str) -> Fleet:
    """Return the cluster: one row for each VM and each node. version is that of this hvprobe."""
    answers = with_silent_nodes(answers, cluster)
    hosts = {vmi.key: vmi.node_name for vmi in cluster.vmis}
    claims: dict[_Key, list[_Claim]] = {}
    for answer in answers:
        if answer.snapshot is not None:
            for vm in answer.snapshot.vmis:
                claims.setdefault((vm.namespace, vm.name), []).append((answer, answer.snapshot, vm))
    rows = [_vm_row(*_chosen(found, hosts.get(key))) for key, found in claims.items()]
    rows += _unreported(answers, (vmi for vmi in _running(cluster) if vmi.key not in claims))
    counts: dict[str, Counter[HypervisorType]] = defaultdict(Counter)
    for row in rows:
        counts[row.node][row.type] += 1
    nodes = [_node_row(answer, counts[answer.node], version=version) for answer in answers]
    return Fleet(
        vms=tuple(sorted(rows, key=lambda row: (row.severity, row.namespace, row.name))),
        nodes=tuple(
            sorted(nodes, key=lambda row: (row.failure is None, row.note is None, row.node))
        ),
    )


def unreported(answers: Iterable[NodeAnswer], cluster: ClusterVmis) -> bool:
    """Whether an agent that answered does not report a VM that the API server has on its node.

    It may have ended or moved since the list was read, so the list is worth reading again.
    """
    reported = {
        answer.node: {(vm.namespace, vm.name) for vm in answer.snapshot.vmis}
        for answer in answers
        if answer.snapshot is not None
    }
    return any(
        vmi.node_name in reported and vmi.key not in reported[vmi.node_name]
        for vmi in _running(cluster)
    )


def in_both(before: ClusterVmis, after: ClusterVmis) -> ClusterVmis:
    """Return the VMIs that ran on the same node at the beginning and at the end of a reading."""
    if after.error is not None:
        return before
    there = {(vmi.key, vmi.uid, vmi.node_name) for vmi in _running(before)}
    return ClusterVmis(
        vmis=tuple(vmi for vmi in _running(after) if (vmi.key, vmi.uid, vmi.node_name) in there)
    )


def _running(cluster: ClusterVmis) -> Iterator[Vmi]:
    return (vmi for vmi in cluster.vmis if vmi.phase is VmiPhase.RUNNING)


def _chosen(claims: Iterable[_Claim], host: str | None) -> _Claim:
    return max(claims, key=lambda claim: _preference(claim, host))


def _preference(claim: _Claim, host: str | None) -> tuple[bool, bool, bool, float, str]:
    """Order the answers of several agents about one VM, which is known to two while it migrates.

    The node that the VMI's status names counts. If it is not known, the node that has the running
    process counts, then what is verified, then what is newer.
    """
    answer, snapshot, vm = claim
    return (
        answer.node == host,
        vm.tgid is not None,
        vm.verified,
        snapshot.taken_unix_s,
        answer.node,
    )


def _vm_row(answer: NodeAnswer, _: SnapshotAnswer, vm: VmAnswer) -> VmRow:
    verdict = Verdict(type=vm.type, verified=vm.verified, reasons=vm.known_reasons)
    return VmRow(
        namespace=vm.namespace,
        name=vm.name,
        node=answer.node,
        type=vm.type,
        verified=vm.verified,
        severity=severity_of(verdict, fallback=vm.fallback),
        cause=vm.cause,
        reason=vm.cause_detail or vm.words,
        remedy=vm.remedy,
        fallback=vm.fallback,
        exits_per_second=vm.vcpu_exits_per_second,
    )


def _unreported(answers: Iterable[NodeAnswer], vmis: Iterable[Vmi]) -> Iterator[VmRow]:
    by_node = {answer.node: answer for answer in answers}
    for vmi in vmis:
        answer = by_node.get(vmi.node_name or "")
        if answer is None:
            reason = "the API server names no node on which it runs"
        elif answer.snapshot is None:
            reason = f"node {answer.node}: {answer.failure}"
        else:
            reason = f"the agent of node {answer.node} does not report it"
        yield VmRow(
            namespace=vmi.namespace,
            name=vmi.name,
            node=vmi.node_name or "-",
            type=HypervisorType.UNKNOWN,
            verified=None,
            severity=Severity.UNKNOWN,
            cause=None,
            reason=reason,
            remedy=None,
            fallback=None,
            exits_per_second=None,
        )


def _node_row(answer: NodeAnswer, vms: Mapping[HypervisorType, int], *, version: str) -> NodeRow:
    snapshot, agent = answer.snapshot, answer.agent
    hooks = [hook for hook in snapshot.health.hooks if not hook.inactive] if snapshot else None
    theirs = shown_version(snapshot.version) if snapshot else None
    return NodeRow(
        node=answer.node,
        pod=f"{agent.namespace}/{agent.name}" if agent else None,
        version=theirs,
        accelerators={found.type: found.available for found in snapshot.node.accelerators}
        if snapshot
        else {},
        module=snapshot.node.module if snapshot else None,
        nested=snapshot.node.nested if snapshot else None,
        hooks_attached=sum(hook.backend != "none" for hook in hooks) if hooks is not None else None,
        hooks_wanted=len(hooks) if hooks is not None else None,
        vms=vms,
        failure=answer.failure,
        note=f"its agent has version {theirs}, this hvprobe has {version}"
        if theirs not in (None, version)
        else None,
    )
