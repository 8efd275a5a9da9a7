# SPDX-License-Identifier: Apache-2.0
"""EDGE: the wanted hooks of this node, attached one by one and followed through module life.

Owns which hook is attached how, and when that has to change. Must not know what the programs
write, nor where.
"""

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ebpf.clock import monotonic_ns
from ebpf.errors import AttachCause, AttachError
from ebpf.hooks import (
    AttachPoint,
    Backend,
    Driver,
    Hook,
    HookStatus,
    Question,
    field_flag,
    unattached,
)
from ebpf.programs import Programs
from ebpf.tracefs import FIELD_BYTES, Tracefs

_COMMON_FIELDS_BYTES = 8
"""What each tracepoint's record begins with. Fields are taken to follow it if it is not known."""

FieldPlaces = Mapping[AttachPoint, tuple[int, ...]]
"""Where the fields stand in the record that programs of an attach point read, in bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _DriverState:
    """What sysfs says of a driver: compared between two refreshes."""

    device: bool
    """Whether its device is registered, for which KVM's vendor module has to be there, too."""
    module_inode: int | None
    """Of the module's directory in sysfs, which is another after a reload; None: not loaded."""


def field_places(tracefs: Tracefs, hooks: Collection[Hook]) -> FieldPlaces:
    """Where the fields that programs read stand now, or may stand once they are there."""
    return {
        point: tracefs.offsets(point.target, point.fields)
        or tuple(_COMMON_FIELDS_BYTES + FIELD_BYTES * n for n in range(len(point.fields)))
        for hook in hooks
        for point in hook.points
        if point.fields
    }


def field_flags(places: FieldPlaces) -> list[str]:
    """The places of fields, for the compiler of programs that read them."""
    return [
        f"-D{field_flag(point, field)}={offset}"
        for point, offsets in places.items()
        for field, offset in zip(point.fields, offsets, strict=True)
    ]


class HookSet:
    """The hooks that are wanted on this node, and how each of them is attached now."""

    def __init__(
        self,
        hooks: Sequence[Hook],
        programs: Programs,
        *,
        places: FieldPlaces,
        sys_root: Path,
    ) -> None:
        """Attach everything that can be attached.

        programs: those of all these hooks, which stay the caller's. places: where the fields stood
        when they were compiled. An optional hook is wanted if its driver's device exists now.
        """
        self._sys_root = sys_root
        self._programs = programs
        self._places = places
        self._tracefs = Tracefs(sys_root)
        wanted = [hook for hook in hooks if not hook.optional or self._state(hook.driver).device]
        self._drivers = {hook.driver: self._state(hook.driver) for hook in wanted}
        self._statuses = {it.hook.name: it for it in unattached("not tried yet", wanted)}
        self._points: dict[str, AttachPoint] = {}
        self._beside: set[Question] = set()
        self.attached_ns = monotonic_ns()
        """Host CLOCK_MONOTONIC (clock.py) from which on every attached hook was counting."""
        for driver, state in self._drivers.items():
            if driver is None or state.device:
                self._attach_all(driver)
            else:
                self._mark_gone(driver)

    @property
    def statuses(self) -> tuple[HookStatus, ...]:
        """State of each wanted hook, in the order in which they were given."""
        return tuple(self._statuses.values())

    @property
    def any_attached(self) -> bool:
        """Whether there is any hook that counts."""
        return bool(self._points)

    @property
    def forks_are_counted(self) -> bool:
        """Whether a second program counts forks, so that a skipped one shows."""
        return Question.FORKS in self._beside

    @property
    def lives_are_followed(self) -> bool:
        """Whether fork, exec and exit are seen without exception by classic tracepoints.

        Other forms are skipped where a thread was preempted in them, see hooks.py.
        """
        backends = {it.hook.question: it.backend for it in self._statuses.values()}
        return all(
            backends.get(question) is Backend.TRACEPOINT
            for question in (Question.FORKS, Question.EXECUTES, Question.ENDS)
        )

    def follow_drivers(self) -> None:
        """Compare each driver with its state at the last call, and attach or detach its hooks.

        A tracepoint of a module keeps it loaded, and a kprobe in one goes dead when it is unloaded
        without an error anywhere. So when the device has gone (the vendor module was removed)
        everything is detached, which lets the administrator unload the rest as well; and when the
        device is there again, or the module is another one, everything is attached again.
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
        """Try each hook's attach points in order; the first that holds is it."""
        for status in self._of(driver):
            self._statuses[status.hook.name] = self._attached(status)
        self.attached_ns = monotonic_ns()

    def _attached(self, status: HookStatus) -> HookStatus:
        """Attach one hook where that is possible; its status afterwards."""
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
        """Attach a hook's program at one point. Raises AttachError."""
        offsets = self._tracefs.offsets(point.target, point.fields) if point.fields else None
        if point.fields and offsets != self._places[point]:
            self._programs.check_reachable(point)
            raise AttachError(
                f"{point.backend} {point.target}",
                AttachCause.FIELDS_MOVED,
                f"{' and '.join(point.fields)} do not stand where they stood when the program "
                "was compiled",
                remedy="restart hvprobe",
            )
        self._programs.attach(point, point.program or hook.program)

    def _attach_beside(self, hook: Hook, held: AttachPoint) -> None:
        """Attach what a hook has beside the point that holds, where that is possible."""
        point = hook.beside
        if point is None or point == held:
            return
        with contextlib.suppress(AttachError):
            self._attach(point, hook)
            self._beside.add(hook.question)

    def _detach_all(self, driver: Driver) -> None:
        for status in self._of(driver):
            point = self._points.pop(status.hook.name, None)
            if point is not None:
                self._programs.detach(point)

    def _mark_gone(self, driver: Driver) -> None:
        for status in self._of(driver):
            self._statuses[status.hook.name] = status.driver_gone(driver)


def _driver_state(sys_root: Path, driver: Driver | None) -> _DriverState:
    """The state of a driver now. The kernel proper (None) is always there."""
    if driver is None:
        return _DriverState(device=True, module_inode=None)
    inode = None
    with contextlib.suppress(OSError):
        inode = (sys_root / "module" / driver.module).stat().st_ino
    device = (sys_root / "class/misc" / driver.device).exists()
    return _DriverState(device=device, module_inode=inode)
