# SPDX-License-Identifier: Apache-2.0
"""EDGE: loads and attaches the programs of this node's ledger, and reads its tables.

Owns the order in which everything is opened, and what a failure means. Must not know what a VMM, a
pod or a VMI is: it returns the kernel's records and the state of each hook, nothing else.
"""

import contextlib
import errno
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Self

from ebpf.clock import monotonic_ns
from ebpf.errors import BpfUnavailableError, LedgerReadError
from ebpf.hook_set import HookSet, field_flags, field_places
from ebpf.hook_status import HookStatus
from ebpf.hooks import HOOKS, PROGRAM_FILES, Hook, loadable
from ebpf.ledger import KernelSnapshot
from ebpf.loader_process import LoaderProcess
from ebpf.programs import Programs, possible_cpus
from ebpf.tables import (
    EXIT_PLACES,
    MAX_READS,
    TABLES,
    Sizes,
    Tables,
    default_capacity,
    life_pages,
    memory_bytes,
)
from ebpf.tracefs import Tracefs


class Session:
    """The ledger of this node, one per process. Use it as a context manager or call close()."""

    def __init__(
        self,
        *,
        capacity: int | None = None,
        exit_places: int = EXIT_PLACES,
        sys_root: Path = Path("/sys"),
        proc_root: Path = Path("/proc"),
        hooks: Sequence[Hook] = HOOKS,
        loader: LoaderProcess | None = None,
    ) -> None:
        """Compile the programs and attach every hook that can be attached and is always needed.

        capacity: see default_capacity(). proc_root is a /proc whose ``self`` is this process.
        loader compiles; None: a process of its own. Raises BpfUnavailableError when there can be no
        ledger; nothing stays loaded then.
        """
        self._pid_max_file = proc_root / "sys/kernel/pid_max"
        self._sizes = _sizes_of_node(
            capacity, exit_places, sys_root=sys_root, pid_max_file=self._pid_max_file
        )
        # The text reads the fields of every hook, including hooks that the caller did not pass.
        places = field_places(Tracefs(sys_root), [*HOOKS, *hooks])
        with contextlib.ExitStack() as opened:
            self._programs = Programs(
                PROGRAM_FILES,
                [*self._sizes.flags, *field_flags(places)],
                maps=TABLES,
                loadable=loadable(hooks),
                sys_root=sys_root,
                proc_root=proc_root,
                loader=loader,
            )
            opened.callback(self._programs.close)
            try:
                self._tables = Tables(self._programs.map_fd, self._sizes)
            except OSError as err:
                refused = err.errno in (errno.EPERM, errno.EACCES)
                raise BpfUnavailableError(
                    f"the ledger's tables cannot be used: {err}", refused=refused
                ) from err
            opened.callback(self._tables.close)
            self._hook_set = HookSet(hooks, self._programs, places=places, sys_root=sys_root)
            self._unmarked_forks = self._tables.unmarked_forks()
            self._missed_lives = self._hook_set.missed_lives()
            failed = [status for status in self.hooks if not status.unneeded]
            if failed and not self._hook_set.any_attached:
                last = failed[-1]
                raise BpfUnavailableError(
                    f"no hook can be attached: {last.reason}", refused=last.refused
                )
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def hooks(self) -> tuple[HookStatus, ...]:
        """The state of each wanted hook, in the order of hooks.HOOKS."""
        return self._hook_set.statuses

    @property
    def bcc_version(self) -> str:
        """The version of the bcc library in use."""
        return self._programs.bcc_version

    @property
    def capacity(self) -> int:
        """Number of processes that the ledger has room for."""
        return self._sizes.capacity

    @property
    def cpus(self) -> int:
        """One more than the greatest number that a CPU of this node can have."""
        return self._sizes.cpus

    @property
    def memory_bytes(self) -> int:
        """Kernel memory of all tables."""
        return self._sizes.memory_bytes

    def need(self, hooks: Collection[Hook]) -> None:
        """Attach the on-demand hooks among these at once, and detach the other on-demand hooks.

        Nothing is compiled again. A hook that cannot be attached says so in its status.
        """
        self._hook_set.need(hooks)

    def read(self) -> KernelSnapshot:
        """Read the ledger now. Raises LedgerReadError when the kernel refuses.

        This also attaches or detaches hooks whose driver has been loaded or unloaded.
        """
        self._hook_set.follow_drivers()
        self._hook_set.count_missed()
        try:
            self._tables.recycle()
            entries = self._tables.entries()
            dropped_total = self._tables.dropped_total()
        except (OSError, ValueError) as err:
            raise LedgerReadError(f"cannot read the ledger: {err}; restart hvprobe") from err
        return KernelSnapshot(
            taken_ns=monotonic_ns(),
            attached_ns=self._hook_set.attached_ns,
            entries=entries,
            capacity=self._sizes.capacity,
            dropped_total=dropped_total,
            hooks=self.hooks,
            misses_counted=self._hook_set.misses_counted,
        )

    def new_lives(self) -> frozenset[int] | None:
        """Return the numbers at which a life began or ended (fork, exec, exit) since the last call.

        Numbers of threads are included. Call this before reading the ledger and before listing
        /proc. None means that some lives may have been missed. Raises LedgerReadError when the
        kernel refuses.
        """
        try:
            lives = self._tables.lives.take()
            pid_max = _pid_max(self._pid_max_file)
        except (OSError, ValueError) as err:
            raise LedgerReadError(f"cannot read the ledger: {err}; restart hvprobe") from err
        skipped = self._forks_skipped() | self._lives_missed()
        if skipped or pid_max > self._tables.lives.numbers:
            return None
        return lives if self._hook_set.lives_are_followed else None

    def forget(self, tgid: int, first_ns: int) -> None:
        """Remove the record of tgid that began at first_ns, if it still exists.

        Its slot is free after the next read(). Raises LedgerReadError when the kernel refuses.
        """
        try:
            self._tables.forget(tgid, first_ns)
        except (OSError, ValueError) as err:
            raise LedgerReadError(f"cannot write to the ledger: {err}; restart hvprobe") from err

    def close(self) -> None:
        """Detach and release everything. May be called again."""
        self._opened.close()

    def _forks_skipped(self) -> bool:
        """Whether the kernel has skipped a program for a fork since the last call.

        False where that cannot be observed. A fork in progress is not a loss, so this waits for it.
        """
        if not self._hook_set.forks_are_counted:
            return False
        before, found = self._unmarked_forks, 0
        for _ in range(MAX_READS):
            found = self._tables.unmarked_forks()
            if found == before:
                return False
        self._unmarked_forks = found
        return True

    def _lives_missed(self) -> bool:
        """Whether the kernel has skipped a program for a life since the last call.

        False where it does not count that. Call it after the marks are taken: what was skipped
        before is counted by then.
        """
        before, self._missed_lives = self._missed_lives, self._hook_set.missed_lives()
        return self._missed_lives != before


def _sizes_of_node(
    capacity: int | None, exit_places: int, *, sys_root: Path, pid_max_file: Path
) -> Sizes:
    try:
        cpus = 1 + possible_cpus(sys_root)[-1]
        pages = life_pages(_pid_max(pid_max_file))
    except (OSError, ValueError) as err:
        raise BpfUnavailableError(
            f"cannot find out how many CPUs and processes this node can have: {err}"
        ) from err
    if capacity is None:
        capacity = default_capacity(memory_bytes=memory_bytes(), cpus=cpus)
    return Sizes(capacity=capacity, cpus=cpus, exit_places=exit_places, life_pages=pages)


def _pid_max(file: Path) -> int:
    return int(file.read_text())
