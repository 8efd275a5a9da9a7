# SPDX-License-Identifier: Apache-2.0
"""The explanation of one VM: what belongs to it, how it is found, and its evidence."""

import time
from dataclasses import replace
from typing import Any

import pytest

from ebpf.hooks import KVM_EXIT
from probes.host.hypervisors import HypervisorType
from probes.judge.cause import Cause, CauseFound
from probes.judge.evidence import Evidence
from probes.judge.exit_counts import ExitSource
from probes.judge.reasons import Reason, Severity
from probes.judge.verdict import Verdict
from probes.report.model import ProcessState
from probes.report.why import (
    MAX_NEAREST,
    MAX_OTHERS,
    Attributed,
    Explanation,
    absence,
    explain,
    nearest,
    parse_subject,
)
from probes.report.why_evidence import Piece, Side, pieces, reason_pieces
from probes.report.why_places import place_of
from probes.vmi.attribution import VmName
from tests.support.facts import ALL_HOOKS, counted, entry, evidence, health, hooks, tracked
from tests.support.rich_report import rich_report
from tests.support.why_reports import (
    ALPHA,
    HIDDEN_EVIDENCE,
    KVM_EVIDENCE,
    MSHV_EVIDENCE,
    PAUSED_EVIDENCE,
    POD,
    PROBE_EVIDENCE,
    SECOND_POD,
    TCG_EVIDENCE,
    WATCH,
    cluster_node,
    emulated,
    node,
    seen,
    vm_of,
)

KVM, TCG, MSHV, UNKNOWN = (
    HypervisorType.KVM,
    HypervisorType.TCG,
    HypervisorType.MSHV,
    HypervisorType.UNKNOWN,
)
HERE = VmName(namespace="default", name="alpha")
NO_LEDGER: dict[str, Any] = {"hooks_prove_running": False, "hooks_since_start": False}


def explained(found: Evidence) -> Explanation:
    """The explanation of VM default/alpha with this evidence, of process 4711."""
    about = explain(node(seen(4711, found, name="alpha", counters={})), HERE)
    assert about is not None
    return about


def words(found: tuple[Piece, ...], side: Side) -> list[str]:
    return [piece.words for piece in found if piece.side is side]


@pytest.mark.parametrize(
    ("found", "kind", "verified"),
    [
        (KVM_EVIDENCE, KVM, True),
        (PAUSED_EVIDENCE, KVM, False),
        (TCG_EVIDENCE, TCG, True),
        (replace(TCG_EVIDENCE, **NO_LEDGER), TCG, False),
        (MSHV_EVIDENCE, MSHV, True),
        (HIDDEN_EVIDENCE, UNKNOWN, False),
    ],
)
def test_the_verdict_comes_first(found: Evidence, kind: HypervisorType, verified: bool) -> None:
    """The first pieces of evidence are the reasons of the verdict, in their order."""
    about = explained(found)
    (process,) = about.processes
    assert (about.verdict.type, about.verdict.verified) == (kind, verified)
    assert about.tgid == 4711
    reasons = about.verdict.reasons
    first = process.evidence[: len(reasons)]
    assert tuple(piece.reason for piece in first) == reasons
    assert all(
        piece.words.startswith(reason.sentence)
        for piece, reason in zip(first, reasons, strict=True)
    )
    assert {piece.reason for piece in process.evidence[len(reasons) :]} <= {None}
    assert all(piece.where for piece in process.evidence)


def test_evidence_of_kvm() -> None:
    """Each piece has its number and says where it was seen; nothing is against the type."""
    (process,) = explained(KVM_EVIDENCE).processes
    assert {piece.words: piece.where for piece in process.evidence} == {
        "KVM_RUN returns recorded: 300": "the hook kvm_userspace_exit, tracepoint",
        "vCPU thread inside KVM_RUN: 1 of 2 vCPUs": "/proc/4711/task/*/syscall",
        "KVM's own statistics count VM exits: 81,000": "statistics in /proc/4711/fd",
        "guest CPU time accounted: 86.50 s": "/proc/4711/stat",
        "KVM_RUN calls recorded: 310": "the hook kvm_vcpu_ioctl, kprobe",
        "it holds vCPUs of KVM: 2": "/proc/4711/task/*/fd",
        "its threads call themselves vCPUs: kvm": "/proc/4711/task/*/comm",
        "the command line asks for: kvm": "/proc/4711/cmdline",
    }
    assert {piece.side for piece in process.evidence} == {Side.FOR}


def test_counts_are_those_of_now() -> None:
    """Counts of hooks and statistics are the newest, not those of the reading that decided."""
    process = ALPHA._replace(counters=counted(exits=90_000, userspace_exits=400, runs=500))
    found = {piece.words for piece in pieces(process, hooks())}
    assert "KVM_RUN returns recorded: 400" in found
    assert "KVM_RUN calls recorded: 500" in found
    assert "KVM's own statistics count VM exits: 90,000" in found
    by_hook = process._replace(exits_source=ExitSource.TRACEPOINT)
    found = {piece.words for piece in pieces(by_hook, hooks())}
    assert "VM exits recorded: 90,000" in found
    assert "KVM's own statistics count VM exits: 81,000" in found


def test_evidence_of_emulation() -> None:
    """Threads that compute, and the silence of descriptors and hooks, are for tcg."""
    (process,) = explained(TCG_EVIDENCE).processes
    assert words(process.evidence, Side.FOR) == [
        "TCG threads compute, no accelerator in use: 0.40 s of CPU time",
        "it holds no descriptor of an accelerator",
        "the hooks recorded no use of an accelerator since it started",
        "the command line asks for: tcg",
    ]
    late = replace(TCG_EVIDENCE, hooks_since_start=False)
    (process,) = explained(late).processes
    assert "the hooks recorded no use of an accelerator since they were attached" in words(
        process.evidence, Side.FOR
    )
    idle = evidence(tcg_threads=3)
    (process,) = explained(idle).processes
    assert words(process.evidence, Side.LIMIT) == ["TCG threads have not computed yet: 3"]


@pytest.mark.parametrize(
    ("changes", "limit"),
    [
        ({"hooks_prove_running": False}, Reason.HOOKS_MISSING),
        ({"ledger_lost_events": True}, Reason.LEDGER_INCOMPLETE),
        ({"threads_seen": False, "entries_since_start": False}, Reason.THREADS_UNSEEN),
    ],
)
def test_what_limits_a_proof(changes: dict[str, Any], limit: Reason) -> None:
    """A limit is neither for nor against, and silence that means nothing is no evidence."""
    (process,) = explained(replace(TCG_EVIDENCE, **changes)).processes
    assert words(process.evidence, Side.LIMIT) == [limit.sentence]
    silent = any("recorded no use" in piece.words for piece in process.evidence)
    assert silent is (limit is Reason.THREADS_UNSEEN)


def test_evidence_against() -> None:
    """What the process claims against the kernel is against, whether it is a reason or not.

    Hooks that are younger than a guest see no use while it is idle, which is not against it.
    """
    asked_for_tcg = replace(KVM_EVIDENCE, asked_for=("tcg",), claimed=frozenset({KVM, MSHV}))
    about = explained(asked_for_tcg)
    (process,) = about.processes
    assert about.severity is Severity.CONTRADICTION
    assert words(process.evidence, Side.AGAINST) == [
        "thread names claim another accelerator: kvm, mshv",
        "command line asks for another accelerator: tcg",
    ]
    paused = explained(PAUSED_EVIDENCE).processes[0]
    assert words(paused.evidence, Side.AGAINST) == [
        "the hooks recorded no use of an accelerator since it started"
    ]
    late = explained(replace(PAUSED_EVIDENCE, hooks_since_start=False)).processes[0]
    assert words(late.evidence, Side.AGAINST) == []
    assert "the hooks recorded no use of an accelerator since they were attached" in words(
        late.evidence, Side.LIMIT
    )
    counts = counted(runs=1)
    ran_since = explain(node(seen(4711, PAUSED_EVIDENCE, name="alpha", counters=counts)), HERE)
    assert ran_since is not None
    assert words(ran_since.processes[0].evidence, Side.AGAINST) == []


def test_an_unknown_type_leaves_evidence_open() -> None:
    """While the type is unknown, a piece only says to which types it points."""
    refused = evidence(ledger=entry(runs=7), kvm_held=True, kvm_vcpus=1, tcg_threads=1)
    found = replace(refused, tcg_cpu_ticks=5)
    (process,) = explained(found).processes
    assert process.process.verdict.type is UNKNOWN
    assert words(process.evidence, Side.FOR) == []
    by_words = {piece.words: piece for piece in process.evidence}
    tried = by_words["KVM_RUN entered, but no guest seen to run: 7"]
    assert (tried.side, tried.points_to) == (Side.LIMIT, (KVM,))
    computing = by_words["threads that are named like TCG's compute: 0.05 s of CPU time"]
    assert (computing.side, computing.points_to) == (Side.OPEN, (TCG,))


@pytest.mark.parametrize("reason", list(Reason), ids=lambda reason: reason.name)
def test_every_reason_has_a_place(reason: Reason) -> None:
    """Where a reason comes from is said for each, also while its hook is detached."""
    for attached in (ALL_HOOKS, frozenset[object]()):
        where = place_of(reason, tgid=7, hooks=hooks(frozenset(ALL_HOOKS & attached)))
        assert where
        assert "{" not in where
    verdict = Verdict(type=UNKNOWN, verified=False, reasons=(reason,))
    (piece,) = reason_pieces(verdict, hooks())
    assert piece.side is not Side.FOR
    assert piece.reason is reason


def test_a_hook_that_is_detached_now() -> None:
    """A count is shown although its hook is no longer attached."""
    where = place_of(Reason.VM_EXITS_RECORDED, tgid=7, hooks=hooks(ALL_HOOKS - {KVM_EXIT}))
    assert where == "the hook kvm_exit, not attached now"


@pytest.mark.parametrize("cause", list(Cause))
def test_an_emulated_vm_has_its_cause(cause: Cause) -> None:
    """The explanation holds the cause of the report, and whether it is a fallback."""
    found = CauseFound(cause=cause, detail="as the test says")
    about = explain(node(emulated(found)), VmName(namespace="default", name="beta"))
    assert about is not None
    assert (about.cause, about.fallback, about.severity) == (found, True, Severity.FALLBACK)


def test_a_vm_without_a_process() -> None:
    """Its evidence is the reason why none was found; nothing is attributed."""
    about = explain(cluster_node(), VmName(namespace="lab", name="lost"))
    assert about is not None
    assert (about.tgid, about.processes, about.attributed) == (None, (), None)
    (piece,) = about.evidence
    assert (piece.side, piece.reason) == (Side.LIMIT, Reason.NO_PROCESS)
    assert about.pods == (SECOND_POD,)


def test_two_processes_of_a_pod() -> None:
    """The other processes of the VM's pods follow the one that runs it, those of others do not."""
    about = explain(cluster_node(), VmName(namespace="default", name="beta"))
    assert about is not None
    assert [(each.process.vmm.tgid, each.is_main) for each in about.processes] == [
        (4800, True),
        (4805, False),
    ]
    assert about.attributed is Attributed.POD
    assert about.evidence == ()


def test_several_candidates() -> None:
    """A VM whose process cannot be determined shows the candidates, none as the main one."""
    rivals = [
        seen(tgid, HIDDEN_EVIDENCE, pod=POD, counters={}, guest_name="x") for tgid in (31, 32)
    ]
    lost = vm_of(ALPHA)._replace(
        vmm=None,
        verdict=Verdict(type=UNKNOWN, verified=False, reasons=(Reason.SEVERAL_PROCESSES,)),
        pods=(POD,),
    )
    about = explain(node(*rivals, vmis=[lost], in_cluster=True), HERE)
    assert about is not None
    assert [each.is_main for each in about.processes] == [False, False]
    assert [piece.reason for piece in about.evidence] == [Reason.SEVERAL_PROCESSES]


def test_two_processes_with_a_name() -> None:
    """Without a cluster, processes with the same domain name belong to the VM."""
    source = seen(40, PAUSED_EVIDENCE, guest_name="default_alpha")._replace(vm=None)
    stranger = seen(41, PAUSED_EVIDENCE, guest_name="default_gamma")._replace(vm=None)
    about = explain(node(source, stranger, ALPHA), HERE)
    assert about is not None
    assert [each.process.vmm.tgid for each in about.processes] == [4711, 40]
    assert about.attributed is Attributed.DOMAIN_NAME


def test_processes_are_bounded() -> None:
    """At most MAX_OTHERS others are explained, and the rest is counted."""
    others = [
        seen(100 + number, PAUSED_EVIDENCE, guest_name="default_alpha")._replace(vm=None)
        for number in range(MAX_OTHERS + 3)
    ]
    about = explain(node(ALPHA, *others), HERE)
    assert about is not None
    assert len(about.processes) == 1 + MAX_OTHERS
    assert about.others_left_out == 3


def test_by_process_number() -> None:
    """The number of a VM's process explains the VM; that of another one only the process."""
    report = cluster_node()
    assert explain(report, 4800) == explain(report, VmName(namespace="default", name="beta"))
    about = explain(report, 4805)
    assert about is not None
    assert (about.vm, about.vmi, about.title) == (None, None, "process 4805")
    assert about.verdict.reasons[0] is Reason.CAPABILITY_PROBE
    assert about.severity is Severity.FINE
    assert about.pod_of == VmName(namespace="default", name="beta")
    assert explain(report, 1) is None
    assert explain(report, VmName(namespace="default", name="bet")) is None


def test_a_report_without_what_is_remembered() -> None:
    """A process of which nothing is remembered is explained by its reasons and counters."""
    about = explain(rich_report(), 4900)
    assert about is not None
    (process,) = about.processes
    assert words(process.evidence, Side.FOR) == [Reason.HOLDS_VCPUS.sentence]


@pytest.mark.parametrize(
    ("text", "subject"),
    [
        ("default/alpha", HERE),
        ("4711", 4711),
        ("0004711", 4711),
        ("4194304", 1 << 22),
        ("4194305", None),
        ("0", None),
        ("-1", None),
        ("+1", None),
        ("1_0", None),
        ("\u0664\u0667", None),
        ("9" * 5000, None),
        ("alpha", None),
        ("", None),
        ("/", None),
        ("default/", None),
        ("/alpha", None),
        ("default/alpha/x", None),
        ("Default/alpha", None),
        ("default/al pha", None),
        ("default/alpha\n", None),
        ("default/../x", None),
        ("default/" + "a" * 254, None),
        ("a" * 64 + "/alpha", None),
        ("default/a.b-c", VmName(namespace="default", name="a.b-c")),
    ],
)
def test_parse_subject(text: str, subject: object) -> None:
    """A subject is the valid name of a VMI or a process number, and nothing else."""
    assert parse_subject(text) == subject


def named(*texts: str) -> list[VmName]:
    return [VmName(namespace=text.split("/")[0], name=text.split("/")[1]) for text in texts]


def test_nearest_names() -> None:
    """The same name elsewhere comes first, then similar names; nothing that is unlike."""
    here = named("prod/web-1", "default/web-2", "default/web-1a", "lab/zzzz", "default/database")
    assert nearest(named("default/web-1")[0], here) == tuple(
        named("prod/web-1", "default/web-1a", "default/web-2")
    )
    assert nearest(named("q/x")[0], here) == ()
    assert nearest(named("q/x")[0], ()) == ()


def test_nearest_names_among_a_thousand() -> None:
    """A thousand long names that resemble each other do not hold up the agent."""
    stem = "ab" * 60
    here = [VmName(namespace="default", name=f"{stem}-{number}") for number in range(1000)]
    began_s = time.process_time()
    found = nearest(VmName(namespace="default", name=f"{stem}-77x"), here)
    assert time.process_time() - began_s < 0.5
    assert len(found) == MAX_NEAREST
    assert VmName(namespace="default", name=f"{stem}-77") in found


def test_absence() -> None:
    """One line says what is not there, on which node, and what is near."""
    report = cluster_node()
    line = absence(report, VmName(namespace="default", name="betta"))
    assert line == ("no VM default/betta runs on node node-1; the nearest names are default/beta")
    assert "similar" in absence(report, VmName(namespace="q", name="x"))
    assert "process 77 is no VMM on node node-1" in absence(report, 77)
    assert "\n" not in absence(report, 77)


def test_absence_of_what_is_not_known() -> None:
    """Nothing is said to be absent while names or processes are not known."""
    report = cluster_node()
    error = "connection refused"
    lost = replace(WATCH, up=False, synced=False, last_sync_unix_s=None, error=error)
    unnamed = replace(report, vmis=(), health=replace(report.health, vmi_watch=lost))
    assert absence(unnamed, HERE) == (
        "the VMs of node node-1 are unknown: connection refused; give a process ID, or use "
        "--standalone"
    )
    unread = replace(report, health=replace(report.health, processes_pending=1))
    assert absence(unread, 77).endswith("as far as its processes are read; try again, not all are")
    denied = replace(unread, health=replace(unread.health, processes_denied=1))
    assert absence(denied, 77) == (
        "process 77 is no VMM on node node-1 that may be read; hvprobe doctor says what denies "
        "reading others"
    )


def test_evidence_costs_a_refresh_nothing() -> None:
    """What a process is remembered with makes no difference between two equal readings of it."""
    verdict = ALPHA.verdict
    one, two = (tracked(verdict=verdict, evidence=found) for found in (KVM_EVIDENCE, None))
    assert one == two
    assert ALPHA._replace(tracked=one) == ALPHA._replace(tracked=two)


def test_the_state_of_a_probe() -> None:
    """A capability probe is fine, as in all outputs."""
    probe = seen(90, PROBE_EVIDENCE, state=ProcessState.PROBE, counters={})
    about = explain(replace(node(probe), health=health()), 90)
    assert about is not None
    assert about.severity is Severity.FINE
