# SPDX-License-Identifier: Apache-2.0
"""Counts under full preemption and on real-time kernels, beside other users of BPF.

While a process is preempted in a call on a BPF map, the kernel skips kprobes and classic
tracepoints on its CPU. While a thread is preempted in a program at a raw tracepoint, which is
possible since Linux 7.0, the kernel skips that program on its CPU. What is skipped must be counted
as missed, and the hook of returns must have the form that loses least.

Of the guests only those of ``make test-preemption`` run these tests, because the scenarios take an
emulated processor minutes.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from ebpf.btf import raw_tracepoints_are_exact
from ebpf.hook_status import HookStatus
from ebpf.hooks import KVM_EXIT, KVM_USERSPACE_EXIT, KVM_VCPU_IOCTL, AttachPoint, Backend, Hook
from ebpf.ledger import LedgerEntry
from ebpf.session import Session
from tests.support.debugfs import kvm_exits
from tests.support.kernel_agent import Agent
from tests.support.kernel_ledger import only
from tests.support.kernel_numbers import busy_users_of_maps
from tests.support.kernel_preemption import (
    EXPECTED_VARIABLE,
    FULL,
    NEED_KPROBES,
    REAL_TIME,
    USERS,
    missing_tool,
    preemption,
)
from tests.support.kernel_world import EMULATED, KvmLoad, wait_for
from tests.support.required import require

pytestmark = pytest.mark.skipif(
    EMULATED and EXPECTED_VARIABLE not in os.environ,
    reason="takes an emulated processor minutes: make test-preemption runs it",
)
SYS = Path("/sys")
KPROBES = SYS / "bus/event_source/devices/kprobe"
VCPUS, EXITS = 8, 10007
SETTLED_S = 0.5
"""After the workload's last return, each program that ran has counted it."""
RecordProperty = Callable[[str, object], None]
FORMS: dict[str, AttachPoint] = {
    "raw": KVM_USERSPACE_EXIT.points[1],
    "classic": KVM_USERSPACE_EXIT.points[0],
}
BESIDE: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {
    "nothing": contextlib.nullcontext,
    "busy users of maps": busy_users_of_maps,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """What a session knows of one hook's events of one process."""

    counted: int
    missed: int | None
    """Runs that the kernel skipped since the session began; None: it does not count them."""

    def explains(self, made: int) -> bool:
        """Whether each event was counted or missed, or the kernel does not count what it misses."""
        return self.counted <= made and (self.missed is None or self.counted + self.missed >= made)

    def __str__(self) -> str:
        missed = "unknown" if self.missed is None else self.missed
        return f"{self.counted} counted, {missed} missed"


def status(session: Session, hook: Hook) -> HookStatus:
    (found,) = [status for status in session.hooks if status.is_of(hook)]
    return found


def count(session: Session, load: KvmLoad, hook: Hook, counter: str) -> Count:
    entry: LedgerEntry | None = session.read().entries.get(load.tgid)
    counted = entry.counters[counter] if entry is not None else 0
    return Count(counted=counted, missed=status(session, hook).missed_total)


def work(kvmload: Path) -> contextlib.AbstractContextManager[KvmLoad]:
    """Eight vCPUs on all CPUs of the machine, which have made their exits."""

    @contextlib.contextmanager
    def made() -> Iterator[KvmLoad]:
        arguments = ("--vcpus", str(VCPUS), "--userspace-exits", str(EXITS), "--then", "hold")
        with KvmLoad(kvmload, *arguments) as load:
            load.finish_counted_part()
            time.sleep(SETTLED_S)
            yield load

    return made()


def returns_made(load: KvmLoad) -> int:
    made: int = load.totals["userspace_exits"] + load.totals["eintr"]
    return made


def test_the_kernel_preempts_as_expected(record_property: RecordProperty) -> None:
    """The guest runs the kind of preemption for which it was booted."""
    found = preemption()
    record_property("preemption", found)
    assert found == os.environ.get(EXPECTED_VARIABLE, found)


@pytest.mark.parametrize("beside", BESIDE)
def test_the_form_that_loses_least_is_attached(
    kvmload: Path, beside: str, record_property: RecordProperty
) -> None:
    """Eight vCPU threads share the CPUs, alone or with processes that call maps without a pause.

    Both forms of the hook of returns are attached beside the one that hvprobe chose. Each counts a
    return, or the kernel counts it as missed. Where no thread is preempted in a raw tracepoint's
    program, hvprobe's choice misses nothing. Elsewhere it misses nothing as long as no process is
    preempted in a call on a map.
    """
    exact = raw_tracepoints_are_exact(SYS)
    with contextlib.ExitStack() as stack:
        chosen = stack.enter_context(Session())
        sessions = {"chosen": chosen} | {
            name: stack.enter_context(Session(hooks=only(KVM_USERSPACE_EXIT, point)))
            for name, point in FORMS.items()
        }
        stack.enter_context(BESIDE[beside]())
        load = stack.enter_context(work(kvmload))
        made = returns_made(load)
        counts = {
            name: count(session, load, KVM_USERSPACE_EXIT, "userspace_exits")
            for name, session in sessions.items()
        }
        backend = status(chosen, KVM_USERSPACE_EXIT).backend
    record_property("form", backend.value)
    for name, found in counts.items():
        record_property(f"returns_{name}", f"{found} of {made}")
        assert found.explains(made), (name, str(found), made)
    assert backend is (Backend.RAW_TRACEPOINT if exact else Backend.TRACEPOINT)
    if exact:
        assert counts["raw"].counted == made
    if exact or beside == "nothing":
        assert counts["chosen"].counted == made
        assert not counts["chosen"].missed


@pytest.mark.parametrize("beside", BESIDE)
def test_every_exit_and_call_is_counted_or_missed(
    kvmload: Path, beside: str, record_property: RecordProperty
) -> None:
    """The hook at kvm_exit counts what KVM itself counts: nothing preempts a thread there.

    A kprobe is skipped while a process on its CPU is preempted in a call on a map, so each KVM_RUN
    is counted or missed. Without such a process none is missed.
    """
    with Session() as session, BESIDE[beside]():
        session.need([KVM_EXIT])
        with work(kvmload) as load:
            calls = load.totals["kvm_run"]
            exits = count(session, load, KVM_EXIT, "exits")
            runs = count(session, load, KVM_VCPU_IOCTL, "runs")
            kprobe = status(session, KVM_VCPU_IOCTL).attached
            oracle = kvm_exits(load.tgid)
    if exits.counted and oracle is not None:
        record_property("vm_exits", f"{exits} of {oracle}")
        assert (exits.counted, exits.missed or 0) == (oracle, 0)
    if kprobe:
        record_property("calls", f"{runs} of {calls}")
        assert runs.explains(calls), (str(runs), calls)
        assert beside != "nothing" or runs.counted == calls


def test_the_agent_exports_what_is_missed(kvmload: Path, record_property: RecordProperty) -> None:
    """hvprobe_hook_missed_total rises at the hooks that are skipped, and at no other one.

    It never falls. Where threads are preempted anywhere, the kprobe of KVM_RUN is skipped beside
    processes that call maps; the hook of returns is not where its raw form is exact.
    """
    with Agent("--standalone") as agent, busy_users_of_maps():
        before = missed_by_hook(agent)
        if not before:
            pytest.skip("this kernel does not count the runs that it skips")

        def skipped() -> Mapping[str, int] | None:
            with work(kvmload):
                now = missed_by_hook(agent)
            assert all(now[hook] >= total for hook, total in before.items())
            return now if now.get(KVM_VCPU_IOCTL.name, 0) else None

        preempts = preemption() in (REAL_TIME, FULL) and KVM_VCPU_IOCTL.name in before
        after = wait_for(skipped, "the kprobe is skipped") if preempts else missed_by_hook(agent)
    for hook in (KVM_VCPU_IOCTL, KVM_USERSPACE_EXIT):
        if hook.name in after:
            record_property(f"missed_{hook.name}", after[hook.name])
    if raw_tracepoints_are_exact(SYS):
        assert after[KVM_USERSPACE_EXIT.name] == 0


def missed_by_hook(agent: Agent) -> dict[str, int]:
    return {
        dict(labels)["hook"]: int(value)
        for labels, value in agent.samples("hvprobe_hook_missed_total").items()
    }


@pytest.mark.parametrize("user", USERS)
def test_counts_beside_a_real_user_of_bpf(
    kvmload: Path, user: str, record_property: RecordProperty
) -> None:
    """Beside another program with BPF programs at the same places, counts are exact.

    Where a form can be skipped, what is not counted is missed. The other program works as well.
    """
    program, begin = USERS[user]
    require("bpf_users", missing_tool(program))
    if user in NEED_KPROBES and not KPROBES.exists():
        pytest.skip(f"{user} needs kprobes (CONFIG_KPROBES)")
    with Session() as session, begin() as seen, work(kvmload) as load:
        made = returns_made(load)
        wait_for(lambda: seen(load.tgid), f"{user} has seen the process")
        returns = count(session, load, KVM_USERSPACE_EXIT, "userspace_exits")
        runs = count(session, load, KVM_VCPU_IOCTL, "runs")
        calls = load.totals["kvm_run"]
        kprobe = status(session, KVM_VCPU_IOCTL).attached
    record_property("returns_chosen", f"{returns} of {made}")
    assert returns.explains(made), (str(returns), made)
    if raw_tracepoints_are_exact(SYS):
        assert returns.counted == made
    if kprobe:
        record_property("calls", f"{runs} of {calls}")
        assert runs.explains(calls), (str(runs), calls)
