# SPDX-License-Identifier: Apache-2.0
"""Parses the text of /proc files. Pure: text in, values out; process_reader.py does the reading.

Everything that a process can choose (its name, command line, thread names) is treated as hostile: a
parser returns a value or raises MalformedProcError with one line, and nothing else. Formats: man 5
proc; fs/proc/array.c; fs/proc/base.c (syscall).
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from probes.host.hypervisors import BY_TYPE, HYPERVISORS, FdKind, HypervisorType
from probes.host.process import AcceleratorFds, HeldFds, QemuCommandLine

IOCTL_SYSCALL: Mapping[str, int] = {
    "x86_64": 16,
    "aarch64": 29,
    "riscv64": 29,
    "s390x": 54,
    "ppc64le": 54,
    "loongarch64": 29,
}
"""System call number of ioctl(2) by machine (``uname -m``)."""
MAX_ARGUMENTS = 1024
"""The most arguments of a process that are read."""

_QEMU_PROGRAMS = ("qemu-system-", "qemu-kvm")
_QEMU_OTHER_NAMES = frozenset({"qemu", "kvm"})
"""Program names that distributions link to a system emulator."""
_ACCELERATORS = frozenset({"tcg", "xen", "hvf", "whpx", "nvmm", "qtest"}) | BY_TYPE.keys()
"""Names of QEMU's accelerators."""
_GUEST_OF_KUBEVIRT = re.compile(r"[a-z0-9][a-z0-9.-]*_[a-z0-9][a-z0-9.-]*")
"""``namespace_name``, as virt-launcher names a domain."""
_SHORT_OPTIONS = frozenset("-h -M -m -k -g -L -S -s -d -D".split())
"""QEMU's options of one letter; all others have more."""
_LOADER = re.compile(r"ld(-linux.*|-musl.*|64.*|-[0-9.]+)?\.so.*")
"""Base name of a dynamic loader, whose first argument is the program."""
_KERNEL_THREAD = 0x0020_0000
"""PF_KTHREAD (include/linux/sched.h)."""
_FD_KINDS: Mapping[str, tuple[HypervisorType, FdKind]] = {
    target: (hypervisor.type, kind)
    for hypervisor in HYPERVISORS
    for target, kind in hypervisor.descriptors.items()
}


class MalformedProcError(ValueError):
    """A /proc file does not have the kernel's format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcStat:
    """The fields that hvprobe uses of /proc/TGID/stat or /proc/TGID/task/TID/stat."""

    comm: str
    state: str
    """One letter; Z: zombie, X: dead."""
    cpu_ticks: int
    """utime + stime."""
    threads: int
    """Threads of the process, including an ended main thread while others are alive."""
    start_ticks: int
    guest_ticks: int
    """guest_time, in clock ticks; for a process it includes all threads, even ended ones."""
    parent_tgid: int
    """Thread group id of its parent; 0: this /proc shows no parent."""
    kernel_thread: bool
    """Whether it is a kernel thread that belongs to no process."""

    @property
    def ended(self) -> bool:
        """Whether no thread of the process is alive, reaped or not."""
        return self.state in "ZX" and self.threads <= 1


def parse_stat(text: str) -> ProcStat:
    """Parse a stat line. The name in parentheses may contain any character."""
    left, right = text.find("("), text.rfind(")")
    fields = text[right + 1 :].split()
    if not 0 < left < right or len(fields) < 41:
        raise MalformedProcError(f"not a stat line: {text[:60]!r}")
    try:
        return ProcStat(
            comm=text[left + 1 : right],
            state=fields[0],
            cpu_ticks=int(fields[11]) + int(fields[12]),
            threads=int(fields[17]),
            start_ticks=int(fields[19]),
            guest_ticks=int(fields[40]),
            parent_tgid=int(fields[1]),
            kernel_thread=bool(int(fields[6]) & _KERNEL_THREAD),
        )
    except ValueError as err:
        raise MalformedProcError(f"not a stat line: {text[:60]!r}") from err


def parse_ioctl(text: str, *, machine: str) -> tuple[int, int] | None:
    """Return descriptor and request of the ioctl(2) in which a thread sleeps.

    The text is that of its ``syscall`` file: ``running`` for a thread on a CPU, ``-1 …`` for one
    that sleeps outside a system call, otherwise the number of the call and its arguments. Raises
    MalformedProcError when the text has another form.
    """
    words = text.split()
    if len(words) < 4:
        return None
    try:
        number, fd, request = int(words[0]), int(words[1], 16), int(words[2], 16)
    except ValueError as err:
        raise MalformedProcError(f"not a syscall line: {text[:60]!r}") from err
    if number != IOCTL_SYSCALL.get(machine):
        return None
    return fd & 0xFFFFFFFF, request & 0xFFFFFFFF


def classify_fds(targets: Iterable[tuple[int, str]], *, complete: bool) -> AcceleratorFds:
    """Sort the descriptors of accelerators, given (number, link target) pairs.

    ``anon_inode:kvm-vcpu:3`` carries the vCPU's number (virt/kvm/kvm_main.c, create_vcpu_fd); old
    kernels omit it. A user cannot imitate it with a file name, because such a target starts with a
    slash.
    """
    found: dict[HypervisorType, dict[FdKind, set[int]]] = {}
    for fd, target in targets:
        kind = target.removesuffix(" (deleted)")
        if target.startswith("anon_inode:"):
            kind = ":".join(target.split(":")[:2]).replace("[", "").replace("]", "")
        known = _FD_KINDS.get(kind)
        if known is not None:
            found.setdefault(known[0], {}).setdefault(known[1], set()).add(fd)
    return AcceleratorFds(
        held={
            hypervisor: HeldFds(**{kind.value: frozenset(fds) for kind, fds in kinds.items()})
            for hypervisor, kinds in found.items()
        },
        complete=complete,
    )


def is_qemu_name(name: str) -> bool:
    """Whether a program or thread name is a QEMU system emulator's.

    The kernel cuts a thread name to 15 bytes.
    """
    return name.startswith(_QEMU_PROGRAMS) or name in _QEMU_OTHER_NAMES


def looks_like_vmm(comm: str, program: str | None, arguments: Sequence[str]) -> bool:
    """Whether a process is named or started like a QEMU system emulator.

    This is the only rule for names, before and after the agent starts. A program of any name counts
    if it was started with options that only QEMU has. A program that starts QEMU does not count,
    although QEMU's options are among its own. The dynamic loader does, because it becomes the
    program that it starts.
    """
    if is_qemu_name(comm) or is_qemu_name(program or ""):
        return True
    loaded = _LOADER.fullmatch(program or "") is not None
    value_of: str | None = None
    for option, value in _options(arguments):
        if loaded and not option.startswith("-"):
            continue
        if not loaded and not _may_belong_to_qemu(option, value_of):
            return False
        if _only_qemu_has(option, value):
            return True
        value_of = option if option.startswith("-") else None
    return False


def _may_belong_to_qemu(word: str, value_of: str | None) -> bool:
    """Whether the word could be part of QEMU's command line.

    value_of is the option to which the word would belong.
    """
    if not word.startswith("-"):
        named = value_of == "-name" or not word.rpartition("/")[2].startswith(_QEMU_PROGRAMS)
        return value_of is not None and named
    return len(word) > 2 or word in _SHORT_OPTIONS


def _only_qemu_has(option: str, value: str) -> bool:
    """Whether only QEMU is started with this option and value."""
    match option:
        case "-name":
            guest = _option(value, "guest", implied=False)
            return guest is not None and _GUEST_OF_KUBEVIRT.fullmatch(guest) is not None
        case "-accel":
            return _option(value, "accel", implied=True) in _ACCELERATORS
        case "-machine" | "-M":
            named = _option(value, "accel", implied=False) or ""
            is_none = _option(value, "type", implied=True) == "none"
            return is_none or not _ACCELERATORS.isdisjoint(named.split(":"))
        case _:
            return option == "-enable-kvm"


def split_arguments(raw: bytes) -> list[str]:
    """Split a ``cmdline`` file into words, the program's name first, at most MAX_ARGUMENTS."""
    words = raw.split(b"\0", MAX_ARGUMENTS)[:MAX_ARGUMENTS]
    return [word.decode(errors="replace") for word in words]


def qemu_architecture(program: str | None) -> str | None:
    """Return the guest architecture in ``uname -m`` words, given QEMU's program name.

    None: the architecture is the node's own.
    """
    if program is None or not program.startswith("qemu-system-"):
        return None
    return program.removeprefix("qemu-system-").strip() or None


def parse_command_line(arguments: Sequence[str]) -> QemuCommandLine:
    """Parse a QEMU command line, whose options may begin with one dash or two.

    If an option is given twice the last one counts, as in QEMU, but accelerators add up in order.
    """
    guest_name: str | None = None
    machine: str | None = None
    accelerators: list[str] = []
    of_machine: list[str] = []
    for option, value in _options(arguments):
        match option:
            case "-name":
                guest_name = _option(value, "guest", implied=True) or guest_name
            case "-accel":
                name = _option(value, "accel", implied=True)
                accelerators += [name] if name else []
            case "-enable-kvm":
                accelerators.append("kvm")
            case "-machine" | "-M":
                machine = _option(value, "type", implied=True) or machine
                listed = _option(value, "accel", implied=False)
                of_machine = listed.split(":") if listed else of_machine
            case _:
                continue
    return QemuCommandLine(
        guest_name=guest_name,
        accelerators=tuple(name for name in (*of_machine, *accelerators) if name),
        machine=machine,
    )


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Iterate over the words after the program's name, each with the word that follows it.

    Options are given one dash.
    """
    for option, value in zip(arguments[1:], [*arguments[2:], ""], strict=False):
        yield option.replace("--", "-", 1) if option.startswith("--") else option, value


def _option(value: str, key: str, *, implied: bool) -> str | None:
    """Return the key's value in a QEMU option list ``a=b,c=d``, where ``,,`` stands for a comma.

    If ``implied`` is true, a first word without ``=`` is the value.
    """
    result: str | None = None
    parts = value.replace(",,", "\0").split(",")
    for index, part in enumerate(parts):
        name, equals, word = part.partition("=")
        if equals and name == key:
            result = word
        elif index == 0 and implied and (not equals or "\0" in name):
            result = part
    return result.replace("\0", ",") if result else None
