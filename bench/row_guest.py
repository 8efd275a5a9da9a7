# SPDX-License-Identifier: Apache-2.0
"""What the hooks cost a guest: CPU time per exit, with a hook and without one.

A guest that does nothing but exit is the worst case. The CPU time of its process per exit is
measured without a hook and with each program attached, in turns (turns.py), while the kernel's run
statistics are off. The result is the complete cost. It includes that of the tracepoint itself,
which bpf_stats does not see.

Where KVM's statistics count the exits, nothing is attached. They are read while the guest exits,
more often than any scrape does. What the same measurement says of a second round without anything
is the noise.
"""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from statistics import median

from bench.bpf import RAW_TRACEPOINT
from bench.hooks import COMMON, EMPTY, KVMEXIT, OURS, OURS_USERSPACE, hook_programs
from bench.rows import Beside, Row, spread
from bench.steady import Bench
from bench.turns import over, take_turns
from bench.world import GuestThatExits
from probes.host.reader import Host

ORDER = 20
NOTHING = "no hook"
NOTHING_AGAIN = "no hook, a second time"
STATISTICS = "KVM's statistics"
READ_EVERY_S = 0.01
SETTLING = 200


def measure(bench: Bench) -> Iterator[Row]:
    """One row for the raw form, as kvmexit uses it, and one for the agent's form on this kernel."""
    bench.release()
    plan = bench.plan
    with hook_programs() as hooks, GuestThatExits() as guest:

        def cost_ns(name: str) -> float:
            attached: AbstractContextManager[None] = nullcontext()
            if name == STATISTICS:
                attached = statistics_read(guest.tgid)
            elif name not in (NOTHING, NOTHING_AGAIN):
                attached = hooks.next(name).attached("kvm", "kvm_userspace_exit")
            with attached:
                guest.make(SETTLING)
                return guest.ns_an_exit(plan.guest_exits)

        names = [NOTHING, NOTHING_AGAIN, STATISTICS, EMPTY, COMMON, OURS, OURS_USERSPACE]
        names += [KVMEXIT] * (KVMEXIT in hooks.loads)
        ns = take_turns(names, cost_ns, plan.guest_rounds)
        form = "raw" if hooks.type(OURS_USERSPACE) == RAW_TRACEPOINT else "classic"
    lost = {name: spread(over(ns, name, NOTHING)) for name in names}
    bare_ns = median(ns[NOTHING])
    noise = lost[NOTHING_AGAIN]
    beside = (
        Beside(name="no hook, a second time", value=noise.middle),
        Beside(name="an empty raw program", value=lost[EMPTY].middle),
        Beside(name="the common form, raw", value=lost[COMMON].middle),
        Beside(
            name="kvmexit-bpfcc, raw",
            value=lost[KVMEXIT].middle if KVMEXIT in lost else None,
            why=hooks.absent.get(KVMEXIT, ""),
        ),
    )
    for key, name, what, goal in (
        ("statistics", STATISTICS, "counted by KVM's statistics", noise.high),
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
            note=f"noise: {noise.low:.0f} .. {noise.high:.0f} ns, the quartiles of a second "
            f"measurement without a hook; {plan.guest_rounds} paired rounds of "
            f"{plan.guest_exits} exits, each of which takes {bare_ns:.0f} ns of CPU time without "
            f"a hook: {100 * lost[name].middle / bare_ns:.2g} % are lost",
        )


@contextmanager
def statistics_read(tgid: int) -> Iterator[None]:
    """Read the statistics of a VM again and again, in another thread, until the end of the block.

    Raises AssertionError when they cannot be read.
    """
    host, ended = Host(), threading.Event()
    vmm = host.identify(tgid)
    assert vmm is not None

    def count() -> int:
        reading = host.read_statistics([(vmm, 1)], new_threads=())[tgid]
        assert reading.counts is not None
        return reading.counts[0][0]

    def read() -> None:
        while not ended.wait(READ_EVERY_S):
            count()

    before = count()
    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield
    finally:
        ended.set()
        reader.join()
    assert count() > before
