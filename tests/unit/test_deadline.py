# SPDX-License-Identifier: Apache-2.0
"""Looks that never end: the command ends, in time and with one line, and at once by a signal."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from probes.command.deadline import RefreshTimeoutError, StoppedError, apart, within

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 60.0
NEVER_S = 3600.0
HANGING = """
import sys
from ebpf.errors import BpfUnavailableError
from probes.command import agent
from probes.command import cli
from probes.command import show

deadline_s, fifo, *arguments = sys.argv[1:]

def look(_):
    with open(fifo) as held:
        held.read()
    raise AssertionError("the look has ended")

class Detaching:
    hooks = ()
    bcc_version = ""
    close = look

class Server(agent.Server):
    async def start(self, *arguments, **named):
        await super().start(*arguments, **named)
        print("ready to be stopped", file=sys.stderr, flush=True)

if arguments[0] == "agent":
    agent._open_session = lambda _: (Detaching(), None)
else:
    agent._open_session = lambda _: (None, BpfUnavailableError("not in this test"))
agent.Server = Server
agent.NodeCollector.refresh = look
agent.STOP_DEADLINE_S = agent.REFRESH_DEADLINE_S = show.REFRESH_DEADLINE_S = float(deadline_s)
sys.exit(cli.main([*arguments, "--standalone", "--log-level", "error"], apart=True))
"""
"""A command whose looks wait for a FIFO that gets no writer."""
ONCE = {
    "doctor": ("doctor",),
    "doctor as JSON": ("doctor", "--json"),
    "snapshot": ("snapshot",),
    "live --once": ("live", "--once"),
    "live --once as JSON": ("live", "--once", "--json"),
}
LIVE = {"live in a pipe": ("live",), "live as JSON": ("live", "--json")}


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


@contextlib.contextmanager
def hanging(
    fifo: Path, arguments: Sequence[str], *, deadline_s: float
) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HANGING, str(deadline_s), str(fifo), *arguments]
    started = subprocess.Popen(
        # What runs in the background of a shell ignores SIGINT, and so would this.
        ["env", "--default-signal=INT", *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield started
    finally:
        started.kill()
        started.communicate()


def wait_until_it_hangs(fifo: Path) -> int:
    """A descriptor that, while it is open, keeps the look that has opened the FIFO reading."""
    end_s = time.monotonic() + WAIT_S
    while time.monotonic() < end_s:
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as err:
            assert err.errno == errno.ENXIO  # noqa: PT017 - no reader yet
            time.sleep(0.01)
    raise AssertionError("no look began")


def permitted() -> bool:
    return os.geteuid() == 0


@pytest.mark.parametrize("arguments", [*ONCE.values(), *LIVE.values()], ids=[*ONCE, *LIVE])
def test_a_look_that_never_ends(fifo: Path, arguments: Sequence[str]) -> None:
    """The command ends by itself, exit code 1, nothing on stdout, and the last line says why."""
    if arguments[0] == "live" and not permitted():
        pytest.skip("live needs the privileges to look at others")
    with hanging(fifo, arguments, deadline_s=0.3) as command:
        out, err = command.communicate(timeout=WAIT_S)
    assert command.returncode == 1, err
    assert out == ""
    said = [line for line in err.splitlines() if "attaching" not in line]
    assert len(said) == 1
    assert said[0].startswith("hvprobe: a look at the node has not ended within 0.3 s: ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("arguments", [*ONCE.values(), *LIVE.values()], ids=[*ONCE, *LIVE])
def test_a_signal_ends_it_while_a_look_hangs(
    fifo: Path, arguments: Sequence[str], number: signal.Signals
) -> None:
    """At once, and nothing of it stays: no process waits for the look."""
    if arguments[0] == "live" and not permitted():
        pytest.skip("live needs the privileges to look at others")
    with hanging(fifo, arguments, deadline_s=NEVER_S) as command:
        held = wait_until_it_hangs(fifo)
        try:
            command.send_signal(number)
            out, err = command.communicate(timeout=WAIT_S)  # the end of all that hold the pipes
        finally:
            os.close(held)
    assert command.returncode == (0 if arguments in LIVE.values() else -number)
    assert (out, "Traceback" in err) == ("", False), err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_agent_that_cannot_stop(fifo: Path, number: signal.Signals) -> None:
    """It ends by itself at the deadline, exit code 1, and the last line says why."""
    with hanging(fifo, ("agent", "--listen", "127.0.0.1:0"), deadline_s=0.3) as command:
        assert command.stderr is not None
        assert "ready to be stopped" in command.stderr.readline()
        command.send_signal(number)
        _, err = command.communicate(timeout=WAIT_S)
    assert command.returncode == 1
    assert err.splitlines()[-1].endswith(
        "ERROR stopping has not ended within 0.3 s: ending at once"
    )


def test_ctrl_c(fifo: Path) -> None:
    """Sent to all processes of the terminal's group it ends them without a word."""
    with hanging(fifo, ("snapshot",), deadline_s=NEVER_S) as command:
        held = wait_until_it_hangs(fifo)
        os.killpg(command.pid, signal.SIGINT)
        assert command.communicate(timeout=WAIT_S) == ("", "")
        os.close(held)
    assert command.returncode == -signal.SIGINT


def test_a_thread_gives_what_the_work_gave() -> None:
    """Its result, its exception, and its own thread to do it in."""
    threads: list[object] = []

    def fails() -> None:
        raise KeyError("x")

    def works() -> int:
        threads.append(threading.current_thread())
        return 5

    assert within(works, deadline_s=WAIT_S) == 5
    assert threads != [threading.current_thread()]
    with pytest.raises(KeyError):
        within(fails, deadline_s=WAIT_S)


def test_waiting_for_a_thread_ends() -> None:
    """At the deadline, or when the command is to stop, whichever is first."""
    gate = threading.Event()
    with pytest.raises(RefreshTimeoutError, match=r"within 0\.1 s"):
        within(lambda: gate.wait(WAIT_S), deadline_s=0.1)
    with pytest.raises(StoppedError):
        within(lambda: gate.wait(WAIT_S), deadline_s=WAIT_S, stopped=lambda: True)
    gate.set()


def ends(code: int) -> int:
    raise SystemExit(code)


def fails() -> int:
    raise LookupError("a defect")


@pytest.mark.parametrize(
    ("work", "code", "says"),
    [
        (lambda: 0, 0, ""),
        (lambda: 2, 2, ""),
        (lambda: ends(3), 3, ""),
        (fails, 1, "LookupError: a defect"),
        (lambda: os._exit(4), 4, ""),
        (
            lambda: os.kill(os.getpid(), signal.SIGKILL),
            1,
            "hvprobe: the process that looks was ended by SIGKILL\n",
        ),
    ],
)
def test_exit_code_of_a_process_apart(
    work: Callable[[], int], code: int, says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is the command's own; an exception is shown, and a violent end is said."""
    before = signal.getsignal(signal.SIGINT)
    try:
        assert apart(work, deadline_s=WAIT_S) == code
    finally:
        signal.signal(signal.SIGINT, before)
    told = capfd.readouterr().err
    assert says in told
    assert bool(told) == bool(says)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams(closed: str) -> None:
    """The exit code gets through where the caller has closed some of them."""
    program = (
        "import sys; from probes.command.deadline import apart; "
        "sys.exit(apart(lambda: 5, deadline_s=60))"
    )
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 5


def test_a_process_apart_that_never_ends(capfd: pytest.CaptureFixture[str]) -> None:
    """It is killed at the deadline, exit code 1 and one line."""

    def never_ends() -> int:
        time.sleep(NEVER_S)
        return 0

    before = signal.getsignal(signal.SIGINT)
    try:
        assert apart(never_ends, deadline_s=0.1) == 1
    finally:
        signal.signal(signal.SIGINT, before)
    assert capfd.readouterr().err.startswith("hvprobe: no answer within 0.1 s; ")
    os.waitpid(-1, 0)
