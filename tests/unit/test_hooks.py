# SPDX-License-Identifier: Apache-2.0
"""The table of hooks is complete, unambiguous, and agrees with the BPF text it names."""

import re
from dataclasses import replace
from importlib import resources

import pytest

from ebpf import hooks
from ebpf.hook_status import HookStatus, unattached
from ebpf.hooks import (
    HOOKS,
    KPROBE_MULTI,
    KVM,
    KVM_EXIT,
    KVM_USERSPACE_EXIT,
    KVM_VCPU_IOCTL,
    MSHV,
    PROGRAM_FILES,
    SCHED_PROCESS_EXEC,
    SCHED_PROCESS_EXIT,
    SCHED_PROCESS_FORK,
    AttachPoint,
    Backend,
    Hook,
    field_flag,
    loadable,
)


def _bpf_text() -> str:
    return "".join(resources.files("ebpf").joinpath(name).read_text() for name in PROGRAM_FILES)


def test_each_constant_is_in_the_table() -> None:
    """Every hook of the module is listed once, and its constant has the kernel's name."""
    constants = {name: value for name, value in vars(hooks).items() if isinstance(value, Hook)}
    assert constants == {hook.name.upper(): hook for hook in HOOKS}
    assert len(constants) == len(HOOKS)


@pytest.mark.parametrize("attribute", ["name", "program"])
def test_names_are_unique(attribute: str) -> None:
    """No two hooks share a name, which is a metric label, or a program, which is loaded once."""
    values = [getattr(hook, attribute) for hook in HOOKS]
    assert len(set(values)) == len(values)


def test_programs_are_those_of_the_bpf_text() -> None:
    """The programs of the table are exactly the functions of the BPF text."""
    written = re.findall(r"^int (on_\w+)\(", _bpf_text(), flags=re.MULTILINE)
    assert sorted(written) == sorted({program for program, _ in loadable(HOOKS)})


def test_tables_come_first() -> None:
    """The compiler sees one text, so the tables that all programs use come before them."""
    assert PROGRAM_FILES[0] == "ledger.bpf.c"
    names = {file.name for file in resources.files("ebpf").iterdir()}
    shipped = {name for name in names if name.endswith(".bpf.c")}
    assert set(PROGRAM_FILES) <= shipped


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.name)
def test_attach_points_are_in_order_and_fit(hook: Hook) -> None:
    """Where a thread may be preempted the exact form comes first, elsewhere the cheapest.

    Every point attaches to the place that the hook's name says.
    """
    preemptible = {KVM_USERSPACE_EXIT, SCHED_PROCESS_EXEC, SCHED_PROCESS_EXIT}
    tracepoints = [Backend.RAW_TRACEPOINT, Backend.TRACEPOINT]
    if hook in preemptible:
        tracepoints.reverse()
    allowed = [Backend.KPROBE.value, KPROBE_MULTI, *tracepoints]
    # A form that cannot read results comes after all that can.
    order = [(not point.reads_result, allowed.index(point.kind)) for point in hook.points]
    assert order
    assert order == sorted(set(order))
    category = hook.name.partition("_")[0]
    assert {point.target for point in hook.points} <= {hook.name, f"{category}:{hook.name}"}
    assert all(
        (":" in point.target) is (point.backend is Backend.TRACEPOINT) for point in hook.points
    )


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.name)
def test_where_raw_points_are_exact_one_comes_first(hook: Hook) -> None:
    """Only returns change their order. A hook with another program beside it keeps the classic one.

    All points stay, so what is refused is replaced as before.
    """
    assert hook.points_in_order(raw_is_exact=False) == hook.points
    exact = hook.points_in_order(raw_is_exact=True)
    if hook is not KVM_USERSPACE_EXIT:
        assert exact == hook.points
        return
    classic, raw, without_result = hook.points
    assert raw.backend is Backend.RAW_TRACEPOINT
    assert exact == (raw, classic, without_result)


def test_the_second_attach_point_is_another_form_at_the_same_place() -> None:
    """Each hook of a life has a raw form, which still runs when the classic one is skipped."""
    beside = {hook: hook.beside for hook in HOOKS if hook.beside}
    assert set(beside) == {SCHED_PROCESS_FORK, SCHED_PROCESS_EXEC, SCHED_PROCESS_EXIT}
    for hook, point in beside.items():
        assert (point.backend, point.target) == (Backend.RAW_TRACEPOINT, hook.name)
        assert hook.points[0].backend is Backend.TRACEPOINT


def test_results_are_read_by_the_hook_of_returns() -> None:
    """The two forms that can read the result of KVM_RUN come before the one that cannot."""
    reads = {hook: [point.reads_result for point in hook.points] for hook in HOOKS}
    assert reads.pop(KVM_USERSPACE_EXIT) == [True, True, False]
    assert not any(any(results) for results in reads.values())


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.name)
def test_hook_names_its_driver(hook: Hook) -> None:
    """A hook of KVM names the driver that it needs. A hook of the scheduler needs none."""
    prefixes = {"kvm_": KVM, "mshv_": MSHV, "sched_": None}
    drivers = [driver for prefix, driver in prefixes.items() if hook.name.startswith(prefix)]
    assert drivers == [hook.driver]


def test_drivers_are_named_as_the_kernel_names_them() -> None:
    """Module and device are the names of virt/kvm/kvm_main.c and drivers/hv/mshv_root_main.c."""
    assert (KVM.module, KVM.device) == ("kvm", "kvm")
    assert (MSHV.module, MSHV.device) == ("mshv_root", "mshv")


def test_attachments_are_counted_and_an_unloaded_driver_is_no_failure() -> None:
    """A hook whose driver was unloaded is inactive, and each new attachment is counted."""
    point = AttachPoint(backend=Backend.KPROBE, target="kvm_vcpu_ioctl")
    once = HookStatus(hook=HOOKS[0], backend=Backend.NONE).attached_at(point, 7)
    gone = once.driver_gone(KVM)
    again = gone.attached_at(point, 9)
    assert (once.attached_total, once.inactive, once.reason) == (1, False, None)
    assert (gone.attached, gone.inactive, gone.attached_total) == (False, True, 1)
    assert "/dev/kvm" in (gone.reason or "")
    assert (again.attached, again.inactive, again.attached_total) == (True, False, 2)
    assert [status.attached_ns for status in (once, gone, again)] == [7, None, 9]
    assert not gone.failed("no such function").inactive


def test_a_hook_that_nothing_needs_is_inactive_and_not_broken() -> None:
    """Its driver is there, so unlike without a driver there may be events to observe."""
    attached = HookStatus(hook=KVM_EXIT, backend=Backend.NONE, missed_total=3).attached_at(
        KVM_EXIT.points[0], 7
    )
    idle = attached.not_needed()
    assert (idle.attached, idle.inactive, idle.unneeded) == (False, True, True)
    assert (idle.attached_ns, idle.attached_total, idle.missed_total) == (None, 1, 3)
    assert not idle.nothing_to_observe
    assert idle.reason == f"not needed: {KVM_EXIT.on_demand}"
    gone = idle.driver_gone(KVM)
    assert (gone.inactive, gone.unneeded, gone.nothing_to_observe) == (True, False, True)
    assert not idle.failed("no").inactive
    assert not idle.failed("no").unneeded
    assert not idle.attached_at(KVM_EXIT.points[0], 8).unneeded


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.name)
def test_a_kprobe_may_be_attached_by_a_link(hook: Hook) -> None:
    """Each kprobe has a second point, at the same function, which is reported as a kprobe, too."""
    kprobes = [point for point in hook.points if point.backend is Backend.KPROBE]
    if kprobes:
        event, link = kprobes
        assert (event.by_link, link.by_link) == (False, True)
        assert (event.target, event.program) == (link.target, link.program)
        assert (event.kind, link.kind) == ("kprobe", "kprobe_multi")
    assert not any(point.by_link for point in hook.points if point not in kprobes)


def test_status_says_that_a_link_is_in_use() -> None:
    """The status says the form and why it was chosen, only while the link is in use."""
    event, link = KVM_VCPU_IOCTL.points
    status = HookStatus(hook=KVM_VCPU_IOCTL, backend=Backend.NONE)
    assert (status.form, status.passed_over) == ("none", None)
    linked = status.attached_at(link, 1, passed_over="not permitted")
    assert (linked.form, linked.backend, linked.passed_over) == (
        "kprobe_multi",
        Backend.KPROBE,
        "not permitted",
    )
    for other in (linked.driver_gone(KVM), linked.failed("gone"), linked.attached_at(event, 2)):
        assert (other.by_link, other.passed_over) == (False, None)
        assert other.form == other.backend.value


def test_status_says_what_the_point_in_use_can_read() -> None:
    """The status reports whether results are read only while a point is attached."""
    hook = KVM_USERSPACE_EXIT
    status = HookStatus(hook=hook, backend=Backend.NONE)
    reads = [status.attached_at(point, 1).reads_result for point in hook.points]
    assert reads == [True, True, False]
    best = status.attached_at(hook.points[0], 1)
    for lost in (best.driver_gone(KVM), best.failed("gone")):
        assert (lost.reads_result, lost.attached_ns) == (False, None)


def test_programs_get_the_context_they_read() -> None:
    """A program is attached only where the kernel passes the kind of context that it reads.

    In another kind of context it would read unrelated data.
    """
    bodies = re.split(r"^int (?=on_)", _bpf_text(), flags=re.MULTILINE)[1:]
    kinds = {
        body.partition("(")[0]: (
            Backend.KPROBE
            if "PT_REGS" in body
            else Backend.TRACEPOINT
            if re.search(r"ctx \+ [A-Z]", body)
            else Backend.RAW_TRACEPOINT
            if "ctx" in body.partition("{")[2]
            else None
        )
        for body in bodies
    }
    assert set(kinds.values()) == {None, Backend.KPROBE, Backend.TRACEPOINT, Backend.RAW_TRACEPOINT}
    for program, kind in loadable(HOOKS):
        backend = Backend.KPROBE if kind == KPROBE_MULTI else kind
        assert kinds[program] in (None, backend), program


def test_fields_are_the_macros_of_the_bpf_text() -> None:
    """The compiler receives the offset of each field that a program reads, and no other."""
    used = set(re.findall(r"ctx \+ ([A-Z]\w+)", _bpf_text()))
    points = [point for hook in HOOKS for point in hook.points]
    assert used == {field_flag(point, field) for point in points for field in point.fields}
    assert all(point.backend is Backend.TRACEPOINT for point in points if point.fields)


def test_a_status_is_known_by_the_name_of_its_hook() -> None:
    """A hook with other attach points is the same hook; one with another name is not."""
    moved = replace(KVM_USERSPACE_EXIT, points=KVM_USERSPACE_EXIT.points[1:])
    status = HookStatus(hook=moved, backend=Backend.NONE)
    assert status.is_of(KVM_USERSPACE_EXIT)
    assert not status.is_of(SCHED_PROCESS_FORK)


def test_a_refusal_has_its_own_flag() -> None:
    """The flag does not depend on the reason's text, and an attached hook no longer has it."""
    plain = HookStatus(hook=HOOKS[0], backend=Backend.NONE)
    assert not plain.failed("kprobe x: not permitted").refused
    refused = plain.failed("kprobe x: no", refused=True)
    assert refused.refused
    assert not refused.driver_gone(KVM).refused
    assert not refused.attached_at(HOOKS[0].points[0], 7).refused
    assert {status.refused for status in unattached("no BPF", refused=True)} == {True}
    assert {status.refused for status in unattached("not permitted")} == {False}


def test_unattached_names_every_hook_and_the_reason() -> None:
    """Without BPF each wanted hook is still reported, with the backend none and the reason."""
    statuses = unattached("no BPF here")
    assert [status.hook for status in statuses] == [hook for hook in HOOKS if not hook.optional]
    assert [status.hook for status in unattached("no BPF here", HOOKS)] == list(HOOKS)
    assert [status.hook for status in unattached("no BPF here", HOOKS[:1])] == [HOOKS[0]]
    assert {(status.backend, status.reason, status.attached) for status in statuses} == {
        (Backend.NONE, "no BPF here", False)
    }


@pytest.mark.parametrize("backend", [backend for backend in Backend if backend is not Backend.NONE])
def test_any_backend_but_none_is_attached(backend: Backend) -> None:
    """A hook is attached with any backend except none."""
    assert HookStatus(hook=HOOKS[0], backend=backend).attached


def test_a_hook_that_is_not_attached_reads_no_result() -> None:
    """No result is read by a hook that is not attached, whatever its attach points can read."""
    assert not any(status.reads_result for status in unattached("no BPF"))


def test_only_the_hook_of_the_microsoft_hypervisor_is_optional() -> None:
    """A node without that device does not need the hook. KVM's module may be loaded later."""
    assert [hook.driver for hook in HOOKS if hook.optional] == [MSHV]
