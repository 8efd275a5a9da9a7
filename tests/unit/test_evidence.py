"""Facts and ledger → evidence: what really is inside KVM_RUN, what the ledger can vouch for."""

from dataclasses import replace
from pathlib import Path

import pytest
from facts import (
    ATTACHED_NS,
    KVM_FDS,
    STARTED_NS,
    VMM,
    captured,
    entry,
    evidence,
    hooks,
    in_ioctl,
    kernel,
    kvm_process,
    plant,
    process,
    tcg_process,
    thread,
)

from ebpf.hooks import Question
from ebpf.ledger import KernelSnapshot
from probes.evidence import KVM_RUN, MSHV_RUN_VP, Evidence, gather, ledger_entry
from probes.host import Host
from probes.vmm import AcceleratorFds, HypervisorType, QemuCommandLine, VmmProcess, VmmThread


def weigh(facts: VmmProcess, snapshot: KernelSnapshot | None = None) -> Evidence:
    return gather(facts, snapshot or kernel(), start_monotonic_ns=STARTED_NS)


def test_nothing_known() -> None:
    """Of a QEMU with one nameless thread and an unused ledger nothing is claimed."""
    assert weigh(process()) == evidence()


# vCPUs inside KVM_RUN

WORKER = "kvm-nx-lpage-re"
TWO_VCPUS = replace(KVM_FDS, kvm_vcpus=frozenset({9, 11}))


@pytest.mark.parametrize(
    ("threads", "running"),
    [
        ((in_ioctl(9, KVM_RUN),), 1),
        ((in_ioctl(9, KVM_RUN), in_ioctl(11, KVM_RUN, tid=4713)), 2),
        # KVM's worker thread shows its creator's system call (FIELD_NOTES).
        ((in_ioctl(9, KVM_RUN), in_ioctl(9, KVM_RUN, comm=WORKER, tid=4713)), 1),
        ((in_ioctl(9, KVM_RUN, comm=WORKER),), 0),
        ((in_ioctl(9, KVM_RUN), thread("CPU 1/KVM", tid=4713)), 1),
        ((in_ioctl(8, KVM_RUN),), 0),
        ((in_ioctl(3, KVM_RUN),), 0),
        ((in_ioctl(9, 0xAE41),), 0),
        ((in_ioctl(9, MSHV_RUN_VP),), 0),
        ((in_ioctl(77, KVM_RUN),), 0),
        ((), 0),
    ],
)
def test_vcpus_inside_kvm_run(threads: tuple[VmmThread, ...], running: int) -> None:
    """Descriptors are counted, not threads, and only with KVM_RUN on a vCPU's descriptor."""
    found = weigh(process(fds=TWO_VCPUS, threads=threads))
    assert (found.kvm_vcpus, found.kvm_vcpus_in_run) == (2, running)


@pytest.mark.parametrize(
    ("worker", "started_by_run"),
    [
        (in_ioctl(9, KVM_RUN, comm=WORKER), True),
        # Older kernels start it when the VM is made; others of its kind sleep in no ioctl.
        (in_ioctl(3, 0xAE01, comm=WORKER), False),
        (in_ioctl(8, KVM_RUN, comm=WORKER), False),
        (in_ioctl(77, KVM_RUN, comm=WORKER), False),
        (thread(WORKER), False),
        (in_ioctl(9, KVM_RUN), False),
    ],
)
def test_worker_that_a_run_started(worker: VmmThread, *, started_by_run: bool) -> None:
    """KVM's own worker keeps the call that started it for life.

    KVM_RUN on a vCPU tells that the VM ran once, whatever its vCPUs do now.
    """
    assert weigh(process(fds=TWO_VCPUS, threads=(worker,))).kvm_run_worker is started_by_run


def test_impostor_of_the_ioctl_number() -> None:
    """ioctl 0xAE80 on a file that is no vCPU (say /dev/null) shows nothing."""
    found = weigh(process(threads=(in_ioctl(5, KVM_RUN),)))
    assert (found.kvm_fds, found.kvm_vcpus_in_run) == (False, 0)


def test_virtual_processors_inside_mshv_run() -> None:
    """The Microsoft hypervisor's descriptors and request, and no others, count for it."""
    fds = AcceleratorFds(
        mshv_devices=frozenset({3}),
        mshv_partitions=frozenset({4}),
        mshv_vps=frozenset({5, 6}),
        whole=True,
    )
    threads = (in_ioctl(5, MSHV_RUN_VP), in_ioctl(6, KVM_RUN, tid=4713))
    found = weigh(process(fds=fds, threads=threads))
    assert (found.mshv_fds, found.mshv_vps, found.mshv_vps_in_run) == (True, 2, 1)
    assert (found.kvm_fds, found.kvm_vcpus_in_run) == (False, 0)


def test_captured_guest_with_two_vcpus(proc: Path) -> None:
    """A real QEMU's three threads that show KVM_RUN are two vCPUs."""
    capture = captured("kvm_two_vcpus")
    plant(proc, capture)
    host = Host(proc_root=proc)
    host.machine = capture.machine
    facts = host.inspect(capture.vmm)
    assert facts is not None
    found = weigh(facts)
    assert (found.kvm_vcpus, found.kvm_vcpus_in_run) == (2, 2)
    assert found.kvm_run_worker
    assert found.claimed == {HypervisorType.KVM}
    assert found.guest_ticks == 1


# what a process says of itself


@pytest.mark.parametrize(
    ("comm", "claim"),
    [
        ("CPU 0/KVM", HypervisorType.KVM),
        ("CPU 255/KVM", HypervisorType.KVM),
        ("CPU 0/TCG", HypervisorType.TCG),
        ("ALL CPUs/TCG", HypervisorType.TCG),
        ("CPU 3/MSHV", HypervisorType.MSHV),
        ("CPU 0/HVF", None),
        ("CPU /KVM", None),
        ("CPU 0/KVM ", None),
        ("CPU 0/KVM\n", None),
        ("xCPU 0/KVM", None),
        ("cpu 0/kvm", None),
        ("qemu-system-x86", None),
        ("kvm-nx-lpage-re", None),
        ("", None),
    ],
)
def test_claims_of_thread_names(comm: str, claim: HypervisorType | None) -> None:
    """Only QEMU's exact thread names are a claim."""
    found = weigh(process(threads=(thread(comm),)))
    assert found.claimed == ({claim} if claim else frozenset())


def test_cpu_time_of_tcg_threads_only() -> None:
    """What the main thread or others consume is not the guest's computing."""
    threads = (
        thread("qemu-system-x86", tid=4711, cpu_ticks=1000),
        thread("CPU 0/TCG", tid=4712, cpu_ticks=3),
        thread("CPU 1/TCG", tid=4713, cpu_ticks=0),
        thread("ALL CPUs/TCG", tid=4714, cpu_ticks=4),
        thread("worker", tid=4715, cpu_ticks=50),
    )
    found = weigh(process(threads=threads))
    assert (found.tcg_threads, found.tcg_cpu_ticks) == (3, 7)


@pytest.mark.parametrize(
    ("machine", "qemu", "probe"),
    [("none", True, True), ("none", False, False), ("q35", True, False), (None, True, False)],
)
def test_capability_probe(machine: str | None, *, qemu: bool, probe: bool) -> None:
    """A QEMU with ``-machine none``, and no other program that says so."""
    facts = process(named_like_qemu=qemu, command_line=QemuCommandLine(machine=machine))
    assert weigh(facts).capability_probe is probe


def test_command_line_and_descriptors_are_passed_on() -> None:
    """What was asked for, guest time, and whether the table is whole."""
    facts = replace(kvm_process(), guest_ticks=12, fds=replace(KVM_FDS, whole=False))
    found = weigh(facts)
    assert found.asked_for == ("kvm",)
    assert found.guest_ticks == 12
    assert (found.kvm_fds, found.fds_whole) == (True, False)


# what the ledger can vouch for


@pytest.mark.parametrize(
    ("first_ns", "own"),
    [(STARTED_NS - 1, False), (STARTED_NS, True), (STARTED_NS + 1, True), (0, False)],
)
def test_entry_of_a_predecessor_is_ignored(first_ns: int, *, own: bool) -> None:
    """An entry that begins before the process can have started is of another that had its tgid."""
    stale = entry(first_ns=first_ns, runs=5)
    found = weigh(tcg_process(), kernel(stale))
    assert found.ledger == (stale if own else None)
    assert ledger_entry(VMM, kernel(stale), start_monotonic_ns=STARTED_NS) == found.ledger


def test_entries_of_others_are_ignored() -> None:
    """The ledger is looked up by this process's tgid."""
    assert weigh(process(), kernel(entry(VMM.tgid + 1, runs=5))).ledger is None


RUNS, RETURNS, EXITS = Question.RUNS_VCPU, Question.USERSPACE_EXITS, Question.EXITS
REST = frozenset(Question) - {RUNS, RETURNS}


@pytest.mark.parametrize(
    ("attached", "proving"),
    [
        (frozenset(Question), True),
        (REST | {RUNS}, True),
        (REST | {RETURNS}, True),
        # kvm_exit attaches and never fires under kvm_pvm (FIELD_NOTES): its silence is no proof.
        (REST, False),
        (frozenset({EXITS}), False),
        (frozenset(), False),
    ],
)
@pytest.mark.parametrize(
    ("attached_ns", "before"),
    [
        (ATTACHED_NS, True),
        (STARTED_NS, True),
        (STARTED_NS + 1, False),
        (None, False),
    ],
)
def test_hooks_that_vouch_for_a_process(
    attached: frozenset[Question], attached_ns: int | None, *, proving: bool, before: bool
) -> None:
    """Only hooks that no use of a vCPU passes, and since its start only if attached before it."""
    found = weigh(tcg_process(), kernel(hooks=hooks(attached), attached_ns=attached_ns))
    assert found.hooks_prove_running is proving
    assert found.hooks_since_start is (proving and before)


@pytest.mark.parametrize(
    ("known", "dropped", "lost"),
    [(False, 0, False), (False, 1, True), (True, 0, False), (True, 7, False)],
)
def test_dropped_events_of_a_process_without_entry(
    dropped: int, *, known: bool, lost: bool
) -> None:
    """A ledger that dropped events says nothing of a process it has no entry of."""
    entries = (entry(),) if known else ()
    found = weigh(tcg_process(), kernel(*entries, dropped_total=dropped))
    assert found.ledger_lost_events is lost


def test_stale_entry_does_not_hide_dropped_events() -> None:
    """An entry of the tgid's former owner is no entry of this process."""
    stale = entry(first_ns=STARTED_NS - 1)
    assert weigh(tcg_process(), kernel(stale, dropped_total=1)).ledger_lost_events


@pytest.mark.parametrize(
    "wrote",
    [
        {"exec_ns": STARTED_NS + 1},
        {"vms_created": 1},
        {"vcpus_created": 1},
        {"runs": 1},
        {"userspace_exits": 1},
        {"exits": 1},
        {"mshv_runs": 1},
    ],
    ids=lambda wrote: next(iter(wrote)),
)
def test_adopted_record_says_nothing_until_a_hook_writes_it(wrote: dict[str, int]) -> None:
    """A record that hvprobe asked for is as good as none; one that a hook wrote is evidence."""
    adopted = entry(exec_ns=None)
    found = weigh(tcg_process(), kernel(adopted, dropped_total=1))
    assert (found.ledger, found.ledger_lost_events) == (None, True)
    written = adopted._replace(**wrote)
    found = weigh(tcg_process(), kernel(written, dropped_total=1))
    assert (found.ledger, found.ledger_lost_events) == (written, False)
