# SPDX-License-Identifier: Apache-2.0
"""Chooses the rows that a user wants to see, and the exit code that follows from them. Pure."""

from dataclasses import replace

from probes.fleet.model import Fleet, NodeRow, VmRow
from probes.fleet.options import Selection
from probes.host.hypervisors import HypervisorType

EXIT_MISSING = 3
"""A node is missing, so the view is incomplete."""
EXIT_MATCHED = 4
"""``--fail-on`` matches. It outranks a missing node, because what matches is certain."""


def selected(fleet: Fleet, selection: Selection) -> Fleet:
    """Return the rows that are shown.

    A node that is missing may run any VM, so only ``--node`` leaves one out.
    """
    return replace(
        fleet,
        vms=tuple(vm for vm in fleet.vms if _has(selection, vm)),
        nodes=tuple(node for node in fleet.nodes if _has_node(selection, node)),
    )


def exit_code(fleet: Fleet, fail_on: frozenset[HypervisorType]) -> int:
    """Return the exit code of the commands that show VMs or nodes."""
    if any(vm.type in fail_on for vm in fleet.vms):
        return EXIT_MATCHED
    return EXIT_MISSING if fleet.missing else 0


def _has(selection: Selection, vm: VmRow) -> bool:
    return (
        (not selection.namespaces or vm.namespace in selection.namespaces)
        and (not selection.types or vm.type in selection.types)
        and (not selection.nodes or vm.node in selection.nodes)
        and (not selection.causes or vm.cause in selection.causes)
    )


def _has_node(selection: Selection, node: NodeRow) -> bool:
    return not selection.nodes or node.node in selection.nodes
