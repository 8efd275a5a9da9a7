# SPDX-License-Identifier: Apache-2.0
"""EDGE: lists the descriptors of a process that hold statistics of its vCPUs.

Owns what is kept of a process between two readings, and how its descriptors are listed. Must not
know when that is necessary, nor read the statistics.

Of a process whose descriptors are copied a pidfd is kept. It names the process for good, pins none
of its memory, and answers ESRCH once the process has ended.
"""

import contextlib
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

from probes.host.kvm_stats import NO_STATISTICS, Span, StatisticsListing
from probes.host.process import VmmId
from probes.host.process_folder import ProcessFolder
from probes.host.process_reader import read_stat
from probes.host.vcpu_statistics import MAX_VCPUS, is_vcpu, is_vcpu_statistics
from probes.host.watched_reads import WatchedReads

MAX_LINKS = 16_384
"""The most links that are read to list the descriptors of a process."""
_OWNER = re.compile(rb"^Tgid:\t([0-9]+)$", re.MULTILINE)


class ReadableProcess(NamedTuple):
    """What a reading needs of a process whose statistics can be read.

    This is a tuple, because each reading takes it apart for every process.
    """

    tgid: int
    pidfd: int | None
    """None: it has to be listed again before a descriptor can be copied."""
    listing: StatisticsListing
    span: Span
    start_ticks: int


@dataclass(slots=True, kw_only=True)
class KeptProcess:
    """What is kept of one process between two readings."""

    vmm: VmmId
    pidfd: int | None = None
    """None: none of its descriptors is copied at present."""
    task: int | None = None
    """Descriptor of its ``task`` directory; None: it is not needed."""
    links: int = 0
    """Links of that directory before the descriptors were listed."""
    vcpus_created: int = 0
    listing: StatisticsListing | None = None
    unsettled: bool = False
    """Whether the last listing was news and has a vCPU without statistics.

    QEMU opens the statistics of a new vCPU a moment after the vCPU itself.
    """
    span: Span | None = None
    """Where the wanted counts are; None: its statistics cannot be read."""

    def readable(self) -> ReadableProcess | None:
        """Return what a reading needs; None: its statistics cannot be read."""
        if self.listing is None or self.span is None:
            return None
        tgid, start_ticks = self.vmm
        return ReadableProcess(tgid, self.pidfd, self.listing, self.span, start_ticks)

    def threads_changed(self) -> bool:
        """Return whether its number of threads has changed since the descriptors were listed.

        The directory has two links of its own and one for each thread: proc_task_getattr
        (fs/proc/base.c) adds get_nr_threads() to the two that proc_pident_instantiate sets.
        """
        return self.task is None or os.fstat(self.task).st_nlink != self.links

    def open(self, folder: ProcessFolder) -> bool:
        """Open a pidfd of exactly this process, unless it is open; return False if it has ended.

        Raises OSError when no more descriptors can be opened.
        """
        if self.pidfd is None:
            self.pidfd = _pidfd_of(self.vmm, folder)
        return self.pidfd is not None

    def release(self) -> None:
        """Close the pidfd."""
        if self.pidfd is not None:
            os.close(self.pidfd)
            self.pidfd = None

    def close(self) -> None:
        """Close what is kept."""
        self.release()
        if self.task is not None:
            os.close(self.task)

    def list_descriptors(self, folder: ProcessFolder, *, follow_threads: bool) -> bool:
        """List its descriptors; return whether they differ from those that were listed before.

        follow_threads says that threads_changed() will be called.
        """
        with contextlib.suppress(OSError):
            if follow_threads and self.task is None:
                self.task = folder.directory("task")
        # The links come before the descriptors, so that no later change is missed, and are kept
        # only after them, because there may be no time for the listing.
        links = None if self.task is None else os.fstat(self.task).st_nlink
        listing = listing_of(folder)
        changed = listing != self.listing
        self.listing = listing
        self.unsettled = changed and listing.vcpus > len(listing.fds)
        if links is not None:
            self.links = links
        return changed


def _pidfd_of(vmm: VmmId, folder: ProcessFolder) -> int | None:
    if not _is(vmm, folder):
        return None
    folder.at("its pidfd")
    try:
        pidfd = os.pidfd_open(vmm.tgid)
    except ProcessLookupError:
        return None
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, pidfd)
        if not _is(vmm, folder):
            return None
        undo.pop_all()
    return pidfd


def _is(vmm: VmmId, folder: ProcessFolder) -> bool:
    """Return whether a folder is that of this process, which is alive."""
    stat = read_stat(folder, "stat")
    return stat is not None and not stat.ended and stat.start_ticks == vmm.start_ticks


def listing_of(folder: ProcessFolder) -> StatisticsListing:
    """List the descriptors in the table of the main thread, which alone can be copied.

    A process with more links or statistics than are read has no statistics here.
    """
    fds: list[tuple[int, str]] = []
    vcpus = links = 0
    try:
        for name in folder.names("fd"):
            links += 1
            with contextlib.suppress(FileNotFoundError):  # it was closed during the listing
                target = folder.target(f"fd/{name}")
                if not target.startswith("anon_inode:"):
                    continue
                vcpus += is_vcpu(target)
                if is_vcpu_statistics(target):
                    fds.append((int(name), target))
            if links > MAX_LINKS or len(fds) > MAX_VCPUS:
                return NO_STATISTICS
    except OSError:
        return NO_STATISTICS
    return StatisticsListing(tuple(sorted(fds)), vcpus)


def owners_of(
    threads: Collection[int], reads: WatchedReads, *, until: float
) -> Collection[int] | None:
    """Return the processes of these threads that are alive; None: one could not be read in time."""
    owners: set[int] = set()

    def read(_: int, folder: ProcessFolder) -> None:
        owner = _OWNER.search(folder.read("status") or b"")
        if owner is not None:
            owners.add(int(owner[1]))

    alive = [number for number in threads if os.access(f"{reads.proc}/{number}", os.F_OK)]
    return None if reads.run(alive, read, until=until) else owners
