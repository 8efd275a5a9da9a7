# SPDX-License-Identifier: Apache-2.0
"""A node of plain values: a ledger, processes and an accelerator that a test controls."""

import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from ebpf.errors import LedgerReadError
from ebpf.hooks import Hook
from ebpf.ledger import KernelSnapshot, LedgerEntry
from probes.host.emulation import EmulationFacts, RegisteredBetween
from probes.host.hypervisors import Hypervisor, HypervisorType
from probes.host.kvm_stats import NO_STATISTICS, StatisticsReading
from probes.host.node import Accelerator, NodeVirtualization
from probes.host.process import (
    Inspections,
    Scan,
    Unread,
    VmmId,
    VmmProcess,
)
from probes.report.collector import NodeCollector
from probes.report.model import NodeReport, ProcessReport
from probes.report.ports import HostEdges
from probes.vmi.model import VmiIndex, WatchStatus
from tests.support.facts import (
    INTEL_HOST,
    KVM_AVAILABLE,
    STARTED_NS,
    VMM,
    entry,
    kernel,
    kvm_process,
    tcg_process,
)

KVM, TCG, UNKNOWN = HypervisorType.KVM, HypervisorType.TCG, HypervisorType.UNKNOWN
BETA = VmmId(tgid=5000, start_ticks=7000)
BETA_NS = 70_000_000_500
"""A time shortly after BETA's start, on the ledger's clock (see Node)."""
PLAYED_TGID = 4_000_000
"""A tgid above any real one (PID_MAX_LIMIT is 4194304, the default far lower)."""


class Books:
    """A ledger that returns what the test last set."""

    def __init__(self, *entries: LedgerEntry) -> None:
        self.says: KernelSnapshot | LedgerReadError = kernel(*entries)
        self.lives: set[int] | None = set()
        """Numbers that new_lives() returns once; None: lives are not followed."""
        self.forgotten: list[tuple[int, int]] = []
        self.needed: list[tuple[Hook, ...]] = []
        """Hooks of each call of need()."""
        self.bcc_version = "0.26.0"

    def need(self, hooks: Collection[Hook]) -> None:
        self.needed.append(tuple(hooks))

    def read(self) -> KernelSnapshot:
        if isinstance(self.says, LedgerReadError):
            raise self.says
        return self.says

    def new_lives(self) -> frozenset[int] | None:
        if self.lives is None:
            return None
        lives, self.lives = frozenset(self.lives), set()
        return lives

    def forget(self, tgid: int, first_ns: int) -> None:
        self.forgotten.append((tgid, first_ns))


class Node:
    """Processes that the test sets. Counts how often each one is looked at and read."""

    def __init__(self, *processes: VmmProcess) -> None:
        self.machine = "x86_64"
        self.kernel = "6.12.0-test"
        self.processes = {process.vmm.tgid: process for process in processes}
        self.zombies: set[int] = set()
        """Tgids that /proc lists although the process has ended."""
        self.blocked: set[int] = set()
        self.denied: set[int] = set()
        """Tgids of processes that cannot be read."""
        self.unscanned: set[int] = set()
        """Tgids that no scan has time to look at."""
        self.hurried: set[int] = set()
        """Tgids that no inspection has time to read completely."""
        self.vanish_at_inspection: set[int] = set()
        self.scans: Counter[int] = Counter()
        self.fd_scans: Counter[int] = Counter()
        self.inspections: Counter[int] = Counter()
        self.order: list[int] = []
        """Tgids of the last scan, in the caller's order."""
        self.readable = True
        self.statistics: dict[int, StatisticsReading] = {}
        """Readings of statistics by tgid; other processes have no statistics."""
        self.wanted: list[tuple[VmmId, int]] = []
        """The processes whose statistics were wanted last."""
        self.new_threads: Collection[int] | None = None
        self.guest_times: dict[int, float] = {}
        """CPU time in guest code by tgid; other processes cannot be read."""
        self.timed: list[VmmId] = []
        """The processes whose guest times were wanted last."""

    def read_guest_times(self, vmms: Iterable[VmmId]) -> Mapping[int, float]:
        self.timed = [*vmms]
        tgids = {vmm.tgid for vmm in self.timed}
        return {tgid: time_s for tgid, time_s in self.guest_times.items() if tgid in tgids}

    def read_statistics(
        self, wanted: Sequence[tuple[VmmId, int]], *, new_threads: Collection[int] | None
    ) -> Mapping[int, StatisticsReading]:
        self.wanted, self.new_threads = [*wanted], new_threads
        nothing = StatisticsReading(NO_STATISTICS, None)
        return {vmm.tgid: self.statistics.get(vmm.tgid, nothing) for vmm, _ in wanted}

    def start_monotonic_ns(self, vmm: VmmId) -> int:
        return STARTED_NS if vmm.start_ticks == VMM.start_ticks else vmm.start_ticks * 10_000_000

    def tgids(self) -> frozenset[int]:
        return frozenset({os.getpid(), *self.processes, *self.zombies, *self.blocked, *self.denied})

    def scan(self, tgids: Collection[int], *, every_fd: bool) -> Scan:
        self.order = [*tgids]
        self.scans.update(tgids)
        self.fd_scans.update(tgids if every_fd else ())
        alive = {tgid: self.processes[tgid] for tgid in tgids if tgid in self.processes}
        unseen = {tgid: Unread.NO_TIME for tgid in tgids if tgid in self.unscanned}
        unseen |= {tgid: Unread.BLOCKED for tgid in tgids if tgid in self.blocked}
        unseen |= {tgid: Unread.DENIED for tgid in tgids if tgid in self.denied}
        alive = {tgid: process for tgid, process in alive.items() if tgid not in unseen}
        found = {
            tgid: process.vmm
            for tgid, process in alive.items()
            if process.named_like_qemu or (every_fd and process.fds.any)
        }
        return Scan(
            found=found,
            others={tgid: process.vmm for tgid, process in alive.items() if tgid not in found},
            pending=unseen,
        )

    def identify(self, tgid: int) -> VmmId | None:
        if tgid == os.getpid() and self.readable:
            return VmmId(tgid=tgid, start_ticks=1)
        found = self.processes.get(tgid)
        return found.vmm if found else None

    def inspect(self, vmms: Collection[VmmId]) -> Inspections:
        self.inspections.update(vmm.tgid for vmm in vmms)
        known = {process.vmm: process for process in self.processes.values()}
        return Inspections(
            processes={
                vmm: known[vmm]
                for vmm in vmms
                if vmm in known and vmm.tgid not in self.vanish_at_inspection | self.hurried
            },
            pending={vmm: Unread.NO_TIME for vmm in vmms if vmm.tgid in self.hurried},
        )


class Trials:
    """An accelerator whose trial returns what the test sets. Counts the trials."""

    def __init__(self) -> None:
        self.answer = KVM_AVAILABLE
        self.trials = 0
        self.rare: Accelerator | None = None
        """Result of the trial of a hypervisor other than KVM; None: the node does not have it."""
        self.rare_trials = 0

    def try_hypervisor(self, hypervisor: Hypervisor) -> Accelerator | None:
        if hypervisor.type is not KVM:
            self.rare_trials += 1
            return self.rare
        self.trials += 1
        return self.answer

    def virtualization(self) -> NodeVirtualization:
        return INTEL_HOST


class Pods:
    """Facts of processes that emulate, and the age of the device, which the test sets."""

    def __init__(self) -> None:
        self.facts: dict[VmmId, EmulationFacts] = {}
        """Facts by process; the others have ended."""
        self.registered: RegisteredBetween | None = None
        self.asked: list[list[VmmId]] = []
        """Processes of each call of read()."""
        self.observed = 0

    def read(self, vmms: Collection[VmmId]) -> Mapping[VmmId, EmulationFacts]:
        self.asked.append([*vmms])
        return {vmm: self.facts[vmm] for vmm in vmms if vmm in self.facts}

    def observe(self) -> RegisteredBetween | None:
        self.observed += 1
        return self.registered


class Told:
    """An index of VMIs that the test replaces."""

    def __init__(self) -> None:
        self.says = VmiIndex.of(())

    def index(self) -> VmiIndex:
        return self.says

    def status(self) -> WatchStatus:
        return WatchStatus(
            up=True, synced=True, last_sync_unix_s=1.0, restarts=0, error=None, malformed_total=0
        )


class World:
    """A collector and its edges, all of them doubles."""

    def __init__(self, *entries: LedgerEntry, processes: tuple[VmmProcess, ...]) -> None:
        self.books = Books(*entries)
        self.node = Node(*processes)
        self.trials = Trials()
        self.pods = Pods()
        self.collector = self.observed(None)

    def observed(self, vmis: Told | None) -> NodeCollector:
        """Return a new collector of this node, which remembers nothing."""
        return NodeCollector(
            node="node-1",
            version="1.2.3",
            ledger=self.books,
            ledger_error=None,
            host=HostEdges(
                processes=self.node,
                virtualization=self.trials,
                emulation=self.pods,
                device=self.pods,
            ),
            vmis=vmis,
        )

    def refresh(self) -> NodeReport:
        return self.collector.refresh()

    def one(self) -> ProcessReport:
        (found,) = self.refresh().processes
        return found


def kvm_world() -> World:
    """Return a world with one QEMU that runs on KVM."""
    return World(entry(runs=5, userspace_exits=5), processes=(kvm_process(),))


def tcg_world() -> World:
    """Return a world with one QEMU that emulates, with hooks attached before its start."""
    return World(processes=(tcg_process(),))


def type_of(report: ProcessReport) -> tuple[HypervisorType, bool]:
    return report.verdict.type, report.verdict.verified
