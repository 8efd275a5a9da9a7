# SPDX-License-Identifier: Apache-2.0
"""The builder decides what a counter's silence means, and which VM is a fallback."""

from dataclasses import replace

import pytest

from ebpf.hooks import KVM_EXIT, KVM_USERSPACE_EXIT, Hook
from ebpf.ledger import LedgerEntry
from probes.host.hypervisors import HypervisorType
from probes.host.node import Accelerator
from probes.host.process import VmmId
from probes.judge.reasons import Reason
from probes.judge.tracked import TrackedProcess, Tracking
from probes.judge.verdict import Verdict
from probes.report.builder import BLIND_AFTER, FiredHook, HookHistory, process_reports, vmi_reports
from probes.report.model import CounterTrust, ProcessReport, ProcessState
from probes.vmi.attribution import Attribution, VmName
from tests.support.facts import (
    ALL_HOOKS,
    ATTACHED_NS,
    IS_A_PROBE,
    KVM_ABSENT,
    KVM_AVAILABLE,
    KVM_UNTRIED,
    VMM,
    entry,
    hooks,
    kernel,
    tracked,
)

PROVEN, UNTRIED = CounterTrust.PROVEN, CounterTrust.UNTRIED
BLIND, MISSING = CounterTrust.BLIND, CounterTrust.MISSING
ALPHA = VmName(namespace="default", name="alpha")
KVM = Verdict(type=HypervisorType.KVM, verified=True, reasons=(Reason.USERSPACE_EXITS_RECORDED,))
MSHV = Verdict(type=HypervisorType.MSHV, verified=True, reasons=(Reason.INSIDE_MSHV_RUN,))
TCG = Verdict(type=HypervisorType.TCG, verified=True, reasons=(Reason.TCG_COMPUTES,))
UNKNOWN = Verdict(type=HypervisorType.UNKNOWN, verified=False, reasons=(Reason.NO_VCPU_YET,))
PROCESS = tracked(vcpus=2, record_ns=entry().first_ns)
COUNTED = entry(runs=3, userspace_exits=2, exits=40)
RETURNED, EXITED = ("userspace_exits", 1), ("exits", 1)
"""Counters that have counted since their hooks were attached for the first time."""
MSHV_AVAILABLE = Accelerator(type=HypervisorType.MSHV, available=True)
NAMED = Attribution(vm=ALPHA, vmm=VMM, architecture=None)


# trust in counters


@pytest.mark.parametrize(
    ("attached", "fired", "returns", "expected"),
    [
        (ALL_HOOKS, frozenset(), 0, (UNTRIED, UNTRIED)),
        (ALL_HOOKS, frozenset({RETURNED, EXITED}), 500, (PROVEN, PROVEN)),
        (frozenset(), frozenset({RETURNED, EXITED}), 500, (MISSING, MISSING)),
        # kvm_pvm: KVM_RUN returns by the hundred and the tracepoint kvm_exit never fires.
        (
            frozenset({KVM_USERSPACE_EXIT, KVM_EXIT}),
            frozenset({RETURNED}),
            BLIND_AFTER,
            (PROVEN, BLIND),
        ),
        (
            ALL_HOOKS,
            frozenset({RETURNED}),
            BLIND_AFTER - 1,
            (PROVEN, UNTRIED),
        ),
        (
            ALL_HOOKS,
            frozenset({RETURNED, EXITED}),
            BLIND_AFTER,
            (PROVEN, PROVEN),
        ),
        (
            frozenset({KVM_USERSPACE_EXIT}),
            frozenset({RETURNED}),
            BLIND_AFTER,
            (PROVEN, MISSING),
        ),
    ],
)
def test_trust(
    attached: frozenset[Hook],
    fired: frozenset[FiredHook],
    returns: int,
    expected: tuple[CounterTrust, ...],
) -> None:
    """A counter is trusted once its hook has fired.

    Without an attached hook it is missing. If its hook never fires while guests return to user
    space, it is blind.
    """
    earlier = HookHistory(fired=fired)
    unattached = kernel(entry(userspace_exits=returns), hooks=hooks(frozenset()))
    found = earlier.after(unattached).trusts(kernel(hooks=hooks(attached)))
    assert (found["userspace_exits"], found["exits"]) == expected


def test_blindness_is_found_on_all_guests_together() -> None:
    """Many guests with few returns each prove as much as one guest with many."""
    entries = [entry(tgid, userspace_exits=1) for tgid in range(BLIND_AFTER)]
    assert HookHistory().after(kernel(*entries)).missed
    assert not HookHistory().after(kernel(*entries[1:])).missed
    refused = [entry(tgid, userspace_exits=1, completed_runs=0) for tgid in range(BLIND_AFTER)]
    assert not HookHistory().after(kernel(*refused)).missed


def test_blindness_is_not_forgotten_with_its_guests() -> None:
    """A blind hook stays blind after its guests have ended, until it fires."""
    blind = HookHistory(fired=frozenset({RETURNED}), missed=frozenset({"exits"})).after(kernel())
    assert blind.trusts(kernel())["exits"] is BLIND
    assert blind.after(kernel(entry(exits=1))).trusts(kernel())["exits"] is PROVEN


@pytest.mark.parametrize(
    ("entries", "fired"),
    [
        ((), set()),
        ((entry(vms_created=1, vcpus_created=1, runs=1),), set()),
        ((entry(1, userspace_exits=1), entry(2, exits=1)), {RETURNED, EXITED}),
        ((entry(1, userspace_exits=1, first_ns=ATTACHED_NS - 1),), set()),
        ((entry(1, userspace_exits=1, first_ns=ATTACHED_NS),), {RETURNED}),
    ],
)
def test_hooks_fired(entries: tuple[LedgerEntry, ...], fired: set[object]) -> None:
    """A hook has fired if it counted for a process that began after the hook was attached."""
    assert HookHistory().after(kernel(*entries)).fired == fired


def test_a_hook_that_is_attached_again_has_to_fire_again() -> None:
    """After a new attachment, another module may call the hook, or may never call it."""
    again = tuple(replace(status, attached_total=2) for status in hooks())
    snapshot = kernel(entry(exits=1), hooks=again)
    before = HookHistory(fired=frozenset({EXITED}))
    assert before.trusts(snapshot)["exits"] is UNTRIED
    assert ("exits", 2) in before.after(snapshot).fired


# processes


def reports(
    *processes: TrackedProcess, record: LedgerEntry | None = COUNTED
) -> tuple[ProcessReport, ...]:
    records = {VMM.tgid: record} if record else {}
    tracking = Tracking(processes=processes, records=records, pending=0)
    return process_reports(tracking, names={VMM: ALPHA})


def one(process: TrackedProcess, record: LedgerEntry | None = COUNTED) -> ProcessReport:
    (found,) = reports(process, record=record)
    return found


def test_process_is_passed_on() -> None:
    """The report of a process with a name holds everything that is known about it."""
    assert one(PROCESS) == ProcessReport(
        vmm=VMM,
        comm="qemu-system-x86",
        guest_name="default_alpha",
        vm=ALPHA,
        state=ProcessState.ATTRIBUTED,
        verdict=KVM,
        vcpus=2,
        started_unix_s=1.5,
        counters={"runs": 3, "userspace_exits": 2, "exits": 40},
    )


def test_a_zero_is_never_shown() -> None:
    """A counter of 0 is absent, because its hook may never fire for this process."""
    found = one(PROCESS, entry(runs=7))
    assert found.counters == {"runs": 7}


def test_each_hypervisor_has_its_own_counters() -> None:
    """Counts of another hypervisor's hooks are not reported for a VM."""
    record = entry(runs=3, exits=40, mshv_runs=9)
    assert one(PROCESS, record).counters == {"runs": 3, "exits": 40}
    assert one(replace(PROCESS, verdict=MSHV), record).counters == {"mshv_runs": 9}


@pytest.mark.parametrize("verdict", [TCG, UNKNOWN])
def test_no_counters_without_acceleration(verdict: Verdict) -> None:
    """Counters of an emulated VM are absent rather than 0."""
    found = one(replace(PROCESS, verdict=verdict, record_ns=None), None)
    assert found.counters == {}


@pytest.mark.parametrize("verdict", [TCG, UNKNOWN])
def test_a_record_without_acceleration_shows_no_counters(verdict: Verdict) -> None:
    """A process that only asked for a VM has a record, but no counters."""
    found = one(replace(PROCESS, verdict=verdict))
    assert found.counters == {}


def test_no_record_no_counters() -> None:
    """A process without a record of its own has no counters."""
    found = one(PROCESS, None)
    assert found.counters == {}


def test_states() -> None:
    """Each state is reported, and processes keep their order."""
    unnamed = replace(PROCESS, vmm=VmmId(tgid=5000, start_ticks=1))
    probe = replace(PROCESS, vmm=VmmId(tgid=90, start_ticks=1), verdict=IS_A_PROBE)
    found = reports(probe, PROCESS, unnamed)
    assert [(process.vmm.tgid, process.vm, process.state) for process in found] == [
        (90, None, ProcessState.PROBE),
        (VMM.tgid, ALPHA, ProcessState.ATTRIBUTED),
        (5000, None, ProcessState.UNATTRIBUTED),
    ]


# VMIs


@pytest.mark.parametrize(
    ("verdict", "architecture", "accelerators", "fallback"),
    [
        (TCG, None, (KVM_AVAILABLE,), True),
        (TCG, "x86_64", (KVM_AVAILABLE,), True),
        (TCG, "x86_64", (KVM_ABSENT,), False),
        (TCG, "x86_64", (KVM_UNTRIED,), None),
        (TCG, "x86_64", (), None),
        (TCG, "x86_64", (KVM_UNTRIED, KVM_AVAILABLE), True),
        # The node has the Microsoft hypervisor instead of KVM.
        (TCG, "x86_64", (KVM_ABSENT, MSHV_AVAILABLE), True),
        # Emulated because the guest is of another architecture: on purpose.
        (TCG, "aarch64", (KVM_AVAILABLE,), False),
        (TCG, "aarch64", (KVM_UNTRIED,), False),
        (KVM, "x86_64", (KVM_AVAILABLE,), False),
        (MSHV, "x86_64", (KVM_UNTRIED,), False),
        (UNKNOWN, "x86_64", (KVM_AVAILABLE,), False),
    ],
)
def test_fallback(
    verdict: Verdict,
    architecture: str | None,
    accelerators: tuple[Accelerator, ...],
    *,
    fallback: bool | None,
) -> None:
    """An emulated VM is a fallback if the node could accelerate it; without a trial, unknown."""
    vm = Attribution(vm=ALPHA, vmm=VMM, architecture=architecture)
    processes = [one(replace(PROCESS, verdict=verdict))]
    (found,) = vmi_reports([vm], processes, accelerators=accelerators, machine="x86_64", pending=0)
    assert found.fallback is fallback


def test_vmi_is_passed_on() -> None:
    """A VM has its process's verdict and counters."""
    process = one(PROCESS)
    (found,) = vmi_reports(
        [NAMED], [process], accelerators=(KVM_AVAILABLE,), machine="x86_64", pending=0
    )
    assert (found.vm, found.vmm, found.verdict) == (ALPHA, VMM, KVM)
    assert found.counters == {"runs": 3, "userspace_exits": 2, "exits": 40}


@pytest.mark.parametrize("vmm", [None, VmmId(tgid=1, start_ticks=1)])
def test_vmi_without_a_process(vmm: VmmId | None) -> None:
    """A VM whose process was not found, or has ended since, is unknown for that reason."""
    vm = Attribution(vm=ALPHA, vmm=vmm, architecture=None)
    (found,) = vmi_reports(
        [vm], [one(PROCESS)], accelerators=(KVM_AVAILABLE,), machine="x86_64", pending=0
    )
    assert found.verdict == Verdict(
        type=HypervisorType.UNKNOWN, verified=False, reasons=(Reason.NO_PROCESS,)
    )
    assert (found.vmm, found.counters) == (None, {})
    assert found.fallback is False


@pytest.mark.parametrize(
    ("missing", "pending", "reason"),
    [
        (None, 1, Reason.NOT_READ_YET),
        (Reason.NO_PROCESS, 3, Reason.NOT_READ_YET),
        (Reason.NO_PROCESS, 0, Reason.NO_PROCESS),
        (Reason.NO_POD, 1, Reason.NO_POD),
    ],
)
def test_a_vmi_whose_process_may_be_one_that_is_not_read_yet(
    missing: Reason | None, pending: int, reason: Reason
) -> None:
    """While processes are pending, a VMI without a process has that as its reason."""
    vm = Attribution(vm=ALPHA, vmm=None, architecture=None, unattributed_reason=missing)
    (found,) = vmi_reports([vm], [], accelerators=(), machine="x86_64", pending=pending)
    assert found.verdict.reasons == (reason,)


def test_vmis_stay_in_order() -> None:
    """VMIs keep the order of the attributions."""
    names = [VmName(namespace=ns, name=name) for ns, name in ("aa", "ab", "ba")]
    vms = [Attribution(vm=vm, vmm=None, architecture=None) for vm in names]
    found = vmi_reports(vms, [], accelerators=(), machine="x86_64", pending=0)
    assert [vmi.vm for vmi in found] == names
