# SPDX-License-Identifier: Apache-2.0
"""One VMM process from /proc to the report: its states, and the steps that lead through them.

Pure types. Owns what is remembered of a process. Must not know how it was read, nor which step
follows which event: see changes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto

from ebpf.ledger import LedgerEntry
from probes.host.cgroup import PodCgroup
from probes.host.process import VmmId
from probes.judge.reasons import Reason
from probes.judge.verdict import Verdict


class State(Enum):
    """What is known of the process that has a number."""

    NEW = auto()
    """Nothing yet: each refresh looks at it until it is identified."""
    OTHER = auto()
    """It is no VMM. A refresh looks at it in its turn, if it is marked, and if it has a record."""
    FOLLOWED = auto()
    """A VMM with a final verdict. It is read again only after something has happened to it."""
    RECHECK = auto()
    """A VMM that the next refresh reads, because its verdict is not final or something has happened
    to it. A final verdict may stand."""
    DOUBTED = auto()
    """A VMM at whose number a life began or ended: it is read, and judged as if it were new."""
    ENDED = auto()
    """It runs no longer, but /proc lists it until its parent has collected it."""
    GONE = auto()
    """/proc no longer lists it."""


class Event(Enum):
    """What a refresh learns of a process, in the order in which it may learn it."""

    LISTED = auto()
    """/proc lists its number."""
    DUE = auto()
    """/proc lists its number, and its turn has come to be looked at."""
    UNFOLLOWED = auto()
    """/proc lists its number; whether a life began or ended at it is unknown."""
    MARKED = auto()
    """/proc lists its number, and a life began or ended at it."""
    FOUND = auto()
    """A scan identified it and shows that it may be a VMM."""
    PLAIN = auto()
    """A scan identified it and shows no sign of a VMM."""
    UNREAD = auto()
    """It blocks its readers, or there was no time for it."""
    ENDED = auto()
    """It has ended; its number may have a new owner."""
    VMM = auto()
    """It was read, and it is a VMM."""
    REPLACED = auto()
    """It was read, it is a VMM, and it executes another program than before."""
    NO_VMM = auto()
    """It was read, and it is no VMM."""


class Action(Enum):
    """What the tracker does with a process."""

    LEAVE = auto()
    """Nothing."""
    LOOK = auto()
    """Scan it: identify it and search for signs of a VMM."""
    READ = auto()
    """Read everything that /proc says of it."""
    WAIT = auto()
    """Keep it as it is. The next refresh that looks at it begins with it."""
    KEEP = auto()
    """Take over what was read, and keep the verdict."""
    JUDGE = auto()
    """Take over what was read, and judge it."""
    SET_ASIDE = auto()
    """Remember that it is no VMM."""
    DROP = auto()
    """Remember nothing of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedProcess:
    """A VMM process with everything that outputs show of it, except its counters.

    Two readings between which nothing about it changed give equal values.
    """

    vmm: VmmId
    state: State
    """FOLLOWED, RECHECK or DOUBTED."""
    comm: str
    program: str | None
    """Base name of its executable; None where it cannot be read."""
    guest_name: str | None
    """libvirt's domain name on its command line: its own word."""
    pod: PodCgroup | None
    """Where in a pod it sits; None: in none. Read with the rest, so never again once the verdict
    is final: a container's processes are put into its cgroup before they execute its program, and
    nothing moves them out of the pod."""
    named_like_qemu: bool
    vcpus: int | None
    """vCPUs it has, by descriptors or by TCG threads; None: unknown."""
    started_unix_s: float
    verdict: Verdict
    record_ns: int | None
    """When its record in the ledger began, as the record says; None: it has none."""
    command_line_unread: bool = False
    """Whether its command line could not be read, so that it may bear any VM's name."""
    parent_tgid: int = 0
    """Thread group id of its parent."""
    vcpus_created: int = 0
    """vCPUs made according to its record."""

    @property
    def capability_probe(self) -> bool:
        """Whether it was started without a machine, and ran no guest: never a VM."""
        return self.verdict.reasons[0] is Reason.CAPABILITY_PROBE

    def owns(self, entry: LedgerEntry) -> bool:
        """Whether a record of its number is the one it was judged with.

        If so, it has executed no other program since, because that ends a record.
        """
        return self.record_ns == entry.first_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracking:
    """The VMM processes of a node after one refresh."""

    processes: tuple[TrackedProcess, ...]
    """By tgid."""
    records: Mapping[int, LedgerEntry]
    """By tgid: the record of each of these processes that has one of its own."""
    pending: int
    """Processes of which it is not known yet whether they are VMMs, or of what kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What to do with a process now."""

    action: Action
    state: State | None
    """Its state from now on; None: its verdict decides, see ``tracked_process``."""
