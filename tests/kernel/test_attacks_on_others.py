# SPDX-License-Identifier: Apache-2.0
"""Attacks by a tenant's own process that try to keep the agent from reporting other VMs.

An unprivileged process without capabilities sets up each row, which says what the agent reports
about it. A VM that starts afterwards gets its verdict, its counter and its scrape in time, and the
agent stays within the memory limit of a cluster. Processes other than the test read what may block.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from probes.command.values import MIN_LEDGER_CAPACITY
from probes.host.process_reader import MAX_THREADS
from probes.host.thread_tables import MAX_DESCRIPTORS
from probes.judge.reasons import Reason
from tests.support.attack_world import (
    NODE,
    RETURNS,
    Attacker,
    Bystander,
    Scraped,
    called_qemu,
    new_name,
)
from tests.support.kernel_agent import ROOT, Agent
from tests.support.kernel_hostile import NEED_FUSE, Hostile, blocking_files, hostile_program
from tests.support.kernel_world import DEADLINE_S, EMULATED, KvmLoad, Qemu, wait_for

pytestmark = pytest.mark.host_only

MEMORY_LIMIT_KIB = 320 << 10
"""The agent's memory limit in deploy/base."""
PROCESSES_MAX = int(Path("/proc/sys/kernel/pid_max").read_text())
MANY_THREADS = MAX_THREADS + 100 if EMULATED else min(20_000, PROCESSES_MAX // 3)
MANY_PROCESSES = 100 if EMULATED else min(4200, PROCESSES_MAX // 4)
"""An emulated processor does not read more of them in the only scan of a snapshot."""
CROWD = MIN_LEDGER_CAPACITY + 10
ENTRIES, LOST = "hvprobe_ledger_entries", "hvprobe_ledger_dropped_total"
HARMLESS, BLOCKED = Reason.NO_VCPU_THREADS, Reason.READ_BLOCKED
TOO_MUCH, LATER = Reason.TOO_MUCH_TO_READ, Reason.NOT_READ_YET


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """One attack, and what the agent reports about it."""

    kind: str
    number: int = 0
    reasons: tuple[Reason, ...]
    """The process is unknown for one of these reasons. If there is none, it is not shown.

    If one of its files blocks its readers, which differs between kernels, that is the reason.
    """


ATTACKS = {
    "1 GiB of arguments that were never touched": Attack(
        kind="untouched-arguments", number=1 << 30, reasons=(HARMLESS,)
    ),
    "2 MB of arguments": Attack(kind="arguments", number=2_000_000, reasons=(HARMLESS,)),
    "arguments on a page that never comes": Attack(kind="missing-arguments", reasons=(HARMLESS,)),
    "arguments in a file whose server is silent": Attack(
        kind="fuse-arguments", reasons=(HARMLESS,)
    ),
    "an address space that stays locked": Attack(kind="address-space", reasons=(BLOCKED,)),
    "20,000 threads": Attack(kind="threads", number=MANY_THREADS, reasons=(TOO_MUCH, LATER)),
    "100,000 descriptors": Attack(kind="descriptors", number=100_000, reasons=(TOO_MUCH,)),
    "thousands of processes under QEMU's name": Attack(
        kind="processes", number=MANY_PROCESSES, reasons=(HARMLESS, LATER)
    ),
    "thousands of processes under the name of QEMU's disk server": Attack(
        kind="disk-servers", number=MANY_PROCESSES, reasons=()
    ),
}


@pytest.fixture(scope="module")
def hostile(kernel_required: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hostile_program(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="module")
def program(kvmload: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return called_qemu(kvmload, tmp_path_factory.mktemp("bystanders"))


@pytest.fixture(scope="module")
def agent(kernel_required: None) -> Iterator[Agent]:
    with Agent("--standalone", "--node", NODE) as started:
        yield started


def started_attack(stack: ExitStack, hostile: Path, attack: Attack, folder: Path) -> Hostile:
    if attack.kind in NEED_FUSE and not Path("/dev/fuse").exists():
        pytest.skip("this needs /dev/fuse")
    place = Path(tempfile.mkdtemp(dir=folder))
    started = stack.enter_context(Hostile(hostile, attack.kind, attack.number, place))
    if attack.kind == "descriptors":
        held = len(list(Path(f"/proc/{started.tgid}/fd").iterdir()))
        if held <= MAX_DESCRIPTORS:
            pytest.skip(f"this needs a process with more than {held} descriptors")
    return started


def processes_of_snapshot() -> dict[int, dict[str, Any]]:
    """The processes that ``snapshot`` shows. The command ends even if one of them blocks it."""
    ran = subprocess.run(
        [sys.executable, "-m", "probes", "snapshot", "--standalone"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        timeout=2 * DEADLINE_S,
        check=True,
    )
    return {process["tgid"]: process for process in json.loads(ran.stdout)["processes"]}


def peak_kib(tgid: int) -> int:
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{tgid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1])


@pytest.mark.timeout(300)
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_other_vms_are_unharmed(
    agent: Agent, hostile: Path, program: Path, attack: Attack, tmp_path: Path
) -> None:
    """The other VM gets its verdict in time, the agent stays small, and the attacker is unknown."""
    with ExitStack() as stack:
        attacker = started_attack(stack, hostile, attack, tmp_path)
        reasons = (BLOCKED,) if blocking_files(attacker.tgid) else attack.reasons
        bystander = stack.enter_context(Bystander(program))
        bystander.assert_unharmed(agent)
        assert peak_kib(agent.tgid) < MEMORY_LIMIT_KIB
        shown = processes_of_snapshot()
        assert shown[bystander.tgid]["hypervisor_type"] == "kvm"
        assert (attacker.tgid in shown) == bool(reasons)
        if reasons:
            row = shown[attacker.tgid]
            assert (row["hypervisor_type"], row["verified"]) == ("unknown", False)
            assert row["reason_codes"][0] in reasons
    assert agent.get("/healthz") == "alive\n"


@pytest.mark.timeout(300)
def test_all_of_them_at_once(agent: Agent, hostile: Path, program: Path, tmp_path: Path) -> None:
    """A new VM is unharmed by ten of each attack that blocks or holds too many descriptors."""
    rows = [row for row in ATTACKS.values() if row.number < 1000 or row.kind == "descriptors"]
    with ExitStack() as stack:
        for row in rows:
            for _ in range(10):
                started_attack(stack, hostile, row, tmp_path)
        stack.enter_context(Bystander(program)).assert_unharmed(agent)
        assert peak_kib(agent.tgid) < MEMORY_LIMIT_KIB


@pytest.mark.timeout(300)
def test_a_ledger_full_of_users_of_kvm(program: Path) -> None:
    """A VM without room in the ledger has its series, but no false 0 and no false certainty.

    The counter of an earlier VM continues. When the other processes have ended there is room
    again, although their parent never reaps them.
    """
    capacity = ("--ledger-capacity", str(MIN_LEDGER_CAPACITY))
    crowd = ("--processes", str(CROWD), "--userspace-exits", "1")
    with (
        Agent("--standalone", "--node", NODE, *capacity) as agent,
        Bystander(program) as first,
        KvmLoad(program, "-name", "guest=crowd", *crowd) as users,
    ):
        first.assert_unharmed(agent)
        tgids = [int(json.loads(users.line())["tgid"]) for _ in range(CROWD)]
        wait_for(lambda: only(agent, LOST) > 0, "the ledger is full")
        first.assert_unharmed(agent)
        name = new_name("emulated")
        with (
            Attacker(program, "late", "--userspace-exits", "11") as late,
            Qemu(f"default_{name}", accel=("tcg",)),
        ):
            wait_for(lambda: Scraped(agent).type(late.name) == "kvm", "its vCPUs are seen")
            wait_for(lambda: Scraped(agent).type(name) == "tcg", "it is seen to emulate")
            scraped = Scraped(agent)
            assert scraped.value(late.name, RETURNS) is None
            assert scraped.verified(name) is False
        for tgid in tgids:
            os.kill(tgid, signal.SIGKILL)
        wait_for(lambda: only(agent, ENTRIES) < CROWD / 2, "there is room again")
        stats = [Path(f"/proc/{tgid}/stat").read_text() for tgid in tgids]
        assert {stat.rpartition(")")[2][1] for stat in stats} == {"Z"}
        with Bystander(program) as second:
            second.assert_unharmed(agent)
        first.assert_unharmed(agent)


def only(agent: Agent, metric: str) -> float:
    """The value of a metric that has one sample."""
    (value,) = agent.samples(metric).values()
    return value
