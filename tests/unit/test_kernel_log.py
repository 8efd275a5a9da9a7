# SPDX-License-Identifier: Apache-2.0
"""The ways to the kernel's log, with files in its place."""

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from probes.host import kernel_log
from probes.host.kernel_log import read_kernel_log, read_syslog

RECORD = "3,0,0,-;kvm: disabled by bios\n"


def refused() -> bytes:
    raise OSError(errno.EPERM, "syslog")


def test_the_first_file_that_can_be_read(tmp_path: Path) -> None:
    """Files are tried in order, before syslog(2)."""
    (tmp_path / "kmsg").write_text(RECORD)
    log = read_kernel_log((tmp_path / "nowhere", tmp_path / "kmsg"), syslog=refused)
    assert log.value is not None
    assert [message.text for message in log.value.messages] == ["kvm: disabled by bios"]
    assert log.value.complete
    assert log.text == f"{tmp_path}/kmsg was read"


def test_syslog_is_the_last_resort(tmp_path: Path) -> None:
    """Without a file syslog(2) is read."""
    log = read_kernel_log((tmp_path / "no",), syslog=lambda: b"<3>[    1.0] kvm: disabled by bios")
    assert log.value is not None
    assert [message.text for message in log.value.messages] == ["kvm: disabled by bios"]
    assert not log.value.complete


def test_nothing_can_be_read(tmp_path: Path) -> None:
    """Every way and its error is named."""
    log = read_kernel_log((tmp_path / "no",), syslog=refused)
    assert log.value is None
    assert log.text == (
        f"the kernel's log cannot be read ({tmp_path}/no: No such file or directory, "
        "syslog(2): Operation not permitted)"
    )


@pytest.mark.parametrize("kind", ["fifo", "folder"])
@pytest.mark.timeout(10)
def test_what_is_no_log_is_not_opened(tmp_path: Path, kind: str) -> None:
    """Neither a FIFO nor a folder is taken for the log, and none is waited for."""
    odd = tmp_path / "kmsg"
    if kind == "fifo":
        os.mkfifo(odd)
    else:
        odd.mkdir()
    log = read_kernel_log((odd,))
    assert log.value is None
    assert "No such device" in log.text


def test_a_large_log_is_bounded(tmp_path: Path) -> None:
    """Only so much is read, and the log is not complete then."""
    with (tmp_path / "kmsg").open("w") as file:
        file.write(RECORD)
        file.truncate(1 << 40)
    log = read_kernel_log((tmp_path / "kmsg",))
    assert log.value is not None
    assert len(log.value.messages) == 1
    assert not log.value.complete


def reads(answers: list[bytes | OSError]) -> Callable[[int, int], bytes]:
    """Make a read(2) that answers in this order, and the last answer for ever."""

    def read(fd: int, size: int) -> bytes:
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, OSError):
            raise answer
        return answer

    return read


def test_as_the_device_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that was overwritten is skipped, and the end is where a read would wait."""
    (tmp_path / "kmsg").touch()
    overwritten, end = BrokenPipeError(errno.EPIPE, ""), BlockingIOError(errno.EAGAIN, "")
    later = b"3,9,0,-;kvm: later\n"
    monkeypatch.setattr(os, "read", reads([RECORD.encode(), overwritten, later, end]))
    log = read_kernel_log((tmp_path / "kmsg",))
    assert log.value is not None
    assert [message.text for message in log.value.messages] == [
        "kvm: disabled by bios",
        "kvm: later",
    ]
    assert log.value.complete


@pytest.mark.parametrize("answer", [RECORD.encode(), BrokenPipeError(errno.EPIPE, "")])
@pytest.mark.timeout(20)
def test_a_log_without_end_has_a_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes | OSError
) -> None:
    """A log that grows as fast as it is read ends at the deadline."""
    (tmp_path / "kmsg").touch()
    monkeypatch.setattr(kernel_log, "DEADLINE_S", 0.05)
    monkeypatch.setattr(kernel_log, "MAX_BYTES", 1 << 50)
    monkeypatch.setattr(os, "read", reads([answer]))
    began_s = time.monotonic()
    log = read_kernel_log((tmp_path / "kmsg",))
    assert time.monotonic() - began_s < 5
    assert log.value is not None
    assert not log.value.complete


@pytest.mark.timeout(10)
def test_the_real_log() -> None:
    """On this machine the log is read or refused, without waiting, and with a reason."""
    log = read_kernel_log((Path("/dev/kmsg"), Path("/proc/1/root/dev/kmsg")), syslog=read_syslog)
    assert "\n" not in log.text
    assert (log.value is None) == log.text.startswith("the kernel's log cannot be read (")
