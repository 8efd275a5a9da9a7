# SPDX-License-Identifier: Apache-2.0
"""EDGE: attaches the wanted hooks of this node and follows the modules they belong to.

Owns how each hook is attached, and when that has to change. Must not know what the programs write,
nor where.
"""

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ebpf.clock import monotonic_ns
from ebpf.errors import AttachCause, AttachError
from ebpf.hooks import (
    SCHED_PROCESS_EXEC,
    SCHED_PROCESS_EXIT,
    SCHED_PROCESS_FORK,
    AttachPoint,
    Backend,
    Driver,
    Hook,
    HookStatus,
    field_flag,
    unattached,
)
from ebpf.programs import Programs
from ebpf.tracefs import FIELD_BYTES, Tracefs

_COMMON_FIELDS_BYTES = 8
"""Size of the common fields at the start of each tracepoint record.

Where tracefs gives no description, a program's fields are assumed to follow them directly.
"""

FieldPlaces = Mapping[AttachPoint, tuple[int, ...]]
"""Offsets in bytes of the fields that the programs of an attach point read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _DriverState:
    """What sysfs says about a driver; two refreshes compare it."""

    device: bool
    """Whether the driver's device is registered. KVM's also needs its vendor module."""
    module_inode: int | None
    """Inode of the module's directory in sysfs, which a reload changes; None: it is not loaded."""


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
        """Attach every hook that can be attached.

        programs holds the programs of all these hooks and stays the caller's. places are the field
        offsets for which they were compiled. An optional hook is wanted if its driver's device
        exists now.
        """
        self._sys_root = sys_root
        self._programs = programs
        self._places = places
        self._tracefs = Tracefs(sys_root)
        wanted = [hook for hook in hooks if not hook.optional or self._state(hook.driver).device]
        self._drivers = {hook.driver: self._state(hook.driver) for hook in wanted}
        self._statuses = {
            status.hook.name: status for status in unattached("not tried yet", wanted)
        }
        self._points: dict[str, AttachPoint] = {}
        self._beside: set[str] = set()
        self.attached_ns = monotonic_ns()
        """Host CLOCK_MONOTONIC (clock.py) since when every attached hook has been counting."""
        for driver, state in self._drivers.items():
            if driver is None or state.device:
                self._attach_all(driver)
            else:
                self._mark_gone(driver)

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
        lives = (SCHED_PROCESS_FORK, SCHED_PROCESS_EXEC, SCHED_PROCESS_EXIT)
        statuses = [self._statuses.get(hook.name) for hook in lives]
        return all(status and status.backend is Backend.TRACEPOINT for status in statuses)

    def follow_drivers(self) -> None:
        """Attach or detach the hooks of every driver whose state has changed since the last call.

        A tracepoint keeps its module loaded, while a kprobe goes dead without any error when its
        module is unloaded. Therefore, when the device disappears because the vendor module was
        removed, all hooks of the driver are detached, so that the administrator can unload the
        other module as well. When the device returns, or the module has been reloaded, they are
        attached again.
        """
        for driver, before in self._drivers.items():
            now = self._state(driver)
            if driver is None or now == before:
                continue
            self._drivers[driver] = now
            self._detach_all(driver)
            if now.device:
                self._attach_all(driver)
            else:
                self._mark_gone(driver)

    def _state(self, driver: Driver | None) -> _DriverState:
        return _driver_state(self._sys_root, driver)

    def _of(self, driver: Driver | None) -> list[HookStatus]:
        return [status for status in self._statuses.values() if status.hook.driver == driver]

    def _attach_all(self, driver: Driver | None) -> None:
        """Attach each hook of a driver at the first of its attach points that works."""
        for status in self._of(driver):
            self._statuses[status.hook.name] = self._attached(status)
        self.attached_ns = monotonic_ns()

    def _attached(self, status: HookStatus) -> HookStatus:
        """Attach one hook if possible and return its new status."""
        failures: list[AttachError] = []
        for point in status.hook.points:
            try:
                self._attach(point, status.hook)
            except AttachError as err:
                failures.append(err)
                continue
            self._points[status.hook.name] = point
            attached = status.attached_at(point, monotonic_ns())
            self._attach_beside(status.hook, point)
            return attached
        return status.failed(
            "; ".join(str(err) for err in failures), refused=any(err.refused for err in failures)
        )

    def _attach(self, point: AttachPoint, hook: Hook) -> None:
        """Attach a hook's program at one point. Raises AttachError when that fails."""
        offsets = self._tracefs.offsets(point.target, point.fields) if point.fields else None
        if point.fields and offsets != self._places[point]:
            self._programs.check_reachable(point)
            raise AttachError(
                f"{point.backend} {point.target}",
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
            self._beside.add(hook.name)

    def _detach_all(self, driver: Driver) -> None:
        for status in self._of(driver):
            point = self._points.pop(status.hook.name, None)
            if point is not None:
                self._programs.detach(point)

    def _mark_gone(self, driver: Driver) -> None:
        for status in self._of(driver):
            self._statuses[status.hook.name] = status.driver_gone(driver)


def _driver_state(sys_root: Path, driver: Driver | None) -> _DriverState:
    """Return the state of a driver now. The kernel proper (None) is always present."""
    if driver is None:
        return _DriverState(device=True, module_inode=None)
    inode = None
    with contextlib.suppress(OSError):
        inode = (sys_root / "module" / driver.module).stat().st_ino
    device = (sys_root / "class/misc" / driver.device).exists()
    return _DriverState(device=device, module_inode=inode)
