# SPDX-License-Identifier: Apache-2.0
"""The live view's frames equal a golden one, and are correct for any report, size and name."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from ebpf.exit_reasons.reasons import Isa, ReasonCount
from ebpf.hook_status import unattached
from ebpf.hooks import HOOKS, KVM_EXIT, KVM_VCPU_IOCTL
from probes.host.hypervisors import HypervisorType
from probes.judge.reasons import Reason, Severity
from probes.render.live.columns import age, bars, number
from probes.render.live.frame_data import FrameData, TerminalSize
from probes.render.live.frames import frame_json, plain
from probes.render.live.history import History
from probes.render.live.options import Selection
from probes.render.live.rows import Order, ordered, rows_of
from probes.render.live.view import ViewState
from probes.report.model import CounterTrust, NodeReport
from probes.vmi.model import WatchStatus
from tests.support.facts import trusts
from tests.support.live_app import screen_of
from tests.support.live_frames import parts, shown, text
from tests.support.live_reports import KVM, LIAR, RUNNING, busy_node, guest, report, scene
from tests.support.rich_report import NONE, PAUSED, TCG, rich_report, vmi

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


@pytest.mark.parametrize(
    ("name", "size", "ascii_only"),
    [
        ("live_80x24.txt", (80, 24), False),
        ("live_160x24.txt", (160, 24), False),
        ("live_80x24_ascii.txt", (80, 24), True),
    ],
)
def test_golden_screen(name: str, size: tuple[int, int], *, ascii_only: bool) -> None:
    """The screen of a node that has every case equals the golden one.

    After an intended change, run the test with HVPROBE_UPDATE_GOLDEN=1 and read the difference.
    """
    found = screen_of(scene(*busy_node()), size=size, ascii_only=ascii_only)
    if os.environ.get("HVPROBE_UPDATE_GOLDEN") == "1":
        (GOLDEN / name).write_text(found)
    assert found == (GOLDEN / name).read_text()


def test_golden_plain_table() -> None:
    """Output to a pipe is complete and never cut."""
    lines = plain(scene(*busy_node()), width=None, ascii_only=False)
    assert text(lines) == (GOLDEN / "live_plain.txt").read_text()


names = st.text(st.characters(), max_size=40)
hostile = st.one_of(
    names,
    st.text("\x00\x1b\x7f\x9b\n\r\t\u202e\u2066\u200d\u0301\ufe0f日👍🏽🇩שمa[31m", max_size=40),
)


@given(
    comms=st.lists(st.tuples(hostile, hostile), max_size=6),
    words=hostile,
    width=st.integers(1, 240),
    height=st.integers(1, 50),
    ascii_only=st.booleans(),
)
def test_lines_fit_any_terminal(
    comms: Sequence[tuple[str, str]], words: str, width: int, height: int, *, ascii_only: bool
) -> None:
    """No name makes a line exceed the terminal or contain unprintable characters."""
    guests = [
        guest(number, KVM, comm=comm, guest_name=name)
        for number, (comm, name) in enumerate(comms, 1)
    ]
    size = TerminalSize(width=width, height=height, ascii_only=ascii_only)
    of = scene(report(1, *guests))
    for view in (ViewState(), ViewState(words=words)):
        for line in parts(of, view, size):
            assert line.plain.isprintable()
            assert cell_len(line.plain) <= width
            assert line.plain.isascii() or not ascii_only


@given(comm=hostile, name=hostile)
def test_columns_stay_in_place(comm: str, name: str) -> None:
    """A name never moves the columns after it, in a table of any width."""
    guests = [guest(1, KVM, comm=comm, guest_name=name or None), guest(2, KVM, guest_name="plain")]
    for width in (80, None):
        lines = plain(scene(report(1, *guests)), width=width, ascii_only=False)
        heading, *rows = (line.plain for line in lines[2:])
        at = cell_len(heading[: heading.index("TYPE")])
        for row in rows:
            before = next(i for i in range(len(row)) if cell_len(row[:i]) == at)
            assert row[before:].startswith("kvm ")


def test_the_most_urgent_comes_first() -> None:
    """Rows are ordered: contradiction, fallback, unknown, not verified, then the rest by name.

    A capability probe is among the rest.
    """
    rows = ordered(rows_of(busy_node()[-1], History()), Order.SEVERITY)
    assert [row.severity for row in rows[:4]] == [*Severity][:4]
    assert [row.name for row in rows[:4]] == [
        "default/liar",
        "default/beta",
        "default/zeta",
        "lab paused",
    ]
    assert {row.severity for row in rows[4:]} == {Severity.FINE}


def test_orders() -> None:
    """Sorting by exits puts the busiest VM first; type and name sort in order."""
    of = scene(*busy_node())
    rows = rows_of(of.report, of.history)
    assert [row.tgid for row in ordered(rows, Order.EXITS)][:2] == [4194301, 4711]
    kinds = [row.verdict.type.value for row in ordered(rows, Order.TYPE)]
    assert kinds == sorted(kinds)
    labels = [row.name for row in ordered(rows, Order.NAME)]
    assert labels == sorted(labels)


@given(rows=st.permutations(list(range(8))))
def test_order_does_not_depend_on_what_came_first(rows: list[int]) -> None:
    """Equal rows keep their order from frame to frame."""
    guests = [guest(number, KVM) for number in range(1, 9)]
    seen = rows_of(report(1, *guests), History())
    for order in Order:
        assert ordered([seen[i] for i in rows], order) == ordered(seen, order)


@pytest.mark.parametrize(
    ("words", "tgids"),
    [
        ("ALPHA", {4711}),
        ("tcg", {4800}),
        ("fallback", {4800}),
        ("KubeVirt created", {4800}),
        ("remove useEmulation", {4800}),
        ("4194301", {4194301}),
        ("kvm default", {4711, 5000}),
        ("nothing has this", set()),
    ],
)
def test_filter(words: str, tgids: set[int]) -> None:
    """A row matches if it contains every word, in upper or lower case."""
    of = scene(*busy_node())
    assert {row.tgid for row in rows_of(of.report, of.history) if row.matches(words)} == tgids


def test_rates() -> None:
    """A rate is the events between two reports per second; the first report has no rates."""
    first = report(0, guest(1, KVM, runs=10, userspace_exits=5, exits=None))
    second = report(2, guest(1, KVM, runs=110, userspace_exits=6, exits=None))
    history = History()
    history.add(first)
    vmm = first.processes[0].vmm
    assert history.rates(vmm).get("runs") is None
    history.add(second)
    rates = history.rates(vmm)
    assert (rates.get("runs"), rates.get("userspace_exits"), rates.get("exits")) == (
        50.0,
        0.5,
        None,
    )
    history.add(report(3, guest(1, KVM, runs=7, userspace_exits=6, exits=4)))
    rates = history.rates(vmm)
    assert (rates.get("runs"), rates.get("userspace_exits"), rates.get("exits")) == (
        None,
        0.0,
        None,
    )
    history.add(report(4))
    history.add(report(5, guest(1, KVM, runs=9, userspace_exits=6, exits=4)))
    assert history.rates(vmm).get("runs") is None


def test_last_minute() -> None:
    """The last minute shows the mean of each part, and blanks before the first report."""
    looks = [report(second, guest(1, KVM, exits=10 * min(second, 70))) for second in range(91)]
    history = scene(*looks).history
    vmm = looks[0].processes[0].vmm
    assert history.minute(vmm, 6) == (10.0, 10.0, 10.0, 10.0, 0.0, 0.0)
    history = scene(*looks[:21]).history
    assert history.minute(vmm, 6) == (None, None, None, None, 10.0, 10.0)


@pytest.mark.parametrize("interval_s", [0.1, 0.25, 1.0, 5.0])
def test_last_minute_at_any_interval(interval_s: float) -> None:
    """A steady rate looks the same at any interval between reports."""
    looks = [
        report(i * interval_s, guest(1, KVM, exits=round(100 * i * interval_s)))
        for i in range(int(60 / interval_s) + 1)
    ]
    shown_rates = scene(*looks).history.minute(looks[0].processes[0].vmm, 4)
    assert all(rate is not None and 95 < rate < 105 for rate in shown_rates)


@pytest.mark.parametrize(
    ("value", "shown_as"),
    [
        (None, "-"),
        (0, "0"),
        (0.54, "0.5"),
        (9.97, "10"),
        (9999.4, "9999"),
        (9999.5, "10k"),
        (1234567, "1235k"),
        (9_999_600, "10M"),
        (5e18, "5000P"),
    ],
)
def test_number(value: float | None, shown_as: str) -> None:
    """A number has at most six cells, including its unit."""
    assert number(value) == shown_as


@pytest.mark.parametrize(
    ("seconds", "shown_as"),
    [
        (None, "-"),
        (0.9, "0s"),
        (59.9, "59s"),
        (60, "1m"),
        (3599, "59m"),
        (7200, "2h"),
        (9e9, "999d"),
    ],
)
def test_age(seconds: float | None, shown_as: str) -> None:
    """An age is shown in the largest unit of which at least one has passed."""
    assert age(seconds) == shown_as


def test_bars() -> None:
    """Bars are relative to the highest value; unknown is blank, and 0 is the lowest bar."""
    assert bars([None, 0, 1, 2], ascii_only=False) == " ▁▅█"
    assert bars([0, 0], ascii_only=False) == "▁▁"
    assert bars([], ascii_only=False) == ""
    assert bars([0, 7], ascii_only=True).isascii()


def test_short_reasons_fit() -> None:
    """The short form of every reason fits the narrowest column."""
    assert [reason for reason in Reason if not 0 < len(reason.short) <= 12] == []


@pytest.mark.parametrize(
    ("trust", "says"),
    [
        (CounterTrust.BLIND, "unavailable: this kernel never fires kvm_exit"),
        (CounterTrust.MISSING, "the hook kvm_exit is not attached"),
        (CounterTrust.UNTRIED, "no VM has triggered it yet"),
    ],
)
def test_says_what_it_cannot_tell(trust: CounterTrust, says: str) -> None:
    """The header gives the reason for an empty column and for missing exit reasons."""
    seen = report(1, guest(1, KVM, userspace_exits=3))
    seen = replace(seen, health=replace(seen.health, trusts=trusts(exits=trust)))
    assert says in shown(scene(seen))
    asked = replace(scene(seen), reasons={})
    note = re.search(
        "^exit reasons.*", text(plain(asked, width=None, ascii_only=False)), re.MULTILINE
    )
    assert note is not None
    assert ("unavailable" in note[0]) is (trust is not CounterTrust.UNTRIED)


def test_no_bpf() -> None:
    """Without BPF, the first note of the header says so."""
    seen = report(1, guest(1, PAUSED))
    lost = replace(seen.health, ledger_error="no bcc", hooks=unattached("no bcc"))
    found = shown(scene(replace(seen, health=lost)))
    assert "no BPF, types are only inferred: no bcc" in found
    assert "hooks 0/" in found


def test_missed_runs_are_in_the_header() -> None:
    """The header counts runs that the kernel skipped, once it has skipped any, and says why."""
    seen = report(1, guest(1, KVM))
    assert "missed" not in shown(scene(seen))
    skipped = tuple(
        replace(status, missed_total=3 if status.hook in (KVM_EXIT, KVM_VCPU_IOCTL) else 0)
        for status in seen.health.hooks
    )
    found = shown(scene(replace(seen, health=replace(seen.health, hooks=skipped))))
    assert f"hooks {len(HOOKS)}/{len(HOOKS)} missed 6  ledger" in found
    assert "missed runs: the kernel skipped runs, so what these hooks count is too low" in found


def test_an_inactive_hook_is_not_missing() -> None:
    """The header counts only hooks that should be attached, and no note excuses a column."""
    seen = report(1, guest(1, KVM, exits=7))
    idle = tuple(
        status.not_needed() if status.is_of(KVM_EXIT) else status for status in seen.health.hooks
    )
    inactive = trusts(exits=CounterTrust.INACTIVE)
    given = replace(seen, health=replace(seen.health, hooks=idle, trusts=inactive))
    found = shown(scene(given))
    assert f"hooks {len(HOOKS) - 1}/{len(HOOKS) - 1}  ledger" in found
    assert "unavailable" not in found
    asked = text(plain(replace(scene(given), reasons={}), width=None, ascii_only=False))
    assert "exit reasons unavailable" not in asked


def test_names_that_are_not_current() -> None:
    """The header reports that the API server does not answer."""
    seen = report(1, guest(1, PAUSED))
    watch = WatchStatus(
        up=False,
        synced=False,
        last_sync_unix_s=None,
        restarts=3,
        error="refused\x1b[2J",
        malformed_total=0,
    )
    found = shown(scene(replace(seen, health=replace(seen.health, vmi_watch=watch))))
    assert r"VMI names are not up to date: refused\x1b[2J" in found


def reasons_scene() -> FrameData:
    history = History()
    for second, total in ((0, 100), (2, 5100)):
        counts = (
            ReasonCount(isa=Isa.SVM, code=0x7B, name="IOIO", total=total),
            ReasonCount(isa=Isa.SVM, code=0x400, name="NPF", total=10),
        )
        history.add(report(second, guest(1, RUNNING, "alpha", exits=total)), {1: counts})
    last = report(2, guest(1, RUNNING, "alpha", exits=5100))
    return FrameData(report=last, history=history, reasons={1: counts}, reasons_lost_total=5)


def test_reasons_stand_below_their_vm() -> None:
    """Each reason has its ISA, total, rate and bar. The header reports the cost and the losses."""
    lines = shown(reasons_scene(), TerminalSize(width=120, height=24)).splitlines()
    below = next(i for i, line in enumerate(lines) if "default/alpha" in line)
    assert re.fullmatch(r"\s+svm +IOIO +5100 +2500/s █{20}", lines[below + 1])
    assert re.fullmatch(r"\s+svm +NPF +10 +0/s", lines[below + 2])
    assert re.search(r"^exit reasons: .*µs.*; 5 exits dropped", "\n".join(lines), re.MULTILINE)


def test_json_frame() -> None:
    """A JSON frame is a snapshot on one line. With --reasons, each process has its reasons."""
    of = reasons_scene()
    assert "\n" not in frame_json(of.report)
    assert "exit_reasons" not in json.loads(frame_json(of.report))["processes"][0]
    (process,) = json.loads(frame_json(of.report, of.reasons))["processes"]
    assert process["exit_reasons"][0] == {"isa": "svm", "code": 123, "name": "IOIO", "total": 5100}


@pytest.mark.parametrize(
    ("selection", "tgids", "vms"),
    [
        (Selection(), {90, 4711, 4800, 4900}, 6),
        (Selection(tgids=frozenset({4800})), {4800}, 0),
        (Selection(namespaces=frozenset({"default"})), {4711, 4800}, 6),
        (Selection(namespaces=frozenset({"lab"})), set(), 0),
        (Selection(types=frozenset({HypervisorType.TCG})), {4800}, 2),
        (Selection(types=frozenset({HypervisorType.KVM, HypervisorType.MSHV})), {4711, 4900}, 3),
    ],
)
def test_selection(selection: Selection, tgids: set[int], vms: int) -> None:
    """A selection keeps only matching processes and VMs; an absent option keeps all."""
    left: NodeReport = selection.of(rich_report())
    assert {process.vmm.tgid for process in left.processes} == tgids
    assert len(left.vmis) == vms


def test_vm_without_a_process() -> None:
    """A VM whose process was not found has a row of its own."""
    seen = replace(report(1), vmis=(vmi("zeta", NONE, vmm=None), vmi("y", TCG, vmm=None)))
    rows = rows_of(seen, History())
    assert [(row.tgid, row.name) for row in rows] == [(None, "default/zeta"), (None, "default/y")]
    assert "default/zeta" in shown(scene(seen))


def test_contradiction_shows_what_contradicts() -> None:
    """A contradicted verdict shows the contradiction instead of the proof."""
    assert "not as asked" in shown(scene(report(1, guest(1, LIAR, "liar"))))


def test_a_rare_hypervisors_column() -> None:
    """An mshv counter has a column only while an mshv VM is shown."""
    on_mshv = [report(at, guest(1, KVM, mshv_runs=100 * at)) for at in (1, 3)]
    lines = shown(scene(*on_mshv)).splitlines()
    (heading,) = [line for line in lines if "TGID" in line]
    assert "VP/s" in heading
    (row,) = [line for line in lines if line.lstrip().startswith("1 ")]
    assert " 100 " in row
    assert "VP/s" not in shown(scene(report(1, guest(1, KVM, runs=3))))
