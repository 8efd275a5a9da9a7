"""What makes a process worth reading again, when its verdict stands, and what is a VMM."""

from dataclasses import replace

import pytest
from facts import ALL_QUESTIONS, VMM, entry, evidence, hooks, kernel, process

from ebpf.hooks import Question
from ebpf.ledger import LedgerEntry
from probes.assemble import TrackedProcess
from probes.changes import is_vmm, needs_reading, removes_records, verdict_stands
from probes.evidence import Evidence
from probes.verdict import Reason, Verdict
from probes.vmm import HypervisorType

PLAIN = TrackedProcess(
    vmm=VMM,
    comm="qemu-system-x86",
    program="qemu-system-x86_64",
    guest_name="default_alpha",
    pod=None,
    named_like_qemu=True,
    capability_probe=False,
    vcpus=1,
    started_unix_s=1.5,
    verdict=Verdict(
        type=HypervisorType.KVM, verified=True, reasons=(Reason.USERSPACE_EXITS_RECORDED,)
    ),
    record_ns=None,
)
"""Proven to run on KVM without a record."""
RECORDED = replace(PLAIN, record_ns=entry().first_ns)
UNPROVEN = replace(
    RECORDED, verdict=replace(PLAIN.verdict, verified=False, reasons=(Reason.HOLDS_VCPUS,))
)
ENDED = replace(RECORDED, main_thread_ended=True)
OTHER = entry(first_ns=entry().first_ns + 1)


@pytest.mark.parametrize(
    ("known", "record", "needs"),
    [
        (PLAIN, None, False),
        (PLAIN, entry(), True),
        (RECORDED, None, True),
        (RECORDED, entry(), False),
        (RECORDED, entry(userspace_exits=1), False),
        (RECORDED, OTHER, True),
        (RECORDED, entry(leader_exit_ns=1), True),
        (RECORDED, entry(vcpus_created=1), True),
        (RECORDED, entry(mshv_runs=1), True),
        (UNPROVEN, entry(), True),
        (ENDED, entry(), True),
    ],
)
def test_a_process_is_read_again(
    known: TrackedProcess, record: LedgerEntry | None, *, needs: bool
) -> None:
    """Until its verdict is final, and whenever the ledger says something new of it."""
    assert needs_reading(known, record, kernel()) is needs


@pytest.mark.parametrize(
    ("known", "record", "stands"),
    [
        (PLAIN, None, True),
        (PLAIN, entry(), True),
        (PLAIN, entry(mshv_runs=1), False),
        (RECORDED, None, False),
        (RECORDED, entry(exits=1), True),
        (RECORDED, OTHER, False),
        (RECORDED, entry(mshv_runs=1), False),
        (UNPROVEN, entry(), False),
    ],
)
def test_a_final_verdict_stands(
    known: TrackedProcess, record: LedgerEntry | None, *, stands: bool
) -> None:
    """As long as its record is the one it was judged with, and does not contradict."""
    assert verdict_stands(known, record, kernel()) is stands


def test_a_ledger_that_cannot_be_read_changes_nothing() -> None:
    """Its silence is no news."""
    silent = kernel(error="no ledger")
    assert not needs_reading(RECORDED, None, silent)
    assert verdict_stands(RECORDED, None, silent)
    assert needs_reading(UNPROVEN, None, silent)
    assert not verdict_stands(UNPROVEN, None, silent)


@pytest.mark.parametrize(
    ("named", "shown", "vmm"),
    [
        (True, evidence(), True),
        (False, evidence(), False),
        (False, evidence(kvm_fds=True), True),
        (False, evidence(mshv_fds=True), True),
        (False, evidence(kvm_runs_unheld=1), True),
        (False, evidence(ledger=entry(vms_created=1)), False),
        (False, evidence(ledger=entry(exits=1)), True),
        (False, evidence(ledger=entry(mshv_runs=1)), True),
    ],
)
def test_what_is_a_vmm(shown: Evidence, *, named: bool, vmm: bool) -> None:
    """A name is enough, and so is the use of an accelerator."""
    assert is_vmm(process(named_like_qemu=named), shown) is vmm


def test_records_are_removed_by_the_hook_of_the_end() -> None:
    """By no other one."""
    assert removes_records(kernel())
    without = hooks(ALL_QUESTIONS - {Question.IS_FREED})
    assert not removes_records(kernel(hooks=without))
