# SPDX-License-Identifier: Apache-2.0
"""EDGE: reads the CPU time that processes spend in guest code.

Owns how long that may take. Must not judge what a time is worth.
"""

import time
from collections.abc import Collection, Mapping

from probes.host.process import VmmId
from probes.host.process_folder import ProcessFolder
from probes.host.process_reader import read_stat
from probes.host.watched_reads import WatchedReads

MAX_GUEST_TIMES_S = 0.4
"""How long the times of all processes may take."""


def read_guest_times(
    reads: WatchedReads, vmms: Collection[VmmId], *, ticks_per_s: int
) -> Mapping[int, float]:
    """Return the CPU time of these processes in guest code, in seconds by tgid.

    It is that of all threads, including ended ones (guest_time of /proc/TGID/stat). A process that
    cannot be read, or for which there is no time, is left out.
    """
    wanted = {vmm.tgid: vmm for vmm in vmms}
    found: dict[int, float] = {}

    def read(tgid: int, folder: ProcessFolder) -> None:
        stat = read_stat(folder, "stat")
        if stat is not None and stat.start_ticks == wanted[tgid].start_ticks:
            found[tgid] = stat.guest_ticks / ticks_per_s

    if wanted:
        reads.run([*wanted], read, until=time.monotonic() + MAX_GUEST_TIMES_S)
    return found.copy()
