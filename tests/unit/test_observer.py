"""One look after another at a node of plain values: what is remembered, and what is asked again."""

import os
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from facts import (
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
    kvm_process,
    plant,
    process,
    tcg_process,
)

from ebpf.errors import LedgerReadError
from ebpf.hooks import Question
from ebpf.ledger import KernelSnapshot, LedgerEntry
from probes import observer as observer_module
from probes.evidence import KVM_RUN
from probes.host import Host
from probes.node import Accelerator, NodeVirtualization
from probes.observer import Observer
from probes.report import CounterTrust, NodeReport, ProcessReport, ProcessState, Source
from probes.verdict import Reason
from probes.vmm import HypervisorType, QemuCommandLine, VmmId, VmmProcess

KVM, TCG, UNKNOWN = HypervisorType.KVM, HypervisorType.TCG, HypervisorType.UNKNOWN
WITHOUT_EXEC = hooks(frozenset(Question) - {Question.BECOMES_VMM})
WITHOUT_FREE = hooks(frozenset(Question) - {Question.IS_FREED})
BETA = VmmId(tgid=5000, start_ticks=7000)
BETA_NS = 70_000_000_500
"""Shortly after BETA's start, on the ledger's clock (see Node)."""
PLAYED_TGID = 4_000_000
"""Above any real one (PID_MAX_LIMIT is 4194304, the default far lower)."""


class Books:
    """A ledger that says what the test last wrote into it."""

    def __init__(self, *entries: LedgerEntry) -> None:
        self.says: KernelSnapshot | LedgerReadError = kernel(*entries)
        self.forgotten: list[int] = []
        self.adopted: list[int] = []
        self.room = True
        self.bcc_version = "0.26.0"

    def read(self) -> KernelSnapshot:
        if isinstance(self.says, LedgerReadError):
            raise self.says
        return self.says

    def adopt(self, tgid: int) -> bool:
        """The next reading has the record: one of no exec and no event."""
        if self.room and isinstance(self.says, KernelSnapshot):
            self.adopted.append(tgid)
            record = entry(tgid, first_ns=time.monotonic_ns(), exec_ns=None)
            self.says = replace(self.says, entries={tgid: record, **self.says.entries})
        return self.room

    def forget(self, tgid: int) -> None:
        self.forgotten.append(tgid)


class Node:
    """Processes as the test puts them; counts how often each is asked for."""

    def __init__(self, *processes: VmmProcess) -> None:
        self.machine = "x86_64"
        self.kernel = "6.12.0-test"
        self.processes = {it.vmm.tgid: it for it in processes}
        self.vanish_at_inspection: set[int] = set()
        self.swept_up: set[int] = set()
        self.sweeps: list[bool] = []
        self.inspections: Counter[int] = Counter()
        self.identifications: Counter[int] = Counter()
        self.readable = True

    def start_monotonic_ns(self, vmm: VmmId) -> int:
        return STARTED_NS if vmm.start_ticks == VMM.start_ticks else vmm.start_ticks * 10_000_000

    def sweep(self, *, every_fd: bool) -> set[int]:
        self.sweeps.append(every_fd)
        return self.swept_up

    def identify(self, tgid: int) -> VmmId | None:
        if tgid == os.getpid() and self.readable:
            return VmmId(tgid=tgid, start_ticks=1)
        self.identifications[tgid] += 1
        found = self.processes.get(tgid)
        return found.vmm if found else None

    def inspect(self, vmm: VmmId) -> VmmProcess | None:
        self.inspections[vmm.tgid] += 1
        if vmm.tgid in self.vanish_at_inspection:
            return None
        found = self.processes.get(vmm.tgid)
        return found if found and found.vmm == vmm else None


class Trials:
    """An accelerator that gives the answer set; counts the trials."""

    def __init__(self) -> None:
        self.answer = KVM_AVAILABLE
        self.trials = 0

    def try_kvm(self) -> Accelerator:
        self.trials += 1
        return self.answer

    def virtualization(self) -> NodeVirtualization:
        return INTEL_HOST


class World:
    """An observer and the edges it looks through."""

    def __init__(self, *entries: LedgerEntry, processes: tuple[VmmProcess, ...]) -> None:
        self.books = Books(*entries)
        self.node = Node(*processes)
        self.trials = Trials()
        self.observer = Observer(
            node="node-1",
            version="1.2.3",
            ledger=self.books,
            ledger_error=None,
            processes=self.node,
            virtualization=self.trials,
        )

    def look(self) -> NodeReport:
        return self.observer.look()

    def one(self) -> ProcessReport:
        (found,) = self.look().processes
        return found


def kvm_world() -> World:
    """One QEMU that runs on KVM."""
    return World(entry(runs=5, userspace_exits=5), processes=(kvm_process(),))


def tcg_world() -> World:
    """One QEMU that emulates, watched since it started."""
    return World(entry(), processes=(tcg_process(),))


def type_of(report: ProcessReport) -> tuple[HypervisorType, bool]:
    return report.verdict.type, report.verdict.verified


# one look


def test_report_of_a_node() -> None:
    """Node, health and VMs of one look."""
    beta = replace(tcg_process(BETA), guest_ticks=0)
    world = World(
        entry(runs=5, exits=9),
        entry(5000, first_ns=BETA_NS, exec_ns=BETA_NS),
        processes=(kvm_process(), beta),
    )
    world.node.swept_up = {VMM.tgid}
    report = world.look()
    assert (report.version, report.node) == ("1.2.3", "node-1")
    assert (report.kernel, report.machine) == ("6.12.0-test", "x86_64")
    assert report.virtualization == INTEL_HOST
    assert report.accelerators == (KVM_AVAILABLE,)
    assert report.proc_readable
    assert [(it.vm.namespace, it.vm.name, it.verdict.type) for it in report.vmis] == [
        ("default", "alpha", KVM),
        ("lab", "beta", TCG),
    ]
    assert [it.verdict.verified for it in report.vmis] == [True, True]
    health = report.health
    assert (health.ledger_entries, health.ledger_capacity) == (2, 4096)
    assert (health.ledger_error, health.bcc_version) == (None, "0.26.0")
    assert (health.exits_trust, health.userspace_exits_trust) == (
        CounterTrust.PROVEN,
        CounterTrust.UNTRIED,
    )
    assert all(it.attached for it in health.hooks)


def test_others_are_not_vmms() -> None:
    """What is no QEMU and uses no accelerator is no VMM, even with a ledger entry.

    One that uses KVM under another name is one, without a VM's name.
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
    report = world.look()
    assert [(it.vmm.tgid, it.state) for it in report.processes] == [
        (5000, ProcessState.UNATTRIBUTED)
    ]
    assert report.vmis == ()


def test_itself_is_never_a_vmm() -> None:
    """Trying the accelerator makes the observer a user of KVM: it does not report itself."""
    me = process(VmmId(tgid=os.getpid(), start_ticks=1), fds=KVM_FDS)
    world = World(entry(os.getpid(), vms_created=1), processes=(me,))
    world.node.swept_up = {os.getpid()}
    assert world.look().processes == ()


@pytest.mark.parametrize(
    ("facts", "vcpus"),
    [
        (kvm_process(), 1),
        (replace(kvm_process(), fds=replace(KVM_FDS, kvm_vcpus=frozenset({9, 11}))), 2),
        (tcg_process(), 1),
        (process(), None),
    ],
)
def test_number_of_vcpus(facts: VmmProcess, vcpus: int | None) -> None:
    """By descriptors or TCG threads; with neither it is not known."""
    assert World(entry(), processes=(facts,)).one().vcpus == vcpus


def test_process_that_runs_a_guest_is_no_probe() -> None:
    """Rule 6: a command line may say ``-machine none``; the kernel, that saw it run, wins.

    The process is shown as what it is, under its name.
    """
    says = QemuCommandLine(guest_name="default_alpha", machine="none")
    world = World(
        entry(runs=5, userspace_exits=5), processes=(replace(kvm_process(), command_line=says),)
    )
    report = world.look()
    assert [it.state for it in report.processes] == [ProcessState.ATTRIBUTED]
    assert [(it.vm.name, it.verdict.type) for it in report.vmis] == [("alpha", KVM)]


def test_capability_probe_is_no_vm() -> None:
    """libvirt's probe asks KVM for a VM and runs none: it is counted apart."""
    says = QemuCommandLine(machine="none", accelerators=("kvm", "tcg"))
    fds = replace(KVM_FDS, kvm_vcpus=frozenset())
    world = World(entry(vms_created=1), processes=(process(fds=fds, command_line=says),))
    found = world.one()
    assert (found.state, found.verdict.reasons) == (
        ProcessState.PROBE,
        (Reason.CAPABILITY_PROBE,),
    )


# what is settled


@pytest.mark.parametrize("world", [kvm_world(), tcg_world()], ids=["kvm", "tcg"])
def test_settled_verdict_is_not_inspected_again(world: World) -> None:
    """A verified verdict stays, and costs no reading of /proc."""
    first = world.one()
    for _ in range(5):
        assert world.one().verdict == first.verdict
    assert first.verdict.settled
    assert world.node.inspections == world.node.identifications == {VMM.tgid: 1}


def test_counters_of_a_settled_process_go_on() -> None:
    """The verdict is kept, the counters are read anew."""
    world = kvm_world()
    assert world.one().runs == 5
    world.books.says = kernel(entry(runs=11, userspace_exits=11))
    assert world.one().runs == 11
    assert world.node.inspections == {VMM.tgid: 1}


def test_unsettled_process_is_inspected_until_it_is_settled() -> None:
    """A paused VM is looked at each time, and verified at the first look after it runs."""
    world = World(entry(vms_created=1, vcpus_created=1), processes=(kvm_process(),))
    assert type_of(world.one()) == (KVM, False)
    assert type_of(world.one()) == (KVM, False)
    world.node.processes[VMM.tgid] = replace(kvm_process(), threads=(in_ioctl(9, KVM_RUN),))
    assert type_of(world.one()) == (KVM, True)
    assert world.node.inspections == {VMM.tgid: 3}
    assert type_of(world.one()) == (KVM, True)
    assert world.node.inspections == {VMM.tgid: 3}


def test_kernel_overrules_a_settled_tcg() -> None:
    """KVM_RUN recorded of a process that was settled as emulated: it is judged again."""
    world = tcg_world()
    assert type_of(world.one()) == (TCG, True)
    world.books.says = kernel(entry(runs=1, userspace_exits=1))
    found = world.one()
    assert type_of(found) == (KVM, True)
    assert found.verdict.reasons[0] is Reason.USERSPACE_EXITS_RECORDED
    assert world.node.inspections == {VMM.tgid: 2}


def test_another_program_is_judged_afresh() -> None:
    """A process keeps its identity when it executes another program, not its verdict."""
    world = kvm_world()
    assert type_of(world.one()) == (KVM, True)
    world.books.says = kernel(entry(first_ns=STARTED_NS + 9, exec_ns=STARTED_NS + 9))
    world.node.processes[VMM.tgid] = tcg_process()
    assert type_of(world.one()) == (TCG, True)


def test_execution_of_something_else_ends_a_vmm() -> None:
    """What executes a program that is no VMM leaves the ledger and the report."""
    world = kvm_world()
    world.one()
    world.books.says = kernel()
    world.node.processes[VMM.tgid] = replace(
        process(), named_like_qemu=False, program="sh", comm="sh"
    )
    assert world.look().processes == ()


def test_execution_is_noticed_of_one_older_than_the_hooks() -> None:
    """A VMM older than the hooks has an entry by its KVM_RUN only.

    When it executes something else the entry goes, and with it the verdict.
    """
    world = World(entry(exec_ns=None, runs=5, userspace_exits=5), processes=(kvm_process(),))
    assert type_of(world.one()) == (KVM, True)
    world.books.says = kernel()
    world.node.processes[VMM.tgid] = replace(
        process(), named_like_qemu=False, program="sh", comm="sh"
    )
    assert world.look().processes == ()


def test_number_used_again() -> None:
    """A new process with an old number is judged by itself, the old one's entry ignored."""
    world = kvm_world()
    assert type_of(world.one()) == (KVM, True)
    world.books.says = kernel(entry(runs=5, userspace_exits=5, leader_exit_ns=STARTED_NS + 9))
    follower = VmmId(tgid=VMM.tgid, start_ticks=9000)
    world.node.processes[VMM.tgid] = tcg_process(follower)
    found = world.one()
    assert found.vmm == follower
    assert type_of(found) == (TCG, True)


# processes that go


@pytest.mark.parametrize(
    "says",
    [
        kernel(),
        kernel(entry(runs=5, userspace_exits=5, leader_exit_ns=STARTED_NS + 9)),
        kernel(entry(runs=5, userspace_exits=5), hooks=WITHOUT_FREE),
    ],
    ids=["record removed", "record marked", "no hook tells"],
)
def test_ended_process_leaves_at_the_next_look(says: KernelSnapshot) -> None:
    """Its VM's series go with it."""
    world = kvm_world()
    assert len(world.look().vmis) == 1
    world.books.says = says
    del world.node.processes[VMM.tgid]
    report = world.look()
    assert (report.processes, report.vmis) == ((), ())


def test_gone_between_ledger_and_proc() -> None:
    """An entry whose process is gone makes no report and no error."""
    world = World(entry(runs=5, userspace_exits=5), processes=())
    report = world.look()
    assert report.processes == ()
    assert not any(report.health.errors_total.values())


def test_gone_between_identity_and_inspection() -> None:
    """A process that goes while it is read is not there."""
    world = kvm_world()
    world.node.vanish_at_inspection = {VMM.tgid}
    assert world.look().processes == ()


@pytest.mark.parametrize(("statuses", "forgotten"), [(WITHOUT_FREE, 1), (hooks(), 0)])
def test_entries_of_the_dead_are_removed(statuses: object, forgotten: int) -> None:
    """Where no hook tells the kernel that a process is gone, the observer does.

    Otherwise it leaves the ledger alone.
    """
    dead = entry(PLAYED_TGID)
    world = World(dead, processes=())
    world.books.says = kernel(dead, hooks=statuses)
    world.look()
    assert world.books.forgotten == [PLAYED_TGID] * forgotten


# sweeps


def test_all_descriptors_are_swept_once() -> None:
    """What ran before the hooks is found at the first look; later the hooks tell."""
    world = World(processes=(replace(kvm_process(), threads=(in_ioctl(9, KVM_RUN),)),))
    world.node.swept_up = {VMM.tgid}
    assert type_of(world.one()) == (KVM, True)
    world.node.swept_up = set()
    assert type_of(world.one()) == (KVM, True)
    assert world.node.sweeps == [True]


def test_names_are_swept_without_the_exec_hook() -> None:
    """With no hook that tells of new programs, every look goes through the names."""
    world = World(processes=())
    world.books.says = kernel(hooks=WITHOUT_EXEC)
    for _ in range(3):
        world.look()
    assert world.node.sweeps == [True, False, False]


def test_names_are_swept_after_a_qemu_ended() -> None:
    """One that daemonized itself lives on as a child that executed nothing."""
    world = World(processes=())
    for departed in (0, 0, 1, 1, 3):
        world.books.says = kernel(departed_total=departed)
        world.look()
    assert world.node.sweeps == [True, False, False]


def test_late_starters_are_found_without_any_bpf() -> None:
    """Without a ledger each look finds what runs by now, and says why it can only infer."""
    node = Node()
    observer = Observer(
        node="node-1",
        version="1.2.3",
        ledger=None,
        ledger_error="no BPF: run as root",
        processes=node,
        virtualization=Trials(),
    )
    assert observer.look().processes == ()
    node.processes[VMM.tgid] = tcg_process()
    node.swept_up = {VMM.tgid}
    report = observer.look()
    (found,) = report.processes
    assert type_of(found) == (TCG, False)
    assert found.verdict.reasons == (Reason.TCG_COMPUTES, Reason.HOOKS_MISSING)
    health = report.health
    assert (health.ledger_error, health.bcc_version) == ("no BPF: run as root", None)
    assert {it.reason for it in health.hooks} == {"no BPF: run as root"}
    assert health.exits_trust is CounterTrust.MISSING
    assert not health.errors_total.get(Source.EBPF)


# failures


def test_unreadable_ledger_still_makes_a_report() -> None:
    """A read that fails is counted and told, and hooks show as not attached.

    Counters are absent meanwhile.
    """
    world = World(
        entry(runs=5, userspace_exits=5),
        entry(5000, first_ns=BETA_NS, exec_ns=BETA_NS),
        processes=(kvm_process(), tcg_process(BETA)),
    )
    world.look()
    world.books.says = LedgerReadError("cannot read the ledger: gone")
    report = world.look()
    health = report.health
    assert health.errors_total[Source.EBPF] == 1
    assert health.ledger_error == "cannot read the ledger: gone"
    assert {(it.backend.value, it.reason) for it in health.hooks} == {
        ("none", "cannot read the ledger: gone")
    }
    assert [(it.userspace_exits, it.exits) for it in report.vmis] == [(None, None)] * 2
    world.look()
    assert world.look().health.errors_total[Source.EBPF] == 3


def test_settled_verdicts_survive_an_unreadable_ledger() -> None:
    """Rule 7: losing the ledger takes nothing back that it has proven."""
    world = World(
        entry(runs=5, userspace_exits=5),
        entry(5000, first_ns=BETA_NS, exec_ns=BETA_NS),
        processes=(kvm_process(), tcg_process(BETA)),
    )
    before = [type_of(it) for it in world.look().processes]
    assert before == [(KVM, True), (TCG, True)]
    world.books.says = LedgerReadError("cannot read the ledger: gone")
    assert [type_of(it) for it in world.look().processes] == before


def test_counters_return_after_an_unreadable_ledger() -> None:
    """One failed read leaves a gap and nothing else."""
    world = kvm_world()
    world.look()
    world.books.says = LedgerReadError("cannot read the ledger: gone")
    assert world.one().runs is None
    world.books.says = kernel(entry(runs=12, userspace_exits=12))
    report = world.look()
    assert [it.runs for it in report.processes] == [12]
    assert report.health.errors_total[Source.EBPF] == 1
    assert all(it.attached for it in report.health.hooks)


def test_dropped_events_are_never_uncounted() -> None:
    """A counter that went back would be read as a restart and counted twice."""
    world = kvm_world()
    world.books.says = kernel(entry(runs=5, userspace_exits=5), dropped_total=7)
    assert world.look().health.ledger_dropped_total == 7
    world.books.says = LedgerReadError("cannot read the ledger: gone")
    assert world.look().health.ledger_dropped_total == 7


def test_ledger_that_had_no_room_makes_no_false_zero() -> None:
    """A VM that is missing in a ledger that dropped events has an unknown number of exits."""
    full = kernel(
        entry(5000, first_ns=BETA_NS, runs=1, userspace_exits=1, exits=1), dropped_total=1
    )
    unseen = replace(kvm_process(), threads=(in_ioctl(9, KVM_RUN),))
    world = World(processes=(unseen, kvm_process(BETA, guest_name="lab_beta")))
    world.books.says = full
    world.node.swept_up = {VMM.tgid}
    alpha, beta = world.look().vmis
    assert (alpha.verdict.type, alpha.verdict.verified) == (KVM, True)
    assert (beta.userspace_exits, beta.exits) == (1, 1)
    assert (alpha.userspace_exits, alpha.exits) == (None, None)


def test_late_entry_vouches_for_nothing_before_it() -> None:
    """Hooks attached after its start: descriptors stand in, and the report says so."""
    world = World(entry(), processes=(tcg_process(),))
    world.books.says = kernel(entry(), attached_ns=STARTED_NS + 1)
    found = world.one()
    assert found.verdict.reasons == (Reason.TCG_COMPUTES, Reason.HOOKS_LATE)
    assert STARTED_NS > ATTACHED_NS


@pytest.mark.parametrize("empty", [False, True], ids=["missing", "empty"])
def test_missing_proc_still_makes_a_report(tmp_path: Path, *, empty: bool) -> None:
    """A /proc that is not there is told in the report, not by a traceback.

    An empty folder (a mount that was forgotten) is none either.
    """
    if empty:
        (tmp_path / "proc").mkdir()
    found = Observer(
        node="node-1",
        version="1.2.3",
        ledger=None,
        ledger_error="no BPF",
        processes=Host(proc_root=tmp_path / "proc"),
        virtualization=Trials(),
    ).look()
    assert not found.proc_readable
    assert found.health.errors_total[Source.PROC] == 1
    assert found.processes == ()


# trust, once learned


def test_a_hook_that_fired_once_stays_proven() -> None:
    """Trust in a counter outlives the process that gave it."""
    world = World(entry(runs=1, userspace_exits=1, exits=1), processes=(kvm_process(),))
    assert world.look().health.exits_trust is CounterTrust.PROVEN
    world.books.says = kernel(entry(5000, first_ns=BETA_NS, runs=1, userspace_exits=1))
    assert world.look().health.exits_trust is CounterTrust.PROVEN


# the accelerator's trial


def test_trial_is_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    """The node is asked to make an empty VM once an interval, however often it is looked at."""
    world = World(processes=())
    for _ in range(4):
        assert world.look().accelerators == (KVM_AVAILABLE,)
    assert world.trials.trials == 1
    monkeypatch.setattr(observer_module, "TRIAL_INTERVAL_S", 0.0)
    world.trials.answer = KVM_ABSENT
    assert world.look().accelerators == (KVM_ABSENT,)
    assert world.trials.trials == 2


def test_no_trial_where_a_vm_runs() -> None:
    """A VM that is seen to run on KVM proves more than a trial could."""
    world = kvm_world()
    world.trials.answer = KVM_ABSENT
    assert world.look().accelerators == (KVM_AVAILABLE,)
    assert world.trials.trials == 0


def test_trial_where_vms_only_might_run() -> None:
    """A VM that was never seen to run proves nothing of the node."""
    world = World(entry(vcpus_created=1), processes=(kvm_process(),))
    world.trials.answer = KVM_ABSENT
    assert world.look().accelerators == (KVM_ABSENT,)
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
    """Real processes, judged by what /proc alone tells of them."""
    capture = captured(name)
    plant(proc, capture)
    host = Host(proc_root=proc)
    host.machine = capture.machine
    observer = Observer(
        node="node-1",
        version="1.2.3",
        ledger=None,
        ledger_error="no BPF",
        processes=host,
        virtualization=Trials(),
    )
    report = observer.look()
    assert [(it.vmm, type_of(it)) for it in report.processes] == [(capture.vmm, found)]
