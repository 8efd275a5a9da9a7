# SPDX-License-Identifier: Apache-2.0
"""``hvprobe doctor`` reads why the node has no KVM only where it has none, and not for ever."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from probes.command import agent, cli, examine
from probes.command.settings import NodeSettings, parse
from probes.host.kvm_support import KvmSupport
from probes.host.kvm_support_reader import KvmSupportReader
from probes.judge.accelerator_absence import Absence, AbsenceFound
from tests.support.facts import CAPABLE, KVM_ABSENT, KVM_AVAILABLE
from tests.support.rich_report import rich_report

NOT_LOADED = AbsenceFound(
    reason=Absence.NOT_LOADED, sentence="kvm_amd is not loaded", remedy="modprobe kvm_amd"
)


@pytest.fixture
def settings() -> NodeSettings:
    found = parse(["doctor", "--standalone"], {}, version="1")
    assert isinstance(found, NodeSettings)
    return found


@pytest.mark.parametrize("has_kvm", [False, True])
def test_why_is_read_where_kvm_is_absent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, has_kvm: bool
) -> None:
    """The line of KVM has the reason if the device is not registered. The exit code is the same."""
    asked: list[NodeSettings] = []

    def absence(settings: NodeSettings) -> AbsenceFound:
        asked.append(settings)
        return NOT_LOADED

    accelerator = KVM_AVAILABLE if has_kvm else KVM_ABSENT
    report = replace(rich_report(), accelerators=(accelerator,))
    monkeypatch.setattr(agent, "report_once", lambda _: report)
    monkeypatch.setattr(examine, "features", lambda _: replace(CAPABLE, kvm_device=has_kvm))
    monkeypatch.setattr(examine, "accelerator_absence", absence)
    monkeypatch.setattr(cli, "_start_logging", lambda _: None)
    code = cli.main(["doctor", "--standalone"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line[6:].startswith("KVM:")]
    assert len(asked) == (not has_kvm)
    reason = "fail  KVM: kvm_amd is not loaded (/dev/kvm: not here); modprobe kvm_amd"
    assert line == ("ok    KVM: works, provided by kvm_intel" if has_kvm else reason)
    assert code == 0


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A reader of the facts that returns only at the end of the test."""
    end = threading.Event()

    def read(self: KvmSupportReader) -> KvmSupport:
        end.wait(60)
        return self.unread("too late")

    monkeypatch.setattr(KvmSupportReader, "read", read)
    monkeypatch.setattr(examine, "ABSENCE_DEADLINE_S", 0.1)
    yield
    end.set()


@pytest.mark.timeout(20)
def test_a_file_that_blocks(stuck: None, settings: NodeSettings) -> None:
    """A file system that does not answer costs the reason, and nothing else."""
    found = examine.accelerator_absence(settings)
    assert found.reason is Absence.UNKNOWN
    assert "a file blocked for 0.1 s" in found.sentence


def test_on_this_node(settings: NodeSettings) -> None:
    """Whatever this node is, there is a reason with a remedy, one line each."""
    found = examine.accelerator_absence(settings)
    assert "\n" not in found.sentence + found.remedy
    assert found.sentence
    assert found.remedy


def test_the_hosts_proc(settings: NodeSettings, tmp_path: Path) -> None:
    """The facts come from the /proc and /sys that the flags name."""
    for name in ("proc", "sys"):
        (tmp_path / name).mkdir()
    found = examine.accelerator_absence(
        replace(settings, proc_root=tmp_path / "proc", sys_root=tmp_path / "sys")
    )
    assert found.reason in (Absence.UNKNOWN, Absence.FIRMWARE, Absence.NOT_IN_EL2)
