# SPDX-License-Identifier: Apache-2.0
"""The rules of judgement (DESIGN.md), one row each, and what must hold of any evidence."""

from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpf.ledger import LedgerEntry
from probes.host.hypervisors import HypervisorType, recorded_type
from probes.host.process import Unread
from probes.judge.evidence import Evidence
from probes.judge.reasons import Reason, Severity
from probes.judge.verdict import OF_HYPERVISOR, HypervisorReasons, Verdict, judge
from probes.report.vocabulary import severity_of
from tests.support.facts import VMM, entry, evidence

KVM, TCG, MSHV = HypervisorType.KVM, HypervisorType.TCG, HypervisorType.MSHV
UNKNOWN = HypervisorType.UNKNOWN
R = Reason

RAN = {"ledger": entry(userspace_exits=1)}
"""A guest of it ran: a KVM_RUN came back without an error."""
REFUSED = {"ledger": entry(runs=4, userspace_exits=4, completed_runs=0)}
"""Each KVM_RUN of it came back with an error."""
UNREADABLE = {**REFUSED, "hooks_read_results": False}
"""KVM_RUN came back, on a kernel where the result cannot be read."""
RUNNING = {"kvm_held": True, "kvm_vcpus": 2, "claimed": frozenset({KVM})}
"""A QEMU with KVM vCPUs; nothing shows yet that they ran."""
EMULATING = {"tcg_threads": 2, "tcg_cpu_ticks": 7, "claimed": frozenset({TCG})}
"""A QEMU whose TCG threads compute, its descriptor table whole and free of accelerators."""
LATE = {"hooks_since_start": False}
HONEST = {**RUNNING, **RAN}
LYING = {**HONEST, "claimed": frozenset({TCG}), "tcg_threads": 1}
NO_HOOKS = {"hooks_prove_running": False, "hooks_since_start": False}

RULES: dict[str, tuple[dict[str, object], HypervisorType, bool, tuple[Reason, ...]]] = {
    # 1. kvm, verified: the kernel recorded it, or shows it now
    "1: KVM_RUN completed": (
        {**RUNNING, **RAN},
        KVM, True, (R.USERSPACE_EXITS_RECORDED,),
    ),
    "1: KVM_RUN refused": (
        {**RUNNING, **REFUSED},
        KVM, False, (R.HOLDS_VCPUS, R.KVM_RUN_REFUSED),
    ),
    "1: guest time and exits of the program before, as the hooks recorded nothing since": (
        {**RUNNING, "guest_ticks": 5, "kvm_stats_exits": 12},
        KVM, False, (R.HOLDS_VCPUS,),
    ),
    "1: guest time and exits that the full ledger may have missed": (
        {**RUNNING, "guest_ticks": 5, "kvm_stats_exits": 12, "ledger_lost_events": True},
        KVM, True, (R.VCPU_STATISTICS, R.GUEST_TIME),
    ),
    "1: KVM_RUN entered and not yet back": (
        {**RUNNING, "ledger": entry(runs=1)},
        KVM, False, (R.HOLDS_VCPUS, R.KVM_RUN_REFUSED),
    ),
    "1: KVM_RUN entered, its result cannot be read": (
        {**RUNNING, **UNREADABLE},
        KVM, False, (R.HOLDS_VCPUS, R.KVM_RUN_RESULT_UNREAD),
    ),
    "1: KVM_RUN entered without a vCPU, its result cannot be read": (
        UNREADABLE,
        KVM, False, (R.KVM_RUN_RESULT_UNREAD,),
    ),
    "1: KVM_RUN refused beside threads that emulate": (
        {**RUNNING, **EMULATING, **REFUSED},
        UNKNOWN, False, (R.HOLDS_VCPUS, R.KVM_RUN_REFUSED, R.CONTRADICTS_THREAD_NAMES),
    ),
    "1: vCPUs held beside threads that emulate": (
        {**RUNNING, **EMULATING},
        UNKNOWN, False, (R.HOLDS_VCPUS, R.CONTRADICTS_THREAD_NAMES),
    ),
    "1: vCPUs held beside a thread that emulated for one tick": (
        {**RUNNING, **EMULATING, "tcg_cpu_ticks": 1},
        UNKNOWN, False, (R.HOLDS_VCPUS, R.CONTRADICTS_THREAD_NAMES),
    ),
    "1: KVM_RUN refused without holding a vCPU": (
        {**EMULATING, "tcg_cpu_ticks": 0, **REFUSED},
        UNKNOWN, False, (R.KVM_RUN_REFUSED,),
    ),
    "1: a VM exit recorded": (
        {**RUNNING, "ledger": entry(exits=1)},
        KVM, True, (R.VM_EXITS_RECORDED,),
    ),
    "1: all recorded, the strongest first": (
        {**RUNNING, "ledger": entry(runs=3, userspace_exits=2, exits=9)},
        KVM, True, (R.VM_EXITS_RECORDED, R.USERSPACE_EXITS_RECORDED),
    ),
    "1: a vCPU inside KVM_RUN now": (
        {**RUNNING, **NO_HOOKS, "kvm_vcpus_in_run": 1},
        KVM, True, (R.INSIDE_KVM_RUN,),
    ),
    "1: KVM's worker was started by a KVM_RUN": (
        {**RUNNING, **NO_HOOKS, "kvm_run_worker": True},
        KVM, True, (R.KVM_RUN_WORKER,),
    ),
    "1: KVM's worker beside threads that emulate": (
        {**RUNNING, **EMULATING, "kvm_run_worker": True},
        UNKNOWN, False, (R.HOLDS_VCPUS, R.CONTRADICTS_THREAD_NAMES),
    ),
    "1: KVM's worker, started by a run that was refused": (
        {**RUNNING, **REFUSED, "kvm_run_worker": True},
        KVM, False, (R.HOLDS_VCPUS, R.KVM_RUN_REFUSED),
    ),
    "1: KVM's worker, and since the hooks every run was refused": (
        {**RUNNING, **REFUSED, **LATE, "kvm_run_worker": True},
        KVM, False, (R.HOLDS_VCPUS, R.KVM_RUN_REFUSED),
    ),
    "1: KVM's worker, and since the hooks one run that has not returned": (
        {**RUNNING, **LATE, "ledger": entry(runs=1), "kvm_run_worker": True},
        KVM, True, (R.KVM_RUN_WORKER,),
    ),
    "1: KVM's worker, started before the hooks": (
        {**RUNNING, **LATE, "kvm_run_worker": True},
        KVM, True, (R.KVM_RUN_WORKER,),
    ),
    "1: KVM's own statistics": (
        {**RUNNING, **NO_HOOKS, "kvm_stats_exits": 12},
        KVM, True, (R.VCPU_STATISTICS,),
    ),
    "1: KVM's own statistics beside threads that emulate": (
        {**RUNNING, **EMULATING, "kvm_stats_exits": 12},
        UNKNOWN, False, (R.HOLDS_VCPUS, R.CONTRADICTS_THREAD_NAMES),
    ),
    "1: guest time, of a holder of vCPUs, beside threads that emulate": (
        {**RUNNING, **EMULATING, "guest_ticks": 5},
        UNKNOWN, False, (R.HOLDS_VCPUS, R.CONTRADICTS_THREAD_NAMES),
    ),
    "2: KVM's own statistics count nothing yet": (
        {**RUNNING, **NO_HOOKS, "kvm_stats_exits": 0},
        KVM, False, (R.HOLDS_VCPUS,),
    ),
    "1: guest time accounted to a holder of vCPUs": (
        {**RUNNING, **NO_HOOKS, "guest_ticks": 1},
        KVM, True, (R.GUEST_TIME,),
    ),
    "1: recorded, its descriptors cannot be read": (
        {**RAN, "fds_complete": False},
        KVM, True, (R.USERSPACE_EXITS_RECORDED,),
    ),
    "1: recorded of a program that is no QEMU": (
        {**RAN, "named_like_qemu": False},
        KVM, True, (R.USERSPACE_EXITS_RECORDED,),
    ),
    # 2. kvm, not verified: vCPUs held, never seen to run
    "2: paused or migration target": (
        {**RUNNING, "ledger": entry(vms_created=1, vcpus_created=2)},
        KVM, False, (R.HOLDS_VCPUS,),
    ),
    "2: vCPUs held, no hooks": ({**RUNNING, **NO_HOOKS}, KVM, False, (R.HOLDS_VCPUS,)),
    "2: a vCPU among descriptors not read whole": (
        {**RUNNING, "fds_complete": False},
        KVM, False, (R.HOLDS_VCPUS,),
    ),
    # 3. tcg
    "3: computes, hooks since its start": (EMULATING, TCG, True, (R.TCG_COMPUTES,)),
    "3: ledger knows it and has no run": (
        {**EMULATING, "ledger": entry()},
        TCG, True, (R.TCG_COMPUTES,),
    ),
    "3: fell back from KVM, which it asked for a VM": (
        {**EMULATING, "ledger": entry(vms_created=1), "asked_for": ("kvm", "tcg")},
        TCG, True, (R.TCG_COMPUTES,),
    ),
    "3: older than the hooks, descriptors stand in": (
        {**EMULATING, **LATE},
        TCG, True, (R.TCG_COMPUTES, R.HOOKS_LATE),
    ),
    "3: a thread was not seen outside KVM_RUN, and its return alone would show": (
        {**EMULATING, "threads_seen": False, "entries_since_start": False},
        TCG, False, (R.TCG_COMPUTES, R.THREADS_UNSEEN),
    ),
    "3: a thread was not seen outside KVM_RUN, but every entry would be recorded": (
        {**EMULATING, "threads_seen": False},
        TCG, True, (R.TCG_COMPUTES,),
    ),
    "3: a thread is inside KVM_RUN on a descriptor that was closed": (
        {**EMULATING, "kvm_runs_unheld": 1},
        UNKNOWN, False, (R.KVM_RUN_UNHELD,),
    ),
    "3: no hooks that would see KVM_RUN": (
        {**EMULATING, **NO_HOOKS},
        TCG, False, (R.TCG_COMPUTES, R.HOOKS_MISSING),
    ),
    "3: the ledger dropped events": (
        {**EMULATING, "ledger_lost_events": True},
        TCG, False, (R.TCG_COMPUTES, R.LEDGER_INCOMPLETE),
    ),
    "3: paused, nothing computed yet": (
        {**EMULATING, "tcg_cpu_ticks": 0},
        TCG, False, (R.TCG_IDLE,),
    ),
    "3: threads without names, only tcg asked for": (
        {"asked_for": ("tcg",)},
        TCG, False, (R.ASKED_FOR_TCG,),
    ),
    "3: threads without names, tcg one of two": (
        {"asked_for": ("kvm", "tcg")},
        UNKNOWN, False, (R.NO_VCPU_THREADS,),
    ),
    "3: threads without names, nothing asked for": ({}, UNKNOWN, False, (R.NO_VCPU_THREADS,)),
    "3: descriptors cannot be read": (
        {**EMULATING, "fds_complete": False},
        UNKNOWN, False, (R.FDS_UNREADABLE,),
    ),
    "3: a read blocks": (
        {**EMULATING, "fds_complete": False, "unread": Unread.BLOCKED},
        UNKNOWN, False, (R.READ_BLOCKED,),
    ),
    "3: too much to read": (
        {**EMULATING, "fds_complete": False, "unread": Unread.TOO_MANY},
        UNKNOWN, False, (R.TOO_MUCH_TO_READ,),
    ),
    "3: no time to read": (
        {**EMULATING, "fds_complete": False, "unread": Unread.NO_TIME},
        UNKNOWN, False, (R.NOT_READ_YET,),
    ),
    "3: computes, but holds /dev/kvm": (
        {**EMULATING, "kvm_held": True},
        UNKNOWN, False, (R.NO_VCPU_YET,),
    ),
    "3: computes, but holds an mshv partition": (
        {**EMULATING, "mshv_held": True},
        UNKNOWN, False, (R.NO_VCPU_YET,),
    ),
    "3: computes, but the kernel accounted guest time": (
        {**EMULATING, "guest_ticks": 5},
        UNKNOWN, False, (R.GUEST_TIME_WITHOUT_FDS,),
    ),
    "3: contradiction, a thread claims KVM": (
        {"claimed": frozenset({KVM})},
        UNKNOWN, False, (R.CLAIMS_WITHOUT_FDS,),
    ),
    "3: contradiction, threads claim KVM and TCG": (
        {**EMULATING, "claimed": frozenset({KVM, TCG})},
        UNKNOWN, False, (R.CLAIMS_WITHOUT_FDS,),
    ),
    "3: contradiction, a thread claims MSHV": (
        {**EMULATING, "claimed": frozenset({MSHV, TCG})},
        UNKNOWN, False, (R.CLAIMS_WITHOUT_FDS,),
    ),
    "3: TCG threads of a program that is no QEMU": (
        {**EMULATING, "named_like_qemu": False},
        UNKNOWN, False, (R.NO_VCPU_THREADS,),
    ),
    # 4. mshv
    "4: MSHV_RUN_VP recorded": (
        {"mshv_held": True, "mshv_vcpus": 2, "ledger": entry(mshv_runs=3)},
        MSHV, True, (R.MSHV_RUN_RECORDED,),
    ),
    "4: inside MSHV_RUN_VP": (
        {"mshv_held": True, "mshv_vcpus": 2, "mshv_vcpus_in_run": 1},
        MSHV, True, (R.INSIDE_MSHV_RUN,),
    ),
    "4: guest time accounted to a holder of vCPUs": (
        {**LATE, "mshv_held": True, "mshv_vcpus": 2, "guest_ticks": 1},
        MSHV, True, (R.GUEST_TIME,),
    ),
    "4: both": (
        {**LATE, "mshv_held": True, "mshv_vcpus": 2, "mshv_vcpus_in_run": 2, "guest_ticks": 1},
        MSHV, True, (R.INSIDE_MSHV_RUN, R.GUEST_TIME),
    ),
    "4: vCPUs held, not seen to run": (
        {"mshv_held": True, "mshv_vcpus": 1},
        MSHV, False, (R.HOLDS_MSHV_VPS,),
    ),
    "4: guest time, of a holder of vCPUs, beside threads that emulate": (
        {**EMULATING, "mshv_held": True, "mshv_vcpus": 2, "guest_ticks": 1},
        UNKNOWN, False, (R.HOLDS_MSHV_VPS, R.CONTRADICTS_THREAD_NAMES),
    ),
    "4: a thread is inside MSHV_RUN_VP on a descriptor that was closed": (
        {**EMULATING, "mshv_runs_unheld": 1},
        UNKNOWN, False, (R.RUN_UNHELD,),
    ),
    # 5. anything else
    "5: a VM without a vCPU": ({"kvm_held": True}, UNKNOWN, False, (R.NO_VCPU_YET,)),
    "5: no QEMU and no accelerator": (
        {"named_like_qemu": False},
        UNKNOWN, False, (R.NO_VCPU_THREADS,),
    ),
    # 6. KVM_CREATE_VM, names and command lines prove nothing; the kernel wins
    "6: libvirt's capability probe": (
        {
            "capability_probe": True,
            "kvm_held": True,
            "ledger": entry(vms_created=1),
            "asked_for": ("kvm", "tcg"),
        },
        UNKNOWN, False, (R.CAPABILITY_PROBE,),
    ),
    "6: probe without descriptors to read": (
        {"capability_probe": True, "fds_complete": False},
        UNKNOWN, False, (R.CAPABILITY_PROBE,),
    ),
    "6: KVM_CREATE_VM and KVM_CREATE_VCPU only": (
        {"ledger": entry(vms_created=1, vcpus_created=1)},
        UNKNOWN, False, (R.NO_VCPU_THREADS,),
    ),
    "6: asked for kvm, nothing else": (
        {"asked_for": ("kvm",)},
        UNKNOWN, False, (R.NO_VCPU_THREADS,),
    ),
    "6: asked for kvm, runs tcg": (
        {**EMULATING, "asked_for": ("kvm",)},
        TCG, True, (R.TCG_COMPUTES, R.CONTRADICTS_COMMAND_LINE),
    ),
    "6: asked for tcg, runs kvm": (
        {**RUNNING, **RAN, "asked_for": ("tcg",)},
        KVM, True, (R.USERSPACE_EXITS_RECORDED, R.CONTRADICTS_COMMAND_LINE),
    ),
    "6: asked for tcg, holds kvm vCPUs": (
        {**RUNNING, "asked_for": ("tcg",)},
        KVM, False, (R.HOLDS_VCPUS, R.CONTRADICTS_COMMAND_LINE),
    ),
    "6: says it is a probe, runs kvm": (
        {**RUNNING, **RAN, "capability_probe": True},
        KVM, True, (R.USERSPACE_EXITS_RECORDED,),
    ),
    "6: asked for what it runs": (
        {**RUNNING, **RAN, "asked_for": ("kvm",)},
        KVM, True, (R.USERSPACE_EXITS_RECORDED,),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("known", "kind", "verified", "reasons"), RULES.values(), ids=RULES.keys())
def test_rule(
    known: dict[str, object], kind: HypervisorType, reasons: tuple[Reason, ...], *, verified: bool
) -> None:
    """The rule named gives this type, this certainty, and these reasons in this order."""
    assert judge(evidence(**known)) == Verdict(type=kind, verified=verified, reasons=reasons)


@pytest.mark.parametrize("known", [known for known, *_ in RULES.values()], ids=RULES.keys())
def test_severities_of_reasons_fit_the_verdict(known: dict[str, object]) -> None:
    """A verdict is as urgent as the worst of its reasons; only a verified one is fine.

    Of an unknown type each reason may be harmless in itself.
    """
    verdict = judge(evidence(**known))
    worst = min(reason.severity for reason in verdict.reasons)
    probe = Reason.CAPABILITY_PROBE in verdict.reasons
    severity = severity_of(verdict, fallback=None, probe=probe)
    if verdict.type is HypervisorType.UNKNOWN and not probe:
        assert severity is min(worst, Severity.UNKNOWN)
    else:
        assert severity is worst
    if verdict.verified:
        assert worst in (Severity.FINE, Severity.CONTRADICTION)
    elif not probe:
        assert severity is not Severity.FINE


def test_every_reason_of_the_rules_is_shown_by_a_row() -> None:
    """No reason is left without a row; that no process was found is not for the rules to say."""
    shown = {reason for *_, reasons in RULES.values() for reason in reasons}
    shown |= set(judge(evidence(**LYING)).reasons)
    of_identity = {
        Reason.NO_PROCESS,
        Reason.NO_POD,
        Reason.POD_CONTESTED,
        Reason.SEVERAL_PROCESSES,
    }
    of_others = {Reason.RUN_RECORDED, Reason.INSIDE_RUN}
    assert shown == set(Reason) - of_identity - of_others


def test_a_hypervisor_without_words_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verdicts of a hypervisor without reasons of its own have the reasons that suit every one."""
    monkeypatch.delitem(cast("dict[HypervisorType, HypervisorReasons]", OF_HYPERVISOR), MSHV)
    ran = judge(evidence(mshv_vcpus=1, mshv_vcpus_in_run=1, ledger=entry(mshv_runs=1)))
    assert ran.reasons == (R.RUN_RECORDED, R.INSIDE_RUN)
    assert judge(evidence(mshv_vcpus=1)).reasons == (R.HOLDS_VCPUS,)


def test_thread_names_that_contradict_the_kernel_are_reported() -> None:
    """Rule 6: where thread names contradict the kernel, the kernel wins and the report says so."""
    told, contradicted = judge(evidence(**HONEST)), judge(evidence(**LYING))
    assert (contradicted.type, contradicted.verified) == (KVM, True)
    assert contradicted.reasons[0] is told.reasons[0]
    assert set(contradicted.reasons) > set(told.reasons)


def test_threads_that_call_themselves_tcg_and_compute_beside_a_guest() -> None:
    """A process whose guest ran is accelerated, whatever its threads are called and consume."""
    saying = judge(evidence(**{**HONEST, **EMULATING}))
    assert (saying.type, saying.verified) == (KVM, True)


COUNTS = st.integers(min_value=0, max_value=3)
FLAGS = st.booleans()
LEDGERS = st.none() | st.builds(
    LedgerEntry,
    tgid=st.just(VMM.tgid),
    first_ns=st.just(1),
    leader_exit_ns=st.none(),
    vms_created=COUNTS,
    vcpus_created=COUNTS,
    counts=st.tuples(COUNTS, COUNTS, COUNTS, COUNTS, st.just(0)),
)


def as_gathered(known: dict[str, Any]) -> Evidence:
    """Return evidence that gather() could make: a vCPU in use is a descriptor that is held."""
    return evidence(
        **known
        | {
            "kvm_held": known["kvm_held"] or known["kvm_vcpus"] > 0,
            "mshv_held": known["mshv_held"] or known["mshv_vcpus"] > 0,
            "kvm_vcpus_in_run": min(known["kvm_vcpus_in_run"], known["kvm_vcpus"]),
            "kvm_run_worker": known["kvm_run_worker"] and known["kvm_vcpus"] > 0,
            "mshv_vcpus_in_run": min(known["mshv_vcpus_in_run"], known["mshv_vcpus"]),
            "hooks_since_start": known["hooks_since_start"] and known["hooks_prove_running"],
            "ledger_lost_events": known["ledger_lost_events"] and known["ledger"] is None,
        }
    )


ANY_EVIDENCE = st.fixed_dictionaries(
    {
        "named_like_qemu": FLAGS,
        "capability_probe": FLAGS,
        "asked_for": st.lists(st.sampled_from(["kvm", "tcg", "mshv", "hvf", ""]), max_size=3).map(
            tuple
        ),
        "claimed": st.frozensets(st.sampled_from([KVM, TCG, MSHV])),
        "unread": st.none() | st.sampled_from(Unread),
        "fds_complete": FLAGS,
        "threads_seen": FLAGS,
        "kvm_held": FLAGS,
        "kvm_vcpus": COUNTS,
        "kvm_vcpus_in_run": COUNTS,
        "kvm_runs_unheld": COUNTS,
        "kvm_run_worker": FLAGS,
        "kvm_stats_exits": st.none() | COUNTS,
        "mshv_held": FLAGS,
        "mshv_vcpus": COUNTS,
        "mshv_vcpus_in_run": COUNTS,
        "mshv_runs_unheld": COUNTS,
        "guest_ticks": COUNTS,
        "tcg_threads": COUNTS,
        "tcg_cpu_ticks": COUNTS,
        "ledger": LEDGERS,
        "hooks_prove_running": FLAGS,
        "hooks_read_results": FLAGS,
        "hooks_since_start": FLAGS,
        "entries_since_start": FLAGS,
        "ledger_lost_events": FLAGS,
    }
).map(as_gathered)


@given(ANY_EVIDENCE)
def test_any_evidence_is_judged(any_evidence: Evidence) -> None:
    """There is a verdict for all evidence, with a reason and without repeating one.

    Unknown is never verified, and what is verified is final, nothing else.
    """
    verdict = judge(any_evidence)
    assert verdict.reasons
    assert len(set(verdict.reasons)) == len(verdict.reasons)
    assert not (verdict.type is UNKNOWN and verdict.verified)
    assert verdict.final is verdict.verified


@given(ANY_EVIDENCE)
def test_verified_kvm_has_the_kernels_proof(any_evidence: Evidence) -> None:
    """kvm is verified if and only if the kernel recorded a run, or shows one that it made."""
    verdict = judge(any_evidence)
    ledger = any_evidence.ledger
    refused = ledger is not None and (
        any_evidence.hooks_since_start or ledger.counters["userspace_exits"] > 0
    )
    worker_proves = not (refused and any_evidence.hooks_read_results)
    unused = (
        ledger is None and any_evidence.hooks_since_start and not any_evidence.ledger_lost_events
    )
    seen = any_evidence.of(KVM)
    left_behind = seen.vcpus > 0 and (
        (bool(seen.stats_exits) and not unused)
        or (any_evidence.guest_ticks > 0 and not unused)
        or (seen.run_worker and worker_proves)
    )
    proven = (
        (
            ledger is not None
            and (ledger.counters["completed_runs"] > 0 or ledger.counters["exits"] > 0)
        )
        or seen.vcpus_in_run > 0
        or (left_behind and not any_evidence.tcg_threads)
    )
    assert (verdict.type is KVM and verdict.verified) == proven


@given(ANY_EVIDENCE)
def test_verified_tcg_has_no_trace_of_an_accelerator(any_evidence: Evidence) -> None:
    """tcg is verified only of threads that computed, with a whole table free of accelerators.

    Hooks that would have seen KVM_RUN did not, and no thread claims otherwise.
    """
    verdict = judge(any_evidence)
    if verdict.type is not TCG:
        return
    assert not any_evidence.of(KVM).held
    assert not any_evidence.of(MSHV).held
    assert any_evidence.fds_complete
    assert not (any_evidence.ledger and recorded_type(any_evidence.ledger))
    assert not any_evidence.claimed & {KVM, MSHV}
    if verdict.verified:
        assert any_evidence.tcg_cpu_ticks > 0
        assert not any(seen.runs_unheld for seen in any_evidence.seen.values())
        assert any_evidence.threads_seen or any_evidence.entries_since_start
        assert any_evidence.hooks_prove_running
        assert not any_evidence.ledger_lost_events


@given(ANY_EVIDENCE, st.frozensets(st.sampled_from([KVM, TCG, MSHV])))
def test_own_word_never_makes_kvm(
    any_evidence: Evidence, claimed: frozenset[HypervisorType]
) -> None:
    """Names of threads and the command line never make kvm, nor make it verified."""
    speechless = replace(any_evidence, claimed=frozenset(), asked_for=())
    saying = replace(any_evidence, claimed=claimed, asked_for=("kvm",))
    before, after = judge(speechless), judge(saying)
    assert (after.type is KVM) == (before.type is KVM)
    assert (after.type is KVM and after.verified) == (before.type is KVM and before.verified)


@given(ANY_EVIDENCE)
def test_more_proof_never_makes_less_sure(any_evidence: Evidence) -> None:
    """One recorded return of KVM_RUN more, and any evidence at all is verified kvm."""
    ran = replace(any_evidence, ledger=entry(userspace_exits=1), ledger_lost_events=False)
    verdict = judge(ran)
    assert (verdict.type, verdict.verified) == (KVM, True)
