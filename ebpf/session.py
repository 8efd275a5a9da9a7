"""EDGE: the ledger of this node: its programs attached, followed through module life, and read.

Owns which hook is attached how, and when that has to change. Must not know what a VMM, a pod or a
VMI is: it gives the kernel's records and the state of each hook, and nothing else.
"""

import contextlib
import ctypes
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ebpf.bcc_library import Programs
from ebpf.errors import BpfUnavailableError, LedgerReadError
from ebpf.hooks import HOOKS, PROGRAM_FILES, AttachPoint, Driver, Hook, HookStatus, unattached
from ebpf.ledger import (
    ActivityRecord,
    KernelSnapshot,
    LedgerEntry,
    ProcessRecord,
    Total,
    entry_from,
)

DEFAULT_CAPACITY = 4096
"""Processes in the ledger. Each costs 32 bytes a possible CPU and 40 once, plus the table's own."""

INIT_PID_NAMESPACE_INODE = 0xEFFFFFFC
"""Inode of the initial PID namespace (include/linux/proc_ns.h, PROC_PID_INIT_INO)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _DriverState:
    """What sysfs says of a driver: compared between two looks."""

    device: bool
    """Whether its device is registered, for which KVM's vendor module has to be there, too."""
    module_inode: int | None
    """Of the module's directory in sysfs, which is another after a reload; None: not loaded."""


class Session:
    """The programs, attached; one a process. Use as a context manager or call close()."""

    def __init__(
        self,
        *,
        capacity: int = DEFAULT_CAPACITY,
        sys_root: Path = Path("/sys"),
        hooks: Sequence[Hook] = HOOKS,
    ) -> None:
        """Compile and attach everything that can be attached.

        Raises BpfUnavailableError when there can be no ledger at all.
        """
        self._capacity = capacity
        self._sys_root = sys_root
        flags = [f"-DLEDGER_CAPACITY={capacity}", *self._freed_tid_flags()]
        self._programs = Programs(PROGRAM_FILES, flags, sys_root=sys_root)
        self._processes = self._programs.table("processes", ProcessRecord)
        self._activity = self._programs.table("activity", ActivityRecord)
        self._totals = self._programs.table("totals")
        wanted = [hook for hook in hooks if not hook.optional or self._driver(hook.driver).device]
        self._statuses = {it.hook.name: it for it in unattached("not tried yet", wanted)}
        self._points: dict[str, AttachPoint] = {}
        self._drivers = {hook.driver: self._driver(hook.driver) for hook in wanted}
        self._attached_ns = time.monotonic_ns()
        for driver, state in self._drivers.items():
            if state.device:
                self._attach_all(driver)
            else:
                self._detach_all(driver)
        if not self._points:
            self.close()
            raise BpfUnavailableError(f"no hook can be attached: {self.hooks[-1].reason}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def hooks(self) -> tuple[HookStatus, ...]:
        """State of each wanted hook, in the order of hooks.HOOKS."""
        return tuple(self._statuses.values())

    @property
    def bcc_version(self) -> str:
        """Version of the bcc library in use."""
        return self._programs.bcc_version

    def read(self) -> KernelSnapshot:
        """Read the ledger now. Raises LedgerReadError.

        Hooks follow their driver here: let go when it leaves, attached again when it is back.
        """
        self._follow_drivers()
        try:
            entries = self._read_entries()
            totals = self._read_totals()
        except (OSError, ValueError) as err:
            raise LedgerReadError(f"cannot read the ledger: {err}; restart hvprobe") from err
        return KernelSnapshot(
            taken_ns=time.monotonic_ns(),
            attached_ns=self._attached_ns,
            entries=entries,
            capacity=self._capacity,
            dropped_total=totals[Total.DROPPED],
            departed_total=totals[Total.DEPARTED],
            hooks=self.hooks,
        )

    def forget(self, entry: LedgerEntry) -> None:
        """Remove the record of a process that is known to be gone (no hook told the kernel so)."""
        key = ctypes.c_uint32(entry.tgid)
        for table in (self._activity, self._processes):
            with contextlib.suppress(KeyError):
                del table[key]

    def close(self) -> None:
        """Detach and release everything. May be called again."""
        self._programs.close()

    def _driver(self, driver: Driver | None) -> _DriverState:
        if driver is None:
            return _DriverState(device=True, module_inode=None)
        inode = None
        with contextlib.suppress(OSError):
            inode = (self._sys_root / "module" / driver.module).stat().st_ino
        device = (self._sys_root / "class/misc" / driver.device).exists()
        return _DriverState(device=device, module_inode=inode)

    def _follow_drivers(self) -> None:
        """Compare each driver with the last look.

        A tracepoint of a module keeps it loaded, and a kprobe in one goes dead when it is unloaded
        without an error anywhere. So when the device has gone (the vendor module was removed)
        everything is let go, that the rest can be unloaded, too; and when the device is there
        again, or the module is another one, everything is attached anew.
        """
        for driver, before in self._drivers.items():
            now = self._driver(driver)
            if now == before:
                continue
            self._drivers[driver] = now
            if now.device and now.module_inode == before.module_inode and before.device:
                continue
            self._detach_all(driver)
            if now.device:
                self._attach_all(driver)

    def _attach_all(self, driver: Driver | None) -> None:
        """Try each hook's attach points in order; the first that holds is it."""
        for name, status in self._statuses.items():
            if status.hook.driver != driver:
                continue
            reasons: list[str] = []
            for point in status.hook.points:
                reason = self._programs.attach(point, status.hook.program)
                if reason is None:
                    self._points[name] = point
                    self._statuses[name] = status.attached_by(point.backend)
                    break
                reasons.append(reason)
            else:
                self._statuses[name] = status.failed("; ".join(reasons))
        self._attached_ns = time.monotonic_ns()

    def _detach_all(self, driver: Driver | None) -> None:
        for name, status in self._statuses.items():
            if status.hook.driver == driver:
                point = self._points.pop(name, None)
                if point is not None:
                    self._programs.detach(point)
                self._statuses[name] = status.driver_gone()

    def _freed_tid_flags(self) -> list[str]:
        """Where sched_process_free keeps the thread id on this kernel, as a compiler flag."""
        for tracefs in ("kernel/tracing", "kernel/debug/tracing"):
            description = self._sys_root / tracefs / "events/sched/sched_process_free/format"
            with contextlib.suppress(OSError):
                found = re.search(r"pid_t pid;\s+offset:(\d+);", description.read_text())
                if found:
                    return [f"-DFREED_TID_OFFSET={found[1]}"]
        return []

    def _read_entries(self) -> dict[int, LedgerEntry]:
        """All records. One that leaves while being read is simply not there."""
        activity: dict[int, Any] = {}
        for key in self._activity.keys():  # noqa: SIM118 - a bcc table, not a dict
            with contextlib.suppress(KeyError):
                activity[key.value] = self._activity.getvalue(key)
        entries: dict[int, LedgerEntry] = {}
        for key in self._processes.keys():  # noqa: SIM118 - a bcc table, not a dict
            with contextlib.suppress(KeyError):
                tgid = int(key.value)
                entries[tgid] = entry_from(tgid, self._processes[key], activity.get(tgid, ()))
        return entries

    def _read_totals(self) -> dict[Total, int]:
        return {which: sum(self._totals.getvalue(ctypes.c_int(which))) for which in Total}


def in_initial_pid_namespace(proc_root: Path = Path("/proc")) -> bool:
    """Whether the tgids BPF gives are the ones this process sees in /proc."""
    return (proc_root / "self/ns/pid").stat().st_ino == INIT_PID_NAMESPACE_INODE
