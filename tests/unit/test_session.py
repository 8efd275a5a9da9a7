# SPDX-License-Identifier: Apache-2.0
"""The ledger opens completely or not at all: a failure releases everything opened before it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ebpf.errors import AttachCause, AttachError, BpfUnavailableError
from ebpf.hook_set import HookSet
from ebpf.hooks import KVM_EXIT, AttachPoint, Backend
from ebpf.session import Session


@dataclass(slots=True, kw_only=True)
class Opened:
    """A fake of loaded programs that records each time they or the tables are closed."""

    fails: Exception | None = None
    """The exception that attaching a program raises."""
    flags: Sequence[str] = ()
    closed: list[str] = field(default_factory=list)
    detached: list[str] = field(default_factory=list)
    missed: dict[tuple[str, Backend], int] = field(default_factory=dict)
    """Runs that the kernel has skipped, by program; empty: it does not count them."""

    def map_fd(self, name: str) -> int:
        raise AssertionError(name)

    def attach(self, point: AttachPoint, program: str) -> None:
        if self.fails is not None:
            raise self.fails

    def check_reachable(self, point: AttachPoint) -> None:
        pass

    def detach(self, point: AttachPoint) -> None:
        self.detached.append(point.target)

    def missed_total(self, programs: Iterable[tuple[str, Backend]]) -> int | None:
        skipped = sum(self.missed.get(program, 0) for program in programs)
        return skipped if self.missed else None

    def close(self) -> None:
        self.closed.append("programs")


class FakeLives:
    """A fake of the marks: no life has begun or ended."""

    numbers = 1 << 14

    def take(self) -> frozenset[int]:
        return frozenset()


class FakeTables:
    """A fake of tables that only has the number of forks and the marks of lives."""

    lives = FakeLives()

    def __init__(self, opened: Opened) -> None:
        self._opened = opened

    def unmarked_forks(self) -> int:
        return 0

    def close(self) -> None:
        self._opened.closed.append("tables")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    made = Opened()

    def load(_: Sequence[str], flags: Sequence[str], **__: object) -> Opened:
        made.flags = flags
        return made

    monkeypatch.setattr("ebpf.session.Programs", load)
    monkeypatch.setattr("ebpf.session.Tables", lambda *_: FakeTables(made))
    return made


def session(root: Path) -> Session:
    """A session on a node with 3 CPUs, without KVM and with 4 pages of process numbers."""
    for name, text in (("sys/devices/system/cpu/possible", "0-2\n"), ("proc/pid_max", "16383\n")):
        file = root / name.replace("proc/", "proc/sys/kernel/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return Session(capacity=8, sys_root=root / "sys", proc_root=root / "proc")


def test_everything_is_released_once(opened: Opened, tmp_path: Path) -> None:
    """Programs and tables are closed once, however often the session is closed."""
    with session(tmp_path) as made:
        assert opened.closed == []
        assert any(status.backend is Backend.TRACEPOINT for status in made.hooks)
    made.close()
    assert sorted(opened.closed) == ["programs", "tables"]
    assert {"-DLEDGER_CPUS=3", "-DLIFE_PAGES=4", "-DSCHED_PROCESS_FREE_PID=8"} <= {*opened.flags}


def test_without_any_hook_everything_is_released(opened: Opened, tmp_path: Path) -> None:
    """If no hook can be attached, programs and tables are closed and the session raises."""
    opened.fails = AttachError("raw_tracepoint x", AttachCause.NOT_PERMITTED, "not permitted")
    with pytest.raises(BpfUnavailableError, match="no hook can be attached"):
        session(tmp_path)
    assert sorted(opened.closed) == ["programs", "tables"]


def test_a_hook_that_nothing_needs_hides_no_failure(opened: Opened, tmp_path: Path) -> None:
    """The session raises the reason of a hook that could not be attached, with KVM present too."""
    (tmp_path / "sys/class/misc/kvm").mkdir(parents=True)
    opened.fails = AttachError("raw_tracepoint x", AttachCause.NOT_PERMITTED, "not permitted")
    with pytest.raises(BpfUnavailableError, match="no hook can be attached: tracepoint sched:"):
        session(tmp_path)


def test_a_session_attaches_what_is_needed(opened: Opened, tmp_path: Path) -> None:
    """A hook on demand is attached and detached in a session without loading anything again."""
    (tmp_path / "sys/class/misc/kvm").mkdir(parents=True)
    with session(tmp_path) as made:
        found = {status.hook: status for status in made.hooks}
        assert found[KVM_EXIT].unneeded
        made.need([KVM_EXIT])
        assert {status.hook: status for status in made.hooks}[KVM_EXIT].attached
        made.need(())
        assert {status.hook: status for status in made.hooks}[KVM_EXIT].unneeded
    assert opened.detached == ["kvm_exit"]


@pytest.mark.parametrize("program", ["fork", "exec", "exit"])
def test_a_skipped_life_is_said_once(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    """If the kernel skipped the program for a life, no list of lives is complete, until the next.

    What it skipped before the session, for another hook, or of a form that stands beside, does not
    matter.
    """
    monkeypatch.setattr(HookSet, "lives_are_followed", True)
    marking = (f"on_sched_process_{program}", Backend.TRACEPOINT)
    opened.missed = {marking: 3}
    with session(tmp_path) as made:
        assert made.new_lives() == frozenset()
        opened.missed["on_kvm_exit", Backend.TRACEPOINT] = 9
        opened.missed[marking[0], Backend.RAW_TRACEPOINT] = 9
        assert made.new_lives() == frozenset()
        opened.missed[marking] = 4
        assert made.new_lives() is None
        assert made.new_lives() == frozenset()


def test_an_unexpected_error_releases_everything(opened: Opened, tmp_path: Path) -> None:
    """The error is raised unchanged after programs and tables are closed."""
    opened.fails = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        session(tmp_path)
    assert sorted(opened.closed) == ["programs", "tables"]


def test_programs_without_tables_are_released(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the tables cannot be mapped, the programs are closed and the error says so."""

    def refuse(*_: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("ebpf.session.Tables", refuse)
    with pytest.raises(BpfUnavailableError, match=r"tables cannot be used: .*allocate"):
        session(tmp_path)
    assert opened.closed == ["programs"]


@pytest.mark.parametrize("missing", ["sys/devices", "proc/sys"])
def test_a_node_of_unknown_size_loads_nothing(opened: Opened, tmp_path: Path, missing: str) -> None:
    """If the number of CPUs or processes is unknown, the session raises and loads nothing."""
    session(tmp_path).close()
    opened.closed.clear()
    (tmp_path / missing).rename(tmp_path / "elsewhere")
    with pytest.raises(BpfUnavailableError, match="how many CPUs and processes"):
        Session(sys_root=tmp_path / "sys", proc_root=tmp_path / "proc")
    assert opened.closed == []
