# SPDX-License-Identifier: Apache-2.0
"""What the hooks cost a guest: CPU time per exit, with a hook and without one.

A guest that does nothing but exit is the worst case. The CPU time of its process per exit is
measured without a hook and with each program attached, in turns (turns.py), while the kernel's run
statistics are off. The result is the complete cost. It includes that of the tracepoint itself,
which bpf_stats does not see.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from statistics import median

from bench.bpf import RAW_TRACEPOINT
from bench.hooks import COMMON, EMPTY, KVMEXIT, OURS, OURS_USERSPACE, hook_programs
from bench.rows import Beside, Row, spread
from bench.steady import Bench
from bench.turns import over, take_turns
from bench.world import GuestThatExits

ORDER = 20
NOTHING = "no hook"
SETTLING = 200


def measure(bench: Bench) -> Iterator[Row]:
    """One row for the raw form, as kvmexit uses it, and one for the agent's form on this kernel."""
    bench.release()
    plan = bench.plan
    with hook_programs() as hooks, GuestThatExits() as guest:

        def cost_ns(name: str) -> float:
            attached: AbstractContextManager[None] = nullcontext()
            if name != NOTHING:
                attached = hooks.programs[name].attached("kvm", "kvm_userspace_exit")
            with attached:
                guest.make(SETTLING)
                return guest.ns_an_exit(plan.guest_exits)

        names = [NOTHING, EMPTY, COMMON, OURS, OURS_USERSPACE]
        names += [KVMEXIT] * (KVMEXIT in hooks.programs)
        ns = take_turns(names, cost_ns, plan.guest_rounds)
        form = "raw" if hooks.programs[OURS_USERSPACE].type == RAW_TRACEPOINT else "classic"
    lost = {name: spread(over(ns, name, NOTHING)) for name in names}
    bare_ns = median(ns[NOTHING])
    beside = (
        Beside(name="an empty raw program", value=lost[EMPTY].middle),
        Beside(name="the common form, raw", value=lost[COMMON].middle),
        Beside(
            name="kvmexit-bpfcc, raw",
            value=lost[KVMEXIT].middle if KVMEXIT in lost else None,
            why=hooks.absent.get(KVMEXIT, ""),
        ),
    )
    for key, name, what, goal in (
        ("raw", OURS, "raw tracepoint", lost[KVMEXIT].middle if KVMEXIT in lost else None),
        ("here", OURS_USERSPACE, f"as attached on this kernel ({form} tracepoint)", None),
    ):
        yield Row(
            key=f"guest.{key}",
            what=f"a guest loses at an exit, {what}",
            value=lost[name].middle,
            low=lost[name].low,
            high=lost[name].high,
            unit="ns",
            goal=goal,
            beside=beside,
            note=f"{plan.guest_rounds} paired rounds of {plan.guest_exits} exits, each of which "
            f"takes {bare_ns:.0f} ns of CPU time without a hook: "
            f"{100 * lost[name].middle / bare_ns:.2g} % are lost",
        )
