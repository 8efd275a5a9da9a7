# SPDX-License-Identifier: Apache-2.0
"""EDGE: attaches the wanted hooks of this node and follows the modules they belong to.

Owns how each hook is attached, and when that has to change. Must not know what the programs write,
nor where.
"""

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ebpf.btf import raw_tracepoints_are_exact
from ebpf.clock import monotonic_ns
from ebpf.errors import AttachCause, AttachError
from ebpf.hook_state import DriverState, Situation, Step, next_step
from ebpf.hook_status import HookStatus, unattached
from ebpf.hooks import (
    SCHED_PROCESS_EXEC,
    SCHED_PROCESS_EXIT,
    SCHED_PROCESS_FORK,
    AttachPoint,
    Backend,
    Driver,
    Hook,
    field_flag,
    loadable,
)
from ebpf.programs import Programs
from ebpf.tracefs import FIELD_BYTES, Tracefs

_COMMON_FIELDS_BYTES = 8
"""Size of the common fields at the start of each tracepoint record.

Where tracefs gives no description, a program's fields are assumed to follow them directly.
"""

_LIVES = (SCHED_PROCESS_FORK, SCHED_PROCESS_EXEC, SCHED_PROCESS_EXIT)

FieldPlaces = Mapping[AttachPoint, tuple[int, ...]]
"""Offsets in bytes of the fields that the programs of an attach point read."""


def field_places(tracefs: Tracefs, hooks: Collection[Hook]) -> FieldPlaces:
    """Return where the fields that programs read are now, or probably will be once they exist."""
    return {
        point: tracefs.offsets(point.target, point.fields)
        or tuple(_COMMON_FIELDS_BYTES + FIELD_BYTES * n for n in range(len(point.fields)))
        for hook in hooks
        for point in hook.points
        if point.fields
    }


def field_flags(places: FieldPlaces) -> list[str]:
    """Return compiler flags that give the programs the offsets of their fields."""
    return [
        f"-D{field_flag(point, field)}={offset}"
        for point, offsets in places.items()
        for field, offset in zip(point.fields, offsets, strict=True)
    ]


class HookSet:
    """The hooks that are wanted on this node, with the state of each."""

    def __init__(
        self,
        hooks: Sequence[Hook],
        programs: Programs,
        *,
        places: FieldPlaces,
        sys_root: Path,
    ) -> None:
        """Attach every hook that is always needed and can be attached.

        programs holds the programs of all these hooks and stays the caller's. places are the field
        offsets for which they were compiled. An optional hook is wanted if its driver's device
        exists now.
        """
        self._sys_root = sys_root
        self._programs = programs
        self._places = places
        self._tracefs = Tracefs(sys_root)
        self._raw_is_exact = raw_tracepoints_are_exact(sys_root)
        wanted = [hook for hook in hooks if not hook.optional or self._state(hook.driver).device]
        self._statuses = {
            status.hook.name: status for status in unattached("not tried yet", wanted)
        }
        self._needed: frozenset[str] = frozenset()
        self._situations: dict[str, Situation] = {}
        self._points: dict[str, AttachPoint] = {}
        self._beside: dict[str, AttachPoint] = {}
        self._follow()

    @property
    def statuses(self) -> tuple[HookStatus, ...]:
        """The state of each wanted hook, in the order given to the constructor."""
        return tuple(self._statuses.values())

    @property
    def any_attached(self) -> bool:
        """Whether at least one hook is attached."""
        return bool(self._points)

    @property
    def forks_are_counted(self) -> bool:
        """Whether a second program counts forks, which reveals forks that the first one missed."""
        return SCHED_PROCESS_FORK.name in self._beside

    @property
    def lives_are_followed(self) -> bool:
        """Whether classic tracepoints observe fork, exec and exit without exception.

        The kernel skips other forms while a thread is preempted in them, see hooks.py.
        """
        statuses = [self._statuses.get(hook.name) for hook in _LIVES]
        return all(status and status.backend is Backend.TRACEPOINT for status in statuses)

    @property
    def attached_ns(self) -> int | None:
        """Host CLOCK_MONOTONIC (clock.py) since when every attached hook has been counting.

        None: no hook is attached.
        """
        since = [status.attached_ns for status in self._statuses.values()]
        return max((ns for ns in since if ns is not None), default=None)

    def need(self, hooks: Collection[Hook]) -> None:
        """Attach those of the on-demand hooks that are needed now, and detach all others.

        A hook that is not on demand is always needed. While the driver of a needed hook is gone,
        the hook stays inactive; follow_drivers() attaches it when the driver is back.
        """
        needed = frozenset(hook.name for hook in hooks)
        if needed != self._needed:
            self._needed = needed
            self._follow()

    @property
    def misses_counted(self) -> bool:
        """Whether the kernel counts every run of a program that it skips."""
        return self._programs.misses_counted

    def missed_lives(self) -> int:
        """Return how many forks, execs and exits the kernel has skipped the marking program for.

        0 where it does not count them (``Programs.missed_total``). Runs of the raw forms that stand
        beside are left out: on some kernels they are skipped often, and the classic ones then run.
        """
        marking = [each for each in loadable(_LIVES) if each[1] == Backend.TRACEPOINT]
        return self._programs.missed_total(marking) or 0

    def follow_drivers(self) -> None:
        """Attach or detach the hooks of every driver whose state has changed since the last call.

        A tracepoint keeps its module loaded, while a kprobe goes dead without any error when its
        module is unloaded. Therefore, when the device disappears because the vendor module was
        removed, all hooks of the driver are detached, so that the administrator can unload the
        other module as well. When the device returns, or the module has been reloaded, those that
        are needed are attached again.
        """
        self._follow()

    def count_missed(self) -> None:
        """Read how many runs of each hook's programs the kernel has skipped."""
        for name, status in self._statuses.items():
            missed_total = self._programs.missed_total(loadable([status.hook]))
            if missed_total != status.missed_total:
                self._statuses[name] = replace(status, missed_total=missed_total)

    def _follow(self) -> None:
        """Do what the situation of each hook asks for. All detaching comes before any attaching."""
        drivers = {status.hook.driver for status in self._statuses.values()}
        states = {driver: self._state(driver) for driver in drivers}
        steps: list[tuple[HookStatus, Step]] = []
        for name, status in self._statuses.items():
            hook = status.hook
            needed = hook.on_demand is None or name in self._needed
            now = Situation(driver=states[hook.driver], needed=needed)
            steps.append((status, next_step(self._situations.get(name), now)))
            self._situations[name] = now
        for status, step in steps:
            if step is not Step.KEEP:
                self._detach(status.hook)
        for status, step in steps:
            self._statuses[status.hook.name] = self._after(step, status)

    def _after(self, step: Step, status: HookStatus) -> HookStatus:
        """Attach a detached hook if the step says so, and return its new status."""
        driver = status.hook.driver
        if step is Step.ATTACH:
            return self._attached(status)
        if step is Step.DRIVER_GONE and driver is not None:
            return status.driver_gone(driver)
        return status.not_needed() if step is Step.NOT_NEEDED else status

    def _state(self, driver: Driver | None) -> DriverState:
        return _driver_state(self._sys_root, driver)

    def _attached(self, status: HookStatus) -> HookStatus:
        """Attach one hook if possible and return its new status."""
        failures: list[AttachError] = []
        for point in status.hook.points_in_order(raw_is_exact=self._raw_is_exact):
            try:
                self._attach(point, status.hook)
            except AttachError as err:
                failures.append(err)
                continue
            self._points[status.hook.name] = point
            attached = status.attached_at(point, monotonic_ns(), passed_over=_reason(failures))
            self._attach_beside(status.hook, point)
            return attached
        return status.failed(_reason(failures) or "", refused=any(err.refused for err in failures))

    def _attach(self, point: AttachPoint, hook: Hook) -> None:
        """Attach a hook's program at one point. Raises AttachError when that fails."""
        offsets = self._tracefs.offsets(point.target, point.fields) if point.fields else None
        if point.fields and offsets != self._places[point]:
            self._programs.check_reachable(point)
            raise AttachError(
                f"{point.kind} {point.target}",
                AttachCause.FIELDS_MOVED,
                f"{' and '.join(point.fields)} moved after the program was compiled",
                remedy="restart hvprobe",
            )
        self._programs.attach(point, point.program or hook.program)

    def _attach_beside(self, hook: Hook, held: AttachPoint) -> None:
        """Attach the hook's additional program if possible; a failure is ignored."""
        point = hook.beside
        if point is None or point == held:
            return
        with contextlib.suppress(AttachError):
            self._attach(point, hook)
            self._beside[hook.name] = point

    def _detach(self, hook: Hook) -> None:
        """Detach a hook from wherever it is attached, if it is."""
        for points in (self._points, self._beside):
            point = points.pop(hook.name, None)
            if point is not None:
                self._programs.detach(point)


def _reason(failures: Sequence[AttachError]) -> str | None:
    """Join the failures of a hook's points in the order of attempts; None: there was none."""
    return "; ".join(str(err) for err in failures) or None


def _driver_state(sys_root: Path, driver: Driver | None) -> DriverState:
    """Return the state of a driver now. The kernel proper (None) is always present."""
    if driver is None:
        return DriverState(device=True, module_inode=None)
    inode = None
    with contextlib.suppress(OSError):
        inode = (sys_root / "module" / driver.module).stat().st_ino
    device = (sys_root / "class/misc" / driver.device).exists()
    return DriverState(device=device, module_inode=inode)
