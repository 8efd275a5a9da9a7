"""Exit reasons: where the kernel keeps them, and what their numbers are called."""

from pathlib import Path

import pytest

from ebpf.errors import BpfUnavailableError
from ebpf.exit_reasons import Isa, ReasonLayout, layout_from, reason_count
from ebpf.reasons_session import ReasonsSession

HEAD = """\
name: kvm_exit
ID: 103
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

"""
X86 = (
    HEAD
    + """\
\tfield:unsigned int exit_reason;\toffset:8;\tsize:4;\tsigned:0;
\tfield:unsigned long guest_rip;\toffset:16;\tsize:8;\tsigned:0;
\tfield:u32 isa;\toffset:24;\tsize:4;\tsigned:0;

print fmt: "vcpu %u reason %s", (REC->isa == 1) ? "field:u32 isa;" : ""
"""
)
ARM64 = (
    HEAD
    + """\
\tfield:int ret;\toffset:8;\tsize:4;\tsigned:1;
\tfield:unsigned int esr_ec;\toffset:12;\tsize:4;\tsigned:0;
\tfield:unsigned long vcpu_pc;\toffset:16;\tsize:8;\tsigned:0;
"""
)


def test_layout_of_x86() -> None:
    """exit_reason and isa are found, and become compiler flags."""
    found = layout_from(X86)
    assert found == ReasonLayout(reason=8, isa=24, detail=None)
    assert found.flags == ("-DREASON_OFFSET=8", "-DISA_OFFSET=24")


def test_layout_of_arm64() -> None:
    """ret and esr_ec stand for them."""
    found = layout_from(ARM64)
    assert found == ReasonLayout(reason=8, isa=None, detail=12)
    assert found.flags == ("-DREASON_OFFSET=8", "-DDETAIL_OFFSET=12")


@pytest.mark.parametrize(
    "description",
    [
        "",
        HEAD,
        X86.replace("u32 isa", "u32 other"),
        X86.replace("offset:8;\tsize:4", "offset:8;\tsize:8"),
        ARM64.replace("esr_ec", "esr"),
    ],
)
def test_layout_that_is_not_known(description: str) -> None:
    """Fields that are missing or of another size are no layout, rather than a wrong one."""
    assert layout_from(description) is None


@pytest.mark.parametrize(
    ("isa", "reason", "expected"),
    [
        (1, 30, (Isa.VMX, 30, "IO_INSTRUCTION")),
        (1, 48, (Isa.VMX, 48, "EPT_VIOLATION")),
        (1, 0x80000021, (Isa.VMX, 33, "INVALID_STATE (entry failed)")),
        (1, 0x08000030, (Isa.VMX, 48, "EPT_VIOLATION")),
        (1, 5, (Isa.VMX, 5, "reason 0x5")),
        (2, 0x7B, (Isa.SVM, 0x7B, "IOIO")),
        (2, 0x78, (Isa.SVM, 0x78, "HLT")),
        (2, 0x400, (Isa.SVM, 0x400, "NPF")),
        (2, 0x403, (Isa.SVM, 0x403, "VMGEXIT")),
        (2, 0xFFFFFFFF, (Isa.SVM, 0xFFFFFFFF, "ERR")),
        (2, 0x8B, (Isa.SVM, 0x8B, "MWAIT")),
        (2, 0x404, (Isa.SVM, 0x404, "reason 0x404")),
        (7, 30, (Isa.UNKNOWN, 30, "reason 0x1e")),
    ],
)
def test_names_of_x86(isa: int, reason: int, expected: tuple[Isa, int, str]) -> None:
    """By the tracepoint's own isa; flags of VMX are no part of the number; gaps stay numbers."""
    found = reason_count(
        ReasonLayout(reason=8, isa=24, detail=None), isa=isa, reason=reason, detail=0, total=3
    )
    assert (found.isa, found.code, found.name) == expected
    assert found.total == 3


@pytest.mark.parametrize(
    ("ret", "esr_ec", "name"),
    [
        (2, 0x16, "HVC64"),
        (2, 0x24, "DABT_LOW"),
        (2, 0x01, "WFx"),
        (2, 0x3F, "reason 0x3f"),
        (0, 0x24, "IRQ"),
        (0xBADCA11, 0, "HYP_GONE"),
        (9, 0, "reason 0x9"),
    ],
)
def test_names_of_arm64(ret: int, esr_ec: int, name: str) -> None:
    """A trap by its exception class; anything else by its cause, whatever class stands there."""
    layout = ReasonLayout(reason=8, isa=None, detail=12)
    found = reason_count(layout, isa=0, reason=ret, detail=esr_ec, total=1)
    assert (found.isa, found.name) == (Isa.ARM64, name)


def test_kernel_without_the_tracepoint(tmp_path: Path) -> None:
    """No description of kvm:kvm_exit: one line that says what to do, before anything is loaded."""
    with pytest.raises(BpfUnavailableError) as caught:
        ReasonsSession(sys_root=tmp_path)
    assert "mount tracefs" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_kernel_with_another_tracepoint(tmp_path: Path) -> None:
    """A record that is not known is refused, with its place and the way out."""
    events = tmp_path / "kernel/debug/tracing/events/kvm/kvm_exit"
    events.mkdir(parents=True)
    (events / "format").write_text(HEAD)
    with pytest.raises(BpfUnavailableError) as caught:
        ReasonsSession(sys_root=tmp_path)
    assert str(events) in str(caught.value)
    assert "without --reasons" in str(caught.value)
