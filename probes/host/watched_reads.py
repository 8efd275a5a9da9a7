# SPDX-License-Identifier: Apache-2.0
"""EDGE: reads /proc so that a read that never returns costs only its own process.

Owns the threads that read, and which of them are stuck. Must not know what is read.

A read of ``cmdline`` sleeps as long as a page of that process's memory is missing, which the
process decides (userfaultfd(2), FUSE); ``stat``, ``exe`` and the links of ``fd`` sleep while its
execve(2) waits for a FUSE server. No signal but SIGKILL ends such a sleep. So a thread does all
reading and publishes which step of which process it is at, and since when, while the caller waits.
A thread that makes no progress is left behind, and another one continues with the next process.
``comm``, ``cgroup`` and the list of threads always return.
"""

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from pathlib import Path

from probes.host.cgroup import PodUid, pod_of
from probes.host.process import Unread
from probes.host.process_folder import ProcessFolder

log = logging.getLogger(__name__)

MAX_READERS = 64
"""The most threads that read, including stuck ones."""
MAX_STUCK_IN_POD = 4
"""Stuck processes after which no others of a pod are read, so that other pods have readers."""
PATIENCE_S = 0.3
"""How long one step of one process may take before its reader is left behind."""
MAX_PROCESS_S = 1.0
"""How long all steps of one process may take together."""
_HEAD_START_S = 0.06
"""How long one step may take before another reader continues with the other processes."""
_POLL_S = 0.02
OVERTIME_S = 2.0
"""How long to wait for a reader that lacks a processor after the batch's time is over."""
_LOGGED = 1024
"""How many processes are remembered as logged."""


class OutOfTimeError(Exception):
    """There is no time for a further step. Raised within a read."""


class Turn:
    """One process that a reader is reading, and the step it is at."""

    __slots__ = ("given_up", "since", "step", "tgid", "until")

    def __init__(self, tgid: int, until: float) -> None:
        self.tgid = tgid
        self.until = until
        self.since = time.monotonic()
        self.step = ""
        self.given_up = False
        """Whether the caller has continued without it, so that what it reads from now on is
        discarded."""

    def at(self, step: str) -> None:
        """Note what is read next. Raises OutOfTimeError when there is no time for it."""
        self.since = time.monotonic()
        self.step = step
        if self.given_up or self.since >= self.until:
            raise OutOfTimeError


Read = Callable[[int, ProcessFolder], None]
"""Reads one process (tgid) from its folder and stores each result immediately."""


class WatchedReads:
    """Reads processes from a /proc, one batch at a time, and remembers which ones are stuck."""

    def __init__(self, proc: Path, *, effect: str = "It is reported as unknown") -> None:
        """Make the readers. effect says in the log what a process that blocks them loses."""
        self.proc = proc
        self._effect = effect
        self._lock = threading.Lock()
        self._stuck: list[_Stuck] = []
        self._logged: dict[int, None] = {}

    def stuck(self) -> frozenset[int]:
        """Return the processes whose reader is stuck now."""
        return frozenset(stuck.tgid for stuck in self._still_stuck() if stuck.alive())

    def run(
        self, tgids: Collection[int], read: Read, *, until: float, harmless: bool = False
    ) -> dict[int, Unread]:
        """Read processes in this order. Returns those that were not read completely, and why.

        Ends a little after ``until`` (time.monotonic()) at the latest. With harmless, ``read``
        reads only files whose reads always return, so stuck processes are read as well.
        """
        stuck = frozenset[int]() if harmless else self.stuck()
        unread = dict.fromkeys((tgid for tgid in tgids if tgid in stuck), Unread.BLOCKED)
        todo = [tgid for tgid in tgids if tgid not in stuck]
        batch = _Batch(self, todo, read, until, harmless=harmless)
        unread.update(batch.run())
        return unread

    def readers(self) -> int:
        """Return how many readers are stuck."""
        return len(self._still_stuck())

    def folder(self, tgid: int, at: Callable[[str], None]) -> ProcessFolder:
        """Return the folder of a process, which the caller enters."""
        return ProcessFolder(f"{self.proc}/{tgid}", at)

    def full_pods(self) -> frozenset[PodUid]:
        """Return the pods that have too many stuck processes."""
        pods = [stuck.pod for stuck in self._still_stuck() if stuck.pod is not None]
        return frozenset(pod for pod in pods if pods.count(pod) >= MAX_STUCK_IN_POD)

    def leave_behind(self, reader: "_Reader", turn: Turn) -> None:
        """Record that this reader is stuck, and log the process once."""
        stuck = _Stuck(reader, turn.tgid, self.folder(turn.tgid, _accept_any_step))
        with self._lock:
            self._stuck.append(stuck)
        if turn.tgid in self._logged:
            return
        self._logged[turn.tgid] = None
        if len(self._logged) > _LOGGED:
            self._logged.pop(next(iter(self._logged)))
        log.warning(
            "process %d (%r) blocks its readers: reading %s of it does not return. %s until it "
            "does; other processes are not affected",
            turn.tgid,
            stuck.comm,
            turn.step,
            self._effect,
        )

    def _still_stuck(self) -> "list[_Stuck]":
        """Forget the readers that have returned, and return the others."""
        with self._lock:
            for stuck in [stuck for stuck in self._stuck if stuck.reader.ended]:
                self._stuck.remove(stuck)
                stuck.close()
            return list(self._stuck)


def _accept_any_step(step: str) -> None:
    """Accept any step. Used for a folder from which only harmless files are read."""


class _Stuck:
    """A process that holds a reader, with a folder descriptor of its own."""

    def __init__(self, reader: "_Reader", tgid: int, folder: ProcessFolder) -> None:
        self.reader = reader
        self.tgid = tgid
        self._open = contextlib.ExitStack()
        self._folder = self._open.enter_context(folder)
        self.comm = _text(self._folder.read("comm")).rstrip("\n")
        pod = pod_of(_text(self._folder.read("cgroup")))
        self.pod = None if pod is None else pod.uid

    def alive(self) -> bool:
        """Whether the process is alive. Its reader may stay stuck after it has ended."""
        return self._folder.read("comm") is not None

    def close(self) -> None:
        self._open.close()


def _text(raw: bytes | None) -> str:
    return (raw or b"").decode(errors="replace")


class _Batch:
    """Processes to read, and the readers that share them."""

    def __init__(
        self, reads: WatchedReads, tgids: list[int], read: Read, until: float, *, harmless: bool
    ) -> None:
        self.reads = reads
        self.read = read
        self.until = until
        self.unread: dict[int, Unread] = {}
        self._places = MAX_READERS + harmless
        self.full_pods = frozenset[PodUid]() if harmless else reads.full_pods()
        self.lock = threading.Lock()
        self.moved = threading.Event()
        """Set when a reader ends."""
        self.error: Exception | None = None
        self._todo = deque(tgids)
        self._readers: list[_Reader] = []

    def run(self) -> dict[int, Unread]:
        """Wait until all processes are read, left behind or out of time."""
        while self._go_on():
            self.moved.wait(_POLL_S)
            self.moved.clear()
            for reader in [reader for reader in self._readers if self._is_stuck(reader)]:
                self._leave_behind(reader)
        if self.error is not None:
            raise self.error
        with self.lock:
            return dict(self.unread)

    def next_turn(self) -> Turn | None:
        """Return what a reader reads next. The caller holds the lock."""
        now = time.monotonic()
        if not self._todo or now >= self.until:
            return None
        return Turn(self._todo.popleft(), min(self.until, now + MAX_PROCESS_S))

    def _go_on(self) -> bool:
        """Whether there is something to wait for.

        Starts a reader if the others make no progress.
        """
        self._readers = [reader for reader in self._readers if not reader.ended]
        if self._todo and time.monotonic() >= self.until:
            self._drop(Unread.NO_TIME)
        if self._todo and all(reader.quiet_s >= _HEAD_START_S for reader in self._readers):
            if len(self._readers) + self.reads.readers() < self._places:
                reader = _Reader(self)
                self._readers.append(reader)
                reader.start()
            elif not self._readers:
                self._drop(Unread.BLOCKED)
        return bool(self._readers)

    def _drop(self, why: Unread) -> None:
        with self.lock:
            self.unread.update(dict.fromkeys(self._todo, why))
            self._todo.clear()

    def _is_stuck(self, reader: "_Reader") -> bool:
        """Whether a reader makes no progress although a processor is free for it.

        Time is counted in polls of this thread: if the entire machine pauses, no reader is to
        blame.
        """
        reader.measure_progress()
        if reader.quiet_s < PATIENCE_S or reader.ended:
            return False
        return not waits_for_processor(reader) or time.monotonic() >= self.until + OVERTIME_S

    def _leave_behind(self, reader: "_Reader") -> None:
        with self.lock:
            turn = reader.turn
            if turn is None or turn.since != reader.seen_since:
                return
            turn.given_up = True
            self.unread[turn.tgid] = Unread.BLOCKED
        self._readers.remove(reader)
        self.reads.leave_behind(reader, turn)
        self.full_pods = self.reads.full_pods()


class _Reader(threading.Thread):
    """Reads a batch's processes one after another, until there are none or it is left behind."""

    def __init__(self, batch: _Batch) -> None:
        super().__init__(name="hvprobe-read", daemon=True)
        self._batch = batch
        self.turn: Turn | None = None
        self.ended = False
        self.quiet_s = 0.0
        """How long the present step has taken, as far as ``measure_progress`` has observed."""
        self.seen_since = 0.0
        self._measured_s = time.monotonic()

    def run(self) -> None:
        batch = self._batch
        try:
            while True:
                with batch.lock:
                    if self.turn is not None and self.turn.given_up:
                        return
                    self.turn = turn = batch.next_turn()
                if turn is None:
                    return
                why = self._read(turn)
                with batch.lock:
                    if why is not None and not turn.given_up:
                        batch.unread[turn.tgid] = why
        except Exception as err:  # noqa: BLE001 - the caller raises it
            batch.error = err
        finally:
            self.ended = True
            batch.moved.set()

    def _read(self, turn: Turn) -> Unread | None:
        """Read one process. Returns why it could not be read completely."""
        batch = self._batch
        try:
            with batch.reads.folder(turn.tgid, turn.at) as folder:
                if batch.full_pods:
                    pod = pod_of(_text(folder.read("cgroup")))
                    if pod is not None and pod.uid in batch.full_pods:
                        return Unread.BLOCKED
                batch.read(turn.tgid, folder)
        except OutOfTimeError:
            return Unread.NO_TIME if time.monotonic() >= batch.until else Unread.TOO_MANY
        return None

    def measure_progress(self) -> None:
        """Add the time without progress since the last call, but no more than two polls take."""
        now, turn = time.monotonic(), self.turn
        since = self.seen_since if turn is None else turn.since
        passed_s = min(now - self._measured_s, 2 * _POLL_S)
        self.quiet_s = self.quiet_s + passed_s if since == self.seen_since else 0.0
        self.seen_since = since
        self._measured_s = now


def waits_for_processor(thread: threading.Thread) -> bool:
    """Return whether a thread could run if a processor were free."""
    try:
        stat = Path(f"/proc/self/task/{thread.native_id}/stat").read_bytes()
    except OSError:
        return False
    return stat.rpartition(b")")[2].split()[:1] == [b"R"]
