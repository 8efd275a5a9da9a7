# SPDX-License-Identifier: Apache-2.0
"""Turns rows of VMs and nodes into tables, JSON and the summary. Pure.

Owns columns and their words. Must not lay a table out (table.py).
"""

from collections.abc import Mapping, Sequence

from probes.fleet.model import Fleet, NodeRow, VmRow
from probes.fleet.table import Table, TableRow
from probes.host.hypervisors import HypervisorType
from probes.judge.reasons import Outcome, Severity
from probes.report.vocabulary import say

FLEET_SCHEMA = "hvprobe-fleet/v1"
_NONE = "-"
_VM_HEADINGS = ("NAMESPACE", "NAME", "NODE", "TYPE", "VERIFIED", "EXITS/S", "CAUSE")
_VM_WIDE = ("FALLBACK", "REASON", "REMEDY")
_NODE_HEADINGS = (
    "NODE",
    "ACCELERATOR",
    "MODULE",
    "NESTED",
    "HOOKS",
    "AGENT",
    "VMS",
    "REASON",
)
_NODE_WIDE = ("POD",)


def vm_table(fleet: Fleet, *, wide: bool) -> Table:
    """Return one row for each VM, and one for each node with something to say about itself.

    Trouble comes first. A node that is missing stands before VMs that are unknown, because it may
    be why; one with a note before VMs that are fine.
    """
    rows: list[tuple[tuple[Severity, bool, str, str], TableRow]] = [
        (
            (vm.severity, True, vm.namespace, vm.name),
            TableRow(texts=_vm_texts(vm, wide=wide), outcome=vm.severity.outcome),
        )
        for vm in fleet.vms
    ]
    for node in fleet.nodes:
        words = node.failure or node.note
        if words is not None:
            severity = Severity.UNKNOWN if node.failure is not None else Severity.UNVERIFIED
            texts = (_NONE, _NONE, node.node, _NONE, _NONE, _NONE)
            # The reason stands where the user looks for the cause; wide has a column for it.
            last = (_NONE, _NONE, words, _NONE) if wide else (words,)
            row = TableRow(texts=(*texts, *last), outcome=severity.outcome)
            rows.append(((severity, False, "", node.node), row))
    rows.sort(key=lambda pair: pair[0])
    return Table(
        headings=(*_VM_HEADINGS, *_VM_WIDE) if wide else _VM_HEADINGS,
        rows=tuple(row for _, row in rows),
        right=frozenset({"EXITS/S"}),
    )


def node_table(nodes: Sequence[NodeRow], *, wide: bool) -> Table:
    """Return one row for each node."""
    return Table(
        headings=(*_NODE_HEADINGS[:-1], *_NODE_WIDE, "REASON") if wide else _NODE_HEADINGS,
        rows=tuple(
            TableRow(texts=_node_texts(node, wide=wide), outcome=_node_outcome(node))
            for node in nodes
        ),
    )


def summary(fleet: Fleet) -> str:
    """Return the line below the VMs: how many there are of each type, and what is missing."""
    parts = counted(fleet.by_type)
    line = f"{_plural(len(fleet.vms), 'VM')}{f': {parts}' if parts else ''}"
    answered = len(fleet.nodes) - len(fleet.missing)
    return f"{line}; {answered} of {_plural(len(fleet.nodes), 'node')} answered"


def counted(vms: Mapping[HypervisorType, int]) -> str:
    """Return how many VMs there are of each type, in the order of the types."""
    return ", ".join(f"{vms[kind]} {kind.value}" for kind in HypervisorType if vms.get(kind))


def fleet_json(fleet: Fleet, *, version: str, notice: str | None) -> dict[str, object]:
    """Convert VMs and nodes to plain JSON values. Keys are a public interface."""
    return {
        "schema": FLEET_SCHEMA,
        "version": version,
        "summary": {kind.value: fleet.by_type.get(kind, 0) for kind in HypervisorType},
        "notice": notice,
        "vmis": [_vm_json(vm) for vm in fleet.vms],
        "nodes": [_node_json(node) for node in fleet.nodes],
    }


def _vm_texts(vm: VmRow, *, wide: bool) -> tuple[str, ...]:
    texts = (
        vm.namespace,
        vm.name,
        vm.node,
        vm.type.value,
        say(vm.verified, "yes", "no", _NONE),
        _rate(vm.exits_per_second),
    )
    if wide:
        fallback = say(vm.fallback, "yes", "no", _NONE)
        return (*texts, vm.cause or _NONE, fallback, vm.reason, vm.remedy or _NONE)
    no_type = vm.type is HypervisorType.UNKNOWN
    return (*texts, vm.cause or (vm.reason if no_type else _NONE))


def _vm_json(vm: VmRow) -> dict[str, object]:
    return {
        "namespace": vm.namespace,
        "name": vm.name,
        "node": vm.node,
        "hypervisor_type": vm.type.value,
        "verified": vm.verified,
        "severity": vm.severity.name.lower(),
        "cause": vm.cause,
        "reason": vm.reason,
        "remedy": vm.remedy,
        "fallback": vm.fallback,
        "vcpu_exits_per_second": vm.exits_per_second,
    }


def _node_texts(node: NodeRow, *, wide: bool) -> tuple[str, ...]:
    usable = ", ".join(
        f"{kind}{say(there, '', ' (unusable)', ' (unknown)')}"
        for kind, there in node.accelerators.items()
        if there is not False
    )
    hooks = _NONE if node.hooks_wanted is None else f"{node.hooks_attached}/{node.hooks_wanted}"
    none = "none" if node.failure is None else _NONE
    return (
        node.node,
        usable or none,
        node.module or _NONE,
        say(node.nested, "yes", "no", _NONE),
        hooks,
        node.version or _NONE,
        counted(node.vms) or "0",
        *((node.pod or _NONE,) if wide else ()),
        node.failure or node.note or _NONE,
    )


def _node_outcome(node: NodeRow) -> Outcome:
    if node.failure is not None:
        return Outcome.BAD
    lacks = node.hooks_attached != node.hooks_wanted or True not in node.accelerators.values()
    return Outcome.DEGRADED if lacks or node.note is not None else Outcome.GOOD


def _node_json(node: NodeRow) -> dict[str, object]:
    return {
        "node": node.node,
        "pod": node.pod,
        "version": node.version,
        "accelerators": dict(node.accelerators),
        "module": node.module,
        "nested": node.nested,
        "hooks_attached": node.hooks_attached,
        "hooks_wanted": node.hooks_wanted,
        "vmis": {kind.value: node.vms.get(kind, 0) for kind in HypervisorType},
        "failure": node.failure,
        "note": node.note,
    }


def _rate(per_second: float | None) -> str:
    return _NONE if per_second is None else f"{per_second:.0f}"


def _plural(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"
