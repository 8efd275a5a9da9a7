# SPDX-License-Identifier: Apache-2.0
"""The ledger is opened as one: what was opened before a failure is released."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ebpf.errors import AttachCause, AttachError, BpfUnavailableError
from ebpf.hooks import AttachPoint, Backend
from ebpf.session import Session


@dataclass(slots=True, kw_only=True)
class Opened:
    """Stands for loaded programs and for tables, and counts how often each was closed."""

    fails: Exception | None = None
    """What attaching a program raises."""
    flags: Sequence[str] = ()
    closed: list[str] = field(default_factory=list)

    def map_fd(self, name: str) -> int:
        raise AssertionError(name)

    def attach(self, point: AttachPoint, program: str) -> None:
        if self.fails is not None:
            raise self.fails

    def check_reachable(self, point: AttachPoint) -> None:
        pass

    def close(self) -> None:
        self.closed.append("programs")


class FakeTables:
    """Tables of which only the number of forks is asked for."""

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
    """On a node of three CPUs without KVM, whose process numbers end at 4 pages of marks."""
    for name, text in (("sys/devices/system/cpu/possible", "0-2\n"), ("proc/pid_max", "16383\n")):
        file = root / name.replace("proc/", "proc/sys/kernel/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return Session(capacity=8, sys_root=root / "sys", proc_root=root / "proc")


def test_all_is_released_once(opened: Opened, tmp_path: Path) -> None:
    """However often it is closed."""
    with session(tmp_path) as made:
        assert opened.closed == []
        assert any(it.backend is Backend.TRACEPOINT for it in made.hooks)
    made.close()
    assert sorted(opened.closed) == ["programs", "tables"]
    assert {"-DLEDGER_CPUS=3", "-DLIFE_PAGES=4", "-DSCHED_PROCESS_FREE_PID=8"} <= {*opened.flags}


def test_without_any_hook_nothing_stays(opened: Opened, tmp_path: Path) -> None:
    """The last reason is in the error."""
    opened.fails = AttachError("raw_tracepoint x", AttachCause.NOT_PERMITTED, "not permitted")
    with pytest.raises(BpfUnavailableError, match="no hook can be attached"):
        session(tmp_path)
    assert sorted(opened.closed) == ["programs", "tables"]


def test_an_unexpected_error_leaves_nothing_either(opened: Opened, tmp_path: Path) -> None:
    """It is not hidden."""
    opened.fails = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        session(tmp_path)
    assert sorted(opened.closed) == ["programs", "tables"]


def test_programs_without_tables_are_released(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables that cannot be mapped are the end of the ledger, in one line."""

    def refuse(*_: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("ebpf.session.Tables", refuse)
    with pytest.raises(BpfUnavailableError, match=r"tables cannot be used: .*allocate"):
        session(tmp_path)
    assert opened.closed == ["programs"]


@pytest.mark.parametrize("missing", ["sys/devices", "proc/sys"])
def test_a_node_of_unknown_size_loads_nothing(opened: Opened, tmp_path: Path, missing: str) -> None:
    """The number of CPUs and the greatest process number come before the compiler."""
    session(tmp_path).close()
    opened.closed.clear()
    (tmp_path / missing).rename(tmp_path / "elsewhere")
    with pytest.raises(BpfUnavailableError, match="how many CPUs and processes"):
        Session(sys_root=tmp_path / "sys", proc_root=tmp_path / "proc")
    assert opened.closed == []
