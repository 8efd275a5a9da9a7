# SPDX-License-Identifier: Apache-2.0
"""EDGE: attaches and detaches loaded BPF programs by their descriptors, and owns their maps.

Owns what each program is attached to, and how failures to load or attach are reported. A separate
process compiles (loader.py); this one never imports the compiler. Must not know which programs
there are, nor what they are for.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ebpf.bpf_syscall import (
    bpf_exists,
    bpf_is_refused,
    open_iterator,
    open_kprobe,
    open_kprobe_link,
    open_raw_tracepoint,
    open_tracepoint,
)
from ebpf.confinement import CONFIDENTIALITY
from ebpf.errors import AttachCause, AttachError, BpfUnavailableError
from ebpf.hooks import AttachPoint, Backend
from ebpf.loader_process import LoaderProcess
from ebpf.loader_protocol import (
    ITERATOR,
    Failure,
    KernelParts,
    Loadable,
    Loaded,
    Request,
)
from ebpf.privileges import Privileges
from ebpf.skipped_runs import SkippedRuns
from ebpf.tracefs import Tracefs

_KPROBE_TYPE = "bus/event_source/devices/kprobe/type"
_NO_LINKS = "this kernel has no such links (Linux 5.18 and later, CONFIG_FPROBE)"
_NOT_FOR_LINKS = "no such function for links (before Linux 6.2 they find none of a module)"


class Programs:
    """One compiled BPF text: its programs, attached where the caller asks, and its maps."""

    def __init__(
        self,
        files: Sequence[str],
        flags: Sequence[str],
        *,
        maps: Sequence[str],
        loadable: Iterable[Loadable],
        sys_root: Path,
        proc_root: Path = Path("/proc"),
        kernel: KernelParts = KernelParts(),  # noqa: B008 - a tuple
        loader: LoaderProcess | None = None,
    ) -> None:
        """Compile package files, joined in the given order, with compiler flags.

        loadable lists each function with each kind of program it may be attached as. loader
        compiles; None: a process of its own. Raises BpfUnavailableError when no program can be used
        on this node.
        """
        self._sys_root = sys_root
        self._proc_root = proc_root
        self._privileges = Privileges(proc_root=proc_root, sys_root=sys_root)
        self._tracefs = Tracefs(sys_root)
        self._held: dict[AttachPoint, tuple[int, Loadable]] = {}
        programs = [*dict.fromkeys(loadable)]
        self._loaded = _load(
            Request(files=files, flags=flags, maps=maps, programs=programs, kernel=kernel), loader
        )
        if self._loaded.error is not None:
            failure = self._loaded.error
            refused = _is_refused(failure)
            raise BpfUnavailableError(self._why_unavailable(failure), refused=refused)
        self.bcc_version = self._loaded.bcc_version
        """Version of the library that compiled."""
        self._skipped = SkippedRuns(self._loaded.programs, sys_root=sys_root, proc_root=proc_root)
        self.misses_counted = self._skipped.zero_is_known
        """Whether this kernel counts every run of a program that it skips."""

    def map_fd(self, name: str) -> int:
        """Return the descriptor of a map by its name in the text; it stays owned by this object."""
        return self._loaded.maps[name]

    def iterate(self, program: str, map_name: str) -> int:
        """Return a link that runs an iterator for each element of a map; it is the caller's.

        Raises BpfUnavailableError when the kernel refuses.
        """
        fd = self._loaded.programs.get((program, ITERATOR))
        if fd is None:
            failure = self._loaded.failures[program, ITERATOR]
            raise BpfUnavailableError(self._why_unavailable(failure), refused=_is_refused(failure))
        try:
            return open_iterator(fd, self._loaded.maps[map_name])
        except OSError as err:
            raise BpfUnavailableError(f"the kernel refuses an iterator: {err}") from err

    def attach(self, point: AttachPoint, program: str) -> None:
        """Attach a program at one point. Raises AttachError when that fails."""
        key = program, point.kind
        fd = self._loaded.programs.get(key)
        if fd is None:
            failure = self._loaded.failures[key]
            raise self._attach_error(
                point, failure.code, failure.detail, self._privileges.why_no_bpf
            )
        try:
            held = self._open(point, fd)
        except OSError as err:
            by_bpf = point.by_link or point.backend is Backend.RAW_TRACEPOINT
            refused = self._privileges.why_no_bpf if by_bpf else self._privileges.why_no_perf_event
            raise self._attach_error(point, err.errno or 0, "", refused) from err
        self._held[point] = held, key
        if point.by_link:
            self._skipped.link_opened(key, held)

    def check_reachable(self, point: AttachPoint) -> None:
        """Look up a tracepoint in tracefs. Raises AttachError when tracefs does not list it now."""
        try:
            self._tracefs.event_id(point.target)
        except OSError as err:
            refused = self._privileges.why_no_perf_event
            raise self._attach_error(point, err.errno or 0, "", refused) from err

    def detach(self, point: AttachPoint) -> None:
        """Detach the program attached at a point.

        This also works for a kprobe whose function has been unloaded.
        """
        fd, program = self._held.pop(point, (None, None))
        if fd is not None and program is not None:
            self._skipped.link_closes(program)
            os.close(fd)

    def missed_total(self, programs: Iterable[Loadable]) -> int | None:
        """Return how many runs of these programs the kernel has skipped since they were loaded.

        None: this kernel does not count them. The total never falls.
        """
        return self._skipped.total(programs)

    def close(self) -> None:
        """Detach and release everything. May be called again."""
        for point in [*self._held]:
            self.detach(point)
        self._loaded.close()

    def _open(self, point: AttachPoint, program_fd: int) -> int:
        match point.backend:
            case Backend.KPROBE if point.by_link:
                return open_kprobe_link(point.target, program_fd)
            case Backend.KPROBE:
                kind = int((self._sys_root / _KPROBE_TYPE).read_text())
                return open_kprobe(kind, point.target, program_fd, cpu=self._online_cpu())
            case Backend.RAW_TRACEPOINT:
                return open_raw_tracepoint(point.target, program_fd)
            case _:
                event = self._tracefs.event_id(point.target)
                return open_tracepoint(event, program_fd, cpu=self._online_cpu())

    def _online_cpu(self) -> int:
        """Return the first CPU that is online, which need not be CPU 0."""
        with contextlib.suppress(OSError, ValueError):
            online = (self._sys_root / "devices/system/cpu/online").read_text()
            return int(online.replace(",", "-").split("-")[0])
        return 0

    def _attach_error(
        self, point: AttachPoint, code: int, detail: str, refused: Callable[[], str]
    ) -> AttachError:
        """Make the error for a failed attachment.

        refused is called to explain EPERM: it says what is missing.
        """
        cause, remedy = AttachCause.FAILED, None
        if point.kind == Backend.KPROBE and not (self._sys_root / _KPROBE_TYPE).exists():
            cause, detail = AttachCause.NO_KPROBES, "this kernel has no kprobes (CONFIG_KPROBES)"
        elif point.backend is Backend.KPROBE and not self._kernel_has_function(point.target):
            cause, detail = AttachCause.NOT_THERE, "the kernel has no such function now"
            remedy = "is the module loaded?"
        elif code in (errno.EPERM, errno.EACCES):
            cause, detail = AttachCause.NOT_PERMITTED, f"not permitted: {refused()}"
        elif point.by_link and code in (errno.EINVAL, errno.EOPNOTSUPP):
            cause, detail = AttachCause.NO_LINKS, _NO_LINKS
        elif point.by_link and code == errno.ESRCH:
            cause, detail = AttachCause.NOT_THERE, _NOT_FOR_LINKS
        elif point.backend is Backend.TRACEPOINT and not self._tracefs.mounted:
            cause, detail = AttachCause.NO_TRACEFS, "there is no tracefs"
            remedy = "mount it at /sys/kernel/tracing"
            if self._privileges.lockdown() == CONFIDENTIALITY:
                detail, remedy = "lockdown=confidentiality leaves tracefs empty", None
        elif code == errno.ENOENT:
            cause, detail = AttachCause.NOT_THERE, "the kernel has no such hook now"
            remedy = "is the module loaded?"
        elif detail and code:
            detail = f"{detail} ({os.strerror(code)})"
        else:
            detail = detail or os.strerror(code)
        return AttachError(f"{point.kind} {point.target}", cause, detail, remedy=remedy)

    def _kernel_has_function(self, name: str) -> bool:
        """Whether kallsyms lists a function. Its names are readable without root."""
        with contextlib.suppress(OSError), (self._proc_root / "kallsyms").open() as symbols:
            return any(line.split()[2] == name for line in symbols)
        return False

    def _why_unavailable(self, failure: Failure) -> str:
        if not bpf_exists():
            return f"there is no bpf(2): {self._privileges.why_bpf_is_absent()}"
        if _is_refused(failure):
            refused = self._privileges.why_no_bpf()
            return f"BPF is not permitted here ({failure.detail}): {refused}"
        return f"cannot prepare the BPF programs: {failure.detail}"


def possible_cpus(sys_root: Path) -> list[int]:
    """Return the numbers of all CPUs that this node can have, in order.

    sysfs lists them in the form ``0-3,8``.
    """
    text = (sys_root / "devices/system/cpu/possible").read_text()
    numbers: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


def _load(request: Request, loader: LoaderProcess | None = None) -> Loaded:
    """Have a request processed, by a process of its own if none is given."""
    if loader is not None:
        return loader.load(request)
    with LoaderProcess() as own:
        return own.load(request)


def _is_refused(failure: Failure) -> bool:
    if failure.code == errno.EPERM or (failure.code and os.geteuid() != 0):
        return True
    # A library that fails to compile because it may make no map says nothing of that.
    return bpf_is_refused()
