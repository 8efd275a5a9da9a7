# SPDX-License-Identifier: Apache-2.0
"""Cause and remedy when a program cannot be attached, from made-up trees."""

import errno
import re
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest

from ebpf import bpf_syscall
from ebpf.errors import AttachCause, AttachError, BpfUnavailableError
from ebpf.hooks import AttachPoint, Backend
from ebpf.loader_protocol import Failure, Loaded
from ebpf.programs import Programs
from ebpf.skipped_runs import SkippedRuns

KPROBE = AttachPoint(backend=Backend.KPROBE, target="kvm_vcpu_ioctl")
LINK = replace(KPROBE, by_link=True)
RAW = AttachPoint(backend=Backend.RAW_TRACEPOINT, target="kvm_exit")
CLASSIC = AttachPoint(backend=Backend.TRACEPOINT, target="kvm:kvm_exit")
TREES = {
    "proc/kallsyms": "0000000000000000 t kvm_vcpu_ioctl\t[kvm]\n",
    "proc/self/status": "CapEff:\t000001ffffffffff\nSeccomp:\t2\n",
    "sys/bus/event_source/devices/kprobe/type": "8\n",
    "sys/kernel/tracing/events/enable": "0\n",
}
"""A node on which nothing is missing and a seccomp filter denies bpf."""


@pytest.fixture
def node(tmp_path: Path) -> Path:
    for name, text in TREES.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path


def refused(
    node: Path,
    monkeypatch: pytest.MonkeyPatch,
    point: AttachPoint,
    failure: Failure,
) -> AttachError:
    """The error of attaching on a node whose kernel refuses to load the program."""
    loaded = Loaded(failures={("on_event", point.kind): failure})
    monkeypatch.setattr("ebpf.programs._load", lambda *_: loaded)
    programs = Programs(
        (),
        (),
        maps=(),
        loadable=[("on_event", point.kind)],
        sys_root=node / "sys",
        proc_root=node / "proc",
    )
    with pytest.raises(AttachError) as caught:
        programs.attach(point, "on_event")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{point.kind} {point.target}: {caught.value.detail}")
    return caught.value


EPERM = Failure(detail="", code=errno.EPERM)
ENOENT = Failure(detail="", code=errno.ENOENT)
EINVAL = Failure(detail="", code=errno.EINVAL)
EOPNOTSUPP = Failure(detail="", code=errno.EOPNOTSUPP)
ESRCH = Failure(detail="", code=errno.ESRCH)


@pytest.mark.parametrize(
    ("point", "failure", "without", "cause", "words"),
    [
        (KPROBE, EPERM, "sys/bus/event_source", AttachCause.NO_KPROBES, "CONFIG_KPROBES"),
        (KPROBE, EPERM, "proc/kallsyms", AttachCause.NOT_THERE, "no such function now; is the"),
        (KPROBE, EPERM, "", AttachCause.NOT_PERMITTED, "seccomp filter in force denies bpf"),
        (LINK, EPERM, "", AttachCause.NOT_PERMITTED, "seccomp filter in force denies bpf"),
        (LINK, EPERM, "sys/bus/event_source", AttachCause.NOT_PERMITTED, "filter in force"),
        (LINK, EPERM, "proc/kallsyms", AttachCause.NOT_THERE, "no such function now; is the"),
        (LINK, EINVAL, "", AttachCause.NO_LINKS, "this kernel has no such links (Linux 5.18"),
        (LINK, EOPNOTSUPP, "", AttachCause.NO_LINKS, "CONFIG_FPROBE"),
        (LINK, ESRCH, "", AttachCause.NOT_THERE, "before Linux 6.2 they find none of a module"),
        (KPROBE, EINVAL, "", AttachCause.FAILED, "Invalid argument"),
        (RAW, EPERM, "", AttachCause.NOT_PERMITTED, "seccomp filter in force denies bpf"),
        (RAW, ENOENT, "", AttachCause.NOT_THERE, "no such hook now; is the module loaded?"),
        (CLASSIC, ENOENT, "", AttachCause.NOT_THERE, "no such hook now; is the module loaded?"),
        (CLASSIC, ENOENT, "sys/kernel", AttachCause.NO_TRACEFS, "mount it at /sys/kernel/tracing"),
        (RAW, Failure(detail="bad", code=errno.E2BIG), "", AttachCause.FAILED, "bad (Argument"),
        (RAW, Failure(detail="bad", code=0), "", AttachCause.FAILED, "kvm_exit: bad"),
        (RAW, Failure(detail="", code=errno.E2BIG), "", AttachCause.FAILED, "Argument list too"),
    ],
)
def test_a_refusal_has_its_cause(
    node: Path,
    monkeypatch: pytest.MonkeyPatch,
    point: AttachPoint,
    failure: Failure,
    without: str,
    cause: AttachCause,
    words: str,
) -> None:
    """A missing kernel feature precedes a missing permission, and the remedy is at the end."""
    if without:
        (node / without).rename(node / "elsewhere")
    found = refused(node, monkeypatch, point, failure)
    assert found.cause is cause
    assert words in str(found)
    assert found.remedy is None or str(found).endswith(f"; {found.remedy}")


def test_a_tracepoint_is_looked_up_in_tracefs(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tracepoint with an id in tracefs is reachable; one without an id is not."""
    monkeypatch.setattr("ebpf.programs._load", lambda *_: Loaded())
    sys_root = node / "sys"
    programs = Programs((), (), maps=(), loadable=(), sys_root=sys_root, proc_root=node / "proc")
    with pytest.raises(AttachError) as caught:
        programs.check_reachable(CLASSIC)
    assert caught.value.cause is AttachCause.NOT_THERE
    event = sys_root / "kernel/tracing/events/kvm/kvm_exit"
    event.mkdir(parents=True)
    (event / "id").write_text("103\n")
    programs.check_reachable(CLASSIC)


@pytest.mark.parametrize(("code", "refused"), [(errno.EPERM, False), (0, True)])
def test_without_any_program_the_error_names_the_refusal(
    node: Path, monkeypatch: pytest.MonkeyPatch, code: int, *, refused: bool
) -> None:
    """The reason of the refusal is read below the given roots.

    If the loader does not know of a refusal, the kernel is asked.
    """
    loaded = Loaded(error=Failure(detail="bpf: no", code=code))
    monkeypatch.setattr("ebpf.programs._load", lambda *_: loaded)
    monkeypatch.setattr("ebpf.programs.bpf_is_refused", lambda: refused)
    with pytest.raises(BpfUnavailableError, match=r"not permitted here \(bpf: no\): the seccomp"):
        Programs((), (), maps=(), loadable=(), sys_root=node / "sys", proc_root=node / "proc")


def test_a_failure_to_compile_is_no_refusal(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where maps can be made, the error is that of the compiler."""
    loaded = Loaded(error=Failure(detail="unknown type name", code=0))
    monkeypatch.setattr("ebpf.programs._load", lambda *_: loaded)
    monkeypatch.setattr("ebpf.programs.bpf_is_refused", lambda: False)
    with pytest.raises(BpfUnavailableError, match=r"prepare the BPF programs: unknown type name"):
        Programs((), (), maps=(), loadable=(), sys_root=node / "sys", proc_root=node / "proc")


def counting(
    node: Path, monkeypatch: pytest.MonkeyPatch, loaded: dict[tuple[str, str], int], *, btf: bool
) -> Programs:
    """Programs that are loaded as these descriptors, on a kernel that counts skipped runs or not.

    Returns them with nothing that may be closed.
    """
    monkeypatch.setattr("ebpf.programs._load", lambda *_: Loaded(programs=loaded))
    monkeypatch.setattr("ebpf.skipped_runs.counts_skipped_runs", lambda _: btf)
    (node / "proc/self/fdinfo").mkdir()
    return Programs((), (), maps=(), loadable=(), sys_root=node / "sys", proc_root=node / "proc")


def fdinfo(node: Path, fd: int, missed: int | None) -> None:
    """Write what the kernel says about a program; None: nothing about skipped runs."""
    said = "pos:\t0\nprog_type:\t17\nrun_cnt:\t40\n"
    line = "" if missed is None else f"recursion_misses:\t{missed}\n"
    (node / f"proc/self/fdinfo/{fd}").write_text(f"{said}{line}verified_insns:\t9\n")


EXIT_RAW, EXIT_CLASSIC = ("on_exit", Backend.RAW_TRACEPOINT), ("on_exit", Backend.TRACEPOINT)
LOADED = {("on_exit", "raw_tracepoint"): 1001, ("on_exit", "tracepoint"): 1002}


@pytest.mark.parametrize(
    ("missed", "btf", "total"),
    [
        ((0, 0), True, 0),
        ((2, 3), True, 5),
        ((0, 0), False, None),
        ((2, 0), False, 2),
        ((0, None), True, 0),
        ((None, None), True, None),
        ((None, None), False, None),
    ],
)
def test_a_zero_counts_only_where_the_kernel_counts(
    node: Path,
    monkeypatch: pytest.MonkeyPatch,
    missed: tuple[int | None, int | None],
    *,
    btf: bool,
    total: int | None,
) -> None:
    """Runs skipped in either form of a program are added up.

    A 0 of a kernel that does not count them is unknown; more than 0 is always true.
    """
    programs = counting(node, monkeypatch, LOADED, btf=btf)
    for fd, number in zip(LOADED.values(), missed, strict=True):
        fdinfo(node, fd, number)
    assert programs.missed_total([EXIT_RAW, EXIT_CLASSIC, EXIT_RAW]) == total


def test_skipped_runs_never_become_fewer(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program whose fdinfo cannot be read keeps its number. One that is not loaded has none."""
    programs = counting(node, monkeypatch, LOADED, btf=True)
    fdinfo(node, 1001, 5)
    fdinfo(node, 1002, 6)
    assert programs.missed_total([EXIT_RAW, EXIT_CLASSIC]) == 11
    (node / "proc/self/fdinfo/1001").unlink()
    fdinfo(node, 1002, 7)
    assert programs.missed_total([EXIT_RAW, EXIT_CLASSIC]) == 12
    assert programs.missed_total([("on_other", Backend.KPROBE)]) is None


def test_what_links_missed_is_added(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link's count is added to its program's, while it is open and after it was closed.

    A link that cannot be asked keeps its last count, and the next link begins at 0.
    """
    missed = {7: 5, 8: 2}

    def ask(fd: int) -> int:
        if fd not in missed:
            raise OSError(errno.EBADF, "closed")
        return missed[fd]

    monkeypatch.setattr("ebpf.skipped_runs.missed_by_kprobe_link", ask)
    monkeypatch.setattr("ebpf.skipped_runs.counts_skipped_runs", lambda _: True)
    (node / "proc/self/fdinfo").mkdir()
    program = ("on_kvm_vcpu_ioctl", LINK.kind)
    runs = SkippedRuns({program: 1001}, sys_root=node / "sys", proc_root=node / "proc")
    assert runs.total([program]) is None
    fdinfo(node, 1001, 1)
    assert runs.total([program]) == 1
    runs.link_opened(program, 7)
    assert runs.total([program]) == 6
    missed[7] = 9
    runs.link_closes(program)
    missed.clear()
    assert runs.total([program]) == 10
    missed[8] = 2
    runs.link_opened(program, 8)
    assert runs.total([program]) == 12
    missed.clear()
    assert runs.total([program]) == 12
    runs.link_closes(program)
    assert runs.total([program]) == 12


def test_machines_are_those_with_known_registers() -> None:
    """The system call numbers and the header of kprobe programs cover the same machines."""
    header = resources.files("ebpf").joinpath("include/uapi/linux/ptrace.h").read_text()
    machines = re.findall(r"^#(?:el)?if defined\(__(\w+)__\)", header, flags=re.MULTILINE)
    assert machines == list(bpf_syscall._NUMBERS)
