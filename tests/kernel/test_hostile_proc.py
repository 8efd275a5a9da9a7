# SPDX-License-Identifier: Apache-2.0
"""Processes that make their /proc files huge, many or endless, read as the agent reads them.

Each attack runs beside a bystander, of which everything must be read each time. All reading is done
in a process of its own that is killed after a while: what blocks the readers of /proc would block
these tests, too.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from probes.host.process_reader import MAX_THREADS
from probes.host.thread_tables import MAX_DESCRIPTORS
from tests.support.kernel_hostile import LOCKS_BLOCK, NEED_FUSE, Hostile, hostile_program
from tests.support.kernel_world import DEADLINE_S, EMULATED, RENAME_PROCESS, PythonProcess

ROOT = Path(__file__).resolve().parents[2]
READERS_LIMIT_S = 3 * DEADLINE_S
"""After that the reading process is killed, and the test has failed."""
PROMETHEUS_TIMEOUT_S = 10.0
"""The default of scrape_timeout; where processors are emulated nothing is that fast."""
MEMORY_LIMIT_MIB = 160
"""Of the reading process: half of the agent's limit in a cluster."""
PROCESSES_MAX = int(Path("/proc/sys/kernel/pid_max").read_text())
MANY_THREADS = MAX_THREADS + 100 if EMULATED else min(20_000, PROCESSES_MAX // 3)
MANY_PROCESSES = 500 if EMULATED else min(5000, PROCESSES_MAX // 4)
BLOCKS: tuple[str | None, ...] = ("blocked",) if LOCKS_BLOCK else (None, "blocked")
"""What is said of a process that blocks its readers by locks; older kernels take others."""

pytestmark = [
    pytest.mark.host_only,
    pytest.mark.skipif(os.geteuid() != 0, reason="this needs root"),
]

READ_PROCESSES = """
import json, logging, re, sys, time
import probes.host.reader
logging.basicConfig(format="%(message)s", stream=sys.stderr)
watched, rounds, seconds = set(json.loads(sys.argv[1])), int(sys.argv[2]), float(sys.argv[3])
if seconds:
    probes.host.reader.MAX_SCAN_S = probes.host.reader.MAX_INSPECT_S = seconds
host = probes.host.reader.Host()
unseen = set(watched)
def peak_mib():
    # Not getrusage(): its maximum begins with that of the process that forked this one.
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) >> 10
def told(process):
    return {
        "unread": process.unread and process.unread.value,
        "named": process.named_like_qemu,
        "cgroup": process.cgroup is not None,
        "fds": process.fds.complete,
        "kvm": process.fds.any,
        "threads": process.threads_complete,
        "count": len(process.threads),
    }
for number in range(MAX_ROUNDS):
    if number >= rounds and not unseen:
        break
    begin = time.monotonic()
    scan = host.scan(host.tgids(), every_fd=True)
    found = set(scan.found.values())
    inspected = host.inspect(found)
    took = time.monotonic() - begin
    unseen -= {vmm.tgid for vmm in inspected.processes}
    unseen -= {tgid for tgid, why in scan.pending.items() if why.value == "blocked"}
    print(json.dumps({
        "took": took,
        "found": sorted(watched & set(scan.found)),
        "scan_pending": {k: v.value for k, v in scan.pending.items() if k in watched},
        "pending": {k.tgid: v.value for k, v in inspected.pending.items() if k.tgid in watched},
        "processes": {k.tgid: told(v) for k, v in inspected.processes.items() if k.tgid in watched},
        "peak_mib": peak_mib(),
    }), flush=True)
""".replace("MAX_ROUNDS", "40")


@dataclass(frozen=True, kw_only=True)
class Readings:
    """What the reading process saw in each round, and what it logged."""

    rounds: list[dict[str, Any]]
    log: str

    def of(self, tgid: int) -> list[dict[str, Any]]:
        """What was read of a process in each round in which anything was."""
        return [it["processes"][str(tgid)] for it in self.rounds if str(tgid) in it["processes"]]

    def assert_cheap(self) -> None:
        for it in self.rounds:
            assert EMULATED or it["took"] < PROMETHEUS_TIMEOUT_S
            assert it["peak_mib"] < MEMORY_LIMIT_MIB

    def assert_complete(self, tgid: int) -> None:
        """Everything of this process was read in every round."""
        found = self.of(tgid)
        assert len(found) == len(self.rounds)
        for it in found:
            assert (it["unread"], it["fds"], it["threads"]) == (None, True, True)


def read_processes(tgids: list[int], *, rounds: int = 3, seconds: float = 4.0) -> Readings:
    """Read all processes of the machine that many times, or until each was seen; report these.

    What a scan and an inspection may take is raised, so that the load of the machine, which tests
    share with others, has no part in the result; seconds=0: it is as it is.
    """
    reader = subprocess.Popen(
        [sys.executable, "-c", READ_PROCESSES, json.dumps(tgids), str(rounds), str(seconds)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, log = reader.communicate(timeout=READERS_LIMIT_S)
    finally:
        with suppress(ProcessLookupError):
            os.kill(reader.pid, signal.SIGKILL)
    assert reader.returncode == 0, log
    return Readings(rounds=[json.loads(line) for line in out.splitlines()], log=log)


Begin = Callable[..., Hostile]


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hostile_program(tmp_path_factory.mktemp("hostile"))


@pytest.fixture
def begin(program: Path, tmp_path: Path) -> Iterator[Begin]:
    """Start hostile processes, which end with the test."""
    with ExitStack() as started:

        def start(kind: str, number: int = 0) -> Hostile:
            if kind in NEED_FUSE and not Path("/dev/fuse").exists():
                pytest.skip("this needs /dev/fuse")
            folder = Path(tempfile.mkdtemp(dir=tmp_path))
            return started.enter_context(Hostile(program, kind, number, folder))

        yield start


@pytest.fixture
def bystander() -> Iterator[PythonProcess]:
    """A process under QEMU's name that does nothing to anyone."""
    with PythonProcess(RENAME_PROCESS) as process:
        yield process


@dataclass(frozen=True, kw_only=True)
class Attack:
    """What a process does, and what is to be said of it."""

    kind: str
    number: int = 0
    unread: tuple[str | None, ...]
    """What may be said of it: kernels differ in what they wait for."""


ATTACKS = {
    "16 MiB of arguments that were never touched": Attack(
        kind="untouched-arguments", number=16 << 20, unread=(None,)
    ),
    "1 GiB of arguments that were never touched": Attack(
        kind="untouched-arguments", number=1 << 30, unread=(None,)
    ),
    "2 MB of arguments": Attack(kind="arguments", number=2_000_000, unread=(None,)),
    "arguments on a page that never comes": Attack(
        kind="missing-arguments", unread=(None, "blocked")
    ),
    "arguments in a file whose server is silent": Attack(
        kind="fuse-arguments", unread=(None, "blocked")
    ),
    "an address space that stays locked": Attack(kind="address-space", unread=BLOCKS),
    "an execve that waits for a silent server": Attack(kind="fuse-exec", unread=BLOCKS),
    "20,000 threads": Attack(kind="threads", number=MANY_THREADS, unread=("too many",)),
    "100,000 descriptors": Attack(kind="descriptors", number=100_000, unread=("too many",)),
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_attack(begin: Begin, bystander: PythonProcess, attack: Attack) -> None:
    """The attacker's own facts are cut or missing, which is said; all others' are complete."""
    hostile = begin(attack.kind, attack.number)
    if attack.kind == "descriptors":
        held = len(list(Path(f"/proc/{hostile.tgid}/fd").iterdir()))
        if held <= MAX_DESCRIPTORS:
            pytest.skip(f"this needs a process with more than {held} descriptors")
    readings = read_processes([hostile.tgid, bystander.tgid])
    readings.assert_complete(bystander.tgid)
    readings.assert_cheap()
    found = readings.of(hostile.tgid)
    for it, of_round in zip(found, readings.rounds, strict=attack.kind != "fuse-exec"):
        assert it["named"]
        assert it["cgroup"]
        assert it["unread"] in attack.unread, of_round
        assert (it["fds"] and it["threads"]) is (it["unread"] is None)
    blocked = any(it["unread"] == "blocked" for it in found)
    if (
        attack.kind == "fuse-exec" and len(BLOCKS) == 1
    ):  # its identity blocks: the scan says so, and there is no more
        pending = [it["scan_pending"] for it in readings.rounds]
        assert pending == [{str(hostile.tgid): "blocked"}] * len(readings.rounds)
        blocked = True
    assert readings.log.count(f"process {hostile.tgid} ") == blocked


@pytest.mark.timeout(300)
def test_several_processes_that_block(begin: Begin, bystander: PythonProcess) -> None:
    """Each has a reader of its own stuck, and the bystander is read all the same."""
    hostile = [begin("address-space") for _ in range(10)]
    readings = read_processes([*(it.tgid for it in hostile), bystander.tgid])
    readings.assert_complete(bystander.tgid)
    readings.assert_cheap()
    for each in hostile:
        assert {it["unread"] for it in readings.of(each.tgid)} <= set(BLOCKS)


@pytest.mark.timeout(300)
def test_many_processes_under_qemus_name(begin: Begin, bystander: PythonProcess) -> None:
    """Those that are not read in time are said to be late, and every one has its turn."""
    hostile = begin("processes", MANY_PROCESSES)
    children = [
        int(it)
        for it in Path(f"/proc/{hostile.tgid}/task/{hostile.tgid}/children").read_text().split()
    ]
    assert len(children) == MANY_PROCESSES
    readings = read_processes([*children, bystander.tgid], seconds=0)
    readings.assert_cheap()
    assert all(it["unread"] is None for it in readings.of(bystander.tgid))
    assert readings.of(bystander.tgid)
    seen = {tgid for it in readings.rounds for tgid in it["processes"]}
    assert seen >= {str(it) for it in children}
    for it in readings.rounds:
        told = set(it["processes"]) | set(it["pending"]) | set(it["scan_pending"])
        assert told >= {str(each) for each in children}


def test_descriptor_in_another_threads_table(begin: Begin) -> None:
    """A thread with a table of its own holds /dev/kvm: found by descriptors, whole."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("this needs /dev/kvm")
    hostile = begin("hidden-descriptor")
    readings = read_processes([hostile.tgid], rounds=1)
    assert readings.rounds[0]["found"] == [hostile.tgid]
    (found,) = readings.of(hostile.tgid)
    assert (found["kvm"], found["fds"], found["named"]) == (True, True, False)
