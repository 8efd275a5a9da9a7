"""EDGE: the ledger of this node: its programs attached, followed through module life, and read.

Owns which hook is attached how, and when that has to change. Must not know what a VMM, a pod or a
VMI is: it gives the kernel's records and the state of each hook, and nothing else.
"""

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ebpf.clock import monotonic_ns
from ebpf.errors import BpfUnavailableError, LedgerReadError
from ebpf.hooks import (
    HOOKS,
    PROGRAM_FILES,
    AttachPoint,
    Backend,
    Driver,
    Hook,
    HookStatus,
    Question,
    field_flag,
    loadable,
    unattached,
)
from ebpf.ledger import KernelSnapshot
from ebpf.programs import Programs, possible_cpus
from ebpf.tables import (
    MAX_READS,
    RECENT_PLACES,
    TABLES,
    Sizes,
    Tables,
    default_capacity,
    life_pages,
    memory_bytes,
)
from ebpf.tracefs import FIELD_BYTES, Tracefs

_COMMON_FIELDS_BYTES = 8
"""What each tracepoint's record begins with. Fields are taken to follow it if it is not known."""

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
        capacity: int | None = None,
        recent_places: int = RECENT_PLACES,
        sys_root: Path = Path("/sys"),
        proc_root: Path = Path("/proc"),
        hooks: Sequence[Hook] = HOOKS,
    ) -> None:
        """Compile and attach everything that can be attached.

        capacity: see default_capacity(). Raises BpfUnavailableError when there can be no ledger.
        """
        self._sys_root = sys_root
        self._proc_root = proc_root
        self._tracefs = Tracefs(sys_root)
        self._sizes = self._sizes_of_node(capacity, recent_places)
        self._offsets = self._offsets_of([*HOOKS, *hooks])
        self._programs = Programs(
            PROGRAM_FILES,
            [*self._sizes.flags, *_field_flags(self._offsets)],
            maps=TABLES,
            loadable=loadable(hooks),
            sys_root=sys_root,
        )
        self._tables = self._open_tables()
        wanted = [hook for hook in hooks if not hook.optional or self._driver(hook.driver).device]
        self._statuses = {it.hook.name: it for it in unattached("not tried yet", wanted)}
        self._points: dict[str, AttachPoint] = {}
        self._beside: set[Question] = set()
        self._drivers = {hook.driver: self._driver(hook.driver) for hook in wanted}
        self._attached_ns = monotonic_ns()
        for driver, state in self._drivers.items():
            if state.device:
                self._attach_all(driver)
            else:
                self._detach_all(driver)
        self._unmarked_forks = self._tables.unmarked_forks()
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

        Hooks follow their driver here: detached when it leaves, attached again when it is back.
        """
        self._follow_drivers()
        try:
            self._tables.recycle()
            entries = self._tables.entries()
            dropped_total = self._tables.dropped_total()
        except (OSError, ValueError) as err:
            raise LedgerReadError(f"cannot read the ledger: {err}; restart hvprobe") from err
        return KernelSnapshot(
            taken_ns=monotonic_ns(),
            attached_ns=self._attached_ns,
            entries=entries,
            capacity=self._sizes.capacity,
            dropped_total=dropped_total,
            hooks=self.hooks,
        )

    def new_lives(self) -> frozenset[int] | None:
        """Numbers at which a life began or ended (fork, exec, exit) since the last call.

        Those of threads are among them. To be called before the ledger is read and before /proc is
        listed. None: lives cannot be followed now without exception. Raises LedgerReadError.
        """
        try:
            lives = self._tables.lives.take()
            pid_max = self._pid_max()
        except (OSError, ValueError) as err:
            raise LedgerReadError(f"cannot read the ledger: {err}; restart hvprobe") from err
        # Other forms are skipped where a thread was preempted in them, see hooks.py.
        backends = {it.hook.question: it.backend for it in self._statuses.values()}
        followed = all(
            backends.get(question) is Backend.TRACEPOINT
            for question in (Question.FORKS, Question.EXECUTES, Question.ENDS)
        )
        if self._forks_skipped() or pid_max > self._tables.lives.numbers:
            return None
        return lives if followed else None

    def forget(self, tgid: int, first_ns: int) -> None:
        """Remove the record of tgid that began at first_ns, if it still is the one.

        Its slot is free from the next read() on. Raises LedgerReadError.
        """
        try:
            self._tables.forget(tgid, first_ns)
        except (OSError, ValueError) as err:
            raise LedgerReadError(f"cannot write to the ledger: {err}; restart hvprobe") from err

    def close(self) -> None:
        """Detach and release everything. May be called again."""
        self._programs.close()
        self._tables.close()

    def _forks_skipped(self) -> bool:
        """Whether the kernel skipped the program of a fork since the last call.

        Where that can be seen at all. A fork that is at work is no loss: it is waited for.
        """
        if Question.FORKS not in self._beside:
            return False
        before, found = self._unmarked_forks, 0
        for _ in range(MAX_READS):
            found = self._tables.unmarked_forks()
            if found == before:
                return False
        self._unmarked_forks = found
        return True

    def _open_tables(self) -> Tables:
        try:
            return Tables(self._programs.map_fd, self._sizes)
        except OSError as err:
            self._programs.close()
            raise BpfUnavailableError(f"the ledger's tables cannot be used: {err}") from err

    def _sizes_of_node(self, capacity: int | None, recent_places: int) -> Sizes:
        try:
            cpus = 1 + possible_cpus(self._sys_root)[-1]
            pages = life_pages(self._pid_max())
        except (OSError, ValueError) as err:
            raise BpfUnavailableError(
                f"cannot tell how many CPUs and processes this node can have: {err}"
            ) from err
        if capacity is None:
            capacity = default_capacity(memory_bytes=memory_bytes(), cpus=cpus)
        return Sizes(capacity=capacity, cpus=cpus, recent_places=recent_places, life_pages=pages)

    def _pid_max(self) -> int:
        return int((self._proc_root / "sys/kernel/pid_max").read_text())

    def _offsets_of(self, hooks: Collection[Hook]) -> dict[AttachPoint, tuple[int, ...]]:
        """Where the fields that programs read stand now, or may stand once they are there."""
        return {
            point: self._tracefs.offsets(point.target, point.fields)
            or tuple(_COMMON_FIELDS_BYTES + FIELD_BYTES * n for n in range(len(point.fields)))
            for hook in hooks
            for point in hook.points
            if point.fields
        }

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
                reason = self._attach(point, point.program or status.hook.program)
                if reason is None:
                    self._points[name] = point
                    self._statuses[name] = status.attached_at(point, monotonic_ns())
                    self._attach_beside(status.hook, point)
                    break
                reasons.append(reason)
            else:
                self._statuses[name] = status.failed("; ".join(reasons))
        self._attached_ns = monotonic_ns()

    def _attach(self, point: AttachPoint, program: str) -> str | None:
        """Attach a program at one point; the reason in one line when that fails."""
        if point.fields:
            found = self._tracefs.offsets(point.target, point.fields)
            if found != self._offsets[point]:
                return self._programs.why_unreachable(point) or (
                    f"{point.backend} {point.target}: {' and '.join(point.fields)} do not stand "
                    "where they stood when the program was compiled; restart hvprobe"
                )
        return self._programs.attach(point, program)

    def _attach_beside(self, hook: Hook, held: AttachPoint) -> None:
        """Attach what a hook has beside the point that holds, where that is possible."""
        point = hook.beside
        if point is None or point == held:
            return
        if self._attach(point, point.program or hook.program) is None:
            self._beside.add(hook.question)

    def _detach_all(self, driver: Driver | None) -> None:
        for name, status in self._statuses.items():
            if status.hook.driver == driver:
                point = self._points.pop(name, None)
                if point is not None:
                    self._programs.detach(point)
                self._statuses[name] = status.driver_gone()


def _field_flags(offsets: Mapping[AttachPoint, tuple[int, ...]]) -> list[str]:
    """The places of fields, for the compiler of programs that read them."""
    return [
        f"-D{field_flag(point, field)}={offset}"
        for point, places in offsets.items()
        for field, offset in zip(point.fields, places, strict=True)
    ]


def in_initial_pid_namespace(proc_root: Path = Path("/proc")) -> bool:
    """Whether the tgids BPF gives are the ones this process sees in /proc."""
    return (proc_root / "self/ns/pid").stat().st_ino == INIT_PID_NAMESPACE_INODE
