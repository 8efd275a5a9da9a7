# SPDX-License-Identifier: Apache-2.0
"""Lays out the lines of the live view about the vCPU threads of one VM, one line a thread. Pure.

Owns what is said of a thread that was read twice, and how many threads are shown. Must not know
where the lines stand.
"""

from collections.abc import Iterator

from rich.text import Text

from probes.host.hypervisors import BY_TYPE
from probes.host.vcpu_threads import ThreadsReading, VcpuThread
from probes.render.live.columns import age
from probes.render.live.vcpu_line import percent
from probes.render.terminal_text import fit, visible

MAX_SHOWN = 32
"""The most threads that have a line."""
_NAME_CELLS = 15
"""The most characters of a thread's name in the kernel."""
_BUSY = 0.02
"""The share of a CPU from which a thread is said to have run."""


def thread_lines(
    now: ThreadsReading, before: ThreadsReading | None, *, ascii_only: bool
) -> Iterator[Text]:
    """Yield a heading and a line for each thread, none of which is wider than 64 cells.

    before is an earlier reading of the same process; None: there is none yet.
    """
    yield Text(f"{'NAME':{_NAME_CELLS}} {'TID':>7} {'CPU':>5} {'GUEST':>5} {'TIME':>4}  IN", "bold")
    earlier = {} if before is None else {thread.tid: thread for thread in before.threads}
    passed_s = 0.0 if before is None else now.at_s - before.at_s
    for thread in now.threads[:MAX_SHOWN]:
        last = earlier.get(thread.tid) if passed_s > 0 else None
        cpu = None if last is None else max(thread.cpu_s - last.cpu_s, 0.0) / passed_s
        guest = None if last is None else max(thread.guest_s - last.guest_s, 0.0) / passed_s
        name = fit(visible(thread.comm, ascii_only=ascii_only), _NAME_CELLS, ascii_only=ascii_only)
        line = Text(f"{name} {thread.tid:>7} {percent(cpu):>5} {percent(guest):>5} ")
        line.append(f"{age(thread.cpu_s):>4}  ", "dim")
        line.append(inside(thread, cpu, guest))
        yield line
    more = len(now.threads) - MAX_SHOWN
    if more > 0 or not now.complete:
        dots = "..." if ascii_only else "…"
        yield Text(f"{dots} {f'{max(more, 0)} more' if now.complete else 'more'}", "dim")


def inside(thread: VcpuThread, cpu: float | None, guest: float | None) -> str:
    """Say what a thread is in: guest code, the hypervisor, user space, or asleep.

    cpu and guest are its shares of a CPU since the reading before; None: there was none. Of a
    thread on a CPU only these shares tell what it does there.
    """
    if thread.run_call_of is not None:
        return f"{BY_TYPE[thread.run_call_of].label}: halted"
    if thread.emulates:
        return "emulating the guest" if thread.on_cpu else "user space: asleep"
    if not thread.on_cpu:
        return "user space: asleep"
    if cpu is None or guest is None or cpu < _BUSY:
        return "on a CPU"
    return "guest code" if guest >= cpu / 2 else "outside guest code"
