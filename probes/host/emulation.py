# SPDX-License-Identifier: Apache-2.0
"""Holds what can be found out about why a process emulates its guest. Pure types and rules.

Owns the facts, each with what was seen or why it is unknown, and what the kernel's rules of access
and the command lines of QEMU and virt-launcher mean. Must not read anything (emulation_facts.py,
device_age.py), and must not know which cause follows (judge/cause.py).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import IntFlag
from typing import Generic, Never, Self, TypeVar

from probes.host.procfs import parse_command_line

T_co = TypeVar("T_co", covariant=True)

LAUNCHERS = frozenset({"virt-launcher", "virt-launcher-monitor"})
"""Programs of a KubeVirt pod that are started with the options that KubeVirt chose for the VM."""
_ALLOW_EMULATION = "--allow-emulation"
_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})
"""What Go's strconv.ParseBool, and so virt-launcher, takes for true."""
_DAC_OVERRIDE = 1 << 1
_DAC_READ_SEARCH = 1 << 2
MAX_TEXT = 60
"""The most characters that are shown of what a process chose."""
NO_ID = 65534
"""What the kernel shows for a user or group that the reader's user namespace does not map."""
RUN_BY: Mapping[str, frozenset[str]] = {
    "x86_64": frozenset({"x86_64", "x86_64-microvm", "i386"}),
    "ppc64le": frozenset({"ppc64le", "ppc64"}),
}
"""Guest architectures, in QEMU's words, that the accelerator of a node's architecture runs; absent:
the node's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding(Generic[T_co]):
    """The answer to one question, with the words for a person."""

    value: T_co | None
    """The answer; None: it is unknown."""
    text: str
    """What was seen, or why the answer is unknown. It continues a line and begins in lower case."""


def plain(foreign: str) -> str:
    """Return text that a process chose as one short line of printable characters."""
    line = "".join(letter if letter.isprintable() else "?" for letter in foreign[: MAX_TEXT + 1])
    return line if len(line) <= MAX_TEXT else f"{line[:MAX_TEXT]}…"


def unknown(why: str) -> Finding[Never]:
    """Make the finding of a question that could not be answered."""
    return Finding(value=None, text=why)


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulationFacts:
    """What was read of one process that emulates its guest."""

    architecture: Finding[str]
    """Guest architecture by QEMU's program, in QEMU's words; ``""``: the program names none."""
    emulation_allowed: Finding[bool]
    """Whether KubeVirt started the pod with emulation allowed; False without a virt-launcher."""
    device_in_pod: Finding[bool]
    """Whether the process sees the accelerator's device in its root directory."""
    device_accessible: Finding[bool]
    """Whether the permissions of the device, and of the way to it, let the process open it.

    The device controller of cgroup v2 is a BPF program and a security module has a policy of its
    own: both may refuse nevertheless, and neither can be read. A process that they stopped shows in
    ``asked_for``.
    """
    asked_for: Finding[tuple[str, ...]]
    """Accelerators that QEMU was asked for, in order of preference."""

    @classmethod
    def unread(cls, why: str) -> Self:
        """Make the facts of a process of which nothing could be read."""
        nothing = unknown(why)
        return cls(
            architecture=nothing,
            emulation_allowed=nothing,
            device_in_pod=nothing,
            device_accessible=nothing,
            asked_for=nothing,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredBetween:
    """When the node's accelerator was registered, on CLOCK_BOOTTIME."""

    after_s: float | None
    """It was registered then or later; None: unknown."""
    by_s: float | None
    """It was registered then or earlier; None: unknown."""


class Access(IntFlag):
    """What is wanted of a file, with the bits of its mode."""

    SEARCH = 1
    READ_WRITE = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class FileOwner:
    """Owner and mode of a file, in the numbers of the reader's user namespace."""

    uid: int
    gid: int
    mode: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """With which rights a process opens files, in the numbers of the reader's user namespace."""

    uid: int
    """User for file access (fsuid)."""
    gid: int
    """Group for file access (fsgid)."""
    groups: frozenset[int]
    capabilities: int
    """Effective capabilities, in the process's own user namespace."""
    uids: tuple[range, ...] = (range(1 << 32),)
    """Users that its user namespace maps."""
    gids: tuple[range, ...] = (range(1 << 32),)
    """Groups that its user namespace maps."""

    def may(self, access: Access, file: FileOwner) -> bool:
        """Whether owner, mode and capabilities grant access, as in generic_permission (fs/namei.c).

        A file with an access control list needs more than that.
        """
        if self.uid == file.uid:
            granted = file.mode >> 6
        elif file.gid == self.gid or file.gid in self.groups:
            granted = file.mode >> 3
        else:
            granted = file.mode
        if granted & access == access:
            return True
        # capable_wrt_inode_uidgid: a capability counts for files whose owner the namespace maps.
        mapped = _among(file.uid, self.uids) and _among(file.gid, self.gids)
        enough = _DAC_OVERRIDE | (_DAC_READ_SEARCH if access is Access.SEARCH else 0)
        return mapped and bool(self.capabilities & enough)


def _among(number: int, ranges: Collection[range]) -> bool:
    return any(number in numbers for numbers in ranges)


def parse_credentials(status: str, uid_map: str, gid_map: str) -> Credentials | None:
    """Parse a ``status`` file and the maps of the user namespace; None: one is malformed."""
    fields = dict(line.partition(":")[::2] for line in status.splitlines())
    try:
        return Credentials(
            uid=int(fields["Uid"].split()[3]),
            gid=int(fields["Gid"].split()[3]),
            groups=frozenset(int(group) for group in fields["Groups"].split()),
            capabilities=int(fields["CapEff"], 16),
            uids=_mapped(uid_map),
            gids=_mapped(gid_map),
        )
    except (KeyError, IndexError, ValueError):
        return None


def _mapped(text: str) -> tuple[range, ...]:
    """Parse ``uid_map`` or ``gid_map``: the reader's numbers of all that the namespace maps."""
    rows = [[int(word) for word in line.split()] for line in text.splitlines()]
    return tuple(range(first, first + count) for _, first, count in rows)


def is_first_of_namespace(status: str) -> bool:
    """Whether a ``status`` file is that of PID 1 of a PID namespace."""
    for line in status.splitlines():
        name, _, numbers = line.partition(":")
        if name == "NSpid":
            return numbers.split()[-1:] == ["1"]
    return False


def allows_emulation(arguments: Sequence[str]) -> bool:
    """Whether these arguments of virt-launcher allow emulation. The last of several counts."""
    allowed = False
    for word in arguments[1:]:
        if word == "--":
            break
        name, equals, value = word.partition("=")
        if name == _ALLOW_EMULATION:
            allowed = value in _TRUE if equals else True
    return allowed


def accelerators_asked_for(arguments: Sequence[str]) -> tuple[str, ...]:
    """Return the accelerators that QEMU tries for these arguments, in order.

    Without any, QEMU tries its default: tcg, or kvm and then tcg if its name ends with ``kvm``
    (configure_accelerators in QEMU's system/vl.c).
    """
    named = parse_command_line(arguments).accelerators
    if named:
        return named
    return ("kvm", "tcg") if arguments and arguments[0].endswith("kvm") else ("tcg",)


def runs_on(architecture: str, machine: str) -> bool:
    """Whether an accelerator of this machine (``uname -m``) runs guests of an architecture."""
    return architecture in RUN_BY.get(machine, frozenset({machine}))
