# SPDX-License-Identifier: Apache-2.0
"""Refreshes that never end: the command exits at the deadline, and at once on a signal."""

import contextlib
import errno
import os
import resource
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
from probes.command.sessions import Sessions

deadline_s, fifo, *arguments = sys.argv[1:]

def hang(_):
    with open(fifo) as held:
        held.read()
    raise AssertionError("the refresh has ended")

class Detaching:
    hooks = ()
    bcc_version = ""
    close = hang

    def need(self, hooks):
        pass

class Server(agent.Server):
    async def start(self, *arguments, **named):
        await super().start(*arguments, **named)
        print("ready to be stopped", file=sys.stderr, flush=True)

if arguments[0] == "agent":
    opened = {"ledger": Detaching(), "error": None}
else:
    opened = {"ledger": None, "error": BpfUnavailableError("not in this test")}
agent.open_sessions = lambda _: Sessions(**opened, statistics=None)
agent.Server = Server
agent.NodeCollector.refresh = hang
agent.STOP_DEADLINE_S = agent.REFRESH_DEADLINE_S = show.REFRESH_DEADLINE_S = float(deadline_s)
sys.exit(cli.main([*arguments, "--standalone", "--log-level", "error"], apart=True))
"""
"""A command whose refreshes wait for a FIFO that gets no writer."""
ONCE = {
    "doctor": ("doctor",),
    "doctor as JSON": ("doctor", "--json"),
    "snapshot": ("snapshot",),
    "why": ("why", "default/alpha"),
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
        # A shell makes its background jobs ignore SIGINT, and the tests may be such a job.
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
    """A descriptor that, while it is open, blocks the refresh that reads the FIFO."""
    end_s = time.monotonic() + WAIT_S
    while time.monotonic() < end_s:
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as err:
            assert err.errno == errno.ENXIO  # noqa: PT017 - no reader yet
            time.sleep(0.01)
    raise AssertionError("no refresh began")


def permitted() -> bool:
    return os.geteuid() == 0


@pytest.mark.parametrize("arguments", [*ONCE.values(), *LIVE.values()], ids=[*ONCE, *LIVE])
def test_a_refresh_that_never_ends(fifo: Path, arguments: Sequence[str]) -> None:
    """The command exits with code 1, nothing on stdout and a line that names the deadline."""
    if arguments[0] == "live" and not permitted():
        pytest.skip("live needs the privileges to read other processes")
    with hanging(fifo, arguments, deadline_s=0.3) as command:
        out, err = command.communicate(timeout=WAIT_S)
    assert command.returncode == 1, err
    assert out == ""
    (line,) = [line for line in err.splitlines() if "attaching" not in line]
    assert line.startswith("hvprobe: the refresh has not finished within 0.3 s: ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("arguments", [*ONCE.values(), *LIVE.values()], ids=[*ONCE, *LIVE])
def test_a_signal_ends_the_command_while_a_refresh_hangs(
    fifo: Path, arguments: Sequence[str], number: signal.Signals
) -> None:
    """A signal ends the command at once, and no process remains that waits for the refresh."""
    if arguments[0] == "live" and not permitted():
        pytest.skip("live needs the privileges to read other processes")
    with hanging(fifo, arguments, deadline_s=NEVER_S) as command:
        held = wait_until_it_hangs(fifo)
        try:
            command.send_signal(number)
            out, err = command.communicate(
                timeout=WAIT_S
            )  # all processes that hold the pipes have ended
        finally:
            os.close(held)
    assert command.returncode == (0 if arguments in LIVE.values() else -number)
    assert (out, "Traceback" in err) == ("", False), err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_agent_that_cannot_stop(fifo: Path, number: signal.Signals) -> None:
    """The agent exits with code 1 at the deadline, and its last line says why."""
    with hanging(fifo, ("agent", "--listen", "127.0.0.1:0"), deadline_s=0.3) as command:
        assert command.stderr is not None
        assert "ready to be stopped" in command.stderr.readline()
        command.send_signal(number)
        _, err = command.communicate(timeout=WAIT_S)
    assert command.returncode == 1
    assert err.splitlines()[-1].endswith(
        "ERROR shutdown has not finished within 0.3 s: exiting now"
    )


def test_ctrl_c(fifo: Path) -> None:
    """Ctrl-C, sent to all processes of the terminal's group, ends them without output."""
    with hanging(fifo, ("snapshot",), deadline_s=NEVER_S) as command:
        held = wait_until_it_hangs(fifo)
        os.killpg(command.pid, signal.SIGINT)
        assert command.communicate(timeout=WAIT_S) == ("", "")
        os.close(held)
    assert command.returncode == -signal.SIGINT


def test_the_result_of_work_in_a_thread() -> None:
    """The work runs in its own thread, and the caller gets its result or its exception."""
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
    """The caller waits until the deadline or until the command is to stop."""
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
            "hvprobe: the process that reads the node was ended by SIGKILL\n",
        ),
    ],
)
def test_exit_code_of_a_process_apart(
    work: Callable[[], int], code: int, says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The exit code is the work's own. An exception or a fatal signal is reported on stderr."""
    before = signal.getsignal(signal.SIGINT)
    try:
        assert apart(work, deadline_s=WAIT_S) == code
    finally:
        signal.signal(signal.SIGINT, before)
    output = capfd.readouterr().err
    assert says in output
    assert bool(output) == bool(says)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams(closed: str) -> None:
    """The exit code is correct even if the caller closed some of the standard streams."""
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


def test_a_process_apart_beside_many_descriptors() -> None:
    """A descriptor above 1023, which select(2) cannot wait for, is waited for as any other."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    with contextlib.ExitStack() as held:
        held.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for _ in range(1024):
            held.callback(os.close, os.open("/", os.O_PATH))
        assert apart(lambda: 5, deadline_s=WAIT_S) == 5


def test_a_process_apart_that_never_ends(capfd: pytest.CaptureFixture[str]) -> None:
    """The process is killed at the deadline, with exit code 1 and one line."""

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
