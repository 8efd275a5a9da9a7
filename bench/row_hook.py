# SPDX-License-Identifier: Apache-2.0
"""What one VM exit costs in the hook, compared with an empty program of the same kind.

A program's cost depends on what the processor still has in its caches, so it is measured in three
ways:

* `real`: each program alone at the tracepoint kvm_userspace_exit, driven by a guest that does
  nothing but exit. Under kvm_pvm, as on any processor that loses its caches of addresses and
  branches between guest and host, this includes the cost of filling them again.
* `warm`: each program run repeatedly by BPF_PROG_TEST_RUN in this process. Everything is in the
  caches, so this figure is the more stable of the two.
* `event`: CPU time of a system call that reaches a tracepoint (prctl PR_SET_NAME, task_rename),
  with a program attached and without. It includes the cost of the tracepoint itself, which every
  BPF program at a tracepoint causes, even an empty one.

In the first two, the kernel itself times each run (bpf_stats: run_time_ns divided by run_cnt) of
each program, including the empty one, and the difference is reported. All programs are raw
tracepoints and take turns, in another order each round and each time with another of their loads.

The program of hvprobe is that of a real agent for kvm_exit, opened by its id. It is attached to
kvm_userspace_exit, because kvm_exit never fires under kvm_pvm; it reads no argument, so its cost is
the same there. The program of kvmexit comes from the running tool in the same way. The exit reason
that it reads is the first argument of both tracepoints. At task_rename it would return immediately,
so it is left out there.
"""

import ctypes
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from statistics import median

from bench.bpf import Program, run_statistics
from bench.hooks import (
    COMMON,
    CURRENT_PROCESS,
    EMPTY,
    KVMEXIT,
    OURS,
    PER_CPU_HASH,
    SLOT,
    HookPrograms,
    hook_programs,
)
from bench.rows import Beside, Row, spread
from bench.steady import Bench
from bench.turns import Samples, over, take_turns
from bench.world import GuestThatExits
from ebpf.tables import EXIT_PLACES

ORDER = 10
GOAL_NS = 12.0
GOAL_PER_CENT = 3.0
GOAL_TIMES = 1.0
"""The hook's program is to cost no more than that of kvmexit-bpfcc."""
HARDWARE_EXITS_NS = (1000, 2000)
SETTLING = 500
"""Runs that precede the timed ones."""
WARM_RUNS = 4000
RENAMES = 4000
NOTHING = "no hook"
_PR_SET_NAME = 15

PEER_TEXTS = {
    EMPTY: "an empty program",
    SLOT: "a per-CPU array slot (the limit)",
    CURRENT_PROCESS: "asking which process it is, and nothing else",
    PER_CPU_HASH: "a per-CPU hash",
    COMMON: "hash increment with atomic add (the common form)",
    KVMEXIT: "kvmexit-bpfcc",
}


def measure(bench: Bench) -> Iterator[Row]:
    """One row for each of the three ways, ratios to kvmexit, and shares of exits on hardware."""
    bench.release()
    plan = bench.plan
    with hook_programs() as hooks, guest_apart() as guest:

        def real(name: str) -> float:
            program = hooks.next(name)
            with program.attached("kvm", "kvm_userspace_exit"):
                guest.make(SETTLING)
                return timed(program, lambda: guest.make(plan.exits), plan.exits)

        with run_statistics():
            real_ns = take_turns(hooks.raw(), real, plan.hook_rounds)
        warm_ns = warm(hooks, plan.hook_rounds)
        event_ns = _events(hooks, plan.event_rounds)
    note = (
        "{} rounds of {}; ns by bpf_stats, of which what is timed of the empty program, {:.0f} ns, "
        "is taken off"
    )
    real_note = note.format(plan.hook_rounds, f"{plan.exits} exits", median(real_ns[EMPTY]))
    row = _row("real", "one exit in the hook, at a guest's real exits", real_ns, EMPTY, real_note)
    yield row
    warm_note = note.format(plan.hook_rounds, f"{WARM_RUNS} runs", median(warm_ns[EMPTY]))
    yield _row("warm", "one exit in the hook, run in a loop", warm_ns, EMPTY, warm_note)
    for key, where, samples in (
        ("real", "at a guest's real exits", real_ns),
        ("warm", "run in a loop", warm_ns),
    ):
        if KVMEXIT in samples:
            yield _over_kvmexit(key, where, samples)
    yield _row(
        "event",
        "one event with its hook, the tracepoint's own cost included",
        event_ns,
        NOTHING,
        f"{plan.event_rounds} rounds of {RENAMES} calls of prctl(PR_SET_NAME), CPU time with the "
        "program at task_rename less that without",
    )
    yield from _shares(row)


@contextmanager
def guest_apart() -> Iterator[GuestThatExits]:
    """Run a guest that does not count at the place of this process, which then has none.

    In the second way this process itself is counted. Two processes whose numbers have the same
    remainder want the same place on each CPU (ledger.bpf.c).
    """
    while True:
        with GuestThatExits() as guest:
            if (guest.tgid - os.getpid()) % EXIT_PLACES:
                yield guest
                return


def warm(hooks: HookPrograms, rounds: int) -> Samples:
    """Nanoseconds per run by BPF_PROG_TEST_RUN."""

    def run(name: str) -> float:
        program = hooks.next(name)
        program.run_here(SETTLING)
        return timed(program, lambda: program.run_here(WARM_RUNS), WARM_RUNS)

    with run_statistics():
        return take_turns(hooks.raw(), run, rounds)


def timed(program: Program, drive: Callable[[], None], runs: int) -> float:
    """Nanoseconds per run, timed by the kernel while ``drive`` makes the program run."""
    before = program.runs()
    drive()
    after = program.runs()
    made = after.count - before.count
    assert made >= runs, f"{program.name} ran {made} times of {runs}"
    return (after.time_ns - before.time_ns) / made


def _events(hooks: HookPrograms, rounds: int) -> Samples:
    def rename(name: str) -> float:
        attached: AbstractContextManager[None] = nullcontext()
        if name != NOTHING:
            attached = hooks.next(name).attached("task", "task_rename")
        with attached:
            return _ns_a_rename()

    return take_turns([NOTHING, EMPTY, SLOT, CURRENT_PROCESS, COMMON, OURS], rename, rounds)


def _ns_a_rename() -> float:
    prctl = ctypes.CDLL(None).prctl
    option, name = ctypes.c_int(_PR_SET_NAME), ctypes.c_char_p(b"bench")
    begun_ns = time.thread_time_ns()
    for _ in range(RENAMES):
        prctl(option, name)
    return (time.thread_time_ns() - begun_ns) / RENAMES


def _row(key: str, what: str, samples: Samples, base: str, note: str) -> Row:
    ours = spread(over(samples, OURS, base))
    beside = [
        Beside(name=text, value=median(over(samples, name, base)))
        for name, text in PEER_TEXTS.items()
        if name in samples and name != base
    ]
    if KVMEXIT not in samples:
        why = "at task_rename it would return at once" if base == NOTHING else "see row start"
        beside.append(Beside(name=PEER_TEXTS[KVMEXIT], value=None, why=why))
    return Row(
        key=f"hook.{key}",
        what=what,
        value=ours.middle,
        low=ours.low,
        high=ours.high,
        unit="ns",
        goal=GOAL_NS if base == EMPTY else None,
        beside=tuple(beside),
        note=note,
    )


def _over_kvmexit(key: str, where: str, samples: Samples) -> Row:
    ours, theirs = (median(over(samples, name, EMPTY)) for name in (OURS, KVMEXIT))
    return Row(
        key=f"hook.{key}_over_kvmexit",
        what=f"one exit in the hook over one in that of kvmexit-bpfcc, {where}",
        value=ours / theirs,
        unit="times",
        goal=GOAL_TIMES,
        note=f"{ours:.1f} ns over {theirs:.1f} ns, each less an empty program, in the same rounds",
    )


def _shares(row: Row) -> Iterator[Row]:
    for exit_ns in HARDWARE_EXITS_NS:
        yield Row(
            key=f"hook.share_{exit_ns}",
            what=f"the hook's share of real hardware's exits of {exit_ns / 1000:g} us, calculated",
            value=100 * row.value / exit_ns,
            unit="%",
            goal=GOAL_PER_CENT,
            note=f"{row.value:.1f} ns over an empty program, at real exits, of {exit_ns} ns",
        )
