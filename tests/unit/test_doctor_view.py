# SPDX-License-Identifier: Apache-2.0
"""The doctor's checks on a terminal, in a pipe and as JSON."""

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from probes.judge.reasons import Outcome
from probes.render.doctor import Ability, Check
from probes.render.doctor_view import lines, screen, to_json

CHECKS = (
    Check(label="KVM", outcome=Outcome.GOOD, finding="works, provided by kvm_intel"),
    Check(
        label="KVM activity",
        outcome=Outcome.DEGRADED,
        finding="no hook is attached: kprobe kvm_vcpu_ioctl: this kernel has no kprobes "
        "(CONFIG_KPROBES)",
        remedy="use a kernel with kprobes, or accept what the tracepoints show",
    ),
    Check(label="permissions", outcome=Outcome.BAD, finding="no\x1b[2J", remedy="run as root"),
)


def shown(*, width: int = 60, ascii_only: bool = False) -> list[str]:
    found = screen(CHECKS, Ability.INFERRED, width=width, ascii_only=ascii_only)
    return [line.plain for line in found]


def test_on_a_terminal() -> None:
    """Each check has a mark, is wrapped between words, and is followed by its remedy."""
    assert shown() == [
        "✓ KVM: works, provided by kvm_intel",
        "! KVM activity: no hook is attached: kprobe kvm_vcpu_ioctl:",
        "  this kernel has no kprobes (CONFIG_KPROBES)",
        "  → use a kernel with kprobes, or accept what the",
        "    tracepoints show",
        r"✗ permissions: no\x1b[2J",
        "  → run as root",
        "",
        "! verdicts can only be inferred on this node",
    ]


def test_without_utf8() -> None:
    """Without UTF-8 the marks and arrows are ASCII."""
    found = shown(width=200, ascii_only=True)
    assert "\n".join(found).isascii()
    assert [line[:3] for line in found if line[:1].strip()] == ["ok ", "-- ", "NO ", "-- "]
    assert "   -> run as root" in found


def test_in_a_pipe() -> None:
    """In a pipe each check is one line with outcome, finding and remedy, before the conclusion."""
    assert lines(CHECKS, Ability.NOTHING) == [
        "ok    KVM: works, provided by kvm_intel",
        (
            "warn  KVM activity: no hook is attached: kprobe kvm_vcpu_ioctl: this kernel has no "
            "kprobes (CONFIG_KPROBES); use a kernel with kprobes, or accept what the "
            "tracepoints show"
        ),
        r"fail  permissions: no\x1b[2J; run as root",
        "this node's VMs cannot be judged",
    ]


@pytest.mark.parametrize("ability", list(Ability))
def test_as_json(ability: Ability) -> None:
    """The JSON object has the ability, its exit code and the checks."""
    found = json.loads(to_json(CHECKS, ability))
    assert (found["schema"], found["ability"], found["exit_code"]) == (
        "hvprobe-doctor/v1",
        ability.name.lower(),
        ability.value,
    )
    assert found["checks"][2] == {
        "question": "permissions",
        "outcome": "fail",
        "finding": "no\x1b[2J",
        "remedy": "run as root",
    }


@given(
    findings=st.lists(st.text(st.characters(), max_size=80), max_size=4),
    width=st.integers(30, 120),
)
def test_fits_any_terminal(findings: Sequence[str], width: int) -> None:
    """No line is wider than the terminal or contains unprintable characters."""
    checks = [
        Check(label="q", outcome=Outcome.DEGRADED, finding=finding, remedy=finding or None)
        for finding in findings
    ]
    for line in screen(checks, Ability.VERIFIED, width=width, ascii_only=False):
        assert line.plain.isprintable()
        assert cell_len(line.plain) <= width or line.plain.startswith("✓ verdicts")
