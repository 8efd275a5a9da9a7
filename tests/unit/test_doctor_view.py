"""The doctor's checks as a person, a pipe and a program get them."""

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from probes.doctor import Ability, Check, Outcome
from probes.doctor_view import lines, screen, to_json

CHECKS = (
    Check(question="does KVM work here", outcome=Outcome.GOOD, finding="yes, by kvm_intel"),
    Check(
        question="which process uses KVM",
        outcome=Outcome.LESS,
        finding="no hook: kprobe kvm_vcpu_ioctl: this kernel has no kprobes (CONFIG_KPROBES)",
        remedy="use a kernel with kprobes, or live with what the tracepoints tell",
    ),
    Check(question="may it", outcome=Outcome.BAD, finding="no\x1b[2J", remedy="run as root"),
)


def shown(*, width: int = 60, ascii_only: bool = False) -> list[str]:
    found = screen(CHECKS, Ability.INFERRED, width=width, ascii_only=ascii_only)
    return [line.plain for line in found]


def test_for_a_person() -> None:
    """A mark before each check, long ones broken between words, the remedy below."""
    assert shown() == [
        "✓ does KVM work here: yes, by kvm_intel",
        "! which process uses KVM: no hook: kprobe kvm_vcpu_ioctl:",
        "  this kernel has no kprobes (CONFIG_KPROBES)",
        "  → use a kernel with kprobes, or live with what the",
        "    tracepoints tell",
        r"✗ may it: no\x1b[2J",
        "  → run as root",
        "",
        "! verdicts can only be inferred on this node",
    ]


def test_without_utf8() -> None:
    """The same in ASCII."""
    found = shown(width=200, ascii_only=True)
    assert "\n".join(found).isascii()
    assert [line[:3] for line in found if line[:1].strip()] == ["ok ", "-- ", "NO ", "-- "]
    assert "   -> run as root" in found


def test_for_a_pipe() -> None:
    """One line a check with its outcome, reason and remedy, then what it comes to."""
    assert lines(CHECKS, Ability.NOTHING) == [
        "ok    does KVM work here: yes, by kvm_intel",
        (
            "less  which process uses KVM: no hook: kprobe kvm_vcpu_ioctl: this kernel has no "
            "kprobes (CONFIG_KPROBES); use a kernel with kprobes, or live with what the "
            "tracepoints tell"
        ),
        r"no    may it: no\x1b[2J; run as root",
        "nothing can be said of this node's VMs",
    ]


@pytest.mark.parametrize("ability", list(Ability))
def test_as_json(ability: Ability) -> None:
    """An object with the ability, the exit code it means, and the checks."""
    found = json.loads(to_json(CHECKS, ability))
    assert (found["schema"], found["ability"], found["exit_code"]) == (
        "hvprobe-doctor/v1",
        ability.name.lower(),
        ability.value,
    )
    assert found["checks"][2] == {
        "question": "may it",
        "outcome": "no",
        "finding": "no\x1b[2J",
        "remedy": "run as root",
    }


@given(
    findings=st.lists(st.text(st.characters(), max_size=80), max_size=4),
    width=st.integers(30, 120),
)
def test_fits_any_terminal(findings: Sequence[str], width: int) -> None:
    """No line is wider than the terminal, and nothing in it disturbs one."""
    checks = [
        Check(question="q", outcome=Outcome.LESS, finding=it, remedy=it or None) for it in findings
    ]
    for line in screen(checks, Ability.VERIFIED, width=width, ascii_only=False):
        assert line.plain.isprintable()
        assert cell_len(line.plain) <= width or line.plain.startswith("✓ verdicts")
