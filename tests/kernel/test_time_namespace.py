# SPDX-License-Identifier: Apache-2.0
"""Time namespaces, in which hvprobe still uses the host's clock for the times of records."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.kernel_agent import ROOT
from tests.support.kernel_world import Started

pytestmark = pytest.mark.host_only

DAY_S = 86400
PRINT_TIMES = """
import json, time
from ebpf.clock import monotonic_ns, offset_ns
print(json.dumps([monotonic_ns(), time.monotonic_ns(), offset_ns()]), flush=True)
"""
PRINT_RECORD = """
import json, subprocess, sys
from ebpf.clock import monotonic_ns
from ebpf.session import Session
with Session() as session:
    before_ns = monotonic_ns()
    with subprocess.Popen([sys.argv[1], "--userspace-exits", "7"], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as load:
        load.stdout.readline()
        snapshot = session.read()
        load.stdin.close()
    print(json.dumps([before_ns, snapshot.entries[load.pid].first_ns, snapshot.taken_ns,
                      snapshot.attached_ns, max(hook.attached_ns or 0 for hook in snapshot.hooks)]))
"""


@pytest.fixture(params=[DAY_S, -1])
def offset_s(request: pytest.FixtureRequest) -> int:
    """The offset of the namespace's clock, ahead of the host's clock or behind it."""
    if not Path("/proc/self/ns/time").exists():
        pytest.skip("this kernel has no time namespaces")
    return int(request.param)


def unshared(offset_s: int, *command: str | Path) -> Started:
    """Start a command in a new time namespace."""
    return Started(
        ["unshare", "--fork", "--kill-child", "--time", "--monotonic", str(offset_s), *command],
        environment={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=None,
    )


def test_the_clock_is_the_hosts(offset_s: int) -> None:
    """The clock is the host's in a process that started in the namespace or entered it."""
    before_ns = time.monotonic_ns()
    script = f"{sys.executable} -c '{PRINT_TIMES}'; echo $$; read line"
    with unshared(offset_s, "sh", "-c", script) as process:
        lines = [process.line()]
        inside = int(process.line())
        entered = ["nsenter", f"--time=/proc/{inside}/ns/time", sys.executable, "-c", PRINT_TIMES]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        lines.append(subprocess.check_output(entered, env=environment, text=True))
    after_ns = time.monotonic_ns()
    for line in lines:
        host_ns, own_ns, offset_ns = json.loads(line)
        assert before_ns <= host_ns <= after_ns
        assert offset_ns == offset_s * 10**9
        assert own_ns >= host_ns + offset_ns


def test_times_of_a_session_are_the_hosts(offset_s: int, kvmload: Path) -> None:
    """The times of hooks, record and snapshot are on one clock and in order."""
    before_ns = time.monotonic_ns()
    with unshared(offset_s, sys.executable, "-c", PRINT_RECORD, kvmload) as process:
        before_load_ns, first_ns, taken_ns, attached_ns, hook_ns = json.loads(process.line())
    order = [
        before_ns,
        hook_ns,
        attached_ns,
        before_load_ns,
        first_ns,
        taken_ns,
        time.monotonic_ns(),
    ]
    assert order == sorted(order)
