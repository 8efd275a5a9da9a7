# SPDX-License-Identifier: Apache-2.0
"""Process numbers at which a life begins: each fork and each exec is in exactly one answer."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ebpf.hooks import SCHED_PROCESS_EXEC, SCHED_PROCESS_EXIT, SCHED_PROCESS_FORK, Backend, Hook
from ebpf.ledger import LIFE_BYTES
from ebpf.session import Session
from tests.support.kernel_ledger import only, wait_for_removal
from tests.support.kernel_numbers import Owners
from tests.support.kernel_world import EMULATED, KvmLoad, Started, wait_for

pytestmark = pytest.mark.host_only

FORKS = 50 if EMULATED else 300
FORKING = """
import os, sys
for _ in range(int(sys.argv[1])):
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    print(child, flush=True)
"""


@pytest.fixture
def session() -> Iterator[Session]:
    with Session() as opened:
        if opened.new_lives() is None:
            pytest.skip("there is no tracefs")
        yield opened


def lives(session: Session) -> frozenset[int]:
    found = session.new_lives()
    assert found is not None
    return found


def test_a_fork_and_an_exec_begin_separate_lives(session: Session) -> None:
    """A process begins a life when it is forked and another when it executes a program.

    Its end is reported as well.
    """
    with Started(["sh", "-c", "echo forked; read line; exec sleep 1000"]) as process:
        assert process.line() == "forked\n"
        assert process.tgid in lives(session)
        assert process.tgid not in lives(session)
        process.say("\n")
        wait_for(lambda: process.tgid in lives(session), "it has executed sleep")
    assert process.tgid in lives(session), "it has ended"
    assert process.tgid not in lives(session)


def test_a_fork_without_exec_and_a_thread(session: Session) -> None:
    """Both are reported, because processes and threads share numbers and can reuse each other's."""
    with Owners() as owners:
        lives(session)
        assert owners.start(1) in lives(session)
    thread = threading.Thread(target=lambda: None)
    thread.start()
    assert thread.native_id in lives(session)
    thread.join()


def test_no_life_is_missed_while_they_are_read(session: Session) -> None:
    """Each of many forks is in an answer, however often the lives are read at the same time.

    On an emulated processor a read may fall between the two programs that count a fork. Its answer
    is then that the lives are unknown.
    """
    answers: list[frozenset[int] | None] = []
    with subprocess.Popen(
        [sys.executable, "-c", FORKING, str(FORKS)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        made = []
        for line in process.stdout:
            answers.append(session.new_lives())
            made.append(int(line))
    answers.append(session.new_lives())
    assert len(made) == FORKS
    assert EMULATED or None not in answers
    assert None in answers or set(made) <= frozenset().union(*(answer or () for answer in answers))


@pytest.mark.parametrize(
    "hook", [SCHED_PROCESS_FORK, SCHED_PROCESS_EXEC], ids=lambda hook: hook.name
)
def test_without_a_hook_lives_are_unknown(hook: Hook) -> None:
    """Without a hook of forks or execs the answer is None, not the empty set."""
    with Session(hooks=only(hook)) as session:
        assert session.new_lives() is None


def test_a_form_that_may_be_skipped_is_not_sufficient() -> None:
    """Lives are unknown if the hook of execs has only the raw form, which may be skipped."""
    points = SCHED_PROCESS_EXEC.points
    (raw,) = [point for point in points if point.backend is Backend.RAW_TRACEPOINT]
    with Session(hooks=only(SCHED_PROCESS_EXEC, raw)) as session:
        assert any(status.backend is Backend.RAW_TRACEPOINT for status in session.hooks)
        assert session.new_lives() is None


def test_a_fork_that_is_skipped_is_noticed(session: Session) -> None:
    """Lives are unknown when the program did not run, here because it was detached.

    Later lives are known again.
    """
    classic = SCHED_PROCESS_FORK.points[0]
    assert session.new_lives() is not None
    session._programs.detach(classic)
    with Started(["sleep", "1000"]):
        assert session.new_lives() is None
    session._programs.attach(classic, SCHED_PROCESS_FORK.program)
    wait_for(lambda: session.new_lives() is not None, "lives are known again")


def test_an_exec_and_an_end_are_not_skipped(session: Session, kvmload: Path) -> None:
    """Without the classic form the raw form still reports an exec as a life, and an end."""
    for hook in (SCHED_PROCESS_EXEC, SCHED_PROCESS_EXIT):
        session._programs.detach(hook.points[0])
    arguments = ("--userspace-exits", "7", "--", "sleep", "1000")
    with KvmLoad(kvmload, *arguments).finish_counted_part() as load:
        lives(session)
        assert load.tgid in session.read().entries
        load.say("go on\n")
        wait_for(lambda: load.tgid in lives(session), "it has executed sleep")
        assert load.tgid not in session.read().entries
    with KvmLoad(kvmload, "--userspace-exits", "7").finish_counted_part() as load:
        assert load.tgid in session.read().entries
    wait_for_removal(session, load.tgid)


def test_numbers_beyond_the_table_are_unknown(tmp_path: Path) -> None:
    """Lives are unknown after kernel.pid_max is raised beyond the table."""
    pid_max = tmp_path / "sys/kernel/pid_max"
    pid_max.parent.mkdir(parents=True)
    pid_max.write_text(f"{os.getpid() // LIFE_BYTES * LIFE_BYTES + 1}\n")
    with Session(proc_root=tmp_path) as session:
        if session.new_lives() is None:
            pytest.skip("there is no tracefs")
        with Started(["sleep", "1000"]) as process:
            if process.tgid // LIFE_BYTES == os.getpid() // LIFE_BYTES:
                assert process.tgid in lives(session)
        pid_max.write_text(f"{(os.getpid() // LIFE_BYTES + 1) * LIFE_BYTES}\n")
        assert session.new_lives() is not None, "the table's last page has room for these"
        pid_max.write_text("4194304\n")
        assert session.new_lives() is None
