# SPDX-License-Identifier: Apache-2.0
"""Exit reasons: the layout of the kernel's records, and the names of the reasons."""

import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ebpf.errors import AttachCause, AttachError, BpfUnavailableError
from ebpf.exit_reasons.reasons import Isa, ReasonLayout, layout_from, reason_count
from ebpf.exit_reasons.session import ReasonsSession
from ebpf.tracefs import offsets_from

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
    """The offsets of exit_reason and isa become compiler flags."""
    found = layout_from(offsets_from(X86))
    assert found == ReasonLayout(reason=8, isa=24, detail=None)
    assert found.flags == ("-DREASON_OFFSET=8", "-DISA_OFFSET=24")


def test_layout_of_arm64() -> None:
    """The offsets of ret and esr_ec become compiler flags."""
    found = layout_from(offsets_from(ARM64))
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
def test_unknown_layout(description: str) -> None:
    """The layout is unknown when a field is missing or has another size."""
    assert layout_from(offsets_from(description)) is None


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
    """The tracepoint's isa selects the names; VMX flags are ignored; unnamed codes are numbers."""
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
    """A trap is named by its exception class, any other exit only by its cause."""
    layout = ReasonLayout(reason=8, isa=None, detail=12)
    found = reason_count(layout, isa=0, reason=ret, detail=esr_ec, total=1)
    assert (found.isa, found.name) == (Isa.ARM64, name)


def test_kernel_without_the_tracepoint(tmp_path: Path) -> None:
    """Without a description of kvm:kvm_exit the error is one line that says what to do."""
    with pytest.raises(BpfUnavailableError) as caught:
        ReasonsSession(sys_root=tmp_path)
    assert "mount tracefs" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_kernel_with_another_tracepoint(tmp_path: Path) -> None:
    """An unknown record is refused with the path of its description and a remedy."""
    events = tmp_path / "kernel/debug/tracing/events/kvm/kvm_exit"
    events.mkdir(parents=True)
    (events / "format").write_text(HEAD)
    with pytest.raises(BpfUnavailableError) as caught:
        ReasonsSession(sys_root=tmp_path)
    assert str(events) in str(caught.value)
    assert "without --reasons" in str(caught.value)


@dataclass(slots=True, kw_only=True)
class Loaded:
    """A fake of loaded programs that has memory files as maps."""

    lost_bytes: int = mmap.PAGESIZE
    """Size of the map that counts lost exits."""
    refusal: AttachError | None = None
    fds: dict[str, int] = field(default_factory=dict)
    closed: int = 0

    def map_fd(self, name: str) -> int:
        if name not in self.fds:
            self.fds[name] = os.memfd_create(name)
            os.ftruncate(self.fds[name], self.lost_bytes)
        return self.fds[name]

    def attach(self, *_: object) -> None:
        if self.refusal is not None:
            raise self.refusal

    def close(self) -> None:
        self.closed += 1
        while self.fds:
            os.close(self.fds.popitem()[1])


LoadInto = Callable[[Loaded], Path]


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadInto:
    """A function that makes the sysfs of a node with two CPUs on which the fake is loaded."""
    events = tmp_path / "kernel/tracing/events/kvm/kvm_exit"
    events.mkdir(parents=True)
    (events / "format").write_text(X86)
    cpus = tmp_path / "devices/system/cpu"
    cpus.mkdir(parents=True)
    (cpus / "possible").write_text("0-1\n")

    def load_into(loaded: Loaded) -> Path:
        monkeypatch.setattr("ebpf.exit_reasons.session.Programs", lambda *_, **__: loaded)
        return tmp_path

    return load_into


def test_everything_is_released_at_the_end(node: LoadInto) -> None:
    """The programs are closed once, however often the session is closed."""
    loaded = Loaded()
    session = ReasonsSession(sys_root=node(loaded))
    assert session.lost_total == 0
    assert loaded.closed == 0
    session.close()
    session.close()
    assert loaded.closed == 1


@pytest.mark.parametrize("possible", ["", "none\n", None])
def test_a_node_whose_cpus_are_unknown_keeps_no_program(
    node: LoadInto, possible: str | None
) -> None:
    """The programs, which are already loaded, are released, and the error is raised."""
    loaded = Loaded()
    sys_root = node(loaded)
    file = sys_root / "devices/system/cpu/possible"
    if possible is None:
        file.unlink()
    else:
        file.write_text(possible)
    with pytest.raises(BpfUnavailableError, match="exit reasons"):
        ReasonsSession(sys_root=sys_root)
    assert loaded.closed == 1


def test_a_table_that_cannot_be_mapped_keeps_no_program(node: LoadInto) -> None:
    """The programs are released when a map, here an empty one, cannot be mapped into memory."""
    loaded = Loaded(lost_bytes=0)
    with pytest.raises(BpfUnavailableError, match="exit reasons"):
        ReasonsSession(sys_root=node(loaded))
    assert loaded.closed == 1


def test_a_program_that_cannot_be_attached_is_released(node: LoadInto) -> None:
    """The programs are released, and the error contains the reason of the refusal."""
    loaded = Loaded(
        refusal=AttachError("tracepoint kvm:kvm_exit", AttachCause.NOT_PERMITTED, "not permitted")
    )
    with pytest.raises(BpfUnavailableError, match="tracepoint kvm:kvm_exit: not permitted"):
        ReasonsSession(sys_root=node(loaded))
    assert loaded.closed == 1
