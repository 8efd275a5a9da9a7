# SPDX-License-Identifier: Apache-2.0
"""Refreshes of a node of plain values show what the collector remembers and what it reads again."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from ebpf.errors import LedgerReadError
from ebpf.hooks import KVM_EXIT
from ebpf.uapi import KVM_RUN
from probes.host.hypervisors import HypervisorType
from probes.host.node import Accelerator
from probes.host.process import AcceleratorFds, HeldFds, QemuCommandLine, VmmId, VmmProcess
from probes.host.reader import Host
from probes.judge.reasons import Reason
from probes.report import collector as collector_module
from probes.report.collector import NodeCollector
from probes.report.model import CounterTrust, ProcessState, Source
from probes.report.ports import HostEdges
from tests.support.doubles import (
    BETA,
    BETA_NS,
    KVM,
    TCG,
    UNKNOWN,
    Node,
    Pods,
    Trials,
    World,
    kvm_world,
    type_of,
)
from tests.support.facts import (
    ATTACHED_NS,
    INTEL_HOST,
    KVM_ABSENT,
    KVM_AVAILABLE,
    KVM_FDS,
    STARTED_NS,
    VMM,
    captured,
    entry,
    hooks,
    in_ioctl,
    kernel,
    kvm_fds,
    kvm_process,
    plant,
    process,
    tcg_process,
)

# one look


def test_report_of_a_node() -> None:
    """A report holds node, health and VMs."""
    beta = replace(tcg_process(BETA), guest_ticks=0)
    world = World(
        entry(runs=5, exits=9),
        processes=(kvm_process(), beta),
    )
    report = world.refresh()
    assert (report.version, report.node) == ("1.2.3", "node-1")
    assert (report.kernel, report.machine) == ("6.12.0-test", "x86_64")
    assert report.virtualization == INTEL_HOST
    assert report.accelerators == (KVM_AVAILABLE,)
    assert report.proc_readable
    assert [(vmi.vm.namespace, vmi.vm.name, vmi.verdict.type) for vmi in report.vmis] == [
        ("default", "alpha", KVM),
        ("lab", "beta", TCG),
    ]
    assert [vmi.verdict.verified for vmi in report.vmis] == [True, True]
    health = report.health
    assert (health.ledger_entries, health.ledger_capacity) == (1, 4096)
    assert (health.ledger_error, health.bcc_version) == (None, "0.26.0")
    assert (health.trusts["exits"], health.trusts["userspace_exits"]) == (
        CounterTrust.PROVEN,
        CounterTrust.UNTRIED,
    )
    assert all(status.attached for status in health.hooks)


def test_others_are_not_vmms() -> None:
    """A process that is no QEMU and uses no accelerator is no VMM, even with a record.

    A process that uses KVM under another name is a VMM, without a VM's name.
    """
    other = replace(process(), named_like_qemu=False, program="sh", comm="sh")
    user = replace(
        process(BETA),
        named_like_qemu=False,
        program="firecracker",
        fds=KVM_FDS,
    )
    world = World(
        entry(), entry(5000, first_ns=BETA_NS, runs=1, userspace_exits=1), processes=(other, user)
    )
    report = world.refresh()
    assert [
        (process_report.vmm.tgid, process_report.state) for process_report in report.processes
    ] == [(5000, ProcessState.UNATTRIBUTED)]
    assert report.vmis == ()


def test_itself_is_never_a_vmm() -> None:
    """The collector does not report itself, although its trials make it a user of KVM."""
    me = process(VmmId(tgid=os.getpid(), start_ticks=1), fds=KVM_FDS)
    world = World(entry(os.getpid(), vms_created=1), processes=(me,))
    assert world.refresh().processes == ()


@pytest.mark.parametrize(
    ("facts", "vcpus"),
    [
        (kvm_process(), 1),
        (replace(kvm_process(), fds=kvm_fds(9, 11)), 2),
        (tcg_process(), 1),
        (process(), None),
    ],
)
def test_number_of_vcpus(facts: VmmProcess, vcpus: int | None) -> None:
    """Descriptors or TCG threads give the number of vCPUs; without either it is unknown."""
    assert World(entry(), processes=(facts,)).one().vcpus == vcpus


def test_process_that_runs_a_guest_is_no_probe() -> None:
    """Rule 6: if the ledger records a run, a command line with ``-machine none`` is ignored.

    The process is shown with its type, under its name.
    """
    says = QemuCommandLine(guest_name="default_alpha", machine="none")
    world = World(
        entry(runs=5, userspace_exits=5), processes=(replace(kvm_process(), command_line=says),)
    )
    report = world.refresh()
    assert [process_report.state for process_report in report.processes] == [
        ProcessState.ATTRIBUTED
    ]
    assert [(vmi.vm.name, vmi.verdict.type) for vmi in report.vmis] == [("alpha", KVM)]


def test_capability_probe_is_no_vm() -> None:
    """libvirt's probe, which asks KVM for a VM and runs none, is counted separately."""
    says = QemuCommandLine(machine="none", accelerators=("kvm", "tcg"))
    fds = kvm_fds()
    world = World(entry(vms_created=1), processes=(process(fds=fds, command_line=says),))
    found = world.one()
    assert (found.state, found.verdict.reasons) == (
        ProcessState.PROBE,
        (Reason.CAPABILITY_PROBE,),
    )


# what ran before


def test_late_starters_are_found_without_any_bpf() -> None:
    """Without a ledger, each refresh finds new VMs, and reasons explain the inferred verdicts."""
    node = Node()
    collector = NodeCollector(
        node="node-1",
        version="1.2.3",
        ledger=None,
        ledger_error="no BPF: run as root",
        ledger_refused=True,
        host=HostEdges(processes=node, virtualization=Trials(), emulation=Pods(), device=Pods()),
    )
    assert collector.refresh().processes == ()
    node.processes[VMM.tgid] = tcg_process()
    report = collector.refresh()
    (found,) = report.processes
    assert type_of(found) == (TCG, False)
    assert found.verdict.reasons == (Reason.TCG_COMPUTES, Reason.HOOKS_MISSING)
    health = report.health
    assert (health.ledger_error, health.bcc_version) == ("no BPF: run as root", None)
    assert {(status.reason, status.refused) for status in health.hooks} == {
        ("no BPF: run as root", True)
    }
    assert health.trusts["exits"] is CounterTrust.MISSING
    assert not health.errors_total.get(Source.EBPF)


def test_gone_between_identity_and_inspection() -> None:
    """A process that ends while it is read is absent from the report."""
    world = kvm_world()
    world.node.vanish_at_inspection = {VMM.tgid}
    assert world.refresh().processes == ()


def test_gone_between_ledger_and_proc() -> None:
    """A record whose process has ended causes neither a process in the report nor an error."""
    world = World(entry(runs=5, userspace_exits=5), processes=())
    report = world.refresh()
    assert report.processes == ()
    assert not any(report.health.errors_total.values())


# failures


def test_unreadable_ledger_still_makes_a_report() -> None:
    """A failed read is counted and reported. No hook is attached then, and counters are absent."""
    world = World(
        entry(runs=5, userspace_exits=5),
        processes=(kvm_process(), tcg_process(BETA)),
    )
    world.refresh()
    world.books.says = LedgerReadError("cannot read the ledger: gone")
    report = world.refresh()
    health = report.health
    assert health.errors_total[Source.EBPF] == 1
    assert health.ledger_error == "cannot read the ledger: gone"
    assert {(status.backend.value, status.reason) for status in health.hooks} == {
        ("none", "cannot read the ledger: gone")
    }
    assert [
        (vmi.counters.get("userspace_exits"), vmi.counters.get("exits")) for vmi in report.vmis
    ] == [(None, None)] * 2
    world.refresh()
    assert world.refresh().health.errors_total[Source.EBPF] == 3


def test_counters_return_after_an_unreadable_ledger() -> None:
    """Counters are absent after a failed read and return with the next one."""
    world = kvm_world()
    world.refresh()
    world.books.says = LedgerReadError("cannot read the ledger: gone")
    assert world.one().counters.get("runs") is None
    world.books.says = kernel(entry(runs=12, userspace_exits=12))
    report = world.refresh()
    assert [process.counters.get("runs") for process in report.processes] == [12]
    assert report.health.errors_total[Source.EBPF] == 1
    assert all(status.attached for status in report.health.hooks)


def test_dropped_events_are_never_uncounted() -> None:
    """Prometheus would take a lower value for a restart and count it twice."""
    world = kvm_world()
    world.books.says = kernel(entry(runs=5, userspace_exits=5), dropped_total=7)
    assert world.refresh().health.ledger_dropped_total == 7
    world.books.says = LedgerReadError("cannot read the ledger: gone")
    assert world.refresh().health.ledger_dropped_total == 7


def test_ledger_that_had_no_room_makes_no_false_zero() -> None:
    """If the ledger dropped events, the exits of a VM without a record are unknown."""
    full = kernel(
        entry(5000, first_ns=BETA_NS, runs=1, userspace_exits=1, exits=1), dropped_total=1
    )
    unseen = replace(kvm_process(), threads=(in_ioctl(9, KVM_RUN),))
    world = World(processes=(unseen, kvm_process(BETA, guest_name="lab_beta")))
    world.books.says = full
    alpha, beta = world.refresh().vmis
    assert (alpha.verdict.type, alpha.verdict.verified) == (KVM, True)
    assert (beta.counters.get("userspace_exits"), beta.counters.get("exits")) == (1, 1)
    assert (alpha.counters.get("userspace_exits"), alpha.counters.get("exits")) == (None, None)


def test_late_entry_vouches_for_nothing_before_it() -> None:
    """If hooks were attached after a VM's start, descriptors decide, and the report says so."""
    world = World(entry(), processes=(tcg_process(),))
    world.books.says = kernel(entry(), attached_ns=STARTED_NS + 1)
    found = world.one()
    assert found.verdict.reasons == (Reason.TCG_COMPUTES, Reason.HOOKS_LATE)
    assert STARTED_NS > ATTACHED_NS


@pytest.mark.parametrize("empty", [False, True], ids=["missing", "empty"])
def test_missing_proc_still_makes_a_report(tmp_path: Path, *, empty: bool) -> None:
    """A missing /proc is reported and raises no exception.

    An empty folder (a forgotten mount) counts as missing.
    """
    if empty:
        (tmp_path / "proc").mkdir()
    found = NodeCollector(
        node="node-1",
        version="1.2.3",
        ledger=None,
        ledger_error="no BPF",
        host=HostEdges(
            processes=Host(proc_root=tmp_path / "proc"),
            virtualization=Trials(),
            emulation=Pods(),
            device=Pods(),
        ),
    ).refresh()
    assert not found.proc_readable
    assert found.health.errors_total[Source.PROC] == 1
    assert found.processes == ()


# what is needed


def test_the_hook_of_exits_is_needed_from_the_start() -> None:
    """It is attached before the first refresh, so that no exit after the start is left out.

    The first refresh finds out whether a process needs it.
    """
    world = World(processes=())
    assert world.books.needed == [(KVM_EXIT,)]
    world.refresh()
    assert world.books.needed == [(KVM_EXIT,), ()]
    world.refresh()
    assert world.books.needed == [(KVM_EXIT,), (), ()]


def test_a_late_hook_makes_no_zero() -> None:
    """A VM that is older than the hook has no count until the hook has counted it.

    That the hook fires for another VM changes nothing about that.
    """
    late = tuple(
        replace(status, attached_ns=BETA_NS - 1, attached_total=1)
        if status.is_of(KVM_EXIT)
        else status
        for status in hooks()
    )
    young = entry(BETA.tgid, first_ns=BETA_NS, userspace_exits=3, exits=5)
    old = entry(userspace_exits=3)
    world = World(processes=(kvm_process(), kvm_process(BETA)))
    world.books.says = kernel(old, young, hooks=late)
    report = world.refresh()
    assert report.health.trusts["exits"] is CounterTrust.PROVEN
    exits = {process.vmm: process.counters.get("exits") for process in report.processes}
    assert exits == {VMM: None, BETA: 5}


# trust, once learned


def test_a_hook_that_fired_once_is_proven_until_it_is_attached_again() -> None:
    """The proof outlives the process that fired the hook, but not the module."""
    world = World(entry(userspace_exits=1, exits=1), processes=(kvm_process(),))
    assert world.refresh().health.trusts["exits"] is CounterTrust.PROVEN
    quiet = entry(5000, first_ns=BETA_NS, userspace_exits=1)
    world.books.says = kernel(quiet)
    assert world.refresh().health.trusts["exits"] is CounterTrust.PROVEN
    again = tuple(replace(status, attached_total=2, attached_ns=BETA_NS - 1) for status in hooks())
    world.books.says = kernel(quiet, hooks=again)
    health = world.refresh().health
    assert health.trusts["exits"] is CounterTrust.UNTRIED
    assert health.trusts["userspace_exits"] is CounterTrust.PROVEN


# the accelerator's trial


def test_trial_is_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial runs once per interval, however often the node is refreshed."""
    world = World(processes=())
    for _ in range(4):
        assert world.refresh().accelerators == (KVM_AVAILABLE,)
    assert world.trials.trials == 1
    monkeypatch.setattr(collector_module, "TRIAL_INTERVAL_S", 0.0)
    world.trials.answer = KVM_ABSENT
    assert world.refresh().accelerators == (KVM_ABSENT,)
    assert world.trials.trials == 2


def test_no_trial_where_a_vm_runs() -> None:
    """A VM that runs on KVM proves more than a trial could."""
    world = kvm_world()
    world.trials.answer = KVM_ABSENT
    assert world.refresh().accelerators == (KVM_AVAILABLE,)
    assert world.trials.trials == 0


def test_trial_where_vms_only_might_run() -> None:
    """An inferred VM proves nothing about the accelerator."""
    world = World(entry(vcpus_created=1), processes=(kvm_process(),))
    world.trials.answer = KVM_ABSENT
    assert world.refresh().accelerators == (KVM_ABSENT,)
    assert world.trials.trials == 1


# captured processes


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("kvm_inside_run", (KVM, True)),
        ("kvm_two_vcpus", (KVM, True)),
        ("kvm_paused", (KVM, False)),
        ("capability_probe", (UNKNOWN, False)),
        ("tcg_multi", (TCG, False)),
        ("tcg_single", (TCG, False)),
        ("tcg_unnamed_threads", (TCG, False)),
        ("zombie_leader", (KVM, False)),
    ],
)
def test_captured_processes_without_bpf(
    proc: Path, name: str, found: tuple[HypervisorType, bool]
) -> None:
    """Real processes get their verdicts from /proc alone."""
    capture = captured(name)
    plant(proc, capture)
    host = Host(proc_root=proc)
    host.machine = capture.machine
    collector = NodeCollector(
        node="node-1",
        version="1.2.3",
        ledger=None,
        ledger_error="no BPF",
        host=HostEdges(processes=host, virtualization=Trials(), emulation=Pods(), device=Pods()),
    )
    report = collector.refresh()
    assert [
        (process_report.vmm, type_of(process_report)) for process_report in report.processes
    ] == [(capture.vmm, found)]


# the Microsoft hypervisor


def mshv_world() -> World:
    """Return a node without KVM on which a QEMU runs on mshv and is in the ledger."""
    held = HeldFds(devices=frozenset({3}), vms=frozenset({8}), vcpus=frozenset({9}))
    guest = process(fds=AcceleratorFds(held={HypervisorType.MSHV: held}, complete=True))
    world = World(entry(mshv_runs=11), processes=(guest,))
    world.trials.answer = KVM_ABSENT
    return world


def test_a_vm_on_the_microsoft_hypervisor() -> None:
    """The report has the VM's type and counter, and its hypervisor is available without a trial."""
    world = mshv_world()
    report = world.refresh()
    (found,) = report.processes
    assert type_of(found) == (HypervisorType.MSHV, True)
    assert found.counters == {"mshv_runs": 11}
    assert report.accelerators == (
        KVM_ABSENT,
        Accelerator(type=HypervisorType.MSHV, available=True),
    )
    assert (world.trials.trials, world.trials.rare_trials) == (1, 0)


def test_the_microsoft_hypervisor_is_tried_seldom() -> None:
    """Each hypervisor has its own trial, and is reported only if the node has it."""
    world = World(processes=())
    assert world.refresh().accelerators == (KVM_AVAILABLE,)
    world.trials.rare = Accelerator(type=HypervisorType.MSHV, available=True)
    assert world.refresh().accelerators == (KVM_AVAILABLE,)
    assert (world.trials.trials, world.trials.rare_trials) == (1, 1)
