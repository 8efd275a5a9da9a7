"""The table of hooks is complete, unambiguous, and agrees with the BPF text it names."""

import re
from importlib import resources

import pytest

from ebpf.hooks import (
    HOOKS,
    KVM,
    MSHV,
    PROGRAM_FILES,
    Backend,
    Hook,
    HookStatus,
    Question,
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
    assert sorted(written) == sorted(hook.program for hook in HOOKS)


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
    preemptible = {Question.USERSPACE_EXITS, Question.BECOMES_VMM, Question.ENDS}
    tracepoints = [Backend.RAW_TRACEPOINT, Backend.TRACEPOINT]
    if hook.question in preemptible:
        tracepoints.reverse()
    allowed = [Backend.KPROBE, *tracepoints]
    order = [allowed.index(point.backend) for point in hook.points]
    assert order
    assert order == sorted(set(order))
    assert all(point.target.rpartition(":")[2] == hook.name for point in hook.points)


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.name)
def test_driver_is_told_where_there_is_one(hook: Hook) -> None:
    """A hook of KVM tells that kvm has to be there first; a hook of the scheduler needs none."""
    prefixes = {"kvm_": KVM, "mshv_": MSHV, "sched_": None}
    assert [hook.driver] == [it for prefix, it in prefixes.items() if hook.name.startswith(prefix)]


def test_attaching_is_counted_and_a_driver_gone_is_no_failure() -> None:
    """A hook whose driver left is needless, not broken; attached again, it says how often."""
    once = HookStatus(hook=HOOKS[0], backend=Backend.NONE).attached_by(Backend.KPROBE)
    gone = once.driver_gone()
    again = gone.attached_by(Backend.KPROBE)
    assert (once.attached_total, once.needless, once.reason) == (1, False, None)
    assert (gone.attached, gone.needless, gone.attached_total) == (False, True, 1)
    assert "/dev/kvm" in (gone.reason or "")
    assert (again.attached, again.needless, again.attached_total) == (True, False, 2)
    assert not gone.failed("no such function").needless


def test_argument_free_programs_only_may_be_raw() -> None:
    """A program that reads its context is never attached to a raw tracepoint.

    There it would find the arguments in another layout.
    """
    bodies = re.split(r"^int (?=on_)", _bpf_text(), flags=re.MULTILINE)[1:]
    readers = {body.partition("(")[0] for body in bodies if "ctx" in body.partition("{")[2]}
    raw = {
        hook.program
        for hook in HOOKS
        if any(point.backend is Backend.RAW_TRACEPOINT for point in hook.points)
    }
    assert readers
    assert not readers & raw


def test_unattached_names_every_hook_and_the_reason() -> None:
    """Without any BPF each wanted hook is still reported, with backend none and the reason."""
    statuses = unattached("no BPF here")
    assert [it.hook for it in statuses] == [hook for hook in HOOKS if not hook.optional]
    assert {(it.backend, it.reason, it.attached) for it in statuses} == {
        (Backend.NONE, "no BPF here", False)
    }


@pytest.mark.parametrize("backend", [it for it in Backend if it is not Backend.NONE])
def test_any_backend_but_none_is_attached(backend: Backend) -> None:
    """A hook counts whichever way it is attached."""
    assert HookStatus(hook=HOOKS[0], backend=backend).attached
