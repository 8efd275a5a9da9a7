# SPDX-License-Identifier: Apache-2.0
"""The table of hooks is complete, unambiguous, and agrees with the BPF text it names."""

import re
from importlib import resources

import pytest

from ebpf.hooks import (
    HOOKS,
    KVM,
    MSHV,
    PROGRAM_FILES,
    AttachPoint,
    Backend,
    Hook,
    HookStatus,
    Question,
    field_flag,
    loadable,
    unattached,
)


def _bpf_text() -> str:
    return "".join(resources.files("ebpf").joinpath(name).read_text() for name in PROGRAM_FILES)


def test_each_question_has_exactly_one_hook() -> None:
    """No question is left without a hook and none is asked twice."""
    assert [hook.question for hook in HOOKS] == list(Question)


@pytest.mark.parametrize("attribute", ["name", "program"])
def test_names_are_unique(attribute: str) -> None:
    """A hook's name is a metric label and its program is loaded once: both are its own."""
    values = [getattr(hook, attribute) for hook in HOOKS]
    assert len(set(values)) == len(values)


def test_programs_are_those_of_the_bpf_text() -> None:
    """Each program named is a function of the BPF text, and each function there is named."""
    written = re.findall(r"^int (on_\w+)\(", _bpf_text(), flags=re.MULTILINE)
    assert sorted(written) == sorted({program for program, _ in loadable(HOOKS)})


def test_tables_come_first() -> None:
    """BPF text is one file to the compiler: what the others use is declared before them."""
    assert PROGRAM_FILES[0] == "ledger.bpf.c"
    shipped = {it.name for it in resources.files("ebpf").iterdir() if it.name.endswith(".bpf.c")}
    assert set(PROGRAM_FILES) <= shipped


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.name)
def test_attach_points_are_in_order_and_fit(hook: Hook) -> None:
    """Where a thread may be preempted the exact form is tried first, elsewhere the cheapest.

    Every point is where the hook's name says.
    """
    preemptible = {Question.USERSPACE_EXITS, Question.EXECUTES, Question.ENDS}
    tracepoints = [Backend.RAW_TRACEPOINT, Backend.TRACEPOINT]
    if hook.question in preemptible:
        tracepoints.reverse()
    allowed = [Backend.KPROBE, *tracepoints]
    # A form that tells less comes after all that tell more.
    order = [(not point.reads_result, allowed.index(point.backend)) for point in hook.points]
    assert order
    assert order == sorted(set(order))
    category = hook.name.partition("_")[0]
    assert {point.target for point in hook.points} <= {hook.name, f"{category}:{hook.name}"}
    assert all((":" in it.target) is (it.backend is Backend.TRACEPOINT) for it in hook.points)


def test_what_is_attached_beside_is_another_form_at_the_same_place() -> None:
    """A raw form, which is not skipped when the classic one is; each hook of a life has one."""
    beside = {hook.question: (hook.beside, hook) for hook in HOOKS if hook.beside}
    assert set(beside) == {Question.FORKS, Question.EXECUTES, Question.ENDS}
    for point, hook in beside.values():
        assert point is not None
        assert (point.backend, point.target) == (Backend.RAW_TRACEPOINT, hook.name)
        assert hook.points[0].backend is Backend.TRACEPOINT


def test_results_are_read_by_the_hook_of_returns() -> None:
    """The two forms that can read the result of KVM_RUN come before the one that cannot."""
    reads = {hook.question: [it.reads_result for it in hook.points] for hook in HOOKS}
    assert reads.pop(Question.USERSPACE_EXITS) == [True, True, False]
    assert not any(any(it) for it in reads.values())


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.name)
def test_driver_is_told_where_there_is_one(hook: Hook) -> None:
    """A hook of KVM tells that kvm has to be there first; a hook of the scheduler needs none."""
    prefixes = {"kvm_": KVM, "mshv_": MSHV, "sched_": None}
    assert [hook.driver] == [it for prefix, it in prefixes.items() if hook.name.startswith(prefix)]


def test_drivers_are_named_as_the_kernel_names_them() -> None:
    """Module and device of each (virt/kvm/kvm_main.c, drivers/hv/mshv_root_main.c)."""
    assert (KVM.module, KVM.device) == ("kvm", "kvm")
    assert (MSHV.module, MSHV.device) == ("mshv_root", "mshv")


def test_attaching_is_counted_and_a_driver_gone_is_no_failure() -> None:
    """A hook whose driver left is inactive, not broken; attached again, it says how often."""
    point = AttachPoint(backend=Backend.KPROBE, target="kvm_vcpu_ioctl")
    once = HookStatus(hook=HOOKS[0], backend=Backend.NONE).attached_at(point, 7)
    gone = once.driver_gone(KVM)
    again = gone.attached_at(point, 9)
    assert (once.attached_total, once.inactive, once.reason) == (1, False, None)
    assert (gone.attached, gone.inactive, gone.attached_total) == (False, True, 1)
    assert "/dev/kvm" in (gone.reason or "")
    assert (again.attached, again.inactive, again.attached_total) == (True, False, 2)
    assert [it.attached_ns for it in (once, gone, again)] == [7, None, 9]
    assert not gone.failed("no such function").inactive


def test_status_says_what_the_point_in_use_can_read() -> None:
    """Whether results are read is known of the point that holds, and of no other time."""
    (hook,) = [it for it in HOOKS if it.question is Question.USERSPACE_EXITS]
    status = HookStatus(hook=hook, backend=Backend.NONE)
    assert [status.attached_at(it, 1).reads_result for it in hook.points] == [True, True, False]
    best = status.attached_at(hook.points[0], 1)
    for lost in (best.driver_gone(KVM), best.failed("gone")):
        assert (lost.reads_result, lost.attached_ns) == (False, None)


def test_programs_get_the_context_they_read() -> None:
    """A program reads a record at offsets, or arguments in place, and is attached only to such.

    In another kind of context it would find something else there.
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
    for program, backend in loadable(HOOKS):
        assert kinds[program] in (None, backend), program


def test_fields_are_the_macros_of_the_bpf_text() -> None:
    """Each place that a program reads a record at is given to the compiler, and no other."""
    used = set(re.findall(r"ctx \+ ([A-Z]\w+)", _bpf_text()))
    points = [point for hook in HOOKS for point in hook.points]
    assert used == {field_flag(point, field) for point in points for field in point.fields}
    assert all(point.backend is Backend.TRACEPOINT for point in points if point.fields)


def test_a_refusal_is_a_flag_of_its_own() -> None:
    """Whether the kernel refused is known without its words, and no longer holds once attached."""
    plain = HookStatus(hook=HOOKS[0], backend=Backend.NONE)
    assert not plain.failed("kprobe x: not permitted").refused
    refused = plain.failed("kprobe x: no", refused=True)
    assert refused.refused
    assert not refused.driver_gone(KVM).refused
    assert not refused.attached_at(HOOKS[0].points[0], 7).refused
    assert {it.refused for it in unattached("no BPF", refused=True)} == {True}
    assert {it.refused for it in unattached("not permitted")} == {False}


def test_unattached_names_every_hook_and_the_reason() -> None:
    """Without any BPF each wanted hook is still reported, with backend none and the reason."""
    statuses = unattached("no BPF here")
    assert [it.hook for it in statuses] == [hook for hook in HOOKS if not hook.optional]
    assert [it.hook for it in unattached("no BPF here", HOOKS)] == list(HOOKS)
    assert [it.hook for it in unattached("no BPF here", HOOKS[:1])] == [HOOKS[0]]
    assert {(it.backend, it.reason, it.attached) for it in statuses} == {
        (Backend.NONE, "no BPF here", False)
    }


@pytest.mark.parametrize("backend", [it for it in Backend if it is not Backend.NONE])
def test_any_backend_but_none_is_attached(backend: Backend) -> None:
    """A hook counts whichever way it is attached."""
    assert HookStatus(hook=HOOKS[0], backend=backend).attached


def test_a_hook_that_is_not_attached_reads_no_result() -> None:
    """Whatever it could read elsewhere."""
    assert not any(it.reads_result for it in unattached("no BPF"))


def test_only_the_microsoft_hypervisor_s_hook_is_optional() -> None:
    """On a node without that device its absence is no loss; KVM's module may come later."""
    assert [hook.driver for hook in HOOKS if hook.optional] == [MSHV]
