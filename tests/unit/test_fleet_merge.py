# SPDX-License-Identifier: Apache-2.0
"""What all agents answer, merged with what the API server knows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import permutations

import pytest

from probes.fleet.answers import AnswerError, SnapshotAnswer, VmAnswer, decode_snapshot
from probes.fleet.merge import in_both, merged, unreported
from probes.fleet.model import AgentPod, ClusterVmis, NodeAnswer
from probes.fleet.options import Selection
from probes.fleet.selection import exit_code, selected
from probes.fleet.views import fleet_json, node_table, summary, vm_table
from probes.host.hypervisors import HypervisorType
from probes.judge.reasons import Outcome, Reason, Severity
from probes.vmi.model import Vmi, VmiPhase

VERSION = "1.0"


def vm(name: str = "alpha", kind: str = "kvm", *, verified: bool = True, tgid: int | None = 7,
       fallback: bool | None = False, cause: str | None = None,
       codes: tuple[str, ...] = ()) -> VmAnswer:  # fmt: skip
    return VmAnswer(
        namespace="default",
        name=name,
        hypervisor_type=kind,
        verified=verified,
        tgid=tgid,
        fallback=fallback,
        cause=cause,
        reason_codes=codes,
        reasons=("because",),
    )


def answer(node: str, *vms: VmAnswer, taken_unix_s: float = 1.0) -> NodeAnswer:
    pod = AgentPod(
        namespace="hvprobe",
        name=f"hvprobe-{node}",
        node=node,
        port=9747,
        https=False,
        not_running=None,
        ready=True,
        created="",
    )
    snapshot = SnapshotAnswer(
        schema="hvprobe/v1", version=VERSION, taken_unix_s=taken_unix_s, vmis=vms
    )
    return NodeAnswer(node=node, agent=pod, snapshot=snapshot)


def missing(node: str) -> NodeAnswer:
    return replace(answer(node), snapshot=None, failure="it is gone")


def vmi(name: str, node: str | None, phase: VmiPhase = VmiPhase.RUNNING, uid: str = "1") -> Vmi:
    return Vmi(
        namespace="default",
        name=name,
        phase=phase,
        node_name=node,
        active_pods=(),
        architecture=None,
        uid=uid,
    )


def cluster(*vmis: Vmi) -> ClusterVmis:
    return ClusterVmis(vmis=vmis)


def nodes_of(answers: Iterable[NodeAnswer], known: ClusterVmis) -> list[str]:
    """The node of each VM, in whatever order the answers come."""
    (found,) = {
        tuple(row.node for row in merged(order, known, version=VERSION).vms)
        for order in permutations(answers)
    }
    return [*found]


def test_the_node_of_the_status_counts() -> None:
    """It counts however much more certain another node's answer is, and in any order."""
    answers = [answer("a", vm("alpha", "unknown", verified=False, tgid=None)), answer("b", vm())]
    assert nodes_of(answers, cluster(vmi("alpha", "a"))) == ["a"]


@pytest.mark.parametrize(
    ("worse", "better"),
    [
        (answer("a", vm(tgid=None), taken_unix_s=2), answer("b", vm(verified=False))),
        (answer("a", vm(verified=False), taken_unix_s=2), answer("b", vm())),
        (answer("a", vm()), answer("b", vm(), taken_unix_s=2)),
        (answer("a", vm()), answer("b", vm())),
    ],
    ids=["running", "verified", "newer", "always the same"],
)
def test_without_a_status_the_running_one_counts(worse: NodeAnswer, better: NodeAnswer) -> None:
    """The node with the process, then the one that is certain, then the newer one."""
    assert nodes_of([worse, better], ClusterVmis(error="not allowed")) == ["b"]
    assert nodes_of([worse, better], cluster(vmi("alpha", "elsewhere"))) == ["b"]


def test_every_running_vm_is_a_row() -> None:
    """Of a missing node, of a node without an agent, and one that its agent does not report."""
    known = cluster(
        vmi("on-missing", "m"),
        vmi("on-bare", "bare"),
        vmi("lost", "a"),
        vmi("nowhere", None),
        vmi("done", "a", VmiPhase.SUCCEEDED),
        vmi("alpha", "a"),
    )
    fleet = merged([answer("a", vm()), missing("m")], known, version=VERSION)
    assert {row.name: row.reason for row in fleet.vms} == {
        "on-missing": "node m: it is gone",
        "on-bare": "node bare: no agent runs on this node",
        "lost": "the agent of node a does not report it",
        "nowhere": "the API server names no node on which it runs",
        "alpha": "because",
    }
    assert {node.node for node in fleet.missing} == {"m", "bare"}
    assert fleet.by_type == {HypervisorType.UNKNOWN: 4, HypervisorType.KVM: 1}
    assert summary(fleet) == "5 VMs: 1 kvm, 4 unknown; 1 of 3 nodes answered"


def test_a_vm_that_the_api_server_no_longer_has_stays() -> None:
    """What an agent saw is shown."""
    assert nodes_of([answer("a", vm())], cluster()) == ["a"]


def test_trouble_comes_first() -> None:
    """By severity as on the node, with rows of nodes where they explain most."""
    fleet = merged(
        [
            answer("a", vm("fine"), vm("emulated", "tcg", fallback=True, cause="unknown")),
            answer("b", vm("unsure", verified=False), vm("strange", "xen")),
            missing("m"),
            replace(answer("old"), snapshot=SnapshotAnswer(schema="hvprobe/v1", version="0.9")),
        ],
        ClusterVmis(),
        version=VERSION,
    )
    table = vm_table(fleet, wide=False)
    assert [(row.texts[1], row.texts[2], row.outcome) for row in table.rows] == [
        ("emulated", "a", Outcome.BAD),
        ("-", "m", Outcome.DEGRADED),
        ("strange", "b", Outcome.DEGRADED),
        ("-", "old", Outcome.DEGRADED),
        ("unsure", "b", Outcome.DEGRADED),
        ("fine", "a", Outcome.GOOD),
    ]
    assert table.rows[3].texts[-1] == "its agent has version 0.9, this hvprobe has 1.0"
    assert [row.texts[0] for row in node_table(fleet.nodes, wide=True).rows] == [
        "m", "old", "a", "b",
    ]  # fmt: skip
    written = fleet_json(fleet, version=VERSION, notice=None)
    assert written["summary"] == {"kvm": 2, "tcg": 1, "mshv": 0, "unknown": 1}


def test_a_contradiction_is_the_worst() -> None:
    """Codes of reasons decide; one that this version does not know changes nothing."""
    code = next(one.value for one in Reason if one.severity is Severity.CONTRADICTION)
    vms = vm("fine", codes=("new_code",)), vm("liar", codes=("new_code", code))
    rows = merged([answer("a", *vms)], ClusterVmis(), version=VERSION).vms
    assert [(row.name, row.severity) for row in rows] == [
        ("liar", Severity.CONTRADICTION),
        ("fine", Severity.FINE),
    ]


def test_a_missing_node_is_never_filtered_by_its_vms() -> None:
    """It may run any VM, so only ``--node`` leaves it out, and the exit code stays 3."""
    fleet = merged([answer("a", vm()), missing("m")], ClusterVmis(), version=VERSION)
    kvm = frozenset({HypervisorType.KVM})
    chosen = selected(fleet, Selection(namespaces=frozenset({"other"}), types=kvm))
    assert (chosen.vms, [node.node for node in chosen.nodes]) == ((), ["m", "a"])
    assert exit_code(chosen, frozenset()) == 3
    only = selected(fleet, Selection(nodes=frozenset({"a"})))
    assert exit_code(only, frozenset()) == 0
    assert exit_code(fleet, kvm) == 4


def test_what_ended_meanwhile_is_no_trouble() -> None:
    """A VM that ended, moved or was replaced during the reading is not called unreported."""
    before = cluster(
        vmi("stays", "a"), vmi("ended", "a"), vmi("moved", "a"), vmi("replaced", "a", uid="1")
    )
    after = cluster(
        vmi("stays", "a"),
        vmi("ended", "a", VmiPhase.SUCCEEDED),
        vmi("moved", "b"),
        vmi("replaced", "a", uid="2"),
        vmi("began", "a"),
    )
    assert unreported([answer("a")], before)
    assert not unreported([answer("b"), missing("a")], before)
    assert [one.name for one in in_both(before, after).vmis] == ["stays"]
    assert in_both(before, ClusterVmis(error="gone")) is before


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"<html>", "not hvprobe's JSON"),
        (b"[]", "not hvprobe's JSON"),
        (b"[" * 100_000, "not hvprobe's JSON"),
        (b'{"schema":"hvprobe/v2","version":"3\\u001b[2J"}', "(version 3 [2J) answers"),
        (b'{"schema":"hvprobe/v1","vmis":[{"name":1}]}', "breaks hvprobe/v1"),
        (
            (
                b'{"schema":"hvprobe/v1","vmis":[{"namespace":"A","name":"b",'
                b'"hypervisor_type":"kvm","verified":true}]}'
            ),
            "names a VM 'A'/'b'",
        ),
    ],
)
def test_answers_that_cannot_be_used(body: bytes, words: str) -> None:
    """Each says why in one line."""
    with pytest.raises(AnswerError) as caught:
        decode_snapshot(body)
    assert words in str(caught.value)
    assert str(caught.value).isprintable()
