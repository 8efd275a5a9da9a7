# SPDX-License-Identifier: Apache-2.0
"""The common vocabulary of reasons, severity, trust and watch state, which all outputs share."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from probes.judge.cause import Cause, CauseFound
from probes.judge.reasons import Outcome, Reason, Severity
from probes.judge.verdict import Verdict
from probes.render.doctor import checks
from probes.render.live.columns import type_mark
from probes.render.live.frames import plain
from probes.render.live.history import History
from probes.render.live.rows import Order, ordered, rows_of
from probes.render.page import page
from probes.report.model import CounterTrust, NodeReport, ProcessState, to_json
from probes.report.vocabulary import (
    NOT_ANSWERED,
    TRUSTS,
    WatchState,
    counter_states,
    deciding_reason,
    say,
    severity_of,
    subjects,
    watch_error,
    watch_state,
)
from probes.vmi.model import WatchStatus
from tests.support.facts import CAPABLE, health, trusts
from tests.support.live_reports import LIAR, guest, report, scene
from tests.support.page_reader import Read
from tests.support.rich_report import KVM, NONE, PAUSED, PROBE, TCG, vmi

ROOT = Path(__file__).resolve().parents[2]
NO_WATCH = WatchStatus(
    up=False, synced=False, last_sync_unix_s=None, restarts=0, error=None, malformed_total=0
)


def node_with_everything() -> NodeReport:
    """A node with each severity among its VMs, processes without a VM and VMs without a process."""
    processes = (
        guest(10, KVM, "a-fine"),
        guest(11, LIAR, "z-liar"),
        guest(12, TCG, "fallback"),
        guest(13, TCG, "wanted"),
        guest(14, PAUSED, "paused"),
        guest(15, LIAR, guest_name="liar", state=ProcessState.UNATTRIBUTED),
        guest(16, NONE, guest_name="no vm", state=ProcessState.UNATTRIBUTED),
        guest(17, PROBE, state=ProcessState.PROBE),
        guest(18, LIAR, "and-fallback"),
    )
    by_name = {process.vm.name: process for process in processes if process.vm}
    vmis = (
        vmi("a-fine", KVM, vmm=by_name["a-fine"].vmm),
        vmi("and-fallback", LIAR, fallback=True, vmm=by_name["and-fallback"].vmm),
        vmi("fallback", TCG, fallback=True, vmm=by_name["fallback"].vmm),
        vmi("orphan", NONE, vmm=None),
        vmi("paused", PAUSED, vmm=by_name["paused"].vmm),
        vmi("wanted", TCG, vmm=by_name["wanted"].vmm),
        vmi("z-liar", LIAR, vmm=by_name["z-liar"].vmm),
    )
    return replace(report(1, *processes), vmis=vmis)


URGENT = ["default/and-fallback", "default/z-liar", "liar", "default/fallback"]
"""The urgent subjects of ``node_with_everything``: contradictions by name, then fallbacks."""
THE_REST = ["default/orphan", "no vm", "default/paused", "-", "default/a-fine", "default/wanted"]
"""The other subjects in order: unknown, not verified, fine."""


def in_red_on_the_page(shown: Read) -> list[str]:
    """The names of the page's rows whose type is marked as urgent."""
    return [
        row[0] if row[0].startswith("default/") else row[3]
        for row in shown.rows
        if any(row[1].endswith(f" {severity.label}") for severity in Severity if severity.urgent)
    ]


def test_page_live_and_doctor_agree() -> None:
    """Page, live view, doctor and JSON mark the same processes of a report, in the same order.

    The page has a table of VMs and one of processes without a VM, and each keeps the order.
    """
    node = node_with_everything()
    assert [subject.name for subject in subjects(node)] == [*URGENT, *THE_REST]

    rows = ordered(rows_of(node, History()), Order.SEVERITY)
    assert [row.name for row in rows] == [*URGENT, *THE_REST]
    assert [row.name for row in rows if row.severity.urgent] == URGENT
    heading, *lines = plain(scene(node), width=None, ascii_only=False)[2:]
    at = heading.plain.index("TYPE")
    red = {
        row.name
        for row, line in zip(rows, lines, strict=True)
        if any("red" in str(span.style) and span.start <= at < span.end for span in line.spans)
    }
    assert red == {*URGENT}

    shown = Read(page(node, previous=None, failure=None, last_known_s=60).decode())
    on_page = [
        row[0] if row[0].startswith("default/") else row[3]
        for row in shown.rows
        if row[0].startswith(("default/", "qemu"))
    ]
    vms = [name for name in (*URGENT, *THE_REST) if name.startswith("default/")]
    others = ["liar", "no vm", "\N{EN DASH}"]
    assert on_page == [*vms, *others]
    assert sorted(in_red_on_the_page(shown)) == sorted(URGENT)

    (found,) = [check for check in checks(node, CAPABLE) if check.label == "VM verdicts"]
    assert found.outcome is Outcome.BAD
    listed = re.findall(r"(?:contradiction|fallback): (.+?) \(\d+\)", found.finding)
    assert listed == URGENT
    assert found.finding.endswith("; 2 unknown, 1 not verified, 3 fine")

    written = to_json(node)["processes"]
    assert isinstance(written, list)
    contradicting = [
        process["tgid"]
        for process in written
        if Reason.CONTRADICTS_COMMAND_LINE.value in process["reason_codes"]
    ]
    assert contradicting == [11, 15, 18]


@pytest.mark.parametrize("cause", list(Cause))
def test_a_cause_has_the_same_words_everywhere(cause: Cause) -> None:
    """JSON, page, live view and the doctor say of a fallback why it is, and what to do."""
    found = CauseFound(cause=cause, detail="as the process of the test shows")
    process = guest(12, TCG, "fallback", cause=found)
    emulated = vmi("fallback", TCG, fallback=True, vmm=process.vmm, cause=found)
    node = replace(report(1, process), vmis=(emulated,))
    sentence, remedy = f"{cause.phrase}: {found.detail}", cause.remedy

    written = to_json(node)
    for kind in ("vmis", "processes"):
        (subject,) = json.loads(json.dumps(written[kind]))
        assert (subject["cause_detail"], subject["remedy"]) == (sentence, remedy)

    lines = [line.plain for line in plain(scene(node), width=None, ascii_only=False)]
    assert lines[-2:] == [f"     cause {sentence}", f"     remedy {remedy}"]

    seen = Read(page(node, previous=None, failure=None, last_known_s=60.0).decode())
    reasons = seen.row("default/fallback")[-1]
    assert f"cause: {sentence}" in reasons
    assert f"remedy: {remedy}" in reasons

    (verdicts,) = [check for check in checks(node, CAPABLE) if check.label == "VM verdicts"]
    assert verdicts.remedy == remedy


def test_live_marks_a_fallback() -> None:
    """The type column marks a fallback with one character, unless there is a contradiction."""
    rows = rows_of(node_with_everything(), History())
    assert {row.name for row in rows if type_mark(row).endswith("!")} == {"default/fallback"}


@pytest.mark.parametrize("reason", list(Reason), ids=lambda reason: reason.name)
def test_a_row_of_the_table(reason: Reason) -> None:
    """A reason's code is its name in lower case, and each text is one printable line."""
    assert reason.value == reason.name.lower()
    for shown in (reason.short, reason.sentence, reason.remedy):
        assert shown is None or (shown and shown.isprintable() and shown == shown.strip())
    assert "; " not in reason.sentence  # renderers join sentences with it


def test_sentences_are_different() -> None:
    """No two reasons have the same sentence."""
    assert len({reason.sentence for reason in Reason}) == len(Reason)


def test_codes_are_stable() -> None:
    """Reasons may be added but not renamed, because programs rely on their codes."""
    assert {reason.value for reason in Reason} >= {
        *("vm_exits_recorded", "userspace_exits_recorded", "kvm_run_refused"),
        *("kvm_run_result_unread", "kvm_run_unheld", "inside_kvm_run", "vcpu_statistics"),
        *("kvm_run_worker", "guest_time", "holds_vcpus", "mshv_run_recorded", "inside_mshv_run"),
        *("holds_mshv_vps", "tcg_computes", "tcg_idle", "hooks_missing", "hooks_late"),
        *("ledger_incomplete", "asked_for_tcg", "no_vcpu_yet", "no_vcpu_threads"),
        *("fds_unreadable", "threads_unseen", "read_blocked", "too_much_to_read", "not_read_yet"),
        *("capability_probe", "no_process", "no_pod", "pod_contested", "several_processes"),
        *("claims_without_fds", "guest_time_without_fds", "contradicts_thread_names"),
        *("contradicts_command_line", "run_recorded", "inside_run", "run_unheld"),
    }


@pytest.mark.parametrize(
    ("verdict", "fallback", "probe", "severity"),
    [
        (KVM, False, False, Severity.FINE),
        (PAUSED, False, False, Severity.UNVERIFIED),
        (NONE, False, False, Severity.UNKNOWN),
        (PROBE, None, True, Severity.FINE),
        (TCG, None, False, Severity.FINE),
        (TCG, True, False, Severity.FALLBACK),
        (LIAR, True, False, Severity.CONTRADICTION),
    ],
)
def test_severity(
    verdict: Verdict, severity: Severity, *, fallback: bool | None, probe: bool
) -> None:
    """A contradiction precedes a fallback, and an unknown fallback counts as none."""
    assert severity_of(verdict, fallback=fallback, probe=probe) is severity


def test_the_reason_that_is_shown_alone() -> None:
    """The deciding reason is the last contradiction or, without one, the first reason."""
    assert deciding_reason(KVM) is KVM.reasons[0]
    assert deciding_reason(LIAR) is Reason.CONTRADICTS_COMMAND_LINE


def test_only_what_is_urgent_is_bad() -> None:
    """The severity alone decides the outcome, so all outputs emphasise the same subjects."""
    assert [severity.outcome for severity in Severity] == [
        *(Outcome.BAD, Outcome.BAD),
        *(Outcome.DEGRADED, Outcome.DEGRADED),
        Outcome.GOOD,
    ]
    assert [outcome.value for outcome in Outcome] == ["ok", "warn", "fail"]


@pytest.mark.parametrize(("value", "word"), [(True, "yes"), (False, "no"), (None, "unknown")])
def test_say(value: bool | None, word: str) -> None:
    """True, False and None each have their own word."""
    assert say(value, "yes", "no", "unknown") == word


@pytest.mark.parametrize("trust", list(CounterTrust))
def test_a_counter_names_its_hook(trust: CounterTrust) -> None:
    """Each trust is described in words that name the counter's hook."""
    given = health(trusts=trusts(exits=trust, userspace_exits=trust))
    assert [counter.words for counter in counter_states(given)] == [TRUSTS[trust]] * 2
    exits, userspace_exits = counter_states(given)
    assert "kvm_exit" in exits.why
    assert "kvm_userspace_exit" in userspace_exits.why


@pytest.mark.parametrize(
    ("watch", "state", "outcome"),
    [
        (None, WatchState.STANDALONE, Outcome.GOOD),
        (replace(NO_WATCH, up=True, synced=True), WatchState.CURRENT, Outcome.GOOD),
        (replace(NO_WATCH, synced=True, error="lost"), WatchState.LAST_KNOWN, Outcome.DEGRADED),
        (NO_WATCH, WatchState.UNKNOWN, Outcome.BAD),
    ],
)
def test_watch_state(watch: WatchStatus | None, state: WatchState, outcome: Outcome) -> None:
    """The watch state says where names come from and how current they are."""
    assert watch_state(watch) is state
    assert state.outcome is outcome


def test_why_names_are_not_current() -> None:
    """The reason is the watch's own error, or that the API server has not answered."""
    assert watch_error(replace(NO_WATCH, error="refused")) == "refused"
    assert watch_error(NO_WATCH) == NOT_ANSWERED


def test_the_manual_lists_each_cause() -> None:
    """README has every cause in the order in which they are tried, with its phrase."""
    text = (ROOT / "README.md").read_text()
    found = re.findall(r"^\| `(\w+)` \| (.+) \|$", text.partition("## Why a VM")[2], re.MULTILINE)
    assert found[: len(Cause)] == [(cause.value, cause.phrase) for cause in Cause]
