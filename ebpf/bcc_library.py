"""EDGE: the only importer of bcc. Programs compiled, attached, read and detached through it.

Owns the library's manners: it reports nearly every failure as a bare ``Exception`` (or ends the
process), the compiler's and verifier's words go to file descriptor 2, and headers of the running
kernel are wanted that need not be there. Must not know which programs there are, nor what for.
"""

import contextlib
import ctypes
import errno
import importlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from ebpf.errors import BpfUnavailableError
from ebpf.hooks import AttachPoint, Backend


class Programs:
    """One compiled BPF text: its programs, attached where asked for, and its tables."""

    def __init__(self, files: Sequence[str], flags: Sequence[str], *, sys_root: Path) -> None:
        """Compile package files, joined in the given order, with compiler flags.

        Raises BpfUnavailableError when no program can be used on this node at all.
        """
        self._sys_root = sys_root
        bcc = load_bcc()
        self.bcc_version = str(bcc.__version__)
        """Version of the library."""
        source = resources.files("ebpf")
        os.environ["BCC_KERNEL_SOURCE"] = str(source)
        text = "".join(f'#line 1 "{name}"\n{source.joinpath(name).read_text()}\n' for name in files)
        with _stderr_captured() as said:
            try:
                self._bpf = bcc.BPF(text=text.encode(), cflags=[f"-I{source}", *flags])
            except (Exception, SystemExit) as err:
                raise BpfUnavailableError(_why_unavailable(err, said())) from err

    def table(self, name: str, leaf: type[ctypes.Structure] | None = None) -> Any:  # noqa: ANN401
        """A table by its name in the text; with leaf, values are decoded as that structure."""
        return self._bpf.get_table(name.encode(), leaftype=leaf)

    def attach(self, point: AttachPoint, program: str) -> str | None:
        """Attach a program at one point; the reason in one line when that fails."""
        target, name = point.target.encode(), program.encode()
        attach: Callable[[], object]
        match point.backend:
            case Backend.KPROBE:
                attach = lambda: self._bpf.attach_kprobe(event=target, fn_name=name)  # noqa: E731
            case Backend.RAW_TRACEPOINT:
                attach = lambda: self._bpf.attach_raw_tracepoint(tp=target, fn_name=name)  # noqa: E731
            case _:
                attach = lambda: self._bpf.attach_tracepoint(tp=target, fn_name=name)  # noqa: E731
        with _stderr_captured() as said:
            try:
                attach()
            except (Exception, SystemExit) as err:
                code = ctypes.get_errno()
                self._unload(name)
                return self._why_unattached(point, code, err, said())
        return None

    def detach(self, point: AttachPoint) -> None:
        """Detach what is attached at a point. A kprobe whose function has gone is let go, too."""
        target = point.target.encode()
        # What cannot be detached any more is closed all the same: there is nothing else to do.
        with _stderr_captured(), contextlib.suppress(Exception):
            match point.backend:
                case Backend.KPROBE:
                    self._bpf.detach_kprobe(event=target)
                case Backend.RAW_TRACEPOINT:
                    self._bpf.detach_raw_tracepoint(tp=target)
                case _:
                    self._bpf.detach_tracepoint(tp=target)

    def close(self) -> None:
        """Detach and release everything. May be called again."""
        if self._bpf is not None:
            self._bpf.cleanup()
            self._bpf = None

    def _unload(self, program: bytes) -> None:
        """Let the program be loaded again as another type by the next attach point."""
        function = self._bpf.funcs.pop(program, None)
        if function is not None:
            os.close(function.fd)

    def _why_unattached(self, point: AttachPoint, code: int, err: BaseException, said: str) -> str:
        what = f"{point.backend} {point.target}"
        if point.backend is Backend.KPROBE:
            if not has_kprobes(self._sys_root):
                return f"{what}: this kernel has no kprobes (CONFIG_KPROBES)"
            if not _kernel_has_function(point.target):
                return f"{what}: the kernel has no such function now; is the module loaded?"
        if code in (errno.EPERM, errno.EACCES):
            return (
                f"{what}: not permitted; needs CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN (always "
                "where kernel.perf_event_paranoid is above 2)"
            )
        if code == errno.ENOENT:
            return f"{what}: the kernel has no such hook now; is the module loaded?"
        detail = _one_line(said) or _one_line(str(err)) or type(err).__name__
        named = f" ({os.strerror(code)})" if code else ""
        return f"{what}: {detail}{named}"


def load_bcc() -> Any:  # noqa: ANN401 - bcc has no types
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


def has_kprobes(sys_root: Path) -> bool:
    """Whether this kernel was built with kprobes."""
    return any(
        (sys_root / place).exists()
        for place in (
            "bus/event_source/devices/kprobe",
            "kernel/tracing/kprobe_events",
            "kernel/debug/tracing/kprobe_events",
        )
    )


def _kernel_has_function(name: str) -> bool:
    """Whether /proc/kallsyms names it (the names are readable without root)."""
    with contextlib.suppress(OSError), Path("/proc/kallsyms").open() as symbols:
        return any(line.split()[2] == name for line in symbols)
    return False


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


@contextlib.contextmanager
def _stderr_captured() -> Iterator[Callable[[], str]]:
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
