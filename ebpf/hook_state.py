# SPDX-License-Identifier: Apache-2.0
"""Decides when a hook is attached and when it is detached. Pure.

Owns the rule that connects a hook's driver, the need for the hook and what has to be done. Must not
know how a hook is attached.
"""

from dataclasses import dataclass
from enum import Enum, auto


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverState:
    """What sysfs says about a driver; two refreshes compare it."""

    device: bool
    """Whether the driver's device is registered. KVM's also needs its vendor module."""
    module_inode: int | None
    """Inode of the module's directory in sysfs, which a reload changes; None: it is not loaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """Everything that decides whether a hook is attached."""

    driver: DriverState
    """The state of its driver. The kernel proper is a driver that is always present."""
    needed: bool
    """Whether anything needs the hook."""


class Step(Enum):
    """What has to be done with a hook."""

    KEEP = auto()
    """Nothing: it stays attached, detached or failed, as it is."""
    ATTACH = auto()
    """Attach it. What is still attached belongs to a module that was unloaded: detach that first,
    because its kprobes no longer fire."""
    DRIVER_GONE = auto()
    """Detach it: there is nothing to observe, and a tracepoint would keep the module loaded."""
    NOT_NEEDED = auto()
    """Detach it: nothing needs what it would count."""


def next_step(before: Situation | None, now: Situation) -> Step:
    """Return what to do with a hook whose situation was another one before; None: it is new.

    A driver that is gone comes first, because that says more about the node than a need does. A
    hook that could not be attached is tried again only when its situation changes.
    """
    if now == before:
        return Step.KEEP
    if not now.driver.device:
        return Step.DRIVER_GONE
    return Step.ATTACH if now.needed else Step.NOT_NEEDED
