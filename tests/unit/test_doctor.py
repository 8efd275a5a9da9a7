"""What a node can prove: one line a question, and the exit code."""

from dataclasses import replace

import pytest
from facts import health, hooks
from rich_report import rich_report

from ebpf.hooks import Question, unattached
from probes import doctor_view
from probes.doctor import Ability, Check, Outcome, ability, checks
from probes.node import Accelerator, KernelAbilities, NodeVirtualization
from probes.report import CounterTrust, NodeReport
from probes.vmi import WatchStatus
from probes.vmm import HypervisorType

NO_BPF = health(
    hooks=unattached("no BPF: not permitted"),
    ledger_error="no BPF: not permitted",
    exits_trust=CounterTrust.MISSING,
    userspace_exits_trust=CounterTrust.MISSING,
)


CAPABLE = KernelAbilities(
    kprobes=True,
    btf=True,
    tracefs=True,
    kvm_device=True,
    lockdown="none",
    capabilities_missing=(),
    initial_pid_namespace=True,
)
BARE = KernelAbilities(
    kprobes=False,
    btf=False,
    tracefs=False,
    kvm_device=True,
    lockdown="confidentiality",
    capabilities_missing=("CAP_SYS_PTRACE", "CAP_BPF"),
    initial_pid_namespace=False,
)


def report(
    *, attached: frozenset[Question] = frozenset(Question), proc_readable: bool = True
) -> NodeReport:
    return replace(rich_report(), health=health(hooks=hooks(attached)), proc_readable=proc_readable)


def lines(given: NodeReport, kernel: KernelAbilities) -> list[str]:
    return doctor_view.lines(checks(given, kernel), ability(given))


def check(given: NodeReport, question: str) -> Check:
    (found,) = [it for it in checks(given, CAPABLE) if question in it.question]
    return found


@pytest.mark.parametrize(
    ("attached", "expected"),
    [
        (frozenset(Question), Ability.VERIFIED),
        ({Question.RUNS_VCPU}, Ability.VERIFIED),
        ({Question.USERSPACE_EXITS}, Ability.VERIFIED),
        ({Question.EXITS, Question.CREATES_VM, Question.EXECUTES}, Ability.INFERRED),
        (frozenset(), Ability.INFERRED),
    ],
)
def test_ability_follows_the_hooks(attached: frozenset[Question], expected: Ability) -> None:
    """Verified needs a hook that no use of a vCPU passes unseen."""
    assert ability(report(attached=frozenset(attached))) is expected


@pytest.mark.parametrize("attached", [frozenset(), frozenset(Question)])
def test_nothing_without_proc(attached: frozenset[Question]) -> None:
    """Where /proc cannot be read there are no verdicts, whatever the hooks count.

    No process is ever identified then, and a line says so.
    """
    given = report(attached=attached, proc_readable=False)
    assert ability(given) is Ability.NOTHING
    assert [
        it for it in checks(given, CAPABLE) if it.outcome is Outcome.BAD and "/proc" in it.finding
    ]


def test_exit_codes() -> None:
    """The public face: 0 verified, 1 inferred, 2 nothing."""
    assert [int(it) for it in Ability] == [0, 1, 2]
    assert [it.name for it in Ability] == ["VERIFIED", "INFERRED", "NOTHING"]


def test_all_is_well() -> None:
    """Every question has a line and every line is good; the last one sums up."""
    found = lines(report(), CAPABLE)
    assert [line.split()[0] for line in found[:-1]] == ["ok"] * (len(found) - 1)
    assert len(found) == len(checks(report(), CAPABLE)) + 1
    assert found[-1] == "verdicts can be verified on this node"


def test_without_bpf() -> None:
    """The reason stands in the line; nothing is called good that is not."""
    given = replace(rich_report(), health=NO_BPF)
    found = lines(given, CAPABLE)
    assert any("no BPF: not permitted" in line for line in found)
    assert found[-1] == "verdicts can only be inferred on this node"
    names = check(given, "VMI names")
    of_hooks = [it for it in checks(given, CAPABLE) if it != names][1:4]
    assert [it.outcome for it in of_hooks] == [Outcome.LESS] * 3
    assert check(given, "which processes become VMMs").outcome is Outcome.LESS
    # All capabilities are there, yet something refuses: that is not a yes.
    assert check(given, "may hvprobe").outcome is Outcome.LESS
    assert check(report(), "may hvprobe").finding == "yes"


def test_a_bare_kernel() -> None:
    """What is missing is named one by one, and what stands in for it or remedies it is said."""
    found = {it.question: it for it in checks(report(), BARE)}
    may = found["may hvprobe do what it needs"]
    assert may.outcome is Outcome.LESS
    for word in ("CAP_SYS_PTRACE", "CAP_BPF", "PID namespace", "confidentiality"):
        assert word in may.finding
    assert may.remedy
    offers = found["what this kernel offers"]
    assert offers.outcome is Outcome.LESS
    assert "KVM yes, kprobes no, tracefs no, BTF (not needed) no" in offers.finding
    assert "tracefs" in (offers.remedy or "")
    late = found["which VMs that ran before hvprobe"]
    assert (late.outcome, late.remedy) == (
        Outcome.LESS,
        "give CAP_DAC_READ_SEARCH and CAP_SYS_PTRACE",
    )
    runs = found["which process uses KVM"]
    assert runs.outcome is Outcome.GOOD
    assert "CONFIG_KPROBES" in runs.finding


def test_no_kvm_module_is_no_failure_of_the_hooks() -> None:
    """Where no process can use KVM its hooks are inactive, and emulation can be verified."""
    gone = tuple(
        it.driver_gone(it.hook.driver) if it.hook.driver else it
        for it in hooks(frozenset(Question))
    )
    given = replace(report(), health=health(hooks=gone))
    assert ability(given) is Ability.VERIFIED
    found = check(given, "which process uses KVM")
    assert found.outcome is Outcome.GOOD
    assert "no KVM module is loaded" in found.finding


def test_without_anything() -> None:
    """Neither hooks nor /proc."""
    given = replace(rich_report(), health=NO_BPF, proc_readable=False)
    assert (lines(given, CAPABLE))[-1] == "nothing can be said of this node's VMs"


LOST = WatchStatus(
    up=False,
    synced=True,
    last_sync_unix_s=1700000000.0,
    restarts=2,
    error="cannot watch it: no route",
    malformed_total=0,
)


@pytest.mark.parametrize(
    ("watch", "outcome", "finding"),
    [
        (None, Outcome.GOOD, "libvirt's domain names"),
        (replace(LOST, up=True, error=None), Outcome.GOOD, "the API server"),
        (replace(LOST, error=None), Outcome.GOOD, "the API server"),
        (LOST, Outcome.LESS, "as last known: cannot watch it: no route"),
        (replace(LOST, synced=False), Outcome.BAD, "no VM has a name: cannot watch it: no route"),
        (replace(LOST, synced=False, error=None), Outcome.BAD, "it has not answered yet"),
    ],
)
def test_where_names_come_from(watch: WatchStatus | None, outcome: Outcome, finding: str) -> None:
    """Domain names, or the API server: current, last known, or never heard, with the reason.

    It does not change what can be verified.
    """
    given = replace(report(), health=health(vmi_watch=watch))
    found = check(given, "VMI names")
    assert found.outcome is outcome
    assert finding in found.finding
    assert ability(given) is Ability.VERIFIED


def test_hooks_that_prove_use_of_kvm_are_missing() -> None:
    """The ledger is there and the two hooks are not: both reasons are told."""
    rest = frozenset(Question) - {Question.RUNS_VCPU, Question.USERSPACE_EXITS}
    found = check(report(attached=rest), "which process uses KVM")
    assert found.outcome is Outcome.LESS
    assert "kvm_vcpu_ioctl is not here; kvm_userspace_exit is not here" in found.finding


def test_hooks_that_are_attached_are_named() -> None:
    """By name and backend."""
    found = check(report(), "which process uses KVM")
    assert found.finding == ("seen by kvm_vcpu_ioctl (kprobe) and kvm_userspace_exit (tracepoint)")
    assert "sched_process_exec" in check(report(), "become VMMs").finding


def test_no_exec_hook() -> None:
    """What stands in for it is told."""
    rest = frozenset(Question) - {Question.EXECUTES}
    found = check(report(attached=rest), "become VMMs")
    assert (found.outcome, "/proc" in found.finding) == (Outcome.LESS, True)


@pytest.mark.parametrize(
    ("trust", "outcome", "says"),
    [
        (CounterTrust.PROVEN, Outcome.GOOD, "seen to count"),
        (CounterTrust.UNTRIED, Outcome.GOOD, "no VM has made one yet"),
        (CounterTrust.BLIND, Outcome.LESS, "never calls it"),
        (CounterTrust.MISSING, Outcome.LESS, "no hook attached"),
    ],
)
@pytest.mark.parametrize(
    ("field", "question"),
    [("exits_trust", "VM exits"), ("userspace_exits_trust", "returns to user space")],
)
def test_counters(
    field: str, question: str, trust: CounterTrust, outcome: Outcome, says: str
) -> None:
    """How far each counter can be believed, each by its own trust."""
    given = replace(rich_report(), health=health(**{field: trust}))
    found = check(given, question)
    assert found.outcome is outcome
    assert says in found.finding


@pytest.mark.parametrize(
    ("available", "reason", "virtualization", "outcome", "finding"),
    [
        (True, None, ("kvm_intel", False), Outcome.GOOD, "yes, by kvm_intel"),
        (True, None, ("kvm_pvm", True), Outcome.GOOD, "yes, by kvm_pvm, the node is itself a VM"),
        (True, None, (None, None), Outcome.GOOD, "yes, by no module"),
        (False, "no /dev/kvm; load it", (None, None), Outcome.BAD, "no /dev/kvm; load it"),
        (None, "may not try; give access", (None, None), Outcome.LESS, "may not try; give access"),
    ],
)
def test_accelerator(
    available: bool | None,
    reason: str | None,
    virtualization: tuple[str | None, bool | None],
    outcome: Outcome,
    finding: str,
) -> None:
    """Works, does not, or may not be tried, with module and reason."""
    module, nested = virtualization
    given = replace(
        report(),
        accelerators=(
            Accelerator(type=HypervisorType.MSHV, available=False, reason="not asked"),
            Accelerator(type=HypervisorType.KVM, available=available, reason=reason),
        ),
        virtualization=NodeVirtualization(module=module, nested=nested),
    )
    found = check(given, "does KVM work here")
    told = f"{found.finding}; {found.remedy}" if found.remedy else found.finding
    assert (found.outcome, told) == (outcome, finding)


def test_a_check_is_one_line() -> None:
    """Outcome, question, finding and remedy of every check stand in a line of their own."""
    for given in (report(), replace(rich_report(), health=NO_BPF), rich_report()):
        for line, it in zip(lines(given, CAPABLE), checks(given, CAPABLE), strict=False):
            assert "\n" not in line
            assert line.startswith(f"{it.outcome.value:<4}  {it.question}: {it.finding}")
            assert line.endswith(it.remedy or it.finding)
