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
  than it and no hook saw a new VM. The old one's exits are lost;
- the exits of a vCPU that has no statistics although the other ones have are not counted
  (``uncounted_vcpus``).

QEMU keeps an unplugged vCPU, closes its statistics, and opens them again when the vCPU is plugged
in. KVM has gone on counting from where it was. So the last value of a vCPU that is gone is taken
back when a vCPU of the same number appears that has counted at least as much.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from ebpf.ledger import LedgerEntry
from probes.host.hypervisors import HypervisorType
from probes.host.kvm_stats import Measure, StatisticsListing, StatisticsReading
from probes.host.process import VmmId
from probes.judge.count_sums import Counts, added, begun_again, grew, subtracted
from probes.judge.tracked import TrackedProcess, Tracking


class ExitSource(StrEnum):
    """What counts the VM exits of a process."""

    KVM_STATISTICS = "kvm_statistics"
    """KVM's statistics of its vCPUs, which count since the vCPUs were created."""
    TRACEPOINT = "tracepoint"
    """The hook at tracepoint kvm_exit, which counts since it was attached."""


MAX_GONE = 4096
"""The most vCPUs of a process that are remembered as gone: more than a VM has."""


class Created(NamedTuple):
    """What the ledger saw a process create; both 0 where no hook sees it."""

    vms: int = 0
    vcpus: int = 0


class ExitAccount(NamedTuple):
    """The account of one process.

    This is a tuple, as ``LedgerEntry`` is, because each refresh makes one for every process.
    """

    vmm: VmmId
    source: ExitSource
    totals: Counts = ()
    """Totals of the wanted counts. Empty if the hook counts the exits."""
    listing: StatisticsListing = StatisticsListing()
    """The descriptors of the last successful reading."""
    last: tuple[Counts, ...] = ()
    """What each of them said then."""
    base: Counts = ()
    """Totals of the vCPUs that are gone."""
    gone: tuple[tuple[str, Counts], ...] = ()
    """The vCPUs that are gone and may come back, by the target of their descriptor's link, each
    with the counts that ``base`` has of it."""
    created: Created | None = None
    """What the ledger had seen it create by the last successful reading; None: unknown."""
    measures: tuple[Measure, ...] = ()
    """What the totals are, in order."""

    @property
    def exits(self) -> int | None:
        """Total of VM exits; None: the hook counts them."""
        return self.totals[0] if self.totals else None

    @property
    def uncounted_vcpus(self) -> int:
        """Number of vCPUs whose exits are not in the totals.

        A vCPU without statistics is one of them, unless it had some and is only unplugged.
        """
        without = self.listing.vcpus - len(self.listing.fds)
        if without <= 0:
            return 0
        unplugged = {target for target, _ in self.gone} - {fd[1] for fd in self.listing.fds}
        return max(without - len(unplugged), 0)

    def after(self, reading: StatisticsReading | None, created: Created | None) -> "ExitAccount":
        """Return the account after a reading. A reading that failed changes nothing.

        created is what the ledger had seen the process create before the reading; None: it has no
        record now.
        """
        if reading is None or self.source is not ExitSource.KVM_STATISTICS:
            return self
        listing, counts, measures = reading
        if listing is None or counts is None or measures != self.measures:
            return self
        if created is None:
            created = self.created
        same = created is self.created or created == self.created
        if same and (listing is self.listing or listing == self.listing):
            if counts == self.last:
                return self
            if grew(self.last, counts):
                totals = added(self.base, *counts)
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
                    measures,
                )
        return _settled(self, listing, counts, created)


def opened(
    vmm: VmmId, reading: StatisticsReading | None, created: Created | None, *, vcpus: int = 0
) -> ExitAccount | None:
    """Choose the source of a process's exits; None: there was no time to find out.

    KVM's statistics are the source if every vCPU has one and all can be read. Otherwise some exits
    would not be counted. vcpus is how many vCPUs the process was last seen to hold in the tables of
    all its threads, while a reading lists only the table of the main thread.
    """
    if reading is None or reading.listing is None:
        return None
    listing = reading.listing
    if reading.counts is None or not listing.covers_every_vcpu or vcpus > listing.vcpus:
        return ExitAccount(vmm, ExitSource.TRACEPOINT)
    nothing = (0,) * len(reading.measures)
    begun = ExitAccount(
        vmm,
        ExitSource.KVM_STATISTICS,
        totals=nothing,
        base=nothing,
        measures=reading.measures,
    )
    return begun.after(reading, created)


def _settled(
    account: ExitAccount,
    listing: StatisticsListing,
    counts: tuple[Counts, ...],
    created: Created | None,
) -> ExitAccount:
    """Return the account after a reading in which vCPUs may have come, gone or begun again."""
    fell = False
    base, gone = account.base, list(account.gone)
    old = dict(zip(account.listing.fds, account.last, strict=True))
    new = dict(zip(listing.fds, counts, strict=True))
    if _made_again(account.created, created, vcpus=len(new)):
        base, old, gone = added(base, *old.values()), {}, []
    for descriptor, count in old.items():
        if descriptor not in new:
            base = added(base, count)
            gone.append((descriptor[1], count))
        else:
            base = added(base, begun_again(count, new[descriptor]))
            fell = fell or new[descriptor][0] < count[0]
    for descriptor, count in new.items():
        if descriptor not in old and (back := _taken_back(gone, descriptor[1], count)):
            base = added(subtracted(base, back), begun_again(back, count))
    if fell and created is not None:
        # The ledger was read before the statistics, so it may not show the new VM until the next
        # refresh, which must not take these vCPUs for the old ones.
        created = Created(created.vms + 1, created.vcpus + len(new))
    return account._replace(
        totals=added(base, *counts),
        listing=listing,
        last=counts,
        base=base,
        gone=tuple(gone[-MAX_GONE:]),
        created=created,
    )


def _made_again(before: Created | None, now: Created | None, *, vcpus: int) -> bool:
    """Return whether the process has made its VM and all its vCPUs again.

    QEMU does so to reset a confidential guest. A new vCPU alone is none of another VM.
    """
    if before is None or now is None:
        return False
    return now.vms > before.vms and now.vcpus - before.vcpus >= vcpus


def _taken_back(gone: list[tuple[str, Counts]], target: str, count: Counts) -> Counts:
    """Remove the vCPU that has come back from those that are gone; return what it had counted.

    Of several, it is the one that had counted most. Empty: it is a new vCPU.
    """
    same = [each for each in gone if each[0] == target and each[1][0] <= count[0]]
    if not same:
        return ()
    back = max(same, key=lambda each: each[1])
    gone.remove(back)
    return back[1]


def accounts_after(
    accounts: Mapping[int, ExitAccount],
    tracking: Tracking,
    readings: Mapping[int, StatisticsReading],
) -> dict[int, ExitAccount]:
    """Return the accounts by tgid after a refresh. A process that has ended has none.

    A process gets one once its verdict proves that it runs on KVM, and keeps it while it lives.
    """
    after: dict[int, ExitAccount] = {}
    for process in tracking.processes:
        vmm = process.vmm
        tgid = vmm.tgid
        account = accounts.get(tgid)
        if account is not None and account.vmm is not vmm:
            account = _taken_over(account, vmm)
        if account is None:
            if not runs_on_kvm(process):
                continue
            created = _created(tracking.records.get(tgid), None)
            account = opened(vmm, readings.get(tgid), created, vcpus=process.vcpus or 0)
        elif account.source is ExitSource.KVM_STATISTICS:
            created = _created(tracking.records.get(tgid), account.created)
            account = account.after(readings.get(tgid), created)
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
        vmm = process.vmm
        account = accounts.get(vmm.tgid)
        if account is None or (account.vmm is not vmm and account.vmm != vmm):
            if not runs_on_kvm(process):
                continue
        elif account.source is not ExitSource.KVM_STATISTICS:
            continue
        record = tracking.records.get(vmm.tgid)
        wanted.append((vmm, 0 if record is None else record.vcpus_created))
    return wanted


def statistics_failed(
    accounts: Mapping[int, ExitAccount], readings: Mapping[int, StatisticsReading]
) -> bool:
    """Return whether exits are missing from an account after these readings.

    They are if the statistics of a process could not be read, if a process whose exits they count
    shows none any longer, or if one of its vCPUs has none.
    """
    incomplete = (tgid for tgid, reading in readings.items() if not reading.complete)
    return any(
        readings[tgid].failed
        or (
            (account := accounts.get(tgid)) is not None
            and account.source is ExitSource.KVM_STATISTICS
            and (readings[tgid].counts is None or account.uncounted_vcpus > 0)
        )
        for tgid in incomplete
    )


def runs_on_kvm(process: TrackedProcess) -> bool:
    """Return whether it is proven that a process runs on KVM."""
    return process.verdict.type is HypervisorType.KVM and process.verdict.verified


def _taken_over(account: ExitAccount, vmm: VmmId) -> ExitAccount | None:
    """Return the account if it is of exactly this process, not of a previous owner of its number.

    Each reading of a process names it by a new object. The account takes that one over, because two
    objects take much longer to compare than one with itself.
    """
    return account._replace(vmm=vmm) if account.vmm == vmm else None


def _created(record: LedgerEntry | None, before: Created | None) -> Created | None:
    """Return what the ledger saw a process create, as the same object if that is nothing new."""
    if record is None:
        return None
    if before is not None and (record.vms_created, record.vcpus_created) == before:
        return before
    return Created(record.vms_created, record.vcpus_created)
