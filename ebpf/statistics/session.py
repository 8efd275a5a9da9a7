# SPDX-License-Identifier: Apache-2.0
"""EDGE: reads KVM's statistics of many vCPUs in one system call, where KVM keeps them.

Owns one program, which is an iterator (statistics.bpf.c), and the layout of its map. Must not know
which processes are VMs, nor what a statistic is called: it is given places and returns numbers.
The kernel has to describe its types, and KVM's module has to be loaded when the program is.
"""

import contextlib
import mmap
import os
import struct
from collections.abc import Sequence
from pathlib import Path

from ebpf.bpf_syscall import run_iterator
from ebpf.confinement import CONFIDENTIALITY
from ebpf.errors import BpfUnavailableError
from ebpf.hooks import KVM
from ebpf.loader_process import LoaderProcess
from ebpf.loader_protocol import ITERATOR, KernelFunction, KernelParts, Member
from ebpf.privileges import Privileges
from ebpf.programs import Programs

CAPACITY = 16_384
"""The most vCPUs that are read. Their elements take 1 MiB if one count of each is wanted."""
_NAME_BYTES = 32
"""Room for the name of a file, with the zero that ends it: longer than that of any vCPU."""
_PROGRAM = "bpf_iter__bpf_map_elem"
_ELEMENTS = "vcpus"
_VCPU = struct.Struct(f"=IIQ{_NAME_BYTES}s")
"""The first fields of ``struct vcpu_statistics``: tgid, fd, start_ticks, name."""
_WORD_BYTES = 8
_FOUND = _VCPU.size // _WORD_BYTES
"""Index of the word ``found``; the counts follow."""
_NOT_WANTED = (1 << 64) - 1
_END = b"\1"
"""What the program writes once it has been run for every vCPU."""
_KERNEL = KernelParts(
    members=(
        Member("TASK_FILES", "task_struct", "files"),
        Member("TASK_START", "task_struct", "start_boottime"),
        Member("FILES_TABLE", "files_struct", "fdt"),
        Member("TABLE_SIZE", "fdtable", "max_fds"),
        Member("TABLE_SLOTS", "fdtable", "fd"),
        Member("FILE_ENTRY", "file", "f_path.dentry"),
        Member("FILE_VCPU", "file", "private_data"),
        Member("ENTRY_NAME", "dentry", "d_name.name"),
        Member("ENTRY_SUPERBLOCK", "dentry", "d_sb"),
        Member("SUPERBLOCK_MAGIC", "super_block", "s_magic"),
        Member("VCPU_STATISTICS", "kvm_vcpu", "stat"),
    ),
    functions=(
        KernelFunction("TASK_FROM_PID", "bpf_task_from_pid"),
        KernelFunction("TASK_RELEASE", "bpf_task_release"),
    ),
    module=KVM.module,
)


class StatisticsSession:
    """Keeps the program loaded until close(). Not for use by two threads at once."""

    def __init__(
        self,
        *,
        counts: int = 1,
        capacity: int = CAPACITY,
        sys_root: Path = Path("/sys"),
        loader: LoaderProcess | None = None,
    ) -> None:
        """Compile the program for this kernel and load it.

        counts is how many counts of a vCPU are wanted at most, capacity how many vCPUs. loader
        compiles; None: a process of its own. Raises BpfUnavailableError when that fails; nothing
        stays loaded then.
        """
        if Privileges(sys_root=sys_root).lockdown() == CONFIDENTIALITY:
            raise BpfUnavailableError(
                f"lockdown={CONFIDENTIALITY} forbids programs to read the kernel's memory"
            )
        self.capacity = capacity
        """The most vCPUs that are read."""
        self._counts = 0
        """How many counts of each vCPU are wanted."""
        self._words = _FOUND + 1 + counts
        self._used = 0
        ticks_per_s = os.sysconf("SC_CLK_TCK")
        flags = (
            f"-DVCPUS={capacity + 1}",  # one is behind the last one
            f"-DCOUNTS={counts}",
            f"-DTICK_NS={1_000_000_000 // ticks_per_s}",
        )
        with contextlib.ExitStack() as opened:
            programs = Programs(
                ("statistics/statistics.bpf.c",),
                flags,
                maps=(_ELEMENTS, "wanted"),
                loadable=[(_PROGRAM, ITERATOR)],
                sys_root=sys_root,
                kernel=_KERNEL,
                loader=loader,
            )
            opened.callback(programs.close)
            self._link = programs.iterate(_PROGRAM, _ELEMENTS)
            opened.callback(os.close, self._link)
            self.memory_bytes = (capacity + 1) * self._words * _WORD_BYTES
            """Kernel memory of the vCPUs' elements."""
            try:
                self._vcpus = mmap.mmap(programs.map_fd(_ELEMENTS), self.memory_bytes)
                opened.callback(self._vcpus.close)
                self._wanted = mmap.mmap(programs.map_fd("wanted"), counts * _WORD_BYTES)
                opened.callback(self._wanted.close)
            except OSError as err:
                raise BpfUnavailableError(f"its tables cannot be used: {err}") from err
            self._view = memoryview(self._vcpus).cast("Q")
            opened.callback(self._view.release)
            self._opened = opened.pop_all()

    def want(self, offsets: Sequence[int]) -> None:
        """Read these counts of each vCPU from now on: offsets in bytes among its statistics.

        There must not be more than the session was made for.
        """
        places = len(self._wanted) // _WORD_BYTES
        words = [*offsets, *[_NOT_WANTED] * (places - len(offsets))]
        self._wanted[:] = struct.pack(f"={places}Q", *words)
        self._counts = len(offsets)

    def element(self, *, tgid: int, start_ticks: int, fd: int, name: str) -> bytes | None:
        """Return what place() takes for one vCPU; None: the name is too long.

        fd is the descriptor of its statistics, and name what the kernel calls that file. The
        process is the one of this tgid that started at start_ticks (/proc/PID/stat, field 22).
        """
        text = name.encode()
        if len(text) >= _NAME_BYTES:
            return None
        return _VCPU.pack(tgid, fd, start_ticks, text).ljust(self._words * _WORD_BYTES, b"\0")

    def place(self, elements: bytes) -> None:
        """Read the vCPUs of these elements from now on, at most as many as there is room for."""
        size = self._words * _WORD_BYTES
        self._used = len(elements) // size
        self._vcpus[: len(elements)] = elements
        end = len(elements)
        self._vcpus[end : end + size] = bytes(size)

    def read(self) -> tuple[list[int], list[tuple[int, ...]]]:
        """Read the statistics now.

        Returns for each vCPU, in the order of its elements, whether it was found (1 or 0), and its
        counts, which are those of an earlier call where it was not. Raises OSError when the kernel
        refuses.
        """
        end, words = self._used * self._words, self._words
        found = self._view[_FOUND:end:words]
        found[:] = memoryview(bytes(self._used * _WORD_BYTES)).cast("Q")
        written = run_iterator(self._link, len(_END)) if self._used else _END
        if written != _END:
            raise OSError("the kernel has not read all statistics")
        counts = (self._view[_FOUND + 1 + at : end : words] for at in range(self._counts))
        return found.tolist(), list(zip(*[column.tolist() for column in counts], strict=True))

    def close(self) -> None:
        """Release the program and its maps. May be called again."""
        self._opened.close()
