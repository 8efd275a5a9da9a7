# SPDX-License-Identifier: Apache-2.0
"""Remembers which processes have waited longest to be read. Pure.

Must not read anything.
"""

from collections.abc import Collection, Mapping

from probes.host.process import Unread


class ReadQueue:
    """Remembers since which batch each process has been waiting to be read.

    New processes come after all that were waiting, so that a stream of new processes does not delay
    the others for long.
    """

    def __init__(self) -> None:
        self._since: dict[int, int] = {}
        self._batch = 0

    def since(self, tgid: int) -> int:
        """Return a number that is lower the longer it has waited, and highest for a new process."""
        return self._since.get(tgid, self._batch)

    def took(self, tgids: Collection[int], unread: Mapping[int, Unread]) -> None:
        """Note that these processes were read, except those for which there was no time."""
        # Between new processes that were not read and those of the next batch.
        now = self._batch + 1
        self._since = {
            tgid: self.since(tgid) if unread.get(tgid) is Unread.NO_TIME else now for tgid in tgids
        }
        self._batch += 2
