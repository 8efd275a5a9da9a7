# SPDX-License-Identifier: Apache-2.0
"""Events for tests, as reports make them."""

from __future__ import annotations

from probes.vmi.event import EventType, VmiEvent


def event(
    name: str = "alpha",
    *,
    namespace: str = "default",
    uid: str = "5a5a",
    node: str = "node-a",
    note: str = "The virtual machine runs in software emulation.",
    identity: tuple[str, ...] = ("emulation_allowed", "4711", "6000"),
) -> VmiEvent:
    """A VM that is emulated without need."""
    return VmiEvent(
        namespace=namespace,
        name=name,
        uid=uid,
        node=node,
        type=EventType.WARNING,
        reason="SoftwareEmulation",
        note=note,
        happened_unix_s=1700000100.5,
        identity=identity,
    )
