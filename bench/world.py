# SPDX-License-Identifier: Apache-2.0
"""A guest that does nothing but exit, made to do so so many times."""

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from bench.agent import cpu_s
from tests.support.kernel_world import KvmLoad, build_kvmload


class GuestThatExits:
    """One VM of tests/support/kvmload.c. Use as a context manager."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        directory = self._stack.enter_context(tempfile.TemporaryDirectory())
        program = build_kvmload(Path(directory))
        load = KvmLoad(program, "--step", "--statistics", "--userspace-exits", "1000")
        self._load = self._stack.enter_context(load)
        self._load.finish_counted_part()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def tgid(self) -> int:
        """The process of the VM, which holds the statistics of its vCPU open."""
        return self._load.tgid

    def make(self, exits: int) -> None:
        """Each returns to user space, and is one event of kvm_userspace_exit."""
        self._load.step(exits)

    def ns_an_exit(self, exits: int) -> float:
        """CPU time of the guest's process for so many, guest time included, divided by them."""
        before_s = cpu_s(self._load.tgid)
        self.make(exits)
        return (cpu_s(self._load.tgid) - before_s) * 1e9 / exits
