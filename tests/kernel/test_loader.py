# SPDX-License-Identifier: Apache-2.0
"""The loader, which compiles the programs: it leaves nothing behind and reports its errors."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path

import psutil
import pytest

from ebpf.bpf_syscall import bpf
from ebpf.errors import BpfUnavailableError
from ebpf.programs import Programs
from ebpf.session import Session
from tests.support.kernel_agent import ROOT, Agent
from tests.support.kernel_world import EMULATED, wait_for

MOMENTS = [0.1, 0.5, 0.9] if EMULATED else [tenth / 10 for tenth in range(1, 12)]
"""When a process is killed, as fractions of the time that a start takes."""


class NextId(IntEnum):
    """Commands of bpf(2) that iterate over all objects of a kind (``enum bpf_cmd``)."""

    PROG_GET_NEXT_ID = 11
    MAP_GET_NEXT_ID = 12


class IdAttributes(ctypes.Structure):
    """``union bpf_attr`` of the commands that iterate over all objects."""

    _fields_ = (
        ("start_id", ctypes.c_uint32),
        ("next_id", ctypes.c_uint32),
        ("open_flags", ctypes.c_uint32),
    )


def objects() -> set[tuple[NextId, int]]:
    """The ids of all BPF programs and maps of this kernel. An id is never used twice."""
    found: set[tuple[NextId, int]] = set()
    for command in (NextId.PROG_GET_NEXT_ID, NextId.MAP_GET_NEXT_ID):
        attributes = IdAttributes()
        with contextlib.suppress(FileNotFoundError):
            while True:
                bpf(command, attributes)
                found.add((command, attributes.next_id))
                attributes.start_id = attributes.next_id
    return found


def held() -> set[tuple[NextId, int]]:
    """Objects for which a process has a descriptor. Another user of BPF is not a leak."""
    kinds = {"prog_id:": NextId.PROG_GET_NEXT_ID, "map_id:": NextId.MAP_GET_NEXT_ID}
    found: set[tuple[NextId, int]] = set()
    for info in Path("/proc").glob("[0-9]*/fdinfo/*"):
        with contextlib.suppress(OSError):
            for line in info.read_text().splitlines():
                name, _, number = line.partition("\t")
                if name in kinds:
                    found.add((kinds[name], int(number)))
    return found


def descriptors() -> set[str]:
    """The descriptors of this process."""
    return {link.name for link in Path("/proc/self/fd").iterdir()}


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Fails the test when it leaves a new BPF object in the kernel.

    The processes of the test have ended by then, so an object that is still held is not the test's.
    """
    before = objects()
    yield
    wait_for(lambda: not objects() - before - held(), "all new objects are gone")


@pytest.fixture(scope="module")
def start_s() -> float:
    """The time that an agent needs to start on this machine, in seconds."""
    started_s = time.monotonic()
    with Agent("--standalone") as agent:
        agent.get("/readyz")
        return time.monotonic() - started_s


def started_agent() -> subprocess.Popen[bytes]:
    """An agent, which may not serve yet."""
    return subprocess.Popen(
        [sys.executable, "-m", "probes", "agent", "--standalone", "--listen", "127.0.0.1:0"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )


def loader_of(tgid: int) -> psutil.Process | None:
    """The loader of an agent, while it runs."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(tgid).children():
            return child
    return None


@pytest.mark.host_only
@pytest.mark.parametrize("moment", MOMENTS)
def test_an_agent_killed_at_any_moment_leaves_nothing(
    nothing_left: None, start_s: float, moment: float
) -> None:
    """Neither a BPF object nor the loader remains, even if the loader was at work."""
    agent = started_agent()
    time.sleep(start_s * moment)
    loader = loader_of(agent.pid)
    agent.kill()
    agent.wait()
    wait_for(lambda: loader is None or not loader.is_running(), "the loader has ended")


@pytest.mark.host_only
@pytest.mark.parametrize("moment", MOMENTS[:-2])
def test_a_loader_killed_at_any_moment(nothing_left: None, start_s: float, moment: float) -> None:
    """The agent still serves, with the complete ledger, or without one and with a logged reason."""
    killed = False
    with Agent("--standalone", wait=False) as agent:
        end_s = time.monotonic() + start_s * moment
        while time.monotonic() < end_s or (loader := loader_of(agent.tgid)) is None:
            if time.monotonic() > end_s + start_s:
                break
            time.sleep(0.001)
        else:
            with contextlib.suppress(psutil.NoSuchProcess):
                loader.kill()
                killed = True
        agent.wait_until_serving()
        capacity = agent.samples("hvprobe_ledger_capacity")[()]
        log = "".join(agent.log)
        if capacity == 0:
            assert killed
            assert "the process that compiles them was killed: out of memory?" in log
        else:
            assert "no BPF" not in log


@pytest.mark.host_only
def test_the_agent_holds_no_compiler() -> None:
    """When the agent serves, the loader has ended and the agent maps no compiler library."""
    with Agent("--standalone") as agent:
        assert loader_of(agent.tgid) is None
        mapped = Path(f"/proc/{agent.tgid}/maps").read_text()
        assert "libbcc" not in mapped
        assert "LLVM" not in mapped
        assert agent.samples("hvprobe_ledger_capacity")[()] > 0


@pytest.mark.host_only
def test_a_loader_dies_with_its_parent(nothing_left: None) -> None:
    """The kernel ends the loader, even one that is stopped and cannot notice the death."""
    agent = started_agent()
    loader = wait_for(lambda: loader_of(agent.pid), "the loader runs")
    maps = Path(f"/proc/{loader.pid}/maps")
    wait_for(lambda: "libbcc" in maps.read_text(), "it is at work")
    loader.suspend()
    agent.kill()
    agent.wait()
    wait_for(lambda: not loader.is_running(), "the loader has ended")


def test_sessions_leave_nothing(nothing_left: None) -> None:
    """``close`` releases everything at once, including the descriptors of this process."""
    before = descriptors()
    for _ in range(3):
        session = Session()
        session.read()
        session.close()
        session.close()
        assert descriptors() == before


@pytest.mark.host_only
def test_programs_that_do_not_compile(nothing_left: None) -> None:
    """The error contains the compiler's message, in one line."""
    with pytest.raises(
        BpfUnavailableError, match=r"cannot prepare the BPF programs: .*error: "
    ) as err:
        Programs(
            ("ledger.bpf.c",),
            ["-DLEDGER_CAPACITY=nonsense", "-DLEDGER_CPUS=2", "-DEXIT_PLACES=2"],
            maps=("processes",),
            loadable=(),
            sys_root=Path("/sys"),
        )
    assert "\n" not in str(err.value)


@pytest.mark.host_only
def test_an_interpreter_that_cannot_start(
    nothing_left: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loader that ends before it answers is reported with its last output."""
    monkeypatch.setattr("ebpf.loader_process._MAIN", "import no_such_module")
    with pytest.raises(BpfUnavailableError, match=r"the process that compiles them ended with"):
        Programs((), (), maps=(), loadable=(), sys_root=Path("/sys"))


@pytest.mark.host_only
def test_a_loader_that_never_answers(nothing_left: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loader is killed, and the error says what to do."""
    monkeypatch.setattr("ebpf.loader_process.LOADING_S", 0.2)
    monkeypatch.setattr("ebpf.loader_process._MAIN", "import time; time.sleep(600)")
    # A unit test may have left another one.
    monkeypatch.setattr(psutil, "PROCFS_PATH", "/proc")
    # A guest of vmtest may run beside this test.
    before = psutil.Process().children()
    with pytest.raises(BpfUnavailableError, match=r"within 0\.2 s; restart hvprobe"):
        Programs((), (), maps=(), loadable=(), sys_root=Path("/sys"))
    assert set(psutil.Process().children()) <= set(before)


@pytest.mark.host_only
def test_signal_to_the_group_does_not_break_the_start(nothing_left: None) -> None:
    """Ctrl-C during compilation ends hvprobe as usual, without output from the loader."""
    command = [sys.executable, "-m", "probes", "agent", "--standalone", "--listen", "127.0.0.1:0"]
    agent = subprocess.Popen(
        # A shell makes its background jobs ignore SIGINT, and the tests may be such a job.
        ["env", "--default-signal=INT", *command],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    wait_for(lambda: loader_of(agent.pid), "the loader runs")
    os.killpg(agent.pid, signal.SIGINT)
    output = agent.communicate(timeout=30)[1]
    assert "Traceback" not in output, output
