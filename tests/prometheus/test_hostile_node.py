# SPDX-License-Identifier: Apache-2.0
"""A real agent on a node that does not make it easy: names that are hostile, reads that hang."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from markupsafe import escape

from probes.serve.refresh import SHARED_FOR_S
from tests.support.kernel_agent import ROOT, Agent
from tests.support.kernel_world import Qemu, wait_for
from tests.support.prometheus_process import running_prometheus
from tests.support.queries import run_query

HOSTILE_NODE = 'a"b\\c{x="y"} 1 # ünï'
HUNG_TGID = 4_000_001
"""Above any real process: PID_MAX_LIMIT is 4194304, the default far lower."""
END_WITHIN_S = 3.0


class HungProc:
    """A /proc like the node's, but for one process: reading its ``stat`` never returns."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "proc"
        self.root.mkdir()
        for each in Path("/proc").iterdir():
            (self.root / each.name).symlink_to(each)
        self._process = self.root / str(HUNG_TGID)
        self._process.mkdir()
        self._stat = self._process / "stat"
        os.mkfifo(self._stat)

    def answer(self) -> None:
        """Let the read that hangs end, and no other begin to."""
        # Opening waits for the reader, which may come a second time before the name is gone.
        with self._stat.open("w") as held:
            shutil.rmtree(self._process)
            held.write("hung\n")


@contextmanager
def hung_agent(folder: Path) -> Iterator[tuple[Agent, HungProc]]:
    proc = HungProc(folder)
    with Agent("--standalone", "--node", "n", "--proc", str(proc.root)) as agent:
        # It was not there yet when the other links were made, and knows by itself that it reads.
        (proc.root / str(agent.tgid)).symlink_to(f"/proc/{agent.tgid}")
        yield agent, proc


def incomplete(agent: Agent) -> float:
    """Refreshes in which a process could not be read."""
    return agent.samples("hvprobe_refresh_errors_total")[(("source", "proc"),)]


def rises(agent: Agent) -> bool:
    """Whether the next refresh is incomplete again."""
    before = incomplete(agent)
    time.sleep(SHARED_FOR_S)
    return incomplete(agent) > before


def test_a_read_of_proc_that_hangs(tmp_path: Path) -> None:
    """The other processes are judged at once; the one that hangs is counted until it answers."""
    guest = f"beside-{os.getpid()}"
    with Qemu(f"default_{guest}"), hung_agent(tmp_path) as (agent, proc):
        wait_for(lambda: guest in agent.get("/metrics"), "the other process is judged")
        assert rises(agent)
        assert agent.samples("hvprobe_refresh_failed")[()] == 0
        assert agent.get("/healthz") == "alive\n"
        assert agent.get("/readyz") == "ready\n"
        proc.answer()
        wait_for(lambda: not rises(agent), "the process is read")
        assert guest in agent.get("/metrics")


def test_a_hung_read_does_not_keep_the_agent(tmp_path: Path) -> None:
    """SIGTERM ends it in time, exit code 0, while a read hangs."""
    with hung_agent(tmp_path) as (agent, _):
        assert incomplete(agent) == 1
        assert agent.end(signal.SIGTERM, END_WITHIN_S) == 0


def test_hostile_node_name_end_to_end(tmp_path: Path) -> None:
    """Every printable name of a node arrives in Prometheus as it was given, as promtool agrees."""
    guest = f"alpha-{os.getpid()}"
    with (
        Agent("--standalone", "--node", HOSTILE_NODE) as agent,
        Qemu(f"default_{guest}", "-S"),
    ):
        wait_for(lambda: guest in agent.get("/metrics"), "the guest is shown")
        checked = subprocess.run(
            ["promtool", "check", "metrics"],
            input=agent.get("/metrics"),
            capture_output=True,
            text=True,
            check=False,
        )
        assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
        assert "<h1><bdi>" + str(escape(HOSTILE_NODE)) + "<" in agent.get("/")
        config = {
            "global": {"scrape_interval": "1s"},
            "scrape_configs": [
                {
                    "job_name": "hvprobe",
                    "honor_labels": True,
                    "static_configs": [{"targets": [agent.url.partition("://")[2]]}],
                }
            ],
        }
        query = f'kubevirt_vmi_hypervisor_info{{name="{guest}"}}'
        with running_prometheus(tmp_path, config) as url:
            wait_for(lambda: run_query(url, query), "Prometheus has the series")
            (found,) = run_query(url, query)
    assert found["metric"]["node"] == HOSTILE_NODE


@pytest.mark.parametrize("name", [b"\xff", "a\u202eb".encode(), b"a\nb"])
def test_a_node_name_no_label_can_hold(name: bytes) -> None:
    """Refused with one line and the exit code of wrong usage, before anything is attached."""
    said = subprocess.run(
        [sys.executable, "-m", "probes", "agent", "--standalone", "--node", name],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
    )
    assert (said.returncode, said.stdout) == (2, b"")
    (line,) = said.stderr.decode("ascii").splitlines()
    assert line.startswith("hvprobe: node name '")
    assert line.endswith("contains unprintable characters; use another with --node")


ILLEGAL_NAMES = (
    "nounderscore",
    "Default_upper",
    "default_",
    "_x",
    "default_ü",
    "de fault_x",
    'a_b"c',
)


def test_illegal_names_make_no_series() -> None:
    """A QEMU whose name Kubernetes would not allow is counted, shown on the page, and no VM."""
    with Agent("--standalone", "--node", "n") as agent:
        guests = [Qemu(name, "-S", accel=("tcg",)) for name in ILLEGAL_NAMES]
        try:
            unattributed = (("state", "unattributed"),)
            wait_for(
                lambda: agent.samples("hvprobe_processes")[unattributed] >= len(guests),
                "all are seen",
            )
            shown = agent.get("/metrics")
            for name in ILLEGAL_NAMES:
                assert f'name="{name.partition("_")[2] or name}"' not in shown
            pids = {str(guest.tgid) for guest in guests}
            assert {pid for pid in pids if f">{pid}</span>" in agent.get("/")} == pids
        finally:
            for guest in guests:
                guest.kill()
