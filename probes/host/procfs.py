# SPDX-License-Identifier: Apache-2.0
"""Parsers of /proc text. Pure: text in, values out; process_reader.py does the reading.

Everything a process can choose (its name, command line, thread names) is treated as hostile: a
parser either gives a value or raises MalformedProcError with one line, and never anything else.
Formats: man 5 proc; fs/proc/array.c; fs/proc/base.c (syscall).
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from probes.host.process import AcceleratorFds, QemuCommandLine

IOCTL_SYSCALL: Mapping[str, int] = {
    "x86_64": 16,
    "aarch64": 29,
    "riscv64": 29,
    "s390x": 54,
    "ppc64le": 54,
    "loongarch64": 29,
}
"""System call number of ioctl(2) by machine (uname -m)."""
MAX_ARGUMENTS = 1024
"""Of a process's arguments no more are looked at."""

_QEMU_PROGRAMS = ("qemu-system-", "qemu-kvm")
_QEMU_OTHER_NAMES = frozenset({"qemu", "kvm"})
"""What distributions link to a system emulator."""
_ACCELERATORS = frozenset({"kvm", "tcg", "mshv", "xen", "hvf", "whpx", "nvmm", "qtest"})
"""QEMU's, by name."""
_GUEST_OF_KUBEVIRT = re.compile(r"[a-z0-9][a-z0-9.-]*_[a-z0-9][a-z0-9.-]*")
"""``namespace_name``, as virt-launcher names a domain."""
_SHORT_OPTIONS = frozenset("-h -M -m -k -g -L -S -s -d -D".split())
"""QEMU's options of one letter; all others have more."""
_LOADER = re.compile(r"ld(-linux.*|-musl.*|64.*|-[0-9.]+)?\.so.*")
"""Base name of a dynamic loader: its first argument is the program."""
_KERNEL_THREAD = 0x0020_0000
"""PF_KTHREAD (include/linux/sched.h)."""
_FD_FIELDS: Mapping[str, str] = {
    "/dev/kvm": "kvm_devices",
    "anon_inode:kvm-vm": "kvm_vms",
    "anon_inode:kvm-vcpu": "kvm_vcpus",
    "anon_inode:kvm-vcpu-stats": "kvm_vcpu_stats",
    "/dev/mshv": "mshv_devices",
    "anon_inode:mshv_partition": "mshv_partitions",
    "anon_inode:mshv_vp": "mshv_vps",
}


class MalformedProcError(ValueError):
    """A /proc file that does not look as the kernel writes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcStat:
    """The fields of /proc/TGID/stat or /proc/TGID/task/TID/stat that are used."""

    comm: str
    state: str
    """One letter; Z: zombie, X: dead."""
    cpu_ticks: int
    """utime + stime."""
    threads: int
    """Threads of the process, an ended main thread included as long as others live."""
    start_ticks: int
    guest_ticks: int
    """guest_time; for a process, of all its threads, dead ones too."""
    parent_tgid: int
    """0: of none that this /proc shows."""
    kernel_thread: bool
    """Whether it is a thread of the kernel that belongs to no process."""

    @property
    def ended(self) -> bool:
        """Whether nothing of the process runs any more, be it reaped or not."""
        return self.state in "ZX" and self.threads <= 1


def parse_stat(text: str) -> ProcStat:
    """Parse a stat line. The name stands in parentheses and may itself hold any character."""
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
    """Descriptor and request of the ioctl(2) a thread sleeps in, from its ``syscall`` file.

    The file reads ``running`` for a thread on a CPU, ``-1 …`` for one that sleeps outside a
    system call, else the call's number and its arguments.
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


def classify_fds(targets: Iterable[tuple[int, str]], *, whole: bool) -> AcceleratorFds:
    """Sort out the accelerators' descriptors from (number, link target) pairs.

    ``anon_inode:kvm-vcpu:3`` carries the vCPU's number (virt/kvm/kvm_main.c, create_vcpu_fd); old
    kernels leave it out. A file that a user named so cannot be mistaken: its target would begin
    with a slash.
    """
    found: dict[str, set[int]] = {}
    for fd, target in targets:
        kind = target.removesuffix(" (deleted)")
        if target.startswith("anon_inode:"):
            kind = ":".join(target.split(":")[:2]).replace("[", "").replace("]", "")
        field = _FD_FIELDS.get(kind)
        if field is not None:
            found.setdefault(field, set()).add(fd)
    return AcceleratorFds(whole=whole, **{name: frozenset(fds) for name, fds in found.items()})


def is_qemu_name(name: str) -> bool:
    """Whether a program or thread name is a QEMU system emulator's (comm is cut to 15 bytes)."""
    return name.startswith(_QEMU_PROGRAMS) or name in _QEMU_OTHER_NAMES


def looks_like_vmm(comm: str, program: str | None, arguments: Sequence[str]) -> bool:
    """Whether a process is taken for a QEMU system emulator: by either name, or by its arguments.

    The one rule for names, before and after the agent began. A program of any name counts that was
    started with options which only QEMU has. A program that starts QEMU does not, although it has
    QEMU's options among its own; the dynamic loader does, for it becomes the program it starts.
    """
    if is_qemu_name(comm) or is_qemu_name(program or ""):
        return True
    loaded = _LOADER.fullmatch(program or "") is not None
    value_of: str | None = None
    for option, value in _options(arguments):
        if loaded and not option.startswith("-"):
            continue
        if not loaded and not _may_be_qemus(option, value_of):
            return False
        if _only_qemus(option, value):
            return True
        value_of = option if option.startswith("-") else None
    return False


def _may_be_qemus(word: str, value_of: str | None) -> bool:
    """Whether QEMU could have been given this word; value_of: the option it would belong to."""
    if not word.startswith("-"):
        named = value_of == "-name" or not word.rpartition("/")[2].startswith(_QEMU_PROGRAMS)
        return value_of is not None and named
    return len(word) > 2 or word in _SHORT_OPTIONS


def _only_qemus(option: str, value: str) -> bool:
    """Whether no other program is given this option with this value."""
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
    """The words of a ``cmdline`` file, the program's own name first; no more than MAX_ARGUMENTS."""
    words = raw.split(b"\0", MAX_ARGUMENTS)[:MAX_ARGUMENTS]
    return [word.decode(errors="replace") for word in words]


def qemu_architecture(program: str | None) -> str | None:
    """Guest architecture in ``uname -m`` words from QEMU's program name; None: the node's own."""
    if program is None or not program.startswith("qemu-system-"):
        return None
    return program.removeprefix("qemu-system-").strip() or None


def parse_command_line(arguments: Sequence[str]) -> QemuCommandLine:
    """What a QEMU command line asks for; options may begin with one dash or two.

    Of an option given twice the last counts, as in QEMU, but accelerators add up in order.
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
    """Each word after the program's name, options with one dash, and the word that follows it."""
    for option, value in zip(arguments[1:], [*arguments[2:], ""], strict=False):
        yield option.replace("--", "-", 1) if option.startswith("--") else option, value


def _option(value: str, key: str, *, implied: bool) -> str | None:
    """The key's value in a QEMU option list ``a=b,c=d``, where ``,,`` stands for a comma.

    With ``implied`` a first word without ``=`` is the value.
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
