# SPDX-License-Identifier: Apache-2.0
"""What a tenant does to get a wrong verdict, and what is reported of it and its neighbour.

Each row is a process without uid and capabilities, like that of a container. A row says what must
be reported. In every row, a VM that is started afterwards keeps its verdict, counter and scrape.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from ebpf.hooks import KVM_VCPU_IOCTL, SCHED_PROCESS_FORK
from probes.host.hypervisors import HypervisorType
from probes.judge.reasons import Reason
from tests.support.attack_world import (
    RETURNS,
    VERIFIED,
    VM_EXITS,
    Attacker,
    Bystander,
    Scraped,
    Watched,
    called_qemu,
)
from tests.support.kernel_numbers import Owners, busy_users_of_maps
from tests.support.kernel_world import (
    EMULATED,
    MACHINE,
    QEMU,
    machine_arguments,
    of_this_run,
    wait_for,
)

pytestmark = pytest.mark.host_only

LOOKS_AFTERWARDS = 3
"""Number of further refreshes in which a verdict must stay the same."""
CALLS, LATER_CALLS = 11, 7
"""Calls of KVM_RUN that a program of this table makes, and that a number's later owner makes."""
PAIRS = 5 if EMULATED else 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What must be reported of a VM."""

    type: HypervisorType
    verified: bool
    reasons: tuple[Reason, ...]
    """The first reasons of the verdict; more may follow."""
    returns: int | None = None
    """Its counter of returns to user space; None: the counter is absent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """One attack, and the verdicts that it must get."""

    name: str
    arguments: tuple[str, ...]
    early: Expected
    """Expected if the hooks were attached before the attack began."""
    late: Expected
    """Expected if the attack began first."""
    entered: Expected | None = None
    """Replaces early on kernels that also report which process enters KVM_RUN."""
    recorded: int = 0
    """Returns from KVM_RUN that the ledger counts, whatever it makes of them."""
    says_more: bool = False
    """Whether it prints another line when it is done."""


INSIDE = Expected(type=HypervisorType.KVM, verified=True, reasons=(Reason.INSIDE_KVM_RUN,))
UNHELD = Expected(type=HypervisorType.UNKNOWN, verified=False, reasons=(Reason.KVM_RUN_UNHELD,))
ENTERED_UNHELD = Expected(
    type=HypervisorType.UNKNOWN, verified=False, reasons=(Reason.KVM_RUN_REFUSED,)
)
BURNS_AND_HOLDS = Expected(
    type=HypervisorType.UNKNOWN,
    verified=False,
    reasons=(Reason.HOLDS_VCPUS, Reason.CONTRADICTS_THREAD_NAMES),
)
REFUSED_AND_BURNS = Expected(
    type=HypervisorType.UNKNOWN,
    verified=False,
    reasons=(Reason.HOLDS_VCPUS, Reason.KVM_RUN_REFUSED, Reason.CONTRADICTS_THREAD_NAMES),
)
REFUSED = Expected(
    type=HypervisorType.KVM,
    verified=False,
    reasons=(Reason.HOLDS_VCPUS, Reason.KVM_RUN_REFUSED),
    returns=CALLS,
)

HIDDEN = ("--burn", "--then", "halt", "--hide")


def refused(how: str, *more: str) -> tuple[str, ...]:
    return ("--refused", how, "--userspace-exits", str(CALLS), *more)


ATTACKS = (
    Attack(
        name="descriptors closed while a guest is halted in KVM_RUN",
        arguments=(*HIDDEN, "closed"),
        early=UNHELD,
        late=UNHELD,
        entered=ENTERED_UNHELD,
        says_more=True,
    ),
    Attack(
        name="descriptors in no table but that of the thread inside KVM_RUN",
        arguments=(*HIDDEN, "unshared"),
        early=INSIDE,
        late=INSIDE,
        says_more=True,
    ),
    Attack(
        name="/dev/kvm opened and used in a table of its own",
        arguments=(*HIDDEN, "own-table"),
        early=INSIDE,
        late=INSIDE,
        says_more=True,
    ),
    Attack(
        name="halted in KVM_RUN beside a thread that emulates by its own word",
        arguments=("--burn", "--then", "halt"),
        early=INSIDE,
        late=INSIDE,
    ),
    *(
        Attack(
            name=f"KVM_RUN refused ({how}) beside a thread that emulates by its own word",
            arguments=refused(how, "--burn"),
            early=REFUSED_AND_BURNS,
            late=BURNS_AND_HOLDS,
            recorded=CALLS,
        )
        for how in ("interrupted", "registers", "internal-error")
    ),
)
ARCHITECTURES_OWN = {"registers", "internal-error"}
"""Refusals that only x86-64 has."""


@pytest.fixture(scope="module")
def program(kvmload: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return called_qemu(kvmload, tmp_path_factory.mktemp("attacks"))


@pytest.fixture(scope="module")
def early(kernel_required: None) -> Iterator[Watched]:
    with Watched() as watched:
        yield watched


def begin(program: Path, attack: Attack) -> Attacker:
    return Attacker(program, "attacker", *attack.arguments, says_more=attack.says_more)


def possible(attack: Attack) -> bool:
    return MACHINE == "x86_64" or not ARCHITECTURES_OWN & set(attack.arguments)


@pytest.fixture(scope="module")
def all_attacking(program: Path) -> Iterator[dict[str, Attacker]]:
    """Start all attacks at once, before any hook is attached."""
    with ExitStack() as stack:
        yield {
            attack.name: stack.enter_context(begin(program, attack))
            for attack in ATTACKS
            if possible(attack)
        }


@pytest.fixture(scope="module")
def late(all_attacking: dict[str, Attacker]) -> Iterator[Watched]:
    with Watched() as watched:
        yield watched


def judged(watched: Watched, attacker: Attacker, expected: Expected) -> Expected | None:
    """Refresh and return what is reported of the attacker. No other verdict may be verified.

    A kernel that counts VM exits knows that a guest was entered, and then that is expected.
    """
    vmi, process = watched.vmi(attacker.name)
    if vmi is None or process is None:
        return None
    verdict = vmi.verdict
    proven = process.counters.get("exits") is not None
    assert not verdict.verified or proven or verdict.type is expected.type, verdict
    if proven:
        assert verdict.reasons[0] is Reason.VM_EXITS_RECORDED
        assert (verdict.type, verdict.verified) == (HypervisorType.KVM, True)
        return expected
    return Expected(
        type=verdict.type,
        verified=verdict.verified,
        reasons=verdict.reasons[: len(expected.reasons)],
        returns=vmi.counters.get("userspace_exits"),
    )


def check(watched: Watched, attacker: Attacker, expected: Expected) -> None:
    """Refresh until the verdict is the expected one, refresh again, and compare with the agent.

    A counter that is not expected is absent from the report, even as a 0.
    """
    try:
        wait_for(
            lambda: judged(watched, attacker, expected) == expected, "it is reported as expected"
        )
    except AssertionError as wrong:
        raise AssertionError(f"{wrong}; it is {watched.vmi(attacker.name)}") from wrong
    for _ in range(LOOKS_AFTERWARDS):
        assert judged(watched, attacker, expected) == expected
    shown, _ = watched.vmi(attacker.name)
    assert shown is not None

    def same() -> bool:
        scraped = Scraped(watched.agent)
        verified = scraped.value(attacker.name, VERIFIED)
        if scraped.value(attacker.name, VM_EXITS) is not None:
            # Its hook at kvm_exit was attached at another time and has counted an entry.
            return (scraped.type(attacker.name), verified) == (HypervisorType.KVM, 1)
        return (scraped.type(attacker.name), verified) == (
            shown.verdict.type,
            shown.verdict.verified,
        )

    wait_for(same, f"{attacker.name} is reported as {shown}")
    scraped = Scraped(watched.agent)
    if scraped.value(attacker.name, VM_EXITS) is None and shown.counters.get("exits") is None:
        assert scraped.value(attacker.name, RETURNS) == expected.returns


@pytest.mark.every_architecture
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_seen_from_the_start(early: Watched, program: Path, attack: Attack) -> None:
    """With the hooks first, the row's verdict is reported and the ledger counts every return."""
    if not possible(attack):
        pytest.skip("this architecture does not refuse so")
    entered = early.node.has(KVM_VCPU_IOCTL)
    expected = attack.entered if attack.entered is not None and entered else attack.early
    with begin(program, attack) as attacker, Bystander(program) as bystander:
        check(early, attacker, expected)
        entry = early.node.session.read().entries.get(attacker.tgid)
        assert (entry.counters["userspace_exits"] if entry else 0) == attack.recorded
        assert (entry.counters["completed_runs"] if entry else 0) == 0
        bystander.assert_unharmed(early.agent)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_found_running(
    late: Watched, program: Path, all_attacking: dict[str, Attacker], attack: Attack
) -> None:
    """With the process first, the row's verdict is reported while all other attacks run."""
    if not possible(attack):
        pytest.skip("this architecture does not refuse so")
    with Bystander(program) as bystander:
        check(late, all_attacking[attack.name], attack.late)
        bystander.assert_unharmed(late.agent)


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """A VM whose descriptors are in two processes, or outlive the program that opened them."""

    name: str
    arguments: tuple[str, ...]
    in_child: bool
    """Whether the VM is the child that the program names."""


COPIES = (
    Copy(
        name="a forked child has inherited the descriptors",
        arguments=("--child", "forked"),
        in_child=False,
    ),
    Copy(
        name="a child with the same memory runs the vCPU",
        arguments=("--child", "runner"),
        in_child=True,
    ),
)


@pytest.mark.every_architecture
@pytest.mark.parametrize("copy", COPIES, ids=lambda copy: copy.name)
def test_one_vm_is_one_process(early: Watched, program: Path, copy: Copy) -> None:
    """Only the process that runs the guest has name and counter; its copy is never verified."""
    arguments = ("--userspace-exits", str(CALLS), *copy.arguments)
    with (
        Attacker(program, "copied", *arguments, says_more=True) as attacker,
        Bystander(program) as bystander,
    ):
        child = int(attacker.said[1])
        made = CALLS + attacker.totals["eintr"]
        runner, other = (child, attacker.tgid) if copy.in_child else (attacker.tgid, child)

        def named() -> tuple[object, ...]:
            vmi, process = early.vmi(attacker.name)
            if vmi is None or process is None:
                return ()
            verdict = vmi.verdict
            return (
                process.vmm.tgid,
                verdict.type,
                verdict.verified,
                vmi.counters.get("userspace_exits"),
            )

        expected = (runner, HypervisorType.KVM, True, made)
        wait_for(lambda: named() == expected, f"the VM is {expected}")
        for _ in range(LOOKS_AFTERWARDS):
            assert named() == expected
            shown = early.node.process(other)
            assert shown is not None
            assert not shown.verdict.verified
            assert (shown.vm, shown.counters) == (None, {})
        wait_for(
            lambda: Scraped(early.agent).value(attacker.name, RETURNS) == made, "the agent agrees"
        )
        bystander.assert_unharmed(early.agent)


@pytest.mark.parametrize("then", ["hold", "spin"])
def test_a_program_executed_in_place(early: Watched, program: Path, then: str) -> None:
    """A program that emulates after exec gets no credit for runs on KVM before it.

    KVM refuses the inherited descriptors, but the program holds them, so nothing is verified.
    """
    emulated = (
        *(QEMU, "-accel", "tcg", *machine_arguments("tcg"), "-display", "none", "-nodefaults"),
        *("-name", f"guest=default_{of_this_run(then)},debug-threads=on"),
    )
    arguments = ("--userspace-exits", str(CALLS), "--then", then, "--keep", "--", *emulated)
    with Attacker(program, "before", *arguments) as attacker, Bystander(program) as bystander:
        kvm = (HypervisorType.KVM, True)
        wait_for(lambda: early.node.verdict(attacker.tgid, kvm[0]) == kvm, "it runs on KVM")
        attacker.name = of_this_run(then)
        attacker.say("\n")
        comm = Path(f"/proc/{attacker.tgid}/comm")
        wait_for(lambda: comm.read_text().startswith("qemu-system"), "it executes QEMU")
        check(early, attacker, BURNS_AND_HOLDS)
        assert attacker.tgid not in early.node.session.read().entries
        bystander.assert_unharmed(early.agent)


@pytest.fixture
def owners() -> Iterator[Owners]:
    with Owners() as started:
        yield started


@pytest.mark.parametrize("beside", [contextlib.nullcontext, busy_users_of_maps])
def test_numbers_that_pass_on_at_once(
    early: Watched,
    program: Path,
    owners: Owners,
    beside: Callable[[], contextlib.AbstractContextManager[None]],
) -> None:
    """Only the later owner of a number is shown, with its own counts and never with a 0.

    While other processes use BPF maps, the kernel may not have counted it. Then no counter is
    reported.
    """
    if not early.node.has(SCHED_PROCESS_FORK):
        pytest.skip("there is no tracefs")
    busy = beside is busy_users_of_maps
    tgids = [owners.start(CALLS) for _ in range(PAIRS)]
    before = {process.vmm.tgid: process for process in early.node.report().processes}
    assert {before[tgid].counters.get("userspace_exits") for tgid in tgids} == {CALLS}
    with beside(), Bystander(program) as bystander:
        for tgid in tgids:
            owners.replace(tgid, LATER_CALLS)
            shown = early.node.process(tgid)
            assert busy or shown is not None
            if shown is not None:
                assert shown.vmm != before[tgid].vmm
                assert shown.counters.get("userspace_exits") in (
                    {None, LATER_CALLS} if busy else {LATER_CALLS}
                )
        if not busy:
            bystander.assert_unharmed(early.agent)
    for tgid in tgids:
        owners.end(tgid)
    wait_for(
        lambda: not {process.vmm.tgid for process in early.node.report().processes} & {*tgids},
        "no earlier owner is shown",
    )


def test_a_counter_that_counted_for_another_proves_no_zero(early: Watched, program: Path) -> None:
    """A VM that never ran has no counter even after the hook has counted for its neighbour."""
    with Bystander(program) as bystander, Attacker(program, "paused", "--paused") as paused:
        bystander.assert_unharmed(early.agent)
        held = Expected(type=HypervisorType.KVM, verified=False, reasons=(Reason.HOLDS_VCPUS,))
        check(early, paused, held)
        bystander.assert_unharmed(early.agent)


@pytest.mark.parametrize("offset_s", ["86400", "-1"])
def test_an_agent_in_a_time_namespace(program: Path, offset_s: str) -> None:
    """In a time namespace an agent counts as any other does, for earlier and for later VMs."""
    if not Path("/proc/self/ns/time").exists():
        pytest.skip("this kernel has no time namespaces")
    offsets = ("--monotonic", offset_s, "--boottime", offset_s)
    before = ("unshare", "--fork", "--kill-child", "--time", *offsets)
    refusal = refused("interrupted")
    with Watched(before=before) as watched, Attacker(program, "timed", *refusal) as attacker:
        check(watched, attacker, REFUSED)
        with Bystander(program) as bystander:
            bystander.assert_unharmed(watched.agent)
