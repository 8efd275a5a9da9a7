# SPDX-License-Identifier: Apache-2.0
"""Exact counts of VM exits by reason, which the kernel counts for chosen processes."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from ebpf.exit_reasons.reasons import ARM64_CAUSES, ARM64_CLASSES, SVM_REASONS, VMX_REASONS, Isa
from ebpf.exit_reasons.session import ReasonsSession
from probes.report.model import CounterTrust
from tests.support.kernel_agent import ROOT, program_exists, program_ids
from tests.support.kernel_node import Node
from tests.support.kernel_world import DEADLINE_S, KvmLoad, wait_for

USERSPACE_REASON = {Isa.VMX: "IO_INSTRUCTION", Isa.SVM: "IOIO", Isa.ARM64: "DABT_LOW"}
"""The reason for which kvmload's guest exits to user space: a port, or memory without backing."""
KERNEL_REASON = {Isa.VMX: "IO_INSTRUCTION", Isa.SVM: "IOIO", Isa.ARM64: "HVC64"}
"""The reason for which it exits when KVM handles the exit itself."""
STOPPED = 'kill -STOP $$; exec "$@"'
FORMAT = Path("/sys/kernel/tracing/events/kvm/kvm_exit/format")


@pytest.fixture
def session(kernel_required: None) -> Iterator[ReasonsSession]:
    opened = ReasonsSession()
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def fires(node: Node, kvmload: Path) -> bool:
    """Whether this kernel fires kvm_exit. The ledger decides, not the code under test."""
    node.count_exits()
    with KvmLoad(kvmload, "--userspace-exits", "1000") as load:
        load.finish_counted_part()
        trust = node.report().health.trusts["exits"]
    assert trust in (CounterTrust.PROVEN, CounterTrust.BLIND)
    return trust is CounterTrust.PROVEN


def counted(session: ReasonsSession, tgid: int) -> tuple[Isa | None, Mapping[str, int]]:
    """The instruction set of the reasons, and the count of each reason."""
    counts = session.read().get(tgid, ())
    return next((count.isa for count in counts), None), {
        count.name: count.total for count in counts
    }


@pytest.mark.every_kernel
def test_every_exit_has_its_reason(session: ReasonsSession, kvmload: Path, *, fires: bool) -> None:
    """Each of 100003 accesses to a port (x86) or unbacked memory (arm64) counts by its reason.

    If the kernel never fires kvm_exit, there are no counts, rather than wrong ones.
    """
    with KvmLoad(kvmload, "--step") as load:
        load.finish_counted_part()
        session.choose({load.tgid})
        load.step(100003)
        isa, reasons = counted(session, load.tgid)
    if not fires:
        assert (isa, reasons) == (None, {})
        return
    assert isa in USERSPACE_REASON
    assert reasons[USERSPACE_REASON[isa]] == 100003
    assert session.lost_total == 0


@pytest.mark.every_kernel
def test_exits_that_kvm_answers_itself(
    session: ReasonsSession, kvmload: Path, *, fires: bool
) -> None:
    """Exits that KVM handles without a return to user space count under their reason as well."""
    with KvmLoad(
        Path("/bin/sh"),
        *("-c", STOPPED, "sh", str(kvmload)),
        *("--userspace-exits", "503", "--kernel-exits", "20011", "--vcpus", "2"),
    ) as load:
        stat = Path(f"/proc/{load.tgid}/stat")
        wait_for(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "it is stopped")
        session.choose({load.tgid})
        load.popen.send_signal(signal.SIGCONT)
        load.finish_counted_part()
        isa, reasons = counted(session, load.tgid)
    if not fires:
        assert (isa, reasons) == (None, {})
        return
    assert isa in KERNEL_REASON
    # Each vCPU ends its share of kernel exits with one exit to user space.
    to_user_space = 503 + 2
    if KERNEL_REASON[isa] == USERSPACE_REASON[isa]:
        assert reasons[KERNEL_REASON[isa]] == 20011 + to_user_space
    else:
        assert reasons[KERNEL_REASON[isa]] == 20011
        assert reasons[USERSPACE_REASON[isa]] == to_user_space


def test_only_chosen_processes_are_counted(
    session: ReasonsSession, kvmload: Path, *, fires: bool
) -> None:
    """Only processes that are chosen now are counted. One that is chosen again starts at 0."""
    with KvmLoad(kvmload, "--step") as one, KvmLoad(kvmload, "--step") as other:
        one.finish_counted_part()
        other.finish_counted_part()
        session.choose({one.tgid})
        one.step(101)
        other.step(103)
        assert set(session.read()) == ({one.tgid} if fires else set())
        session.choose({other.tgid})
        assert session.read() == {}
        one.step(107)
        other.step(109)
        assert set(session.read()) == ({other.tgid} if fires else set())
        session.choose({one.tgid, other.tgid})
        one.step(113)
        other.step(127)
        for load, exits in ((one, 113), (other, 109 + 127)):
            isa, reasons = counted(session, load.tgid)
            if fires:
                assert isa is not None
                assert reasons[USERSPACE_REASON[isa]] == exits


def test_live_shows_reasons_or_says_that_there_are_none(kvmload: Path, *, fires: bool) -> None:
    """``live --reasons --json`` shows the exits of a process by reason, or shows none."""
    with KvmLoad(kvmload, "--step") as load:
        load.finish_counted_part()
        arguments = ["live", "--standalone", "--interval", "0.2", "--reasons", "--json"]
        shown = subprocess.Popen(
            [sys.executable, "-m", "probes", *arguments, "--pid", str(load.tgid)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert shown.stdout is not None
            shown.stdout.readline()
            load.step(20011)
            frames = (json.loads(line) for line in shown.stdout)
            frame = next(
                frame
                for frame in frames
                if frame["processes"][0]["vcpu_userspace_exits_total"] == 20011
            )
            assert [process["tgid"] for process in frame["processes"]] == [load.tgid]
            frame = next(frames)
        finally:
            shown.terminate()
            shown.communicate(timeout=DEADLINE_S)
        assert shown.returncode == 0
        counts = frame["processes"][0]["exit_reasons"]
        reasons = {count["name"]: count["total"] for count in counts}
        isas = {Isa(count["isa"]) for count in counts}
        assert [reasons[USERSPACE_REASON[isa]] for isa in isas] == ([20011] if fires else [])


@pytest.mark.host_only
def test_text_says_when_reasons_are_unavailable(kvmload: Path, *, fires: bool) -> None:
    """If kvm_exit never fires, the plain table says that exit reasons are unavailable."""
    with KvmLoad(kvmload, "--step") as load:
        load.finish_counted_part()
        shown = subprocess.Popen(
            [
                *(sys.executable, "-m", "probes", "live", "--standalone", "--interval", "0.2"),
                *("--reasons", "--pid", str(load.tgid)),
            ],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert shown.stdout is not None
            shown.stdout.readline()
            load.step(20011)
            wanted = re.compile(
                r"\b(IOIO|IO_INSTRUCTION|DABT_LOW) +20011 "
                if fires
                else r"^exit reasons unavailable: this kernel never fires kvm_exit$"
            )
            assert any(wanted.search(line.rstrip("\n")) for line in shown.stdout)
        finally:
            shown.terminate()
            shown.communicate(timeout=DEADLINE_S)


def test_nothing_remains_in_the_kernel() -> None:
    """The program is loaded while a session is open, and removed when it is closed."""
    before = program_ids(os.getpid())
    session = ReasonsSession()
    ours = program_ids(os.getpid()) - before
    assert ours
    session.close()
    wait_for(lambda: not any(program_exists(number) for number in ours), "the program is gone")


@pytest.mark.every_kernel
@pytest.mark.skipif(not FORMAT.exists(), reason="needs tracefs with the KVM module's tracepoints")
def test_names_are_the_kernels(kernel_required: None) -> None:
    """Every reason that the kernel names has a name here, and for VMX and arm64 the same name."""
    printed = FORMAT.read_text().partition("print fmt:")[2]
    # Each table begins with __print_symbolic. The flags after the last table are no reasons.
    parts = printed.split("__print_symbolic(")[1:]
    kernels = [part.partition("__print_flags(")[0] for part in parts]
    ours = (ARM64_CAUSES, ARM64_CLASSES) if "esr_ec" in printed else (VMX_REASONS, SVM_REASONS)
    for table, names in zip(kernels, ours, strict=True):
        pairs = re.findall(r'\{\s*\(?(-?\w+(?: \+ \d+)?)\)?,\s*"([^"]+)"\s*\}', table)
        assert len(pairs) > 3
        for code, name in pairs:
            number = sum(int(part.strip().rstrip("ul"), 0) for part in code.split("+")) & 0xFFFFFFFF
            assert number in names, f"{code} is {name!r} and has no name here"
            assert names is SVM_REASONS or names[number] == name
