# SPDX-License-Identifier: Apache-2.0
"""Declares the edges that the collector needs beside those of judging, as protocols. Pure types.

The edges themselves are accelerators.py and watch.py; tests use other implementations.
"""

from dataclasses import dataclass
from typing import Protocol

from probes.host.hypervisors import Hypervisor
from probes.host.node import Accelerator, NodeVirtualization
from probes.judge.ports import Device, Emulation, Processes
from probes.vmi.model import VmiIndex, WatchStatus


class Virtualization(Protocol):
    """The accelerators of this node (probes.host.accelerators.Accelerators)."""

    def try_hypervisor(self, hypervisor: Hypervisor) -> Accelerator | None:
        """Create an empty VM; return None for a rare hypervisor that this node does not have."""
        ...

    def virtualization(self) -> NodeVirtualization:
        """Return the modules that provide the hypervisors, and the nesting."""
        ...


class VmiSource(Protocol):
    """The VMIs of this node (probes.vmi.kube.watch.VmiWatch); neither call waits."""

    def index(self) -> VmiIndex:
        """Return the VMIs known now."""
        ...

    def status(self) -> WatchStatus:
        """Return how current they are."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class HostEdges:
    """The edges of the host: what /proc, /sys and /dev say."""

    processes: Processes
    virtualization: Virtualization
    emulation: Emulation
    device: Device
    """The device of KVM."""
