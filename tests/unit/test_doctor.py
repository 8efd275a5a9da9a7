# SPDX-License-Identifier: Apache-2.0
"""``doctor`` shows what a node can prove: one line per check, and the exit code."""

from dataclasses import replace

import pytest

from ebpf.confinement import Confinement
from ebpf.hook_status import unattached
from ebpf.hooks import (
    KVM_DEV_IOCTL,
    KVM_EXIT,
    KVM_USERSPACE_EXIT,
    KVM_VCPU_IOCTL,
    MSHV_VP_IOCTL,
    SCHED_PROCESS_EXEC,
    Hook,
)
from probes.host.hypervisors import HypervisorType
from probes.host.node import Accelerator, Cause, KernelFeatures, NodeVirtualization, Problem
from probes.judge.accelerator_absence import Absence, AbsenceFound
from probes.judge.exit_counts import ExitSource
from probes.judge.reasons import Outcome, Reason
from probes.judge.verdict import Verdict
from probes.render import doctor_view
from probes.render.doctor import Ability, Check, ability, checks
from probes.report.model import CounterTrust, NodeReport, ProcessReport, VmiReport
from probes.vmi.model import WatchStatus
from tests.support.facts import (
    ALL_HOOKS,
    CAPABLE,
    KVM_AVAILABLE,
    health,
    hooks,
    provided_by,
    trusts,
)
from tests.support.live_reports import LIAR, guest
from tests.support.rich_report import KVM, NONE, PAUSED, process, rich_report, vmi

NO_BPF = health(
    hooks=unattached("no BPF: not permitted", refused=True),
    ledger_error="no BPF: not permitted",
    trusts=trusts(exits=CounterTrust.MISSING, userspace_exits=CounterTrust.MISSING),
)


BARE = KernelFeatures(
    kprobes=False,
    btf=False,
    tracefs=False,
    kvm_device=True,
    lockdown="confidentiality",
    capabilities_missing=("CAP_SYS_PTRACE", "CAP_BPF"),
    initial_pid_namespace=False,
)


def report(*, attached: frozenset[Hook] = ALL_HOOKS, proc_readable: bool = True) -> NodeReport:
    """Return a node with these hooks attached and one VM on KVM."""
    return replace(
        rich_report(),
        accelerators=(KVM_AVAILABLE,),
        health=health(hooks=hooks(attached)),
        proc_readable=proc_readable,
        processes=(process(4711, KVM, name="alpha"),),
        vmis=(vmi("alpha", KVM),),
    )


def lines(given: NodeReport, kernel: KernelFeatures) -> list[str]:
    return doctor_view.lines(checks(given, kernel), ability(given))


def check(given: NodeReport, label: str) -> Check:
    (found,) = [result for result in checks(given, CAPABLE) if label in result.label]
    return found


@pytest.mark.parametrize(
    ("attached", "expected"),
    [
        (ALL_HOOKS, Ability.VERIFIED),
        ({KVM_VCPU_IOCTL}, Ability.VERIFIED),
        ({KVM_USERSPACE_EXIT}, Ability.VERIFIED),
        ({KVM_EXIT, KVM_DEV_IOCTL, SCHED_PROCESS_EXEC}, Ability.INFERRED),
        (frozenset(), Ability.INFERRED),
    ],
)
def test_ability_follows_the_hooks(attached: frozenset[Hook], expected: Ability) -> None:
    """Verdicts can be verified if an attached hook sees every use of a vCPU."""
    assert ability(report(attached=frozenset(attached) | {MSHV_VP_IOCTL})) is expected


def test_ability_needs_a_hook_of_each_hypervisor() -> None:
    """Verdicts are inferred if the Microsoft hypervisor's hook is wanted and not attached."""
    unseen = report(attached=ALL_HOOKS - {MSHV_VP_IOCTL})
    assert ability(unseen) is Ability.INFERRED
    found = check(unseen, "mshv activity")
    assert found.outcome is Outcome.DEGRADED
    assert found.finding == "no hook is attached: mshv_vp_ioctl is not here"
    usual = replace(unseen, health=health(hooks=hooks()[:-1]))
    assert ability(usual) is Ability.VERIFIED
    assert not [result for result in checks(usual, CAPABLE) if "mshv" in result.label]


def test_each_hypervisor_has_a_line() -> None:
    """The Microsoft hypervisor is reported with its module, just as KVM is."""
    given = replace(
        report(),
        accelerators=(Accelerator(type=HypervisorType.MSHV, available=True),),
        virtualization=NodeVirtualization(modules={HypervisorType.MSHV: "mshv_root"}, nested=False),
    )
    (found,) = [result for result in checks(given, CAPABLE) if result.label == "mshv"]
    assert (found.outcome, found.finding) == (Outcome.GOOD, "works, provided by mshv_root")


@pytest.mark.parametrize("attached", [frozenset(), ALL_HOOKS])
def test_nothing_without_proc(attached: frozenset[Hook]) -> None:
    """If /proc cannot be read there are no verdicts, whatever the hooks count.

    No process can be identified then, and a line says so.
    """
    given = report(attached=attached, proc_readable=False)
    assert ability(given) is Ability.NOTHING
    assert [
        result
        for result in checks(given, CAPABLE)
        if result.outcome is Outcome.BAD and "/proc" in result.finding
    ]


def test_exit_codes() -> None:
    """The exit code is 0 for verified, 1 for inferred, and 2 for no verdicts."""
    assert [int(level) for level in Ability] == [0, 1, 2]
    assert [level.name for level in Ability] == ["VERIFIED", "INFERRED", "NOTHING"]


def test_all_is_well() -> None:
    """On a complete node every check has a good line, and the last line is the summary."""
    found = lines(report(), CAPABLE)
    assert [line.split()[0] for line in found[:-1]] == ["ok"] * (len(found) - 1)
    assert len(found) == len(checks(report(), CAPABLE)) + 1
    assert found[-1] == "verdicts can be verified on this node"


def test_without_bpf() -> None:
    """Without BPF a line has the reason, and the checks of the hooks are degraded."""
    given = replace(report(), health=NO_BPF)
    found = lines(given, CAPABLE)
    assert any("no BPF: not permitted" in line for line in found)
    assert found[-1] == "verdicts can only be inferred on this node"
    names = check(given, "VMI names")
    of_hooks = [result for result in checks(given, CAPABLE) if result != names][1:4]
    assert [result.outcome for result in of_hooks] == [Outcome.DEGRADED] * 3
    assert check(given, "new VMM processes").outcome is Outcome.DEGRADED
    # All capabilities are there, but the kernel refuses BPF: permissions are incomplete.
    refused = check(given, "permissions")
    assert (refused.outcome, refused.finding.split(":")[0]) == (Outcome.DEGRADED, "incomplete")
    assert check(report(), "permissions").finding == "complete"


def test_permissions_do_not_depend_on_words() -> None:
    """A hook's flag shows that the kernel refused it; its reason may have any words."""
    words = replace(report(), health=health(hooks=unattached("not permitted")))
    assert check(words, "permissions").finding == "complete"
    flag = replace(report(), health=health(hooks=unattached("no", refused=True)))
    assert check(flag, "permissions").outcome is Outcome.DEGRADED


def test_a_bare_kernel() -> None:
    """Each missing feature is named with its substitute or its remedy."""
    found = {result.label: result for result in checks(report(), BARE)}
    permissions = found["permissions"]
    assert permissions.outcome is Outcome.DEGRADED
    for word in ("CAP_SYS_PTRACE", "CAP_BPF", "PID namespace", "confidentiality"):
        assert word in permissions.finding
    assert permissions.remedy
    features = found["kernel features"]
    assert features.outcome is Outcome.DEGRADED
    assert "KVM yes, kprobes no, tracefs no, BTF (not needed) no" in features.finding
    assert features.remedy is None, "under lockdown=confidentiality tracefs is empty"
    (features,) = [
        line
        for line in checks(report(), replace(BARE, lockdown="none"))
        if line.label == "kernel features"
    ]
    assert features.remedy == "mount tracefs on /sys/kernel/tracing"
    late = found["VMs started before hvprobe"]
    assert (late.outcome, late.remedy) == (
        Outcome.DEGRADED,
        "give hvprobe CAP_DAC_READ_SEARCH and CAP_SYS_PTRACE",
    )


def test_the_entry_of_a_run_is_not_observed() -> None:
    """Without the hook at the entry, the line says from when a VM is seen, and why."""
    found = check(report(attached=ALL_HOOKS - {KVM_VCPU_IOCTL}), "KVM activity")
    assert found.outcome is Outcome.GOOD
    assert found.finding == (
        "detected by kvm_userspace_exit (tracepoint), from the first return of KVM_RUN, not at its "
        "entry: kvm_vcpu_ioctl is not here"
    )


def test_links_are_named_with_their_reason() -> None:
    """The line says that a hook is attached by a link, and why not in the usual form."""
    link = KVM_VCPU_IOCTL.points[1]
    linked = tuple(
        status.attached_at(link, 1, passed_over="kprobe kvm_vcpu_ioctl: not permitted: why")
        if status.is_of(KVM_VCPU_IOCTL)
        else status
        for status in hooks(ALL_HOOKS)
    )
    found = check(replace(report(), health=health(hooks=linked)), "KVM activity")
    assert found.outcome is Outcome.GOOD
    assert found.finding == (
        "detected by kvm_vcpu_ioctl (kprobe_multi) and kvm_userspace_exit (tracepoint); links "
        "replace the usual kprobes: kprobe kvm_vcpu_ioctl: not permitted: why"
    )


def test_no_process_may_be_traced() -> None:
    """Yama's scope 3 hides system calls and statistics from every process, and is named."""
    for scope, outcome in ((None, Outcome.GOOD), (2, Outcome.GOOD), (3, Outcome.DEGRADED)):
        found = checks(report(), replace(CAPABLE, ptrace_scope=scope))
        (late,) = [line for line in found if "before hvprobe" in line.label]
        assert late.outcome is outcome
        assert ("kernel.yama.ptrace_scope=3 denies" in late.finding) is (scope == 3)
        assert ("2 or less in sysctl.d" in (late.remedy or "")) is (scope == 3)


UNATTACHED = "the hook kvm_exit is not attached"


@pytest.mark.parametrize(
    ("sources", "outcome", "finding"),
    [
        ([None], Outcome.DEGRADED, f"not counted: {UNATTACHED}"),
        ([ExitSource.KVM_STATISTICS], Outcome.GOOD, f"counted by KVM's statistics; {UNATTACHED}"),
        (
            [ExitSource.KVM_STATISTICS, ExitSource.TRACEPOINT],
            Outcome.DEGRADED,
            f"counted of 1 of 2 VMs, by KVM's statistics; {UNATTACHED}",
        ),
    ],
)
def test_exits_without_the_hook(
    sources: list[ExitSource | None], outcome: Outcome, finding: str
) -> None:
    """Without BPF, KVM's statistics still count the exits of VMs that have them."""
    running = tuple(
        process(4711 + number, KVM, name=f"vm{number}", source=source)
        for number, source in enumerate(sources)
    )
    found = check(replace(report(), health=NO_BPF, processes=running), "VM exits")
    assert (found.outcome, found.finding) == (outcome, finding)


def test_refused_hooks_are_named_with_the_reason() -> None:
    """If some hooks are refused and others attached, the line about permissions says why."""
    refused = tuple(
        status
        if status.hook is KVM_USERSPACE_EXIT
        else status.failed("kprobe f: not permitted: the sysctl", refused=True)
        for status in hooks(ALL_HOOKS)
    )
    given = replace(report(), health=health(hooks=refused))
    found = check(given, "permissions")
    assert found.outcome is Outcome.DEGRADED
    first = refused[0].hook.name
    more = len(refused) - 2
    assert found.finding == (
        f"incomplete: not attached: {first} and {more} more: kprobe f: not permitted: the sysctl"
    )


def test_lockdown_has_a_remedy_of_its_own() -> None:
    """Confidentiality is named, and the remedy does not ask for capabilities that are there."""
    found = checks(report(), replace(CAPABLE, lockdown="confidentiality"))
    (line,) = [each for each in found if each.label == "permissions"]
    assert "lockdown=confidentiality" in line.finding
    assert "capabilities" not in (line.remedy or "")


@pytest.mark.parametrize(
    ("confinement", "who", "remedy"),
    [
        (None, "a security module", "audit log"),
        (
            Confinement(phrase="the AppArmor profile p", remedy="free it"),
            "the AppArmor profile p",
            "free it",
        ),
    ],
)
def test_a_vm_that_cannot_be_read(confinement: Confinement | None, who: str, remedy: str) -> None:
    """What denies reading a VM despite the capabilities is named, with a remedy."""
    unread = Verdict(type=HypervisorType.UNKNOWN, verified=False, reasons=(Reason.FDS_UNREADABLE,))
    given = replace(report(), processes=(process(4711, unread, name="alpha"),))
    found = checks(given, replace(CAPABLE, confinement=confinement))
    (late,) = [line for line in found if "before hvprobe" in line.label]
    assert late.outcome is Outcome.DEGRADED
    assert late.finding.endswith(f"cannot be read (1 now), which {who} denies")
    assert remedy in (late.remedy or "")


def test_processes_that_cannot_be_identified() -> None:
    """VMs that are not seen at all are spoken of first, with what denies them and the remedy."""
    selinux = Confinement(phrase="SELinux (type t)", remedy="run hvprobe as spc_t")
    given = replace(report(), health=replace(report().health, processes_denied=3))
    found = checks(given, replace(CAPABLE, confinement=selinux))
    (late,) = [line for line in found if "before hvprobe" in line.label]
    assert (late.outcome, late.remedy) == (Outcome.DEGRADED, "run hvprobe as spc_t")
    assert late.finding == (
        "VMs among 3 processes are not seen, because not even their names can be read, which "
        "SELinux (type t) denies"
    )


def test_no_kvm_module_is_no_failure_of_the_hooks() -> None:
    """If no process can use KVM, its hooks are inactive and emulation can be verified."""
    gone = tuple(
        status.driver_gone(status.hook.driver) if status.hook.driver else status
        for status in hooks(ALL_HOOKS)
    )
    given = replace(report(), health=health(hooks=gone))
    assert ability(given) is Ability.VERIFIED
    found = check(given, "KVM activity")
    assert found.outcome is Outcome.GOOD
    assert "no KVM module is loaded" in found.finding


def test_a_hook_that_nothing_needs_is_no_failure() -> None:
    """No line warns of it, and verdicts are verified as with it."""
    idle = tuple(
        status.not_needed() if status.is_of(KVM_EXIT) else status for status in hooks(ALL_HOOKS)
    )
    inactive = trusts(exits=CounterTrust.INACTIVE)
    given = replace(report(), health=health(hooks=idle, trusts=inactive))
    assert ability(given) is Ability.VERIFIED
    found = check(given, "VM exits")
    assert (found.outcome, found.remedy) == (Outcome.GOOD, None)
    assert found.finding == (
        "inactive: kvm_exit is detached (not needed: KVM's own statistics count the exits of every "
        "VM)"
    )
    before = [result for result in checks(report(), CAPABLE) if result.outcome is not Outcome.GOOD]
    after = [result for result in checks(given, CAPABLE) if result.outcome is not Outcome.GOOD]
    assert after == before


@pytest.mark.parametrize(
    ("missed", "outcome", "finding"),
    [
        ({}, Outcome.GOOD, "unknown: this kernel does not count them"),
        ({KVM_EXIT: 0}, Outcome.GOOD, "none: the kernel skipped no run of a hook's program"),
        (
            {KVM_EXIT: 2, SCHED_PROCESS_EXEC: 3, KVM_VCPU_IOCTL: 0},
            Outcome.DEGRADED,
            (
                "5: the kernel skipped runs, so what these hooks count is too low: kvm_exit 2, "
                "sched_process_exec 3"
            ),
        ),
    ],
)
def test_missed_runs(missed: dict[Hook, int], outcome: Outcome, finding: str) -> None:
    """Skipped runs are a warning that names their hooks. That none is counted is no fault."""
    skipped = tuple(
        replace(status, missed_total=missed.get(status.hook)) for status in hooks(ALL_HOOKS)
    )
    found = check(replace(report(), health=health(hooks=skipped)), "missed runs")
    assert (found.outcome, found.finding) == (outcome, finding)
    assert (found.remedy is not None) is (outcome is Outcome.DEGRADED)


def test_without_programs_no_run_is_missed() -> None:
    """Without a ledger the line is left out."""
    given = replace(report(), health=NO_BPF)
    assert "missed runs" not in {result.label for result in checks(given, CAPABLE)}


def test_without_anything() -> None:
    """Without hooks and /proc the summary says that VMs cannot be judged."""
    given = replace(rich_report(), health=NO_BPF, proc_readable=False)
    assert (lines(given, CAPABLE))[-1] == "this node's VMs cannot be judged"


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
        (LOST, Outcome.DEGRADED, "as last known: cannot watch it: no route"),
        (replace(LOST, synced=False), Outcome.BAD, "no VM can be named: cannot watch it: no route"),
        (
            replace(LOST, synced=False, error=None),
            Outcome.BAD,
            "the API server has not answered yet",
        ),
    ],
)
def test_where_names_come_from(watch: WatchStatus | None, outcome: Outcome, finding: str) -> None:
    """The line says whether names come from libvirt or the API server, and if they are current.

    Names do not change what can be verified.
    """
    given = replace(report(), health=health(vmi_watch=watch))
    found = check(given, "VMI names")
    assert found.outcome is outcome
    assert finding in found.finding
    assert ability(given) is Ability.VERIFIED


def test_hooks_that_prove_use_of_kvm_are_missing() -> None:
    """If neither of the hooks that prove use of KVM is attached, both reasons are shown."""
    rest = ALL_HOOKS - {KVM_VCPU_IOCTL, KVM_USERSPACE_EXIT}
    found = check(report(attached=rest), "KVM activity")
    assert found.outcome is Outcome.DEGRADED
    assert "kvm_vcpu_ioctl is not here; kvm_userspace_exit is not here" in found.finding


def test_hooks_that_are_attached_are_named() -> None:
    """Attached hooks are shown by name and backend."""
    found = check(report(), "KVM activity")
    assert found.finding == (
        "detected by kvm_vcpu_ioctl (kprobe) and kvm_userspace_exit (tracepoint)"
    )
    assert "sched_process_exec" in check(report(), "new VMM processes").finding


def test_no_exec_hook() -> None:
    """Without the exec hook, the line names /proc as its substitute."""
    rest = ALL_HOOKS - {SCHED_PROCESS_EXEC}
    found = check(report(attached=rest), "new VMM processes")
    assert (found.outcome, "/proc" in found.finding) == (Outcome.DEGRADED, True)


@pytest.mark.parametrize(
    ("trust", "outcome", "says"),
    [
        (CounterTrust.PROVEN, Outcome.GOOD, "has fired on this node"),
        (CounterTrust.UNTRIED, Outcome.GOOD, "no VM has triggered it yet"),
        (CounterTrust.BLIND, Outcome.DEGRADED, "this kernel never fires kvm_"),
        (CounterTrust.MISSING, Outcome.DEGRADED, "is not attached"),
        (CounterTrust.INACTIVE, Outcome.GOOD, "is detached"),
    ],
)
@pytest.mark.parametrize(
    ("field", "label"),
    [("exits", "VM exits"), ("userspace_exits", "userspace exits")],
)
def test_counters(field: str, label: str, trust: CounterTrust, outcome: Outcome, says: str) -> None:
    """Each counter's line follows that counter's own trust."""
    given = replace(rich_report(), health=health(trusts=trusts(**{field: trust})))
    found = check(given, label)
    assert found.outcome is outcome
    assert says in found.finding


@pytest.mark.parametrize(
    ("available", "problem", "virtualization", "outcome", "finding"),
    [
        (True, None, ("kvm_intel", False), Outcome.GOOD, "works, provided by kvm_intel"),
        (
            True,
            None,
            ("kvm_pvm", True),
            Outcome.GOOD,
            "works, provided by kvm_pvm; the node itself is a VM",
        ),
        (True, None, (None, None), Outcome.GOOD, "works"),
        (
            True,
            ("registered; not tried", None),
            ("kvm_amd", None),
            Outcome.GOOD,
            "works, provided by kvm_amd; registered; not tried",
        ),
        (False, ("no /dev/kvm", "load it"), (None, None), Outcome.BAD, "no /dev/kvm; load it"),
        (None, ("no; access", "give it"), (None, None), Outcome.DEGRADED, "no; access; give it"),
        (False, ("a file; no device", None), (None, None), Outcome.BAD, "a file; no device"),
    ],
)
def test_accelerator(
    available: bool | None,
    problem: tuple[str, str | None] | None,
    virtualization: tuple[str | None, bool | None],
    outcome: Outcome,
    finding: str,
) -> None:
    """The line says whether the accelerator works, with its module, or its problem and remedy.

    The remedy is a separate field, whatever punctuation the detail has.
    """
    module, nested = virtualization
    wrong = problem and Problem(cause=Cause.TRIAL_FAILED, detail=problem[0], remedy=problem[1])
    given = replace(
        report(),
        accelerators=(
            Accelerator(type=HypervisorType.MSHV, available=False),
            Accelerator(type=HypervisorType.KVM, available=available, problem=wrong),
        ),
        virtualization=provided_by(module, nested=nested),
    )
    (found,) = [result for result in checks(given, CAPABLE) if result.label == "KVM"]
    assert found.remedy == (problem[1] if problem else None)
    shown = f"{found.finding}; {found.remedy}" if found.remedy else found.finding
    assert (found.outcome, shown) == (outcome, finding)


NOT_LOADED = AbsenceFound(
    reason=Absence.NOT_LOADED, sentence="kvm_amd is not loaded", remedy="modprobe kvm_amd"
)


@pytest.mark.parametrize(
    ("available", "finding", "remedy"),
    [
        (False, "kvm_amd is not loaded (/dev/kvm: not here)", "modprobe kvm_amd"),
        (None, "/dev/kvm: not here", "pass --sys"),
        (True, "works, provided by kvm_intel; /dev/kvm: not here", "pass --sys"),
    ],
)
def test_why_a_node_has_no_kvm(available: bool | None, finding: str, remedy: str) -> None:
    """The reason and its remedy are on the line of KVM, if KVM is known to be unavailable.

    The exit code does not depend on it, and no other hypervisor's line is about it.
    """
    wrong = Problem(cause=Cause.DEVICE_ABSENT, detail="/dev/kvm: not here", remedy="pass --sys")
    mshv = replace(wrong, detail="/dev/mshv: not here")
    given = replace(
        report(),
        accelerators=(
            Accelerator(type=HypervisorType.KVM, available=available, problem=wrong),
            Accelerator(type=HypervisorType.MSHV, available=False, problem=mshv),
        ),
    )
    found = {result.label: result for result in checks(given, CAPABLE, NOT_LOADED)}
    assert (found["KVM"].finding, found["KVM"].remedy) == (finding, remedy)
    assert (found["mshv"].finding, found["mshv"].remedy) == ("/dev/mshv: not here", "pass --sys")
    assert ability(given) is Ability.VERIFIED
    assert len(found) == len(checks(given, CAPABLE))


@pytest.mark.parametrize(
    ("processes", "vmis", "outcome", "finding", "remedy"),
    [
        ((), (), Outcome.GOOD, "no VM and no VMM process", None),
        ((process(1, KVM),), (), Outcome.GOOD, "1 fine", None),
        (
            (process(1, PAUSED), process(2, KVM)),
            (vmi("zeta", NONE, vmm=None),),
            Outcome.DEGRADED,
            "1 unknown, 1 not verified, 1 fine",
            None,
        ),
        (
            (guest(7, LIAR, "liar"), process(2, KVM)),
            (),
            Outcome.BAD,
            "contradiction: default/liar (7); 1 fine",
            "inspect the process",
        ),
        (
            tuple(guest(tgid, LIAR, guest_name="x") for tgid in range(1, 8)),
            (),
            Outcome.BAD,
            "; ".join([*(f"contradiction: x ({tgid})" for tgid in range(1, 6)), "2 more urgent"]),
            "inspect the process",
        ),
    ],
)
def test_urgent_vms_are_named(
    processes: tuple[ProcessReport, ...],
    vmis: tuple[VmiReport, ...],
    outcome: Outcome,
    finding: str,
    remedy: str | None,
) -> None:
    """Up to five VMs are named, the most urgent first; the others are counted."""
    found = check(replace(report(), processes=processes, vmis=vmis), "VM verdicts")
    assert (found.outcome, found.finding) == (outcome, finding)
    assert (found.remedy or "").startswith(remedy or "")
    assert bool(found.remedy) == bool(remedy)


def test_a_check_is_one_line() -> None:
    """Outcome, label, finding and remedy of every check are on one line."""
    for given in (report(), replace(rich_report(), health=NO_BPF), rich_report()):
        for line, result in zip(lines(given, CAPABLE), checks(given, CAPABLE), strict=False):
            assert "\n" not in line
            assert line.startswith(f"{result.outcome.value:<4}  {result.label}: {result.finding}")
            assert line.endswith(result.remedy or result.finding)
