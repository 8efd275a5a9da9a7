# SPDX-License-Identifier: Apache-2.0
"""Evidence from facts and ledger: the vCPUs inside KVM_RUN, and what hooks can prove."""

from dataclasses import replace
from pathlib import Path

import pytest

from ebpf.hook_status import HookStatus
from ebpf.hooks import KVM as KVM_DRIVER
from ebpf.hooks import KVM_EXIT, KVM_USERSPACE_EXIT, KVM_VCPU_IOCTL, MSHV_VP_IOCTL, Backend, Hook
from ebpf.ledger import KernelSnapshot
from ebpf.uapi import KVM_RUN, MSHV_RUN_VP
from probes.host.hypervisors import HypervisorType
from probes.host.process import (
    AcceleratorFds,
    HeldFds,
    QemuCommandLine,
    VmmProcess,
    VmmThread,
)
from probes.host.reader import Host
from probes.judge.evidence import Evidence, gather, ledger_entry
from tests.support.facts import (
    ALL_HOOKS,
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
    kvm_fds,
    kvm_process,
    plant,
    process,
    tcg_process,
    thread,
)

KVM, MSHV = HypervisorType.KVM, HypervisorType.MSHV


def weigh(facts: VmmProcess, snapshot: KernelSnapshot | None = None) -> Evidence:
    return gather(facts, snapshot or kernel(), start_monotonic_ns=STARTED_NS)


def test_nothing_known() -> None:
    """A QEMU without vCPU threads and without a record yields no claim and no use."""
    assert weigh(process()) == evidence()


# vCPUs inside KVM_RUN

WORKER = "kvm-nx-lpage-re"
TWO_VCPUS = kvm_fds(9, 11)


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
    """Distinct vCPU descriptors with a thread in KVM_RUN are counted, rather than threads."""
    found = weigh(process(fds=TWO_VCPUS, threads=threads))
    assert (found.of(KVM).vcpus, found.of(KVM).vcpus_in_run) == (2, running)


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
    """KVM's own worker shows the call that started it for the rest of its life.

    KVM_RUN on a vCPU proves that the VM ran once, whatever its vCPUs do now.
    """
    assert weigh(process(fds=TWO_VCPUS, threads=(worker,))).of(KVM).run_worker is started_by_run


def test_kvm_run_on_a_descriptor_that_no_table_holds() -> None:
    """A vCPU whose descriptor was closed while a thread is inside KVM_RUN counts as not held.

    KVM's worker does not count, because it shows its creator's call for the rest of its life.
    """
    worker = in_ioctl(5, KVM_RUN, comm=WORKER, tid=4713)
    found = weigh(process(threads=(in_ioctl(5, KVM_RUN), worker)))
    assert (found.of(KVM).held, found.of(KVM).vcpus_in_run, found.of(KVM).runs_unheld) == (
        False,
        0,
        1,
    )
    assert weigh(process(threads=(worker,))).of(KVM).runs_unheld == 0
    assert weigh(process(fds=TWO_VCPUS, threads=(in_ioctl(9, KVM_RUN),))).of(KVM).runs_unheld == 0


@pytest.mark.parametrize(
    ("threads", "complete", "seen"),
    [
        ((thread("worker"),), True, True),
        ((thread("worker"),), False, False),
        ((replace(thread("worker"), running=True),), True, False),
        ((replace(thread("CPU 0/TCG"), running=True),), True, True),
        ((replace(thread("CPU 0/KVM"), running=True),), True, False),
        ((replace(thread(WORKER), running=True),), True, True),
    ],
)
def test_threads_seen_outside_kvm_run(
    threads: tuple[VmmThread, ...], *, complete: bool, seen: bool
) -> None:
    """A thread on a CPU may be inside KVM_RUN, unless its name excludes that."""
    assert weigh(process(threads=threads, threads_complete=complete)).threads_seen is seen


def test_virtual_processors_inside_mshv_run() -> None:
    """Only the Microsoft hypervisor's own descriptors and request count as its use."""
    fds = AcceleratorFds(
        held={
            MSHV: HeldFds(devices=frozenset({3}), vms=frozenset({4}), vcpus=frozenset({5, 6, 7}))
        },
        complete=True,
    )
    threads = (in_ioctl(5, MSHV_RUN_VP), in_ioctl(6, KVM_RUN, tid=4713))
    found = weigh(process(fds=fds, threads=threads))
    assert (found.of(MSHV).held, found.of(MSHV).vcpus, found.of(MSHV).vcpus_in_run) == (True, 3, 1)
    assert (found.of(KVM).held, found.of(KVM).vcpus_in_run) == (False, 0)


def test_captured_guest_with_two_vcpus(proc: Path) -> None:
    """Three threads of a real QEMU show KVM_RUN on two vCPUs."""
    capture = captured("kvm_two_vcpus")
    plant(proc, capture)
    host = Host(proc_root=proc)
    host.machine = capture.machine
    facts = host.inspect([capture.vmm]).processes[capture.vmm]
    found = weigh(facts)
    assert (found.of(KVM).vcpus, found.of(KVM).vcpus_in_run) == (2, 2)
    assert found.of(KVM).run_worker
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
    """Only the exact names of QEMU's vCPU threads are claims."""
    found = weigh(process(threads=(thread(comm),)))
    assert found.claimed == ({claim} if claim else frozenset())


def test_cpu_time_of_tcg_threads_only() -> None:
    """CPU time of the main thread and of other threads does not count as the guest's."""
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
    """A QEMU with ``-machine none`` is a probe; another program with it is not."""
    facts = process(named_like_qemu=qemu, command_line=QemuCommandLine(machine=machine))
    assert weigh(facts).capability_probe is probe


def test_command_line_and_descriptors_are_passed_on() -> None:
    """Evidence holds the accelerators asked for, guest time, and whether the table is complete."""
    facts = replace(kvm_process(), guest_ticks=12, fds=replace(KVM_FDS, complete=False))
    found = weigh(facts)
    assert found.asked_for == ("kvm",)
    assert found.guest_ticks == 12
    assert (found.of(KVM).held, found.fds_complete) == (True, False)


# what the ledger can vouch for


@pytest.mark.parametrize(
    ("first_ns", "own"),
    [(STARTED_NS - 1, False), (STARTED_NS, True), (STARTED_NS + 1, True), (0, False)],
)
def test_entry_of_a_predecessor_is_ignored(first_ns: int, *, own: bool) -> None:
    """A record that began before the process can have started belongs to another process."""
    stale = entry(first_ns=first_ns, runs=5)
    found = weigh(tcg_process(), kernel(stale))
    assert found.ledger == (stale if own else None)
    assert ledger_entry(VMM, kernel(stale), start_monotonic_ns=STARTED_NS) == found.ledger


def test_entries_of_others_are_ignored() -> None:
    """Records of other tgids are ignored."""
    assert weigh(process(), kernel(entry(VMM.tgid + 1, runs=5))).ledger is None


RUNS, RETURNS, EXITS = KVM_VCPU_IOCTL, KVM_USERSPACE_EXIT, KVM_EXIT
REST = ALL_HOOKS - {RUNS, RETURNS}


@pytest.mark.parametrize(
    ("attached", "proving"),
    [
        (ALL_HOOKS, True),
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
    attached: frozenset[Hook], attached_ns: int | None, *, proving: bool, before: bool
) -> None:
    """Hooks prove silence if they observe every use, and from the start if attached before it."""
    statuses = tuple(replace(status, attached_ns=attached_ns) for status in hooks(attached))
    found = weigh(tcg_process(), kernel(hooks=statuses))
    assert found.hooks_prove_running is proving
    assert found.hooks_since_start is (proving and before)
    assert found.entries_since_start is (RUNS in attached and before)
    assert found.hooks_read_results is (RETURNS in attached)


def test_one_inactive_hook_does_not_excuse_the_other() -> None:
    """A hook that could not be attached shows that KVM is present."""
    statuses = tuple(
        replace(status, inactive=status.hook is KVM_VCPU_IOCTL) for status in hooks(frozenset())
    )
    assert not weigh(tcg_process(), kernel(hooks=statuses)).hooks_prove_running


def test_a_hook_that_nothing_needs_does_not_watch() -> None:
    """Unlike a hook without its driver it may have something to observe, now and before."""
    for change, watched in (("driver_gone", True), ("not_needed", False)):
        statuses = tuple(
            (status.driver_gone(KVM_DRIVER) if change == "driver_gone" else status.not_needed())
            if status.hook in {RUNS, RETURNS}
            else status
            for status in hooks()
        )
        found = weigh(tcg_process(), kernel(hooks=statuses))
        assert found.hooks_prove_running is watched
        assert found.hooks_since_start is watched
        assert found.entries_since_start is watched


def test_a_detached_hook_of_exits_changes_no_evidence() -> None:
    """Verdicts do not depend on the hook that is attached only while it is needed."""
    needed = weigh(tcg_process(), kernel(hooks=hooks()))
    idle = tuple(status.not_needed() if status.is_of(KVM_EXIT) else status for status in hooks())
    assert weigh(tcg_process(), kernel(hooks=idle)) == needed


def test_no_hooks_vouch_for_nothing() -> None:
    """An empty list of hooks proves nothing, although all() of it is true."""
    found = weigh(tcg_process(), kernel(hooks=()))
    assert not found.hooks_prove_running
    assert not found.hooks_since_start
    assert not found.hooks_read_results
    assert not found.entries_since_start


@pytest.mark.parametrize(
    ("kvm", "mshv", "proving"),
    [
        ((True, False), (False, False), True),
        ((False, True), (False, False), True),
        ((False, False), (False, False), False),
        ((True, False), (True, False), True),
        ((True, False), (False, True), True),
    ],
)
def test_every_hook_of_every_accelerator_has_to_watch(
    kvm: tuple[bool, bool], mshv: tuple[bool, bool], *, proving: bool
) -> None:
    """A hook of any hypervisor that is neither attached nor inactive may hide runs.

    The parameters are (attached, inactive) of KVM's hooks and of one of mshv's.
    """
    watched = HookStatus(
        hook=MSHV_VP_IOCTL, backend=Backend.KPROBE, attached_ns=ATTACHED_NS, attached_total=1
    )
    statuses = [
        *(
            replace(
                status,
                backend=status.backend if kvm[0] else Backend.NONE,
                inactive=kvm[1],
            )
            for status in hooks()
            if status.hook in {RUNS, RETURNS}
        ),
        watched,
        replace(watched, backend=Backend.KPROBE if mshv[0] else Backend.NONE, inactive=mshv[1]),
    ]
    found = weigh(tcg_process(), kernel(hooks=tuple(statuses)))
    assert found.hooks_prove_running is (proving and (mshv[0] or mshv[1]))


@pytest.mark.parametrize(
    ("known", "dropped", "lost"),
    [(False, 0, False), (False, 1, True), (True, 0, False), (True, 7, False)],
)
def test_dropped_events_of_a_process_without_entry(
    dropped: int, *, known: bool, lost: bool
) -> None:
    """A ledger that dropped events proves nothing about a process without a record."""
    entries = (entry(),) if known else ()
    found = weigh(tcg_process(), kernel(*entries, dropped_total=dropped))
    assert found.ledger_lost_events is lost


def test_stale_entry_does_not_hide_dropped_events() -> None:
    """A record of the tgid's former owner does not count as this process's record."""
    stale = entry(first_ns=STARTED_NS - 1)
    assert weigh(tcg_process(), kernel(stale, dropped_total=1)).ledger_lost_events
