# SPDX-License-Identifier: Apache-2.0
"""Processes that make their /proc files huge, many or endless, read as the agent reads them.

Each attack runs beside a bystander, which must be read completely each time. A separate process
does all the reading and is killed after a while, because a file that blocks readers of /proc would
also block these tests.
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
from tests.support.kernel_hostile import NEED_FUSE, Hostile, blocking_files, hostile_program
from tests.support.kernel_world import DEADLINE_S, EMULATED, RENAME_PROCESS, PythonProcess

ROOT = Path(__file__).resolve().parents[2]
READERS_LIMIT_S = 3 * DEADLINE_S
"""After this time the reading process is killed, and the test fails."""
PROMETHEUS_TIMEOUT_S = 10.0
"""The default of scrape_timeout. Emulated processors are too slow for it."""
MEMORY_LIMIT_MIB = 160
"""The reading process's limit: half of the agent's limit in a cluster."""
PROCESSES_MAX = int(Path("/proc/sys/kernel/pid_max").read_text())
MANY_THREADS = MAX_THREADS + 100 if EMULATED else min(20_000, PROCESSES_MAX // 3)
MANY_PROCESSES = 500 if EMULATED else min(5000, PROCESSES_MAX // 4)

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
    """The findings of the reading process in each round, and its log."""

    rounds: list[dict[str, Any]]
    log: str

    def of(self, tgid: int) -> list[dict[str, Any]]:
        """Return the facts read about a process, one item for each round that read any."""
        return [
            reading["processes"][str(tgid)]
            for reading in self.rounds
            if str(tgid) in reading["processes"]
        ]

    def assert_cheap(self) -> None:
        for reading in self.rounds:
            assert EMULATED or reading["took"] < PROMETHEUS_TIMEOUT_S
            assert reading["peak_mib"] < MEMORY_LIMIT_MIB

    def assert_complete(self, tgid: int) -> None:
        """Assert that every round read this process completely."""
        found = self.of(tgid)
        assert len(found) == len(self.rounds)
        for process in found:
            assert (process["unread"], process["fds"], process["threads"]) == (None, True, True)


def read_processes(tgids: list[int], *, rounds: int = 3, seconds: float = 4.0) -> Readings:
    """Read all processes of the machine, and return what was read about the given ones.

    Reading takes at least that many rounds and continues until each given process was seen, for 40
    rounds at most.
    seconds raises the time limits of scan and inspection, so that the load of a shared machine does
    not change the result; 0 keeps the usual limits.
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
    """A harmless process that has QEMU's name."""
    with PythonProcess(RENAME_PROCESS) as process:
        yield process


@dataclass(frozen=True, kw_only=True)
class Attack:
    """What a hostile process does, and how it may be reported."""

    kind: str
    number: int = 0
    unread: str | None = None
    """Why its reading is incomplete if no file of it blocks."""
    blocks: frozenset[str] = frozenset()
    """Files that block on every kernel. Kernels differ in the others."""


ATTACKS = {
    "16 MiB of arguments that were never touched": Attack(
        kind="untouched-arguments", number=16 << 20
    ),
    "1 GiB of arguments that were never touched": Attack(
        kind="untouched-arguments", number=1 << 30
    ),
    "2 MB of arguments": Attack(kind="arguments", number=2_000_000),
    "arguments on a page that never comes": Attack(kind="missing-arguments"),
    "arguments in a file whose server is silent": Attack(kind="fuse-arguments"),
    "an address space that stays locked": Attack(
        kind="address-space", blocks=frozenset({"cmdline"})
    ),
    "an execve that waits for a silent server": Attack(kind="fuse-exec"),
    "20,000 threads": Attack(kind="threads", number=MANY_THREADS, unread="too many"),
    "100,000 descriptors": Attack(kind="descriptors", number=100_000, unread="too many"),
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_attack(begin: Begin, bystander: PythonProcess, attack: Attack) -> None:
    """At most the attacker's own facts are incomplete, which is reported; all others' never are."""
    hostile = begin(attack.kind, attack.number)
    if attack.kind == "descriptors":
        held = len(list(Path(f"/proc/{hostile.tgid}/fd").iterdir()))
        if held <= MAX_DESCRIPTORS:
            pytest.skip(f"this needs a process with more than {held} descriptors")
    blocking = blocking_files(hostile.tgid)
    assert blocking >= attack.blocks
    readings = read_processes([hostile.tgid, bystander.tgid])
    readings.assert_complete(bystander.tgid)
    readings.assert_cheap()
    assert readings.log.count(f"process {hostile.tgid} ") == bool(blocking)
    found = readings.of(hostile.tgid)
    if "stat" in blocking:  # its identity blocks: the scan says so, and there is no more
        pending = [reading["scan_pending"] for reading in readings.rounds]
        assert pending == [{str(hostile.tgid): "blocked"}] * len(readings.rounds)
        assert not found
        return
    unread = "blocked" if blocking else attack.unread
    for process, of_round in zip(found, readings.rounds, strict=True):
        assert process["named"]
        assert process["cgroup"]
        assert process["unread"] == unread, of_round
        assert (process["fds"] and process["threads"]) is (unread is None)


@pytest.mark.timeout(300)
def test_several_processes_that_block(begin: Begin, bystander: PythonProcess) -> None:
    """Each process blocks only its own reader, and the bystander is read completely."""
    hostile = [begin("address-space") for _ in range(10)]
    readings = read_processes([*(process.tgid for process in hostile), bystander.tgid])
    readings.assert_complete(bystander.tgid)
    readings.assert_cheap()
    for each in hostile:
        assert {process["unread"] for process in readings.of(each.tgid)} == {"blocked"}


@pytest.mark.timeout(300)
def test_many_processes_under_qemus_name(begin: Begin, bystander: PythonProcess) -> None:
    """Processes that are not read in time are reported as pending, and each is read in its turn."""
    hostile = begin("processes", MANY_PROCESSES)
    children = [
        int(child)
        for child in Path(f"/proc/{hostile.tgid}/task/{hostile.tgid}/children").read_text().split()
    ]
    assert len(children) == MANY_PROCESSES
    readings = read_processes([*children, bystander.tgid], seconds=0)
    readings.assert_cheap()
    assert all(process["unread"] is None for process in readings.of(bystander.tgid))
    assert readings.of(bystander.tgid)
    seen = {tgid for reading in readings.rounds for tgid in reading["processes"]}
    assert seen >= {str(child) for child in children}
    for reading in readings.rounds:
        told = set(reading["processes"]) | set(reading["pending"]) | set(reading["scan_pending"])
        assert told >= {str(each) for each in children}


def test_descriptor_in_another_threads_table(begin: Begin) -> None:
    """A scan by descriptors finds /dev/kvm in a thread's own table, and reads all tables."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("this needs /dev/kvm")
    hostile = begin("hidden-descriptor")
    readings = read_processes([hostile.tgid], rounds=1)
    assert readings.rounds[0]["found"] == [hostile.tgid]
    (found,) = readings.of(hostile.tgid)
    assert (found["kvm"], found["fds"], found["named"]) == (True, True, False)
