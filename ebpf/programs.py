# SPDX-License-Identifier: Apache-2.0
"""EDGE: attaches and detaches loaded BPF programs by their descriptors, and owns their maps.

Owns what each program is attached to, and how failures to load or attach are reported. A separate
process compiles (loader.py); this one never imports the compiler. Must not know which programs
there are, nor what they are for.
"""

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
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

LOADING_S = 300.0
"""How long compiling and loading may take. It is far more than they need, even on an emulated
CPU."""
_MAIN = """
import sys
from importlib.machinery import PathFinder
class Tree:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return PathFinder.find_spec(name, [sys.argv[3]]) if name == "ebpf" else None
sys.meta_path.insert(0, Tree)
from ebpf.loader import main
main(int(sys.argv[1]), int(sys.argv[2]))
"""
"""The loader imports package ``ebpf`` from where this file is. Everything else, including bcc,
comes from the interpreter's installation and nothing from the environment, the working directory or
sys.path."""
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
    ) -> None:
        """Compile package files, joined in the given order, with compiler flags.

        loadable lists each function with each kind of program it may be attached as. Raises
        BpfUnavailableError when no program can be used on this node.
        """
        self._sys_root = sys_root
        self._proc_root = proc_root
        self._privileges = Privileges(proc_root=proc_root, sys_root=sys_root)
        self._tracefs = Tracefs(sys_root)
        self._held: dict[AttachPoint, tuple[int, Loadable]] = {}
        programs = [*dict.fromkeys(loadable)]
        self._loaded = _load(
            Request(files=files, flags=flags, maps=maps, programs=programs, kernel=kernel)
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


def _load(request: Request) -> Loaded:
    """Have the loader process a request. Raises BpfUnavailableError when it gives no answer."""
    isolated = ("-I", "-B") if sys.dont_write_bytecode else ("-I",)
    tree = str(Path(__file__).parents[1])
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    words = os.memfd_create("bpf-loader-stderr", os.MFD_CLOEXEC)
    try:
        with ours, its:
            loader = subprocess.Popen(
                [
                    *(sys.executable, *isolated, "-c", _MAIN),
                    *(str(its.fileno()), str(os.getpid()), tree),
                ],
                pass_fds=(its.fileno(),),
                # This process's directory may be deleted or writable by others, and the compiler
                # reads it.
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=words,
            )
            its.close()
            try:
                ours.settimeout(LOADING_S)
                request.send(ours)
                return Loaded.received(ours)
            except (EOFError, ConnectionError) as err:  # the loader has ended or is about to
                raise BpfUnavailableError(_why_ended(loader.wait(), words)) from err
            except (OSError, ValueError) as err:
                loader.kill()
                detail = f"within {LOADING_S:g} s" if isinstance(err, TimeoutError) else str(err)
                raise BpfUnavailableError(
                    f"cannot prepare the BPF programs: no answer from the process that compiles "
                    f"them: {detail}; restart hvprobe"
                ) from err
            finally:
                loader.wait()
    finally:
        os.close(words)


def _why_ended(status: int, words: int) -> str:
    if status == -signal.SIGKILL:
        how = "was killed: out of memory? The kernel's log says so; then raise the memory limit"
    elif status < 0:
        how = f"was ended by {signal.Signals(-status).name}"
    else:
        try:
            said = os.pread(words, 1 << 16, 0).decode(errors="replace").strip().splitlines()
        except OSError as err:  # a security module denies it
            said = [f"its output cannot be read: {err.strerror}"]
        how = f"ended with status {status}: {said[-1][:300] if said else 'no output'}"
    return f"cannot prepare the BPF programs: the process that compiles them {how}"


def _is_refused(failure: Failure) -> bool:
    if failure.code == errno.EPERM or (failure.code and os.geteuid() != 0):
        return True
    # A library that fails to compile because it may make no map says nothing of that.
    return bpf_is_refused()
