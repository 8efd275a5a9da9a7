# SPDX-License-Identifier: Apache-2.0
"""Runs that the kernel skips are counted: it is made to skip some."""

import itertools
import os
import platform
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ebpf.hooks import SCHED_PROCESS_FORK
from ebpf.session import Session
from probes.report.missed_runs import missed_runs
from tests.support.kernel_ledger import tables
from tests.support.kernel_node import Node
from tests.support.kernel_world import Started, wait_for

ROOT = Path(__file__).resolve().parents[2]
BTF = Path("/sys/kernel/btf/vmlinux")
VALUE_BYTES = 1 << 20
"""Size of the value that each call copies. The kernel runs no classic tracepoint program on a CPU
while a process there is in the part of the call that copies it (bpf_disable_instrumentation in
kernel/bpf/syscall.c), so a large value leaves much time for an event."""
CALLING = """
import ctypes, os, struct, sys
sys.path.insert(0, sys.argv[1])
from ebpf.bpf_syscall import Command, bpf, map_element
os.sched_setaffinity(0, {int(sys.argv[2])})
size = int(sys.argv[3])
array = struct.pack("=IIII", 2, 4, size, 1)  # BPF_MAP_TYPE_ARRAY with one value
fd = bpf(0, ctypes.create_string_buffer(array, len(array)))  # BPF_MAP_CREATE
key, value = ctypes.c_uint32(0), ctypes.create_string_buffer(size)
print("ready", flush=True)
while True:
    map_element(
        Command.MAP_LOOKUP_ELEM, fd, ctypes.addressof(key), ctypes.addressof(value)
    )
"""
FORKING = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
print("ready", flush=True)
while True:
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
"""


def missed(session: Session) -> dict[str, int]:
    """Return the runs that were skipped by hook. Skips the test where they are not counted."""
    session.read()
    found = {
        status.hook.name: status.missed_total
        for status in session.hooks
        if status.missed_total is not None
    }
    if SCHED_PROCESS_FORK.name not in found:
        pytest.skip("this kernel does not count the runs that it skips")
    return found


def counts_missed_runs() -> bool | None:
    """Whether this kernel counts the runs that it skips; None: its types do not tell.

    Classic tracepoints and kprobes count since Linux 6.7. hvprobe finds it out by the kernel's BTF.
    """
    if not BTF.exists():
        return None
    release = re.match(r"(\d+)\.(\d+)", platform.release())
    assert release is not None
    return (int(release[1]), int(release[2])) >= (6, 7)


@pytest.mark.every_kernel
def test_skipped_runs_are_counted(new_node: Callable[[], Node]) -> None:
    """A process that calls BPF maps without a pause is interrupted by forks and ends on its CPU.

    The kernel skips programs of these events. Each hook's count rises and never falls, and every
    fork of which the first program was skipped is among the runs that the kernel counts. On a
    kernel that does not count them, no hook's count is 0. If a mark of a process may be missing,
    the session says so once.
    """
    node = new_node()
    node.report()
    totals = {status.missed_total for status in node.session.hooks if status.attached}
    if (counts := counts_missed_runs()) is not None:
        assert (None not in totals) if counts else (0 not in totals)
    before = missed(node.session)
    node.session.new_lives()
    lives_before = node.session._hook_set.missed_lives()
    unmarked = tables(node.session).unmarked_forks()
    cpu = str(max(os.sched_getaffinity(0)))
    calling = [sys.executable, "-c", CALLING, str(ROOT), cpu, str(VALUE_BYTES)]
    forking = [sys.executable, "-c", FORKING, cpu]
    readings = [before]

    def rises() -> bool:
        readings.append(missed(node.session))
        return sum(readings[-1].values()) > sum(before.values())

    with Started(calling, stderr=None) as caller, Started(forking, stderr=None) as parent:
        assert caller.line() == parent.line() == "ready\n"
        wait_for(rises, "the kernel has skipped a run and counted it")
    for earlier, later in itertools.pairwise(readings):
        assert all(later[hook] >= total for hook, total in earlier.items())

    def every_unmarked_fork_is_counted() -> bool:
        # A fork in progress is unmarked for a moment.
        lost = tables(node.session).unmarked_forks() - unmarked
        name = SCHED_PROCESS_FORK.name
        return lost <= missed(node.session)[name] - before[name]

    wait_for(every_unmarked_fork_is_counted, "each fork that was skipped is counted as missed")
    if node.session._hook_set.missed_lives() > lives_before:
        assert node.session.new_lives() is None
        assert node.session.new_lives() is not None
    found = missed_runs(node.report().health)
    assert found is not None
    assert (found.total or 0) >= sum(readings[-1].values())
