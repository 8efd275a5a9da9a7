"""EDGE: compile, attach, read and detach the BPF programs. The only importer of bcc.

Owns the one BPF object of this process. Must not know what a VMM, a pod or a VMI is: it gives
the kernel's records and the state of each hook, and nothing else.

bcc reports nearly every failure as a bare ``Exception`` (or ends the process), and the compiler's
and verifier's words go to file descriptor 2: both are turned into one line each here.
"""

import contextlib
import ctypes
import errno
import importlib
import os
import re
import tempfile
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, Self

from ebpf.errors import BpfUnavailableError, LedgerReadError
from ebpf.hooks import HOOKS, PROGRAM_FILES, AttachPoint, Backend, Hook, HookStatus
from ebpf.ledger import (
    ActivityRecord,
    KernelSnapshot,
    LedgerEntry,
    ProcessRecord,
    Total,
    entry_from,
)

DEFAULT_CAPACITY = 4096
"""Processes in the ledger. Each costs 24 bytes a possible CPU and 40 once, plus the table's own."""

INIT_PID_NAMESPACE_INODE = 0xEFFFFFFC
"""Inode of the initial PID namespace (include/linux/proc_ns.h, PROC_PID_INIT_INO)."""


class Session:
    """The programs, attached; one a process. Use as a context manager or call close()."""

    def __init__(self, *, capacity: int = DEFAULT_CAPACITY, sys_root: Path = Path("/sys")) -> None:
        """Compile and attach everything that can be attached.

        Raises BpfUnavailableError when there can be no ledger at all.
        """
        self._capacity = capacity
        self._sys_root = sys_root
        self._bcc = _import_bcc()
        self._bpf = self._compile()
        self._processes = self._bpf.get_table(b"processes", leaftype=ProcessRecord)
        self._activity = self._bpf.get_table(b"activity", leaftype=ActivityRecord)
        self._totals = self._bpf.get_table(b"totals")
        self._statuses = tuple(self._attach(hook) for hook in HOOKS)
        if not any(status.attached for status in self._statuses):
            self.close()
            raise BpfUnavailableError(f"no hook can be attached: {self._statuses[-1].reason}")
        self._attached_ns = time.monotonic_ns()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def hooks(self) -> tuple[HookStatus, ...]:
        """State of each wanted hook, in the order of hooks.HOOKS."""
        return self._statuses

    @property
    def bcc_version(self) -> str:
        """Version of the bcc library in use."""
        return str(self._bcc.__version__)

    def read(self) -> KernelSnapshot:
        """Read the ledger now. Raises LedgerReadError."""
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
            hooks=self._statuses,
        )

    def forget(self, entry: LedgerEntry) -> None:
        """Remove the record of a process that is known to be gone (no hook told the kernel so)."""
        key = ctypes.c_uint32(entry.tgid)
        for table in (self._activity, self._processes):
            with contextlib.suppress(KeyError):
                del table[key]

    def close(self) -> None:
        """Detach and release everything. May be called again."""
        if self._bpf is not None:
            self._bpf.cleanup()
            self._bpf = None

    def _compile(self) -> Any:  # noqa: ANN401 - bcc has no types
        source = resources.files("ebpf")
        os.environ["BCC_KERNEL_SOURCE"] = str(source)
        text = "".join(
            f'#line 1 "{name}"\n{source.joinpath(name).read_text()}\n' for name in PROGRAM_FILES
        )
        flags = [
            f"-I{source}",
            f"-DLEDGER_CAPACITY={self._capacity}",
            *self._freed_tid_flags(),
        ]
        with _stderr_captured() as said:
            try:
                return self._bcc.BPF(text=text.encode(), cflags=flags)
            except (Exception, SystemExit) as err:
                raise BpfUnavailableError(_why_unavailable(err, said())) from err

    def _freed_tid_flags(self) -> list[str]:
        """Where sched_process_free keeps the thread id on this kernel, as a compiler flag."""
        for tracefs in ("kernel/tracing", "kernel/debug/tracing"):
            description = self._sys_root / tracefs / "events/sched/sched_process_free/format"
            with contextlib.suppress(OSError):
                found = re.search(r"pid_t pid;\s+offset:(\d+);", description.read_text())
                if found:
                    return [f"-DFREED_TID_OFFSET={found[1]}"]
        return []

    def _attach(self, hook: Hook) -> HookStatus:
        """Try the hook's attach points in order; the first that holds is it."""
        reasons: list[str] = []
        for point in hook.points:
            reason = self._attach_at(hook, point)
            if reason is None:
                return HookStatus(hook=hook, backend=point.backend)
            reasons.append(reason)
        return HookStatus(hook=hook, backend=Backend.NONE, reason="; ".join(reasons))

    def _attach_at(self, hook: Hook, point: AttachPoint) -> str | None:
        """Attach the hook's program at one point; the reason when that fails."""
        program = hook.program.encode()
        with _stderr_captured() as said:
            try:
                match point.backend:
                    case Backend.KPROBE:
                        self._bpf.attach_kprobe(event=point.target.encode(), fn_name=program)
                    case Backend.RAW_TRACEPOINT:
                        self._bpf.attach_raw_tracepoint(tp=point.target.encode(), fn_name=program)
                    case Backend.TRACEPOINT:
                        self._bpf.attach_tracepoint(tp=point.target.encode(), fn_name=program)
                    case Backend.NONE:
                        return "no attach point"
            except (Exception, SystemExit) as err:  # noqa: BLE001 - bcc raises nothing narrower
                code = ctypes.get_errno()
                self._unload(program)
                return self._why_unattached(point, code, err, said())
        return None

    def _unload(self, program: bytes) -> None:
        """Let the program be loaded again as another type by the next attach point."""
        function = self._bpf.funcs.pop(program, None)
        if function is not None:
            os.close(function.fd)

    def _why_unattached(self, point: AttachPoint, code: int, err: BaseException, said: str) -> str:
        what = f"{point.backend} {point.target}"
        if point.backend is Backend.KPROBE:
            if not self._has_kprobes():
                return f"{what}: this kernel has no kprobes (CONFIG_KPROBES)"
            if point.target not in _kernel_functions(point.target):
                return f"{what}: the kernel has no such function now; is the module loaded?"
        if code in (errno.EPERM, errno.EACCES):
            return f"{what}: not permitted; needs CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN"
        if code == errno.ENOENT:
            return f"{what}: the kernel has no such hook now; is the module loaded?"
        detail = _one_line(said) or _one_line(str(err)) or type(err).__name__
        named = f" ({os.strerror(code)})" if code else ""
        return f"{what}: {detail}{named}"

    def _has_kprobes(self) -> bool:
        return (
            (self._sys_root / "bus/event_source/devices/kprobe").exists()
            or (self._sys_root / "kernel/tracing/kprobe_events").exists()
            or (self._sys_root / "kernel/debug/tracing/kprobe_events").exists()
        )

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


def _import_bcc() -> Any:  # noqa: ANN401 - bcc has no types
    """The distribution's bcc. The package of that name on the Python index is another thing."""
    try:
        bcc = importlib.import_module("bcc")
    except ImportError as err:
        raise BpfUnavailableError(
            f"cannot import bcc ({err}): install the distribution's package python3-bpfcc"
        ) from err
    if not hasattr(bcc, "BPF"):
        raise BpfUnavailableError(
            f"{bcc.__file__} is not the BPF Compiler Collection: "
            "uninstall it and install the distribution's package python3-bpfcc"
        )
    return bcc


def _why_unavailable(err: BaseException, said: str) -> str:
    detail = _one_line(said) or _one_line(str(err)) or type(err).__name__
    if ctypes.get_errno() == errno.EPERM or os.geteuid() != 0:
        return (
            f"BPF is not permitted here ({detail}): run as root, in a container with CAP_BPF and "
            "CAP_PERFMON (or privileged), on a kernel not in lockdown=confidentiality"
        )
    return f"cannot prepare the BPF programs: {detail}"


def _one_line(text: str) -> str:
    """The line of a tool's output that says most: its first error, else its first line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower() and "modprobe" not in line]
    return (errors or lines or [""])[0][:300]


def _kernel_functions(name: str) -> set[str]:
    """The given function if /proc/kallsyms names it (the file is readable without root)."""
    with contextlib.suppress(OSError), Path("/proc/kallsyms").open() as symbols:
        for line in symbols:
            if line.split()[2] == name:
                return {name}
    return set()


@contextlib.contextmanager
def _stderr_captured() -> Iterator[Any]:
    """File descriptor 2 goes to a file meanwhile; yields a function giving what was written."""
    saved = os.dup(2)
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 2)

        def said() -> str:
            sink.seek(0)
            return sink.read().decode(errors="replace")

        try:
            yield said
        finally:
            os.dup2(saved, 2)
            os.close(saved)
