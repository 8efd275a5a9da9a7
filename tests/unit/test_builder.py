# SPDX-License-Identifier: Apache-2.0
"""The builder decides which counters a process has, and which VM is a fallback."""

from dataclasses import replace

import pytest

from ebpf.counters import COUNTERS, Counter
from ebpf.hooks import KVM as KVM_DRIVER
from ebpf.ledger import LedgerEntry
from probes.host.emulation import EmulationFacts, Finding, RegisteredBetween
from probes.host.hypervisors import HypervisorType
from probes.host.node import Accelerator
from probes.host.process import VmmId
from probes.judge.cause import Cause
from probes.judge.emulation_tracker import KnownEmulation
from probes.judge.exit_counts import ExitAccount, ExitSource
from probes.judge.reasons import Reason
from probes.judge.tracked import TrackedProcess, Tracking
from probes.judge.verdict import Verdict
from probes.report.builder import process_reports, vmi_reports
from probes.report.causes import causes_of
from probes.report.hook_history import HookHistory
from probes.report.model import CounterTrust, ProcessReport, ProcessState, VmiReport
from probes.vmi.attribution import Attribution, VmName
from tests.support.facts import (
    IS_A_PROBE,
    KVM_ABSENT,
    KVM_AVAILABLE,
    KVM_UNTRIED,
    VMM,
    entry,
    kernel,
    tracked,
)

ALPHA = VmName(namespace="default", name="alpha")
KVM = Verdict(type=HypervisorType.KVM, verified=True, reasons=(Reason.USERSPACE_EXITS_RECORDED,))
MSHV = Verdict(type=HypervisorType.MSHV, verified=True, reasons=(Reason.INSIDE_MSHV_RUN,))
TCG = Verdict(type=HypervisorType.TCG, verified=True, reasons=(Reason.TCG_COMPUTES,))
UNKNOWN = Verdict(type=HypervisorType.UNKNOWN, verified=False, reasons=(Reason.NO_VCPU_YET,))
PROCESS = tracked(vcpus=2, record_ns=entry().first_ns)
COUNTED = entry(runs=3, userspace_exits=2, exits=40)
MSHV_AVAILABLE = Accelerator(type=HypervisorType.MSHV, available=True)
HOOKED = ExitAccount(VMM, ExitSource.TRACEPOINT)
COUNTED_BY_KVM = HOOKED._replace(source=ExitSource.KVM_STATISTICS, totals=(7,))
NAMED = Attribution(vm=ALPHA, vmm=VMM, architecture=None)
YES, NO = Finding(value=True, text="yes"), Finding(value=False, text="no")
TCG_ONLY = Finding(value=("tcg",), text="QEMU was asked for tcg")
ALLOWED = EmulationFacts(
    architecture=Finding(value="x86_64", text="its program"),
    emulation_allowed=YES,
    device_in_pod=NO,
    device_accessible=Finding(value=None, text="the pod has no device"),
    asked_for=TCG_ONLY,
)
"""Facts of a VM whose pod was made with useEmulation."""


# processes


def reports(
    *processes: TrackedProcess,
    record: LedgerEntry | None = COUNTED,
    account: ExitAccount = HOOKED,
) -> tuple[ProcessReport, ...]:
    records = {VMM.tgid: record} if record else {}
    tracking = Tracking(processes=processes, records=records, pending=0)
    return process_reports(tracking, {VMM.tgid: account}, names={VMM: ALPHA})


def one(
    process: TrackedProcess,
    record: LedgerEntry | None = COUNTED,
    account: ExitAccount = HOOKED,
) -> ProcessReport:
    (found,) = reports(process, record=record, account=account)
    return found


def emulating(
    vm: Attribution, accelerators: tuple[Accelerator, ...], known: KnownEmulation, verdict: Verdict
) -> VmiReport:
    """Return a VM whose process on an x86_64 node has this verdict, with its cause if it is tcg."""
    process = replace(PROCESS, verdict=verdict)
    causes = causes_of([process], known, [vm], accelerators=accelerators, machine="x86_64")
    tracking = Tracking(processes=(process,), records={}, pending=0)
    processes = process_reports(tracking, {}, names={VMM: ALPHA}, causes=causes)
    (found,) = vmi_reports([vm], processes, accelerators=accelerators, pending=0)
    assert found.cause == processes[0].cause
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
        exits_source=ExitSource.TRACEPOINT,
        tracked=PROCESS,
    )


def test_a_zero_is_never_shown() -> None:
    """A counter of 0 is absent, because its hook may never fire for this process."""
    found = one(PROCESS, entry(runs=7))
    assert found.counters == {"runs": 7}


@pytest.mark.parametrize("counter", [one for one in COUNTERS if one.json is not None])
def test_a_hook_that_fires_for_others_proves_no_zero(counter: Counter) -> None:
    """Of every counter: where its hook counts one process, the 0 of another one stays absent."""
    verdict = MSHV if counter.hook.driver is not KVM_DRIVER else KVM
    beta = replace(PROCESS, vmm=VmmId(tgid=5000, start_ticks=1), verdict=verdict)
    records = {VMM.tgid: entry(**{counter.name: 9}), 5000: entry(5000)}
    tracking = Tracking(
        processes=(replace(PROCESS, verdict=verdict), beta), records=records, pending=0
    )
    accounts = {VMM.tgid: HOOKED, 5000: HOOKED._replace(vmm=beta.vmm)}
    trusted = HookHistory().after(kernel(*records.values())).trusts(kernel())
    assert trusted.get(counter.name, CounterTrust.PROVEN) is CounterTrust.PROVEN
    assert [found.counters for found in process_reports(tracking, accounts, names={})] == [
        {counter.name: 9},
        {},
    ]


def test_statistics_replace_the_hook() -> None:
    """Exits from KVM's statistics are reported, be they 0, and never the hook's."""
    found = one(PROCESS, account=COUNTED_BY_KVM)
    assert found.counters == {"runs": 3, "userspace_exits": 2, "exits": 7}
    assert found.exits_source is ExitSource.KVM_STATISTICS
    none_yet = COUNTED_BY_KVM._replace(totals=(0,))
    assert one(PROCESS, None, none_yet).counters == {"exits": 0}


def test_exits_are_absent_until_their_source_is_chosen() -> None:
    """Without an account the hook's exits are not shown, so that the source never changes."""
    tracking = Tracking(processes=(PROCESS,), records={VMM.tgid: COUNTED}, pending=0)
    (found,) = process_reports(tracking, {}, names={})
    assert (found.counters, found.exits_source) == ({"runs": 3, "userspace_exits": 2}, None)


@pytest.mark.parametrize("verdict", [TCG, UNKNOWN, MSHV])
def test_only_kvm_has_a_source_of_exits(verdict: Verdict) -> None:
    """A process that does not run on KVM shows neither exits nor a source, whatever its account."""
    found = one(replace(PROCESS, verdict=verdict), None, COUNTED_BY_KVM)
    assert (found.counters, found.exits_source) == ({}, None)


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
    found = emulating(vm, accelerators, KnownEmulation(), verdict)
    assert found.fallback is fallback
    assert (found.cause is not None) is (verdict is TCG)


@pytest.mark.parametrize(
    ("program", "architecture", "cause", "fallback"),
    [
        ("x86_64", None, Cause.EMULATION_ALLOWED, True),
        # KVM on x86_64 runs these too.
        ("i386", None, Cause.EMULATION_ALLOWED, True),
        ("", "i386", Cause.EMULATION_ALLOWED, True),
        ("aarch64", None, Cause.CROSS_ARCHITECTURE, False),
        ("", "aarch64", Cause.CROSS_ARCHITECTURE, False),
        # One of the two is enough.
        ("aarch64", "x86_64", Cause.CROSS_ARCHITECTURE, False),
        ("x86_64", "aarch64", Cause.CROSS_ARCHITECTURE, False),
        # Nothing that is known says that the guest is foreign.
        (None, None, Cause.UNKNOWN, True),
        (None, "aarch64", Cause.CROSS_ARCHITECTURE, False),
    ],
)
def test_cause_and_fallback_agree(
    program: str | None, architecture: str | None, cause: Cause, *, fallback: bool
) -> None:
    """A guest of another architecture is no fallback, and any other on a capable node is one."""
    facts = replace(ALLOWED, architecture=Finding(value=program, text="its program"))
    vm = Attribution(vm=ALPHA, vmm=VMM, architecture=architecture)
    found = emulating(vm, (KVM_AVAILABLE,), KnownEmulation(facts={VMM: facts}), TCG)
    assert found.cause is not None
    assert (found.cause.cause, found.fallback) == (cause, fallback)


def test_accelerator_that_is_younger_than_the_process() -> None:
    """The start of the process, in clock ticks, is compared with the registration of the device."""
    facts = replace(
        ALLOWED, emulation_allowed=NO, device_in_pod=YES, device_accessible=YES, asked_for=TCG_ONLY
    )
    for after_s, cause in ((61.0, Cause.ACCELERATOR_ADDED_LATER), (59.0, Cause.UNKNOWN)):
        known = KnownEmulation(
            facts={VMM: facts},
            registered=RegisteredBetween(after_s=after_s, by_s=None),
            ticks_per_s=VMM.start_ticks // 60,
        )
        found = emulating(NAMED, (KVM_AVAILABLE,), known, TCG)
        assert found.cause is not None
        assert found.cause.cause is cause


@pytest.mark.parametrize(
    ("accelerators", "cause"),
    [
        ((KVM_AVAILABLE,), Cause.EMULATION_ALLOWED),
        ((KVM_ABSENT, MSHV_AVAILABLE), Cause.EMULATION_ALLOWED),
        ((KVM_ABSENT,), Cause.NODE_WITHOUT_ACCELERATOR),
        ((KVM_UNTRIED,), Cause.UNKNOWN),
    ],
)
def test_cause_follows_the_trials(accelerators: tuple[Accelerator, ...], cause: Cause) -> None:
    """One accelerator that works is enough; where none could be tried, the cause is unknown."""
    found = emulating(NAMED, accelerators, KnownEmulation(facts={VMM: ALLOWED}), TCG)
    assert found.cause is not None
    assert found.cause.cause is cause


def test_process_of_which_nothing_was_read() -> None:
    """A process that emulates has a cause although it has no facts: an unknown one."""
    found = emulating(NAMED, (KVM_AVAILABLE,), KnownEmulation(), TCG)
    assert found.cause is not None
    assert found.cause.cause is Cause.UNKNOWN
    assert "may not read it" in found.cause.detail


def test_vmi_is_passed_on() -> None:
    """A VM has its process's verdict and counters."""
    process = one(PROCESS)
    (found,) = vmi_reports([NAMED], [process], accelerators=(KVM_AVAILABLE,), pending=0)
    assert (found.vm, found.vmm, found.verdict) == (ALPHA, VMM, KVM)
    assert found.counters == {"runs": 3, "userspace_exits": 2, "exits": 40}


@pytest.mark.parametrize("vmm", [None, VmmId(tgid=1, start_ticks=1)])
def test_vmi_without_a_process(vmm: VmmId | None) -> None:
    """A VM whose process was not found, or has ended since, is unknown for that reason."""
    vm = Attribution(vm=ALPHA, vmm=vmm, architecture=None)
    (found,) = vmi_reports([vm], [one(PROCESS)], accelerators=(KVM_AVAILABLE,), pending=0)
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
    (found,) = vmi_reports([vm], [], accelerators=(), pending=pending)
    assert found.verdict.reasons == (reason,)


def test_vmis_stay_in_order() -> None:
    """VMIs keep the order of the attributions."""
    names = [VmName(namespace=ns, name=name) for ns, name in ("aa", "ab", "ba")]
    vms = [Attribution(vm=vm, vmm=None, architecture=None) for vm in names]
    found = vmi_reports(vms, [], accelerators=(), pending=0)
    assert [vmi.vm for vmi in found] == names


@pytest.mark.parametrize("vmm", [VMM, None])
def test_vmis_keep_their_uid(vmm: VmmId | None) -> None:
    """A VM has the uid of its object, with or without a process."""
    vm = Attribution(vm=ALPHA, vmm=vmm, architecture=None, uid="5a5a")
    (found,) = vmi_reports([vm], reports(PROCESS), accelerators=(), pending=0)
    assert (found.vmm, found.uid) == (vmm, "5a5a")
