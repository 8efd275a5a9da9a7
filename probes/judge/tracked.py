# SPDX-License-Identifier: Apache-2.0
"""Holds one VMM process on its way from /proc to the report, and the steps of tracking.

Pure types. Owns what is remembered about a process. Must not know how it was read, nor which step
follows which event: see changes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

from ebpf.ledger import LedgerEntry
from probes.host.cgroup import PodCgroup
from probes.host.process import VmmId
from probes.judge.evidence import Evidence
from probes.judge.reasons import Reason
from probes.judge.verdict import Verdict


class State(Enum):
    """What is known about the process that has a number."""

    NEW = auto()
    """Nothing is known yet: each refresh scans it until it is identified."""
    OTHER = auto()
    """It is no VMM. A refresh scans it in regular turns, when it is marked, and when it has a
    record."""
    FOLLOWED = auto()
    """A VMM with a final verdict. It is read again only after something has happened to it."""
    RECHECK = auto()
    """A VMM that the next refresh reads, because its verdict is not final or something has happened
    to it. A final verdict may stand."""
    DOUBTED = auto()
    """A VMM at whose number a life began or ended. It is read and judged as if it were new."""
    ENDED = auto()
    """It no longer runs, but /proc lists it until its parent has collected it."""
    GONE = auto()
    """/proc no longer lists it."""


class Event(Enum):
    """What a refresh finds out about a process, in the order in which it may find it out."""

    LISTED = auto()
    """/proc lists its number."""
    DUE = auto()
    """/proc lists its number, and it is due for its regular scan."""
    UNFOLLOWED = auto()
    """/proc lists its number; it is unknown whether a life began or ended at it."""
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
    """It was read and is a VMM."""
    REPLACED = auto()
    """It was read and is a VMM, but executes another program than before."""
    NO_VMM = auto()
    """It was read and is no VMM."""


class Action(Enum):
    """What the tracker does with a process."""

    LEAVE = auto()
    """Do nothing."""
    SCAN = auto()
    """Scan it: identify it and search for signs of a VMM."""
    READ = auto()
    """Read everything that /proc says about it."""
    WAIT = auto()
    """Leave it unchanged. The next refresh that scans it begins with it."""
    KEEP = auto()
    """Store what was read, and keep the verdict."""
    JUDGE = auto()
    """Store what was read, and judge it."""
    SET_ASIDE = auto()
    """Remember that it is no VMM."""
    DROP = auto()
    """Forget it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedProcess:
    """A VMM process with everything that outputs show about it, except its counters.

    Two readings of an unchanged process are equal.
    """

    vmm: VmmId
    state: State
    """FOLLOWED, RECHECK or DOUBTED."""
    comm: str
    program: str | None
    """Base name of its executable; None: it is unreadable."""
    guest_name: str | None
    """libvirt's domain name on its command line, which the process chooses."""
    pod: PodCgroup | None
    """Its place in a pod; None: it is in none.

    It is read with the other facts, so never again once the verdict is final: a container's
    processes enter its cgroup before they execute its program, and nothing moves them out of the
    pod.
    """
    named_like_qemu: bool
    vcpus: int | None
    """Number of its vCPUs, by descriptors or TCG threads; None: unknown."""
    started_unix_s: float
    verdict: Verdict
    record_ns: int | None
    """When its record in the ledger began, according to the record; None: it has none."""
    command_line_unread: bool = False
    """Whether its command line could not be read, so that it may have any VM's name."""
    parent_tgid: int = 0
    """Thread group id of its parent."""
    vcpus_created: int = 0
    """vCPUs created, according to its record."""
    statistics: int = 0
    """Number of descriptors of KVM's statistics of its vCPUs."""
    evidence: Evidence | None = field(default=None, compare=False, repr=False)
    """What the last reading that changed anything found; it only explains the verdict."""

    @property
    def capability_probe(self) -> bool:
        """Whether it was started without a machine and ran no guest, so that it is never a VM."""
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
    """VMM processes by tgid."""
    records: Mapping[int, LedgerEntry]
    """The records of these processes by tgid, without those of previous owners."""
    pending: int
    """Processes that could not be classified or judged yet."""
    denied: int = 0
    """Those of them that the kernel does not let hvprobe identify."""
    new_threads: frozenset[int] | None = None
    """Numbers at which a thread may have begun since the last refresh, that is a life of which
    /proc lists no process; None: unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What to do with a process next."""

    action: Action
    state: State | None
    """Its next state; None: its verdict decides, see ``tracked_process``."""
