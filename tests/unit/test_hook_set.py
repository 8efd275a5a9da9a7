# SPDX-License-Identifier: Apache-2.0
"""How each hook is attached, with made-up sysfs trees and recorded calls in place of programs."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import pytest

from ebpf.errors import AttachCause, AttachError
from ebpf.hook_set import HookSet, field_flags, field_places
from ebpf.hook_status import HookStatus
from ebpf.hooks import (
    HOOKS,
    KPROBE_MULTI,
    KVM,
    KVM_EXIT,
    KVM_USERSPACE_EXIT,
    KVM_VCPU_IOCTL,
    MSHV,
    SCHED_PROCESS_EXIT,
    SCHED_PROCESS_FORK,
    SCHED_PROCESS_FREE,
    AttachPoint,
    Backend,
    Hook,
)
from ebpf.programs import Programs
from ebpf.tracefs import Tracefs
from tests.support.kernel_types import btf


@dataclass(slots=True, kw_only=True)
class Recorder:
    """A fake of loaded programs that records what is attached and each call."""

    refused: set[str] = field(default_factory=set)
    """Kinds of programs that cannot be attached."""
    reachable: bool = True
    """Whether tracefs lists the tracepoints."""
    missed: dict[str, int] = field(default_factory=dict)
    """Skipped runs by program; a program that is absent is not counted."""
    held: set[AttachPoint] = field(default_factory=set)
    calls: list[tuple[str, str]] = field(default_factory=list)

    def attach(self, point: AttachPoint, program: str) -> None:
        self.calls.append(("attach", program))
        if point.kind in self.refused:
            what = f"{point.kind} {point.target}"
            raise AttachError(what, AttachCause.NOT_PERMITTED, "not permitted")
        assert point not in self.held
        self.held.add(point)

    def detach(self, point: AttachPoint) -> None:
        self.calls.append(("detach", point.target))
        self.held.remove(point)

    def missed_total(self, programs: Sequence[tuple[str, str]]) -> int | None:
        found = [self.missed[name] for name, _ in programs if name in self.missed]
        return sum(found) if found else None

    def check_reachable(self, point: AttachPoint) -> None:
        if not self.reachable:
            raise AttachError(point.target, AttachCause.NO_TRACEFS, "there is no tracefs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sysfs:
    """A sysfs tree in which the test changes drivers and descriptions of tracepoints."""

    root: Path

    def load(self, *names: tuple[str, str]) -> None:
        """Add modules with their devices."""
        for module, device in names:
            (self.root / "module" / module).mkdir(parents=True)
            (self.root / "class/misc" / device).mkdir(parents=True)

    def remove_device(self, device: str) -> None:
        (self.root / "class/misc" / device).rmdir()

    def reload(self, module: str) -> None:
        """Replace the module's directory. The old one is moved, so its inode stays in use."""
        (self.root / "module" / module).rename(self.root / f"old_{module}")
        (self.root / "module" / module).mkdir()

    def describe(self, target: str, *fields: str, begin: int = 8) -> None:
        """Describe a tracepoint whose fields follow one another from an offset."""
        directory = self.root / "kernel/tracing/events" / target.replace(":", "/")
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "format").write_text(
            "".join(
                f"\tfield:int {name};\toffset:{begin + 4 * at};\tsize:4;\tsigned:1;\n"
                for at, name in enumerate(fields)
            )
        )


@pytest.fixture
def sysfs(tmp_path: Path) -> Sysfs:
    made = Sysfs(root=tmp_path)
    for hook in HOOKS:
        for point in hook.points:
            if point.fields:
                made.describe(point.target, *point.fields)
    return made


def hook_set(
    sysfs: Sysfs,
    programs: Recorder,
    hooks: Sequence[Hook] = HOOKS,
    *,
    needed: Sequence[Hook] = HOOKS,
) -> HookSet:
    places = field_places(Tracefs(sysfs.root), HOOKS)
    given = HookSet(hooks, cast("Programs", programs), places=places, sys_root=sysfs.root)
    given.need(needed)
    return given


def status(given: HookSet, hook: Hook) -> HookStatus:
    (found,) = [status for status in given.statuses if status.hook is hook]
    return found


def of_kvm(given: HookSet) -> list[HookStatus]:
    return [status for status in given.statuses if status.hook.driver == KVM]


def test_each_hook_is_attached_at_its_first_accepted_point(sysfs: Sysfs) -> None:
    """Optional hooks are used only with their device, and a refused hook keeps the reason."""
    sysfs.load(("kvm", "kvm"))
    programs = Recorder(refused={Backend.KPROBE, KPROBE_MULTI})
    given = hook_set(sysfs, programs)
    wanted = [hook for hook in HOOKS if hook.driver != MSHV]
    assert [status.hook for status in given.statuses] == wanted
    refused = {status.hook.name for status in given.statuses if not status.attached}
    assert refused == {"kvm_dev_ioctl", "kvm_vm_ioctl", "kvm_vcpu_ioctl"}
    runs = status(given, KVM_VCPU_IOCTL)
    assert runs.reason == (
        "kprobe kvm_vcpu_ioctl: not permitted; kprobe_multi kvm_vcpu_ioctl: not permitted"
    )
    assert not runs.inactive
    assert status(given, KVM_EXIT).backend is Backend.RAW_TRACEPOINT
    assert given.any_attached
    assert given.lives_are_followed
    assert given.forks_are_counted


def test_links_stand_in_for_kprobes(sysfs: Sysfs) -> None:
    """Where perf kprobes are refused, links are attached as kprobes and keep the refusal's reason.

    They are detached when the device disappears, because they hold the module.
    """
    sysfs.load(("kvm", "kvm"))
    programs = Recorder(refused={Backend.KPROBE})
    given = hook_set(sysfs, programs)
    runs = status(given, KVM_VCPU_IOCTL)
    assert (runs.backend, runs.by_link) == (Backend.KPROBE, True)
    assert (runs.reason, runs.passed_over) == (None, "kprobe kvm_vcpu_ioctl: not permitted")
    assert status(given, KVM_EXIT).passed_over is None
    assert any(point.by_link for point in programs.held)
    sysfs.remove_device("kvm")
    given.follow_drivers()
    assert not any(point.by_link for point in programs.held)
    assert not status(given, KVM_VCPU_IOCTL).by_link


def test_all_reasons_of_a_hook_are_kept(sysfs: Sysfs) -> None:
    """A hook that cannot be attached keeps the reason of each point, in the order of attempts."""
    sysfs.load(("kvm", "kvm"))
    programs = Recorder(refused={*Backend, KPROBE_MULTI})
    given = hook_set(sysfs, programs)
    assert not given.any_attached
    assert not given.forks_are_counted
    assert status(given, KVM_EXIT).reason == (
        "raw_tracepoint kvm_exit: not permitted; tracepoint kvm:kvm_exit: not permitted"
    )


def test_an_optional_hook_is_wanted_where_its_device_is(sysfs: Sysfs) -> None:
    """A given optional hook is attached if its device exists, and otherwise has no status."""
    optional = [hook for hook in HOOKS if hook.optional]
    assert hook_set(sysfs, Recorder(), optional).statuses == ()
    sysfs.load(("mshv_root", "mshv"))
    (found,) = hook_set(sysfs, Recorder(), optional).statuses
    assert found.attached


def test_without_a_driver_its_hooks_are_not_attached(sysfs: Sysfs) -> None:
    """The hooks of an absent driver are inactive from the start and never attached or detached."""
    programs = Recorder()
    given = hook_set(sysfs, programs)
    for kvm_status in of_kvm(given):
        assert kvm_status.inactive
        assert "/dev/kvm" in (kvm_status.reason or "")
    assert all(program.startswith("on_sched") for _, program in programs.calls)
    given.follow_drivers()
    assert {call for call, _ in programs.calls} == {"attach"}


def test_hooks_follow_their_driver(sysfs: Sysfs) -> None:
    """Hooks are detached when the driver's device disappears and attached when it is back."""
    sysfs.load(("kvm", "kvm"))
    programs = Recorder()
    given = hook_set(sysfs, programs)
    before_ns = given.attached_ns
    assert before_ns is not None
    programs.calls.clear()
    given.follow_drivers()
    assert programs.calls == []
    sysfs.remove_device("kvm")
    given.follow_drivers()
    assert all(status.inactive for status in of_kvm(given))
    assert [call for call, _ in programs.calls] == ["detach"] * len(of_kvm(given))
    since = [status.attached_ns or 0 for status in given.statuses if status.attached]
    assert given.attached_ns == max(since) <= before_ns
    shutil.rmtree(sysfs.root / "module")
    sysfs.load(("kvm", "kvm"))
    given.follow_drivers()
    assert [status.attached_total for status in of_kvm(given)] == [2] * len(of_kvm(given))
    assert (given.attached_ns or 0) > before_ns
    assert status(given, SCHED_PROCESS_FORK).attached_total == 1


def test_a_reloaded_module_is_noticed(sysfs: Sysfs) -> None:
    """All hooks are attached again, because kprobes in the old module are dead without an error."""
    sysfs.load(("kvm", "kvm"))
    programs = Recorder()
    given = hook_set(sysfs, programs)
    sysfs.reload("kvm")
    given.follow_drivers()
    assert all(status.attached and status.attached_total == 2 for status in of_kvm(given))


def test_a_hook_on_demand_is_attached_while_it_is_needed(sysfs: Sysfs) -> None:
    """It starts detached. A need attaches it at once; without a need it is detached again."""
    sysfs.load(("kvm", "kvm"))
    programs = Recorder()
    given = hook_set(sysfs, programs, needed=())
    idle = status(given, KVM_EXIT)
    assert (idle.attached, idle.inactive, idle.unneeded) == (False, True, True)
    assert idle.reason == "not needed: KVM's own statistics count the exits of every VM"
    assert not idle.nothing_to_observe
    assert all(status.attached for status in of_kvm(given) if status.hook is not KVM_EXIT)
    others_ns = given.attached_ns
    programs.calls.clear()
    given.need([KVM_EXIT])
    given.need([KVM_EXIT])
    needed = status(given, KVM_EXIT)
    assert (needed.attached, needed.inactive, needed.unneeded) == (True, False, False)
    assert (needed.reason, needed.attached_total) == (None, 1)
    assert given.attached_ns == needed.attached_ns
    given.need([])
    assert status(given, KVM_EXIT) == replace(idle, attached_total=1)
    assert given.attached_ns == others_ns
    given.need([KVM_EXIT, KVM_VCPU_IOCTL])
    assert status(given, KVM_EXIT).attached_total == 2
    assert programs.calls == [
        ("attach", "on_kvm_exit"),
        ("detach", "kvm_exit"),
        ("attach", "on_kvm_exit"),
    ]


def test_other_hooks_are_always_needed(sysfs: Sysfs) -> None:
    """A need names hooks on demand only; no other hook is detached because it is not named."""
    sysfs.load(("kvm", "kvm"))
    programs = Recorder()
    given = hook_set(sysfs, programs)
    on_demand = {hook for hook in HOOKS if hook.on_demand}
    assert on_demand == {KVM_EXIT}
    given.need([])
    assert {status.hook for status in given.statuses if not status.attached} == on_demand


def test_a_need_outlasts_the_driver(sysfs: Sysfs) -> None:
    """A hook that is needed while its driver is gone is attached when the driver is back.

    While it is gone, the driver is the reason, whatever is needed.
    """
    programs = Recorder()
    given = hook_set(sysfs, programs, needed=())
    for needed in ([KVM_EXIT], [], [KVM_EXIT]):
        given.need(needed)
        found = status(given, KVM_EXIT)
        assert (found.inactive, found.unneeded, found.nothing_to_observe) == (True, False, True)
        assert "/dev/kvm" in (found.reason or "")
    sysfs.load(("kvm", "kvm"))
    given.follow_drivers()
    assert status(given, KVM_EXIT).attached_total == 1
    sysfs.remove_device("kvm")
    given.follow_drivers()
    given.need([])
    (sysfs.root / "class/misc/kvm").mkdir()
    given.follow_drivers()
    idle = status(given, KVM_EXIT)
    assert (idle.unneeded, idle.attached_total, idle.attached_ns) == (True, 1, None)
    sysfs.reload("kvm")
    given.follow_drivers()
    assert status(given, KVM_EXIT) == idle
    given.need([KVM_EXIT])
    assert status(given, KVM_EXIT).attached_total == 2


def test_a_failed_attachment_is_tried_again_with_the_next_need(sysfs: Sysfs) -> None:
    """The failure and its reason stay while the hook is needed; then it is inactive, not broken."""
    sysfs.load(("kvm", "kvm"))
    programs = Recorder(refused={Backend.RAW_TRACEPOINT, Backend.TRACEPOINT})
    given = hook_set(sysfs, programs)
    programs.refused.clear()
    given.need([KVM_EXIT])
    failed = status(given, KVM_EXIT)
    assert (failed.attached, failed.inactive, failed.unneeded) == (False, False, False)
    assert "not permitted" in (failed.reason or "")
    given.need([])
    assert status(given, KVM_EXIT).unneeded
    given.need([KVM_EXIT])
    assert status(given, KVM_EXIT).attached


def test_a_program_beside_is_detached_with_its_hook(sysfs: Sysfs) -> None:
    """Nothing of a hook that nothing needs stays attached."""
    hook = replace(SCHED_PROCESS_FORK, on_demand="nothing forks")
    programs = Recorder()
    given = hook_set(sysfs, programs, [hook], needed=[hook])
    assert len(programs.held) == 2
    assert given.forks_are_counted
    given.need([])
    assert programs.held == set()
    assert not given.any_attached
    assert not given.forks_are_counted


def test_missed_runs_of_all_programs_of_a_hook_are_added_up(sysfs: Sysfs) -> None:
    """The total of a hook spans its attach points and attachments; None: it is not counted."""
    sysfs.load(("kvm", "kvm"))
    programs = Recorder(missed={"on_sched_process_fork": 2, "on_sched_process_fork_seen": 3})
    given = hook_set(sysfs, programs)
    assert {status.missed_total for status in given.statuses} == {None}
    given.count_missed()
    assert status(given, SCHED_PROCESS_FORK).missed_total == 5
    assert status(given, KVM_EXIT).missed_total is None
    programs.missed["on_kvm_exit"] = 7
    given.count_missed()
    given.need([])
    assert status(given, KVM_EXIT).missed_total == 14, "two forms of the hook's program are loaded"
    sysfs.remove_device("kvm")
    given.follow_drivers()
    assert status(given, KVM_EXIT).missed_total == 14


def test_fields_that_moved_are_not_read(sysfs: Sysfs) -> None:
    """A program that was compiled for other offsets is not attached, but its next form is."""
    sysfs.load(("kvm", "kvm"))
    places = field_places(Tracefs(sysfs.root), HOOKS)
    sysfs.describe("kvm:kvm_userspace_exit", "reason", "errno", begin=16)
    sysfs.describe("sched:sched_process_free", "pid", begin=16)
    programs = Recorder()
    given = HookSet(HOOKS, cast("Programs", programs), places=places, sys_root=sysfs.root)
    assert status(given, KVM_USERSPACE_EXIT).backend is Backend.RAW_TRACEPOINT
    reason = status(given, SCHED_PROCESS_FREE).reason or ""
    assert reason.startswith("tracepoint sched:sched_process_free: pid moved")
    assert reason.endswith("restart hvprobe")


@pytest.mark.parametrize("exact", [True, False])
def test_returns_have_the_form_that_loses_least(sysfs: Sysfs, *, exact: bool) -> None:
    """The raw form comes first where BTF says that tracepoints disable preemption."""
    sysfs.load(("kvm", "kvm"))
    names = ["bpf_prog_active", "tracepoint_srcu_srcu_data", *([] if exact else ["srcu_ctr"])]
    types = sysfs.root / "kernel/btf/vmlinux"
    types.parent.mkdir(parents=True)
    types.write_bytes(btf(*((name,) for name in names)))
    given = hook_set(sysfs, Recorder())
    wanted = Backend.RAW_TRACEPOINT if exact else Backend.TRACEPOINT
    found = status(given, KVM_USERSPACE_EXIT)
    assert (found.backend, found.reads_result, found.passed_over) == (wanted, True, None)
    assert status(given, SCHED_PROCESS_EXIT).backend is Backend.TRACEPOINT


def test_without_tracefs_the_reason_names_tracefs(sysfs: Sysfs) -> None:
    """The reason does not say that fields moved when their description cannot be read."""
    shutil.rmtree(sysfs.root / "kernel")
    given = hook_set(sysfs, Recorder(reachable=False))
    assert "there is no tracefs" in (status(given, SCHED_PROCESS_FORK).reason or "")
    assert not given.lives_are_followed
    assert not given.forks_are_counted


@pytest.mark.parametrize("backend", [Backend.TRACEPOINT, Backend.RAW_TRACEPOINT])
def test_only_classic_tracepoints_follow_lives(sysfs: Sysfs, backend: Backend) -> None:
    """Lives need classic tracepoints: a raw one may be skipped for a thread preempted in it."""
    given = hook_set(sysfs, Recorder(refused={backend}))
    assert given.lives_are_followed is (backend is Backend.RAW_TRACEPOINT)


def test_offsets_of_fields_become_flags(sysfs: Sysfs) -> None:
    """The flags hold the offsets of tracefs or, without it, those right after the common fields."""
    sysfs.describe("sched:sched_process_fork", "parent_pid", "child_pid", begin=12)
    flags = field_flags(field_places(Tracefs(sysfs.root), [SCHED_PROCESS_FORK]))
    assert flags == ["-DSCHED_PROCESS_FORK_CHILD_PID=16"]
    nowhere = field_places(Tracefs(sysfs.root / "none"), HOOKS)
    assert set(field_flags(nowhere)) == {
        "-DSCHED_PROCESS_FORK_CHILD_PID=8",
        "-DSCHED_PROCESS_FREE_PID=8",
        "-DKVM_USERSPACE_EXIT_REASON=8",
        "-DKVM_USERSPACE_EXIT_ERRNO=12",
    }
