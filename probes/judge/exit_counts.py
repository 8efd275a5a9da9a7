# SPDX-License-Identifier: Apache-2.0
"""Keeps the account of each accelerated process: the source of its exits, and their total. Pure.

Owns which source counts the exits of a process, and what its vCPUs' statistics add up to. Must not
read anything.

The source is chosen once, when the verdict of the process proves that it runs on KVM, and kept as
long as it lives. With KVM's statistics as source, the total is what the present vCPUs have counted,
plus the last value of every vCPU that is gone. It never falls, and it is exact whenever every
reading succeeds, except for what no reading can know:

- the exits that a vCPU makes between its last reading and its end are lost;
- a vCPU that was made again between two readings is taken for the old one if it has made more exits
  than that one and no hook saw a new VM. The old one's exits are lost.

QEMU keeps an unplugged vCPU, closes its statistics, and opens them again when the vCPU is plugged
in. KVM has gone on counting from where it was. So the last value of a vCPU that is gone is taken
back when a vCPU of the same number appears that has counted at least as much.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from probes.host.hypervisors import HypervisorType
from probes.host.kvm_stats import StatisticsListing, StatisticsReading
from probes.host.process import VmmId
from probes.judge.reasons import Reason
from probes.judge.tracked import TrackedProcess, Tracking


class ExitSource(StrEnum):
    """What counts the VM exits of a process."""

    KVM_STATISTICS = "kvm_statistics"
    """KVM's statistics of its vCPUs, which count since the vCPUs were created."""
    TRACEPOINT = "tracepoint"
    """The hook at tracepoint kvm_exit, which counts since it was attached."""


MAX_GONE = 4096
"""The most vCPUs of a process that are remembered as gone: more than a VM has."""

Counts = tuple[int, ...]
"""The counts of one vCPU, or totals of a process, in the order in which they are wanted."""


class Created(NamedTuple):
    """What the ledger saw a process create; both 0 where no hook sees it."""

    vms: int = 0
    vcpus: int = 0


_NOTHING = Created()


class ExitAccount(NamedTuple):
    """The account of one process.

    This is a tuple, as ``LedgerEntry`` is, because each refresh makes one for every process.
    """

    vmm: VmmId
    source: ExitSource
    totals: Counts = ()
    """Totals of the wanted counts; the exits come first. Empty if the hook counts them."""
    listing: StatisticsListing = StatisticsListing()
    """The descriptors of the last successful reading."""
    last: tuple[Counts, ...] = ()
    """What each of them said then."""
    base: Counts = ()
    """Totals of the vCPUs that are gone."""
    gone: tuple[tuple[str, Counts], ...] = ()
    """The vCPUs that are gone and may come back, by the target of their descriptor's link, each
    with the counts that ``base`` has of it."""
    created: Created = _NOTHING

    @property
    def exits(self) -> int | None:
        """Total of VM exits; None: the hook counts them."""
        return self.totals[0] if self.totals else None

    def after(self, reading: StatisticsReading | None, created: Created) -> "ExitAccount":
        """Return the account after a reading. A reading that failed changes nothing.

        created is what the ledger saw the process create by the time of the reading.
        """
        if reading is None or self.source is not ExitSource.KVM_STATISTICS:
            return self
        listing, counts = reading
        if listing is None or counts is None:
            return self
        if listing == self.listing and created == self.created:
            if counts == self.last:
                return self
            if all(map(_grew, self.last, counts)):
                totals = _sum(self.base, *counts)
                # Arguments are positional because _replace() would take twice as long.
                return ExitAccount(
                    self.vmm,
                    self.source,
                    totals,
                    listing,
                    counts,
                    self.base,
                    self.gone,
                    created,
                )
        return _settled(self, listing, counts, created)


def opened(vmm: VmmId, reading: StatisticsReading | None, created: Created) -> ExitAccount | None:
    """Choose the source of a process's exits; None: there was no time to find out.

    KVM's statistics are the source if every vCPU has one and all can be read. Otherwise some exits
    would not be counted.
    """
    if reading is None or reading.listing is None:
        return None
    if reading.counts is None or not reading.listing.covers_every_vcpu:
        return ExitAccount(vmm, ExitSource.TRACEPOINT)
    nothing = (0,) * len(reading.counts[0])
    begun = ExitAccount(vmm, ExitSource.KVM_STATISTICS, totals=nothing, base=nothing)
    return begun.after(reading, created)


def _settled(
    account: ExitAccount, listing: StatisticsListing, counts: tuple[Counts, ...], created: Created
) -> ExitAccount:
    """Return the account after a reading in which vCPUs may have come, gone or begun again."""
    base, gone = account.base, list(account.gone)
    old = dict(zip(account.listing.fds, account.last, strict=True))
    new = dict(zip(listing.fds, counts, strict=True))
    if _made_again(account.created, created, vcpus=len(new)):
        base, old, gone = _sum(base, *old.values()), {}, []
    for descriptor, count in old.items():
        if descriptor not in new:
            base = _sum(base, count)
            gone.append((descriptor[1], count))
        elif not _grew(count, new[descriptor]):
            base = _sum(base, count)
    for descriptor, count in new.items():
        if descriptor not in old:
            base = _minus(base, _taken_back(gone, descriptor[1], count))
    return account._replace(
        totals=_sum(base, *counts),
        listing=listing,
        last=counts,
        base=base,
        gone=tuple(gone[-MAX_GONE:]),
        created=created,
    )


def _made_again(before: Created, now: Created, *, vcpus: int) -> bool:
    """Return whether the process has made its VM and all its vCPUs again.

    QEMU does so to reset a confidential guest. A new vCPU alone is none of another VM.
    """
    return now.vms > before.vms and now.vcpus - before.vcpus >= vcpus


def _taken_back(gone: list[tuple[str, Counts]], target: str, count: Counts) -> Counts:
    """Remove the vCPU that has come back from those that are gone; return what it had counted.

    Of several, it is the one that had counted most. Empty: it is a new vCPU.
    """
    same = [each for each in gone if each[0] == target and _grew(each[1], count)]
    if not same:
        return ()
    back = max(same, key=lambda each: each[1])
    gone.remove(back)
    return back[1]


def _grew(before: Counts, now: Counts) -> bool:
    """Return whether these can be the same vCPU's counts, none of which ever falls."""
    return all(later >= earlier for earlier, later in zip(before, now, strict=True))


def _sum(*counts: Counts) -> Counts:
    return tuple(map(sum, zip(*counts, strict=True)))


def _minus(one: Counts, other: Counts) -> Counts:
    return tuple(a - b for a, b in zip(one, other, strict=True)) if other else one


def accounts_after(
    accounts: Mapping[int, ExitAccount],
    tracking: Tracking,
    readings: Mapping[int, StatisticsReading],
) -> dict[int, ExitAccount]:
    """Return the accounts by tgid after a refresh. A process that has ended has none.

    A process gets its account once its verdict proves that it runs on KVM, and keeps it while it
    lives, also if its verdict is in doubt later.
    """
    after: dict[int, ExitAccount] = {}
    for process in tracking.processes:
        vmm, tgid = process.vmm, process.vmm.tgid
        account = _account_of(process, accounts)
        if account is None:
            if not runs_on_kvm(process):
                continue
            account = opened(vmm, readings.get(tgid), _created(process, tracking))
        elif account.source is ExitSource.KVM_STATISTICS:
            account = account.after(readings.get(tgid), _created(process, tracking))
        if account is not None:
            after[tgid] = account
    return after


def statistics_wanted(
    accounts: Mapping[int, ExitAccount], tracking: Tracking
) -> list[tuple[VmmId, int]]:
    """Return the processes whose statistics a refresh reads, with the vCPUs that each created.

    They are those whose source is KVM's statistics, and those whose source is to be chosen.
    """
    wanted: list[tuple[VmmId, int]] = []
    for process in tracking.processes:
        account = _account_of(process, accounts)
        if account is None:
            if not runs_on_kvm(process):
                continue
        elif account.source is not ExitSource.KVM_STATISTICS:
            continue
        record = tracking.records.get(process.vmm.tgid)
        wanted.append((process.vmm, 0 if record is None else record.vcpus_created))
    return wanted


def exit_hook_needed(
    accounts: Mapping[int, ExitAccount], tracking: Tracking, *, entries_are_seen: bool
) -> bool:
    """Return whether the hook at tracepoint kvm_exit is needed.

    It counts the exits of processes that have no statistics. It may also be the only proof that a
    process runs a guest: one whose vCPUs have no statistics or cannot be seen, or one that hides
    its vCPUs and pretends to emulate, where no hook sees every entry of KVM_RUN.
    """
    return any(
        account.source is ExitSource.TRACEPOINT
        if (account := accounts.get(process.vmm.tgid)) is not None
        else _may_run_uncounted(process, entries_are_seen=entries_are_seen)
        for process in tracking.processes
    )


def runs_on_kvm(process: TrackedProcess) -> bool:
    """Return whether it is proven that a process runs on KVM."""
    return process.verdict.type is HypervisorType.KVM and process.verdict.verified


def _account_of(process: TrackedProcess, accounts: Mapping[int, ExitAccount]) -> ExitAccount | None:
    """Return the account of exactly this process, not of a previous owner of its number."""
    account = accounts.get(process.vmm.tgid)
    if account is None or (account.vmm is not process.vmm and account.vmm != process.vmm):
        return None
    return account


def _created(process: TrackedProcess, tracking: Tracking) -> Created:
    """Return what the ledger saw a process create."""
    record = tracking.records.get(process.vmm.tgid)
    return _NOTHING if record is None else Created(record.vms_created, record.vcpus_created)


_UNSEEN = frozenset(
    {
        Reason.KVM_RUN_REFUSED,
        Reason.KVM_RUN_RESULT_UNREAD,
        Reason.KVM_RUN_UNHELD,
        Reason.READ_BLOCKED,
        Reason.TOO_MUCH_TO_READ,
        Reason.FDS_UNREADABLE,
        Reason.GUEST_TIME_WITHOUT_FDS,
        Reason.CLAIMS_WITHOUT_FDS,
    }
)
"""Reasons of a process that may run vCPUs which hvprobe cannot see."""


def _may_run_uncounted(process: TrackedProcess, *, entries_are_seen: bool) -> bool:
    """Return whether a process without an account may run a guest that only the hook shows."""
    match process.verdict.type:
        case HypervisorType.KVM:
            return process.statistics < (process.vcpus or 0)
        case HypervisorType.TCG:
            return not entries_are_seen
        case _:
            return not _UNSEEN.isdisjoint(process.verdict.reasons)
