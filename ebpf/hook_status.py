# SPDX-License-Identifier: Apache-2.0
"""Describes how each wanted hook is attached now. Pure data.

Owns what a status says, and how it changes. Must not know how a hook is attached.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ebpf.hooks import ALWAYS_WANTED, KPROBE_MULTI, AttachPoint, Backend, Driver, Hook


@dataclass(frozen=True, slots=True, kw_only=True)
class HookStatus:
    """A wanted hook and how it is attached now."""

    hook: Hook
    backend: Backend
    reason: str | None = None
    """Why it is not attached, in one line; None: it is attached."""
    attached_total: int = 0
    """How often it was attached; more than 1 means that its driver was reloaded or that it was
    needed again."""
    inactive: bool = False
    """Whether it is detached on purpose: its driver is not loaded, or nothing needs it."""
    unneeded: bool = False
    """Whether it is detached only because nothing needs it. There may be events to observe."""
    attached_ns: int | None = None
    """Host CLOCK_MONOTONIC (clock.py) when it was last attached; None: it is not attached."""
    reads_result: bool = False
    """Whether the attach point in use can tell a successful KVM_RUN from a failed one."""
    by_link: bool = False
    """Whether it is a kprobe attached by a link of type kprobe_multi."""
    passed_over: str | None = None
    """Why attach points that are preferred to the one in use could not be used, in one line; None:
    it is attached at its first point, or not at all."""
    refused: bool = False
    """Whether it is detached because the kernel denied a permission."""
    missed_total: int | None = None
    """Runs of its programs that the kernel skipped; None: this kernel does not count them."""

    @property
    def attached(self) -> bool:
        """Whether the hook is attached at any point."""
        return self.backend is not Backend.NONE

    @property
    def form(self) -> str:
        """How it is attached, in the word that people see: the backend, or ``kprobe_multi``."""
        return KPROBE_MULTI if self.by_link else self.backend.value

    @property
    def nothing_to_observe(self) -> bool:
        """Whether its driver is not loaded, so that what it would observe cannot happen."""
        return self.inactive and not self.unneeded

    def is_of(self, hook: Hook) -> bool:
        """Return whether this is the status of a hook.

        The name decides, because a session may be given a hook with other attach points.
        """
        return self.hook.name == hook.name

    def attached_at(
        self, point: AttachPoint, now_ns: int, *, passed_over: str | None = None
    ) -> "HookStatus":
        """Return the status after the program has been attached at a point.

        passed_over says why preferred points could not be used.
        """
        return replace(
            self,
            backend=point.backend,
            reason=None,
            attached_total=self.attached_total + 1,
            inactive=False,
            unneeded=False,
            attached_ns=now_ns,
            reads_result=point.reads_result,
            by_link=point.by_link,
            passed_over=passed_over,
            refused=False,
        )

    def failed(self, reason: str, *, refused: bool = False) -> "HookStatus":
        """Return the status after every attach point has failed."""
        return replace(self._detached(reason, inactive=False), refused=refused)

    def driver_gone(self, driver: Driver) -> "HookStatus":
        """Return the status while the hook's driver is unavailable."""
        reason = f"/dev/{driver.device} is absent, so there is nothing to observe"
        return self._detached(reason, inactive=True)

    def not_needed(self) -> "HookStatus":
        """Return the status while nothing needs the hook."""
        reason = f"not needed: {self.hook.on_demand}"
        return replace(self._detached(reason, inactive=True), unneeded=True)

    def _detached(self, reason: str, *, inactive: bool) -> "HookStatus":
        return replace(
            self,
            backend=Backend.NONE,
            reason=reason,
            inactive=inactive,
            unneeded=False,
            attached_ns=None,
            reads_result=False,
            by_link=False,
            passed_over=None,
            refused=False,
        )


def unattached(
    reason: str, hooks: Sequence[Hook] = ALWAYS_WANTED, *, refused: bool = False
) -> tuple[HookStatus, ...]:
    """Return a status for each hook that is not attached, all for the same one-line reason.

    refused says whether the kernel denied a permission.
    """
    return tuple(
        HookStatus(hook=hook, backend=Backend.NONE, reason=reason, refused=refused)
        for hook in hooks
    )
