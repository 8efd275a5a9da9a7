# SPDX-License-Identifier: Apache-2.0
"""What one VM exit costs in the hook, over an empty program of the same kind.

Measured in three ways, for what a program costs depends on what the processor still knows of it:

* `real`: each program alone at the tracepoint kvm_userspace_exit, driven by a guest that does
  nothing but exit. Under kvm_pvm, as on any processor that forgets its caches of addresses and
  branches between guest and host, the first touch of everything is part of it.
* `warm`: each program run by BPF_PROG_TEST_RUN again and again in this process, between two system
  calls: what is left when everything is known. The steadier figure of the two.
* `event`: CPU time of a system call that meets a tracepoint (prctl PR_SET_NAME, task_rename), with
  a program attached and without: the tracepoint's own cost is in it, which every BPF program at a
  tracepoint pays, an empty one, too.

In the first two the kernel times each run itself (bpf_stats: run_time_ns over run_cnt), the empty
program's, too: the difference is what is told. All programs are raw tracepoints, and take turns, in
another order each round. Ours is the program of a real agent for kvm_exit, taken by its number and
attached where events are (kvm_exit never fires under kvm_pvm; no argument is used, so it is the
same there). kvmexit's is taken from the running tool likewise; its argument, the reason, comes
first in both tracepoints' arguments. At task_rename it would return at once, so it is not there.
"""

import ctypes
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from statistics import median

from bench.bpf import Program, run_statistics
from bench.hooks import (
    ASKS_PROCESS,
    COMMON,
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

ORDER = 10
GOAL_NS = 12.0
GOAL_PER_CENT = 3.0
HARDWARE_EXITS_NS = (1000, 2000)
SETTLING = 500
"""Runs before those that are timed."""
WARM_RUNS = 4000
RENAMES = 4000
NOTHING = "no hook"
_PR_SET_NAME = 15

PEER_TEXTS = {
    EMPTY: "an empty program",
    SLOT: "a per-CPU array slot (the limit)",
    ASKS_PROCESS: "asking which process it is, and nothing else",
    PER_CPU_HASH: "a per-CPU hash",
    COMMON: "hash increment with atomic add (the common form)",
    KVMEXIT: "kvmexit-bpfcc",
}


def measure(bench: Bench) -> Iterator[Row]:
    """All three ways, and the share of an exit on real hardware."""
    bench.release()
    plan = bench.plan
    with hook_programs() as hooks, GuestThatExits() as guest:

        def real(name: str) -> float:
            program = hooks.programs[name]
            with program.attached("kvm", "kvm_userspace_exit"):
                guest.make(SETTLING)
                return timed(program, lambda: guest.make(plan.exits), plan.exits)

        with run_statistics():
            real_ns = take_turns(list(hooks.raw()), real, plan.hook_rounds)
        warm_ns = warm(hooks, plan.hook_rounds)
        event_ns = _events(hooks, plan.event_rounds)
    note = (
        "{} rounds of {}; ns by bpf_stats, of which what is timed of the empty program, {:.0f} ns, "
        "is taken off"
    )
    told = note.format(plan.hook_rounds, f"{plan.exits} exits", median(real_ns[EMPTY]))
    row = _row("real", "one exit in the hook, at a guest's real exits", real_ns, EMPTY, told)
    yield row
    told = note.format(plan.hook_rounds, f"{WARM_RUNS} runs", median(warm_ns[EMPTY]))
    yield _row("warm", "one exit in the hook, run in a loop", warm_ns, EMPTY, told)
    yield _row(
        "event",
        "one event with its hook, the tracepoint's own cost included",
        event_ns,
        NOTHING,
        f"{plan.event_rounds} rounds of {RENAMES} calls of prctl(PR_SET_NAME), CPU time with the "
        "program at task_rename less that without",
    )
    yield from _shares(row)


def warm(hooks: HookPrograms, rounds: int) -> Samples:
    """Nanoseconds of a run by BPF_PROG_TEST_RUN."""

    def run(name: str) -> float:
        program = hooks.programs[name]
        program.run_here(SETTLING)
        return timed(program, lambda: program.run_here(WARM_RUNS), WARM_RUNS)

    with run_statistics():
        return take_turns(list(hooks.raw()), run, rounds)


def timed(program: Program, drive: Callable[[], None], runs: int) -> float:
    """What the kernel has timed meanwhile, in nanoseconds a run."""
    before = program.runs()
    drive()
    after = program.runs()
    made = after.count - before.count
    assert made >= runs, f"{program.name} ran {made} times of {runs}"
    return (after.time_ns - before.time_ns) / made


def _events(hooks: HookPrograms, rounds: int) -> Samples:
    def rename(name: str) -> float:
        meanwhile: AbstractContextManager[None] = nullcontext()
        if name != NOTHING:
            meanwhile = hooks.programs[name].attached("task", "task_rename")
        with meanwhile:
            return _ns_a_rename()

    return take_turns([NOTHING, EMPTY, SLOT, ASKS_PROCESS, COMMON, OURS], rename, rounds)


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
