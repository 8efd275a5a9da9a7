# SPDX-License-Identifier: Apache-2.0
"""Holds what can be found out about why a node has no KVM, and parses it. Pure.

Owns the facts and the formats of the files that they are read from: /proc/cpuinfo, the kernel's
configuration and log, the lists of modules (depmod), and modprobe.d. A parser takes anything for
its input. It leaves out what has not the format, and returns None if nothing has. Must not read
anything (kvm_support_reader.py), and must not know what follows (judge/accelerator_absence.py).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

from probes.host.emulation import Finding, unknown

OPTIONS = ("CONFIG_KVM", "CONFIG_KVM_INTEL", "CONFIG_KVM_AMD")
"""Options of the kernel's configuration that are kept."""
MAX_MESSAGES = 64
"""The most messages of the kernel that are kept: half of them the oldest, from the boot, and half
the newest. A VM can make KVM write many, so each text counts once."""

_OPTION = re.compile(r"(?:# )?(CONFIG_\w+)(?:=([ym])| is not set)?")
_RECORD = re.compile(r"(\d+),(\d+),\d+,[^;]*;(.*)")
"""A record of /dev/kmsg: priority, number, time, flags; text. Other lines begin with a blank."""
_LINE = re.compile(r"<(\d+)>(?:\[[^\]]*\] ?)?(.*)")
"""A line of syslog(2): priority, time, text."""
_ABOUT_KVM = re.compile(r"\b(?:kvm|kvm_intel|kvm_amd|VMX|SVM)\b|started at EL\d")
_FACILITY_BITS = 3
"""A priority is a level below and a facility above. The kernel's own facility is 0, and a program
that writes to the log cannot take that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """The CPU as /proc/cpuinfo of x86 shows it."""

    vendor: str
    """``vendor_id``, such as GenuineIntel."""
    flags: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelMessage:
    """A message of the kernel that is about KVM."""

    level: int
    """0 to 7, as in include/linux/kern_levels.h."""
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelLog:
    """The messages of the kernel that are about KVM, the oldest first."""

    messages: tuple[KernelMessage, ...]
    complete: bool
    """Whether the log still begins with the boot, and was read to its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleRule:
    """A line in modprobe.d that keeps a module from being loaded."""

    module: str
    line: str
    file: str
    """Path on the node."""
    replaces: bool
    """Whether modprobe runs a command instead of loading the module, even if it is asked by name.
    Otherwise it only does not load the module by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KvmSupport:
    """What was read of a node that has no KVM."""

    machine: str
    """Architecture in ``uname -m`` words."""
    release: str
    """Kernel release."""
    cpu: Finding[Cpu]
    """Unknown on other architectures than x86."""
    options: Finding[Mapping[str, bool]]
    """Which of ``OPTIONS`` the kernel is built with, be it as a module."""
    log: Finding[KernelLog]
    command_line: Finding[tuple[str, ...]]
    """Words of the kernel's command line."""
    loaded: Finding[frozenset[str]]
    """Modules of KVM in sysfs: those that are loaded, and built-in ones."""
    installed: Finding[frozenset[str]]
    """Modules of KVM that this kernel has on the node's disk or in itself."""
    rules: Finding[tuple[ModuleRule, ...]]
    """Lines in modprobe.d about modules of KVM."""

    @classmethod
    def unread(cls, machine: str, release: str, why: str) -> Self:
        """Make the facts of a node of which nothing could be read."""
        nothing = unknown(why)
        return cls(
            machine=machine,
            release=release,
            cpu=nothing,
            options=nothing,
            log=nothing,
            command_line=nothing,
            loaded=nothing,
            installed=nothing,
            rules=nothing,
        )


def parse_cpu(cpuinfo: str) -> Cpu | None:
    """Return the first CPU of /proc/cpuinfo; None: it is not that of x86."""
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    if "flags" not in fields:
        return None
    return Cpu(vendor=fields.get("vendor_id", ""), flags=frozenset(fields["flags"].split()))


def parse_options(config: str) -> Mapping[str, bool] | None:
    """Return which of ``OPTIONS`` are on; None: this is no configuration of a kernel.

    An option whose prerequisites are off does not appear, and is off.
    """
    found: dict[str, bool] = {}
    for line in config.splitlines():
        option = _OPTION.fullmatch(line.strip())
        if option is not None:
            found[option[1]] = option[2] is not None
    return {name: found.get(name, False) for name in OPTIONS} if found else None


def parse_modules(listing: str) -> frozenset[str] | None:
    """Return the modules of KVM in modules.dep or modules.builtin; None: it is neither.

    A kernel without modules has empty files.
    """
    if not listing.strip():
        return frozenset()
    names = [
        line.partition(":")[0].rpartition("/")[2].partition(".ko")[0]
        for line in listing.splitlines()
        if ".ko" in line
    ]
    return frozenset(filter(is_of_kvm, map(module_name, names))) if names else None


def parse_rules(text: str, file: str) -> Iterator[ModuleRule]:
    """Yield the lines of a file in modprobe.d that keep modules of KVM from being loaded.

    A command that loads the module itself, with ``--ignore-install``, does not.
    """
    for line in text.replace("\\\n", " ").splitlines():
        words = line.split()
        if len(words) < 2 or words[0] not in ("blacklist", "install"):
            continue
        module, replaces = module_name(words[1]), words[0] == "install"
        if is_of_kvm(module) and not (replaces and "--ignore-install" in words):
            yield ModuleRule(module=module, line=" ".join(words), file=file, replaces=replaces)


def parse_kmsg(records: str, *, read_all: bool) -> KernelLog:
    """Return the messages about KVM in what was read from /dev/kmsg.

    read_all says whether that was everything.
    """
    found = [match for match in map(_RECORD.fullmatch, records.splitlines()) if match]
    return KernelLog(
        messages=_messages((int(record[1]), record[3]) for record in found),
        complete=read_all and bool(found) and int(found[0][2]) == 0,
    )


def parse_syslog(lines: str) -> KernelLog:
    """Return the messages about KVM in what syslog(2) returned.

    They have no number, so it is unknown whether the log begins with the boot.
    """
    found = [match for match in map(_LINE.fullmatch, lines.splitlines()) if match]
    messages = _messages((int(line[1]), line[2]) for line in found)
    return KernelLog(messages=messages, complete=False)


def module_name(name: str) -> str:
    """Return a module's name as sysfs shows it. Files and users may write ``-`` for ``_``."""
    return name.replace("-", "_")


def is_of_kvm(module: str) -> bool:
    """Whether a module belongs to KVM, by its name."""
    return module == "kvm" or module.startswith("kvm_")


def _messages(lines: Iterator[tuple[int, str]]) -> tuple[KernelMessage, ...]:
    found: dict[KernelMessage, None] = {}
    for priority, text in lines:
        if priority >> _FACILITY_BITS == 0 and _ABOUT_KVM.search(text):
            message = KernelMessage(level=priority, text="".join(filter(str.isprintable, text)))
            found.pop(message, None)  # it takes its last place, so that the newest stays last
            found[message] = None
    if len(found) <= MAX_MESSAGES:
        return tuple(found)
    half = MAX_MESSAGES // 2
    return (*[*found][:half], *[*found][-half:])
