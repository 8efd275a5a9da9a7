# SPDX-License-Identifier: Apache-2.0
"""Which programs a command loads, and what it does without."""

import logging
import os

import pytest

from ebpf.errors import BpfUnavailableError
from probes.command import sessions
from probes.command.sessions import open_sessions
from probes.command.settings import NodeSettings, parse
from probes.host.vcpu_counts import STATISTICS


class Double:
    """A session that can be loaded, and remembers how."""

    def __init__(self, **asked: object) -> None:
        self.asked = asked
        self.closed = False
        self.hooks = ()
        self.capacity = self.cpus = 1
        self.memory_bytes = 1 << 20

    def close(self) -> None:
        self.closed = True


def double(session: object) -> Double:
    """A session that was loaded."""
    assert isinstance(session, Double)
    return session


def refuse(why: str, **_: object) -> None:
    """What a session does that cannot be loaded."""
    raise BpfUnavailableError(why, refused=True)


def settings(*arguments: str) -> NodeSettings:
    found = parse([*arguments, "--standalone"], os.environ, version="1")
    assert isinstance(found, NodeSettings)
    return found


@pytest.fixture(autouse=True)
def doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "Session", Double)
    monkeypatch.setattr(sessions, "StatisticsSession", Double)
    monkeypatch.setattr(sessions, "in_initial_pid_namespace", lambda: True)


@pytest.mark.parametrize(
    ("arguments", "counts"),
    [
        (("agent",), 1),
        (("agent", "--vcpu-stats"), 1 + len(STATISTICS)),
        (("live",), 1 + len(STATISTICS)),
        (("live", "--once"), None),
        (("snapshot",), None),
        (("doctor",), None),
    ],
)
def test_a_command_that_refreshes_often_reads_in_memory(
    arguments: tuple[str, ...], counts: int | None
) -> None:
    """It has room for what it reads of each vCPU; all are closed at the end."""
    found = open_sessions(settings(*arguments))
    loaded = [double(found.ledger)]
    if counts is None:
        assert found.statistics is None
    else:
        loaded.append(double(found.statistics))
        assert loaded[-1].asked["counts"] == counts
    found.close()
    assert all(each.closed for each in loaded)


def test_what_cannot_be_loaded_is_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each is there without the other one, and the log has one line with the reason.

    The line of the ledger comes first, because most is missing without it.
    """
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(sessions, "StatisticsSession", lambda **_: refuse("no such function"))
    found = open_sessions(settings("agent"))
    double(found.ledger)
    assert (found.error, found.statistics) == (None, None)
    copies = "KVM's statistics are read through copies of descriptors: no such function"
    assert copies in caplog.messages
    monkeypatch.setattr(sessions, "StatisticsSession", Double)
    monkeypatch.setattr(sessions, "Session", lambda **_: refuse("no hook"))
    found = open_sessions(settings("agent"))
    assert found.ledger is None
    assert str(found.error) == "no hook"
    double(found.statistics)
    in_memory = "KVM's statistics are read in the kernel's memory: room for 1 vCPUs, 1.0 MiB"
    assert in_memory in caplog.messages
    found.close()
    caplog.clear()
    monkeypatch.setattr(sessions, "StatisticsSession", lambda **_: refuse("no BPF"))
    open_sessions(settings("agent"))
    assert [message.rpartition(": ")[0] for message in caplog.messages] == [
        sessions.WITHOUT_BPF,
        "KVM's statistics are read through copies of descriptors",
    ]


def test_nothing_is_loaded_in_another_pid_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's numbers of processes would be those of others."""
    monkeypatch.setattr(sessions, "in_initial_pid_namespace", lambda: False)
    found = open_sessions(settings("agent"))
    assert (found.ledger, found.statistics) == (None, None)
    assert "hostPID: true" in str(found.error)
