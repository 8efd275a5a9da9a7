# SPDX-License-Identifier: Apache-2.0
"""The process that compiles: it leaves nothing behind, whoever dies when, and tells its errors."""

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

MOMENTS = [0.1, 0.5, 0.9] if EMULATED else [it / 10 for it in range(1, 12)]
"""When somebody is killed, in parts of the time that a start takes."""


class Walk(IntEnum):
    """Commands of bpf(2) that walk over all objects of a kind (``enum bpf_cmd``)."""

    PROG_GET_NEXT_ID = 11
    MAP_GET_NEXT_ID = 12


class IdAttributes(ctypes.Structure):
    """``union bpf_attr`` of the commands that walk over all objects."""

    _fields_ = (
        ("start_id", ctypes.c_uint32),
        ("next_id", ctypes.c_uint32),
        ("open_flags", ctypes.c_uint32),
    )


def objects() -> set[tuple[Walk, int]]:
    """All BPF programs and maps of this kernel, by id. Ids are not used twice."""
    found: set[tuple[Walk, int]] = set()
    for command in (Walk.PROG_GET_NEXT_ID, Walk.MAP_GET_NEXT_ID):
        attributes = IdAttributes()
        with contextlib.suppress(FileNotFoundError):
            while True:
                bpf(command, attributes)
                found.add((command, attributes.next_id))
                attributes.start_id = attributes.next_id
    return found


def held() -> set[tuple[Walk, int]]:
    """Those that a process has a descriptor of: a second user of BPF on this machine is no leak."""
    kinds = {"prog_id:": Walk.PROG_GET_NEXT_ID, "map_id:": Walk.MAP_GET_NEXT_ID}
    found: set[tuple[Walk, int]] = set()
    for info in Path("/proc").glob("[0-9]*/fdinfo/*"):
        with contextlib.suppress(OSError):
            for line in info.read_text().splitlines():
                name, _, number = line.partition("\t")
                if name in kinds:
                    found.add((kinds[name], int(number)))
    return found


def descriptors() -> set[str]:
    """This process's own."""
    return {it.name for it in Path("/proc/self/fd").iterdir()}


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """When the test has ended, the kernel has no BPF object that it had not before.

    What the test started has ended by then: what anybody still holds is not of the test.
    """
    before = objects()
    yield
    wait_for(lambda: not objects() - before - held(), "all new objects are gone")


@pytest.fixture(scope="module")
def start_s() -> float:
    """What the start of an agent takes on this machine, in seconds."""
    begun_s = time.monotonic()
    with Agent("--standalone") as agent:
        agent.get("/readyz")
        return time.monotonic() - begun_s


def started_agent() -> subprocess.Popen[bytes]:
    """An agent that nobody waits for."""
    return subprocess.Popen(
        [sys.executable, "-m", "probes", "agent", "--standalone", "--listen", "127.0.0.1:0"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )


def loader_of(tgid: int) -> psutil.Process | None:
    """The process that compiles for an agent, while there is one."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(tgid).children():
            return child
    return None


@pytest.mark.host_only
@pytest.mark.parametrize("moment", MOMENTS)
def test_an_agent_killed_at_any_moment_leaves_nothing(
    nothing_left: None, start_s: float, moment: float
) -> None:
    """Neither a BPF object nor the process that compiles, also when that was at work."""
    agent = started_agent()
    time.sleep(start_s * moment)
    loader = loader_of(agent.pid)
    agent.kill()
    agent.wait()
    wait_for(lambda: loader is None or not loader.is_running(), "the loader has ended, too")


@pytest.mark.host_only
@pytest.mark.parametrize("moment", MOMENTS[:-2])
def test_a_loader_killed_at_any_moment(nothing_left: None, start_s: float, moment: float) -> None:
    """The agent serves all the same: with the whole ledger, or without one and saying why."""
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
        told = "".join(agent.log)
        if capacity == 0:
            assert killed
            assert "the process that compiles them was killed: out of memory?" in told
        else:
            assert "no BPF" not in told


@pytest.mark.host_only
def test_the_agent_holds_no_compiler() -> None:
    """Once it serves, the loader has ended and no library of the compiler is in its memory."""
    with Agent("--standalone") as agent:
        assert loader_of(agent.tgid) is None
        mapped = Path(f"/proc/{agent.tgid}/maps").read_text()
        assert "libbcc" not in mapped
        assert "LLVM" not in mapped
        assert agent.samples("hvprobe_ledger_capacity")[()] > 0


@pytest.mark.host_only
def test_a_loader_dies_with_its_parent(nothing_left: None) -> None:
    """Also one that is stopped and could not notice: the kernel ends it."""
    agent = started_agent()
    loader = wait_for(lambda: loader_of(agent.pid), "the loader runs")
    maps = Path(f"/proc/{loader.pid}/maps")
    wait_for(lambda: "libbcc" in maps.read_text(), "it is at work")
    loader.suspend()
    agent.kill()
    agent.wait()
    wait_for(lambda: not loader.is_running(), "the loader has ended")


def test_sessions_leave_nothing(nothing_left: None) -> None:
    """close() gives everything back at once, descriptors of this process included."""
    before = descriptors()
    for _ in range(3):
        session = Session()
        session.read()
        session.close()
        session.close()
        assert descriptors() == before


@pytest.mark.host_only
def test_programs_that_do_not_compile(nothing_left: None) -> None:
    """The compiler's own words are told, in one line."""
    with pytest.raises(
        BpfUnavailableError, match=r"cannot prepare the BPF programs: .*error: "
    ) as err:
        Programs(
            ("ledger.bpf.c",),
            ["-DLEDGER_CAPACITY=nonsense", "-DLEDGER_CPUS=2", "-DRECENT_PLACES=2"],
            maps=("processes",),
            loadable=(),
            sys_root=Path("/sys"),
        )
    assert "\n" not in str(err.value)


@pytest.mark.host_only
def test_an_interpreter_that_cannot_start(
    nothing_left: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loader that ends before it answers is told with what it said last."""
    monkeypatch.setattr("ebpf.programs._MAIN", "import no_such_module")
    with pytest.raises(BpfUnavailableError, match=r"the process that compiles them ended with"):
        Programs((), (), maps=(), loadable=(), sys_root=Path("/sys"))


@pytest.mark.host_only
def test_a_loader_that_never_answers(nothing_left: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is ended, and what to do is said."""
    monkeypatch.setattr("ebpf.programs.LOADING_S", 0.2)
    monkeypatch.setattr("ebpf.programs._MAIN", "import time; time.sleep(600)")
    with pytest.raises(BpfUnavailableError, match=r"within 0\.2 s; restart hvprobe"):
        Programs((), (), maps=(), loadable=(), sys_root=Path("/sys"))
    assert psutil.Process().children() == []


@pytest.mark.host_only
def test_signal_to_the_group_does_not_break_the_start(nothing_left: None) -> None:
    """Ctrl-C while it compiles ends hvprobe as Ctrl-C does, without a word of the loader's."""
    command = [sys.executable, "-m", "probes", "agent", "--standalone", "--listen", "127.0.0.1:0"]
    agent = subprocess.Popen(
        # Shells let what they run in the background ignore SIGINT, the tests, too.
        ["env", "--default-signal=INT", *command],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    wait_for(lambda: loader_of(agent.pid), "the loader runs")
    os.killpg(agent.pid, signal.SIGINT)
    said = agent.communicate(timeout=30)[1]
    assert "Traceback" not in said, said
