"""EDGE: the ledger of this node: its programs attached, followed through module life, and read.

Owns which hook is attached how, and when that has to change. Must not know what a VMM, a pod or a
VMI is: it gives the kernel's records and the state of each hook, and nothing else.
"""

import contextlib
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ebpf.bpf_calls import Update
from ebpf.errors import BpfUnavailableError, LedgerReadError
from ebpf.hooks import HOOKS, PROGRAM_FILES, AttachPoint, Driver, Hook, HookStatus, unattached
from ebpf.ledger import (
    ACTIVITY_WORDS,
    RECORD_WORDS,
    KernelSnapshot,
    LedgerEntry,
    Total,
    entries_from,
)
from ebpf.maps import HashMap, MappedArray, Stack
from ebpf.programs import Programs, possible_cpus

DEFAULT_CAPACITY = 4096
"""Processes in the ledger. Each costs 32 bytes a possible CPU and 48 once, plus the hash's own."""

RECENT_PLACES = 4096
"""Processes whose counters are found without a look-up in a hash, see ledger.bpf.c."""

READINGS = 3
"""How often at most the ledger is read again because processes came or went meanwhile."""
_FIRST_NS, _TGID = 0, 1
"""Words of a record."""

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
        recent_places: int = RECENT_PLACES,
        sys_root: Path = Path("/sys"),
        hooks: Sequence[Hook] = HOOKS,
    ) -> None:
        """Compile and attach everything that can be attached.

        Raises BpfUnavailableError when there can be no ledger at all.
        """
        self._capacity = capacity
        self._sys_root = sys_root
        try:
            cpus = 1 + possible_cpus(sys_root)[-1]
        except (OSError, ValueError) as err:
            raise BpfUnavailableError(f"cannot tell how many CPUs this node has: {err}") from err
        self._recent_places = recent_places
        flags = [
            f"-DLEDGER_CAPACITY={capacity}",
            f"-DLEDGER_CPUS={cpus}",
            f"-DRECENT_PLACES={recent_places}",
        ]
        self._programs = Programs(
            PROGRAM_FILES,
            [*flags, *self._freed_tid_flags()],
            maps=("records", "activity", "totals", "slots", "recent", "free_slots"),
            loadable=[(hook.program, point.backend) for hook in hooks for point in hook.points],
            sys_root=sys_root,
        )
        try:
            self._open_tables(cpus)
        except OSError as err:
            self._programs.close()
            raise BpfUnavailableError(f"the ledger's tables cannot be used: {err}") from err
        wanted = [hook for hook in hooks if not hook.optional or self._driver(hook.driver).device]
        self._statuses = {it.hook.name: it for it in unattached("not tried yet", wanted)}
        self._points: dict[str, AttachPoint] = {}
        self._drivers = {hook.driver: self._driver(hook.driver) for hook in wanted}
        self._first_ns: dict[int, int] = {}
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
            totals = self._totals.sums(len(Total))
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

    def adopt(self, tgid: int) -> bool:
        """Make a record for a process that has none: from now on the kernel tells of its end.

        Whether there is one now. Who asks has to see afterwards that the process is still there:
        nobody removes the record of one that ended before. Raises LedgerReadError.
        """
        try:
            slot = self._free_slots.pop()
            if slot is None:
                return False
            # Before anybody finds it, for the process may end, and its record with it, any time.
            first_ns = time.monotonic_ns()
            self._records.write(slot, _TGID, tgid)
            self._records.write(slot, _FIRST_NS, first_ns)
            if self._slots.set(_bytes(tgid), _bytes(slot), Update.NOEXIST):
                self._first_ns[tgid] = first_ns
            else:
                self._records.clear(slot)
                self._free_slots.push(slot)
        except OSError as err:
            raise LedgerReadError(f"cannot write to the ledger: {err}; restart hvprobe") from err
        return True

    def forget(self, tgid: int) -> None:
        """Remove the record of a process known to be gone, which no hook has done.

        Only the one that was read or adopted last: the number may have a new process by now. In
        the order of forget() in ledger.bpf.c, and for the same reasons. Raises LedgerReadError.
        """
        key = _bytes(tgid)
        try:
            found = self._slots.get(key)
            slot = int.from_bytes(found, sys.byteorder) if found else None
            if slot is None or self._records.word(slot, _FIRST_NS) != self._first_ns.get(tgid):
                return
            if self._slots.delete(key):
                self._recent.write(tgid % self._recent_places, 0, 0)
                self._records.clear(slot)
                self._activity.clear(slot)
                self._free_slots.push(slot)
        except OSError as err:
            raise LedgerReadError(f"cannot write to the ledger: {err}; restart hvprobe") from err

    def close(self) -> None:
        """Detach and release everything. May be called again."""
        self._programs.close()
        for table in (self._records, self._activity, self._totals, self._recent):
            table.close()

    def _open_tables(self, cpus: int) -> None:
        fd = self._programs.map_fd
        self._slots = HashMap(fd("slots"), key_bytes=4, value_bytes=4, capacity=self._capacity)
        self._records = MappedArray(
            fd("records"), words=RECORD_WORDS, block_records=self._capacity, blocks=1
        )
        self._totals = MappedArray(fd("totals"), words=1, block_records=len(Total), blocks=1)
        self._recent = MappedArray(
            fd("recent"), words=1, block_records=self._recent_places, blocks=1
        )
        self._activity = MappedArray(
            fd("activity"),
            words=ACTIVITY_WORDS,
            block_records=self._capacity,
            blocks=cpus,
        )
        self._free_slots = Stack(fd("free_slots"))
        # Low numbers on top: then the counters in use are close to each other.
        for slot in reversed(range(self._capacity)):
            self._free_slots.push(slot)

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
        """All records with their counters, from memory: no call that would silence a hook.

        A record that was there before and after its counters were read had its slot all the time.
        Those that came or went meanwhile are read once more; one that is still not complete after
        that is not there yet.
        """
        entries: dict[int, LedgerEntry] = {}
        for _ in range(READINGS):
            used = max((n for n, it in enumerate(self._records.column(), start=1) if it), default=0)
            before = self._records.words(used)
            activity = self._activity.sums(used)
            entries, whole = entries_from(before, activity, self._records.words(used))
            if whole:
                break
        self._first_ns = {tgid: entry.first_ns for tgid, entry in entries.items()}
        return entries


def _bytes(number: int) -> bytes:
    return number.to_bytes(4, sys.byteorder)


def in_initial_pid_namespace(proc_root: Path = Path("/proc")) -> bool:
    """Whether the tgids BPF gives are the ones this process sees in /proc."""
    return (proc_root / "self/ns/pid").stat().st_ino == INIT_PID_NAMESPACE_INODE
