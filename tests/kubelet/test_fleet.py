# SPDX-License-Identifier: Apache-2.0
"""``kubectl hvprobe`` in a real cluster of two nodes: the real kubectl finds the wheel's plugin."""

import csv
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from probes.fleet.json_schema import doctor_schema, fleet_schema
from probes.report.json_schema import why_schema
from tests.support import helm_tools
from tests.support.fleet_plugin import Plugin, install_plugin
from tests.support.kernel_world import wait_for
from tests.support.kube_cluster import NODE, STRANGER, Cluster
from tests.support.kube_fleet import (
    GAMMA,
    FleetCluster,
    Json,
    hanging,
    killed,
    older_agent,
    tree_before,
    two_nodes,
    without_agent,
)
from tests.support.kube_migration import Migration, migrating
from tests.support.kube_node import SECOND
from tests.support.kube_objects import VMS
from tests.support.kube_world import ALPHA, BETA, NAMESPACE, manifests
from tests.support.required import require

pytestmark = pytest.mark.timeout(1800)
ALL = {(ALPHA, NODE, "kvm"), (BETA, NODE, "tcg"), (GAMMA, SECOND.name, "kvm")}


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Plugin:
    require("helm", helm_tools.missing())
    return install_plugin(tmp_path_factory.mktemp("plugin"))


@pytest.fixture(scope="module")
def two(
    vms: Cluster, plugin: Plugin, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FleetCluster]:
    """Two nodes with the privileged variant and the component fleet."""
    given = manifests("privileged", tmp_path_factory.mktemp("own"), "fleet")
    with two_nodes(vms, plugin, given) as made:
        yield made


@pytest.fixture
def fleet(two: FleetCluster) -> FleetCluster:
    """The two nodes, both of which answer."""
    wait_for(two.all_answer, "both nodes answer, and all VMs are verified", 120)
    return two


def rows(found: Json) -> set[tuple[str, str, str]]:
    return {(row["name"], row["node"], row["hypervisor_type"]) for row in found["vmis"]}


def failures(found: Json) -> dict[str, str | None]:
    return {row["node"]: row["failure"] for row in found["nodes"]}


def reason_of(found: Json, vm: str) -> str:
    (row,) = (row for row in found["vmis"] if row["name"] == vm)
    assert row["hypervisor_type"] == "unknown"
    return str(row["reason"])


def test_kubectl_finds_the_plugin(fleet: FleetCluster) -> None:
    """``kubectl plugin list`` has it, and ``kubectl hvprobe`` shows the VMs of both nodes."""
    listed = fleet.kubectl("plugin", "list")
    assert f"{fleet.plugin.bin}/kubectl-hvprobe" in listed.stdout
    head, first, *others, blank, last = fleet.hvprobe().splitlines()
    assert head.split() == ["NAMESPACE", "NAME", "NODE", "TYPE", "VERIFIED", "EXITS/S", "CAUSE"]
    # Trouble first: emulated on a node with KVM.
    assert first.split()[:5] == [VMS, BETA, NODE, "tcg", "yes"]
    assert [line.split()[:5] for line in others] == [
        [VMS, ALPHA, NODE, "kvm", "yes"],
        [VMS, GAMMA, SECOND.name, "kvm", "yes"],
    ]
    assert (blank, last) == ("", "3 VMs: 2 kvm, 1 tcg; 2 of 2 nodes answered")


def test_forms(fleet: FleetCluster) -> None:
    """JSON keeps to its published schemas; CSV and wide have the same rows."""
    found = fleet.shown()
    Draft202012Validator(fleet_schema()).validate(found)
    assert rows(found) == ALL
    assert failures(found) == {NODE: None, SECOND.name: None}
    (cause,) = (row["cause"] for row in found["vmis"] if row["name"] == BETA)
    (remedy,) = (row["remedy"] for row in found["vmis"] if row["name"] == BETA)
    table = [*csv.DictReader(io.StringIO(fleet.hvprobe("vmis", "-o", "csv")))]
    assert {(row["name"], row["node"], row["type"]) for row in table} == ALL
    wide = fleet.hvprobe("-o", "wide")
    assert cause in wide
    assert remedy in wide
    nodes = [*csv.DictReader(io.StringIO(fleet.hvprobe("nodes", "-o", "csv")))]
    assert [(row["node"], row["vms"]) for row in nodes] == [
        (NODE, "1 kvm, 1 tcg"),
        (SECOND.name, "1 kvm"),
    ]
    Draft202012Validator(fleet_schema()).validate(fleet.shown("nodes"))
    Draft202012Validator(doctor_schema()).validate(fleet.shown("doctor"))
    Draft202012Validator(why_schema()).validate(fleet.shown("why", f"{VMS}/{BETA}"))


def test_filters_and_exit_codes(fleet: FleetCluster) -> None:
    """Each filter selects rows; ``--fail-on`` looks at those, and wrong usage is 2."""
    (cause,) = (row["cause"] for row in fleet.shown("--type", "tcg")["vmis"])
    for words, names in [
        (["-n", VMS], {ALPHA, BETA, GAMMA}),
        (["-n", "default"], set()),
        (["--type", "kvm"], {ALPHA, GAMMA}),
        (["--node", SECOND.name], {GAMMA}),
        (["--cause", cause], {BETA}),
        (["--type", "kvm", "--node", NODE], {ALPHA}),
    ]:
        assert {row["name"] for row in fleet.shown(*words)["vmis"]} == names, words
    fleet.hvprobe("--fail-on", "tcg,unknown", code=4)
    fleet.hvprobe("--fail-on", "unknown")
    fleet.hvprobe("--node", SECOND.name, "--fail-on", "tcg")
    fleet.hvprobe("why", f"{VMS}/{BETA}", "--fail-on", "tcg", code=4)
    fleet.hvprobe("why", f"{VMS}/nothing", code=1)
    fleet.hvprobe("--type", "xen", code=2)
    fleet.hvprobe("--node", "worker-9", code=3)


def test_why_and_doctor(fleet: FleetCluster) -> None:
    """They print what the commands on the VM's node print there."""
    pod = fleet.agent()["metadata"]["name"]
    there = fleet.cluster.kubectl(
        *("-n", NAMESPACE, "exec", pod, "--", "hvprobe", "why", f"{VMS}/{GAMMA}")
    )
    here = fleet.hvprobe("why", f"{VMS}/{GAMMA}")
    assert here.splitlines()[0] == there.splitlines()[0]
    assert here.splitlines()[0].startswith(f"{VMS}/{GAMMA} ")
    found = fleet.shown("doctor")
    assert [(node["node"], node["ability"]) for node in found["nodes"]] == [
        (NODE, "verified"),
        (SECOND.name, "verified"),
    ]
    shown = fleet.hvprobe("doctor", "-v")
    for node in (NODE, SECOND.name):
        assert f"{node}: verdicts can be verified" in shown
    assert shown.splitlines()[-1].startswith("2 nodes: ")


def test_completion(fleet: FleetCluster) -> None:
    """kubectl asks the wheel's completion program, which needs no cluster for words of its own."""
    for words, offered in [
        (["hvprobe", "no"], ["nodes", ":4"]),
        (["hvprobe", "vmis", "--type", "k"], ["kvm", ":6"]),
    ]:
        done = fleet.kubectl("__complete", *words)
        assert [line.partition("\t")[0] for line in done.stdout.splitlines()] == offered
    done = fleet.kubectl("__complete", "hvprobe", "why", f"{VMS}/g")
    assert done.stdout.splitlines() == [f"{VMS}/{GAMMA}", ":4"]


def test_an_agent_that_hangs(fleet: FleetCluster) -> None:
    """It is a row after the deadline, its VM is unknown, and the other node is shown."""
    with hanging(fleet):
        found = fleet.shown("--timeout", "2", code=3)
        assert failures(found) == {NODE: None, SECOND.name: "no answer within 2 s"}
        assert reason_of(found, GAMMA) == f"node {SECOND.name}: no answer within 2 s"
        assert "1 of 2 nodes answered" in fleet.hvprobe("--timeout", "2", code=3)
        # What matches outranks what is missing.
        fleet.hvprobe("--timeout", "2", "--fail-on", "unknown", code=4)
        fleet.hvprobe("--timeout", "2", "--node", NODE)


def test_an_agent_that_was_killed(fleet: FleetCluster) -> None:
    """Until kubelet starts it again, the row has what the API server says of the connection."""
    with killed(fleet):
        found = fleet.shown(code=3)
        failure = failures(found)[SECOND.name]
        assert failure is not None
        assert failure.startswith(f"its agent {NAMESPACE}/hvprobe-")
        assert "cannot be reached" in failure
        assert "connection refused" in failure
        assert f"{SECOND.name}: missing: its agent" in fleet.hvprobe("doctor", code=3)
        fleet.hvprobe("why", f"{VMS}/{GAMMA}", code=3)


def test_a_node_without_an_agent(fleet: FleetCluster) -> None:
    """A node that runs a VM is a row all the same, and so is the VM."""
    with without_agent(fleet):
        found = fleet.shown(code=3)
        assert failures(found) == {NODE: None, SECOND.name: "no agent runs on this node"}
        assert reason_of(found, GAMMA) == f"node {SECOND.name}: no agent runs on this node"
        (line,) = (
            line for line in fleet.hvprobe("nodes", code=3).splitlines() if SECOND.name in line
        )
        assert line.split()[-7:] == [*"unknown no agent runs on this node".split()]


def test_an_agent_of_an_older_version(fleet: FleetCluster, tmp_path: Path) -> None:
    """One that has no /snapshot yet is a row that says so, and the other node is shown."""
    tree = tree_before("probes/render/snapshot_json.py", tmp_path)
    if tree is None:
        require("history", "this needs the repository's history: clone it in full")
    assert tree is not None
    with without_agent(fleet), older_agent(fleet, tree) as pod:
        found = fleet.shown(code=3)
        assert failures(found) == {
            NODE: None,
            SECOND.name: f"its agent {NAMESPACE}/{pod} does not know 'snapshot': it is too old",
        }
        assert {row["name"] for row in found["vmis"]} == {ALPHA, BETA, GAMMA}
        assert "it is too old" in fleet.hvprobe("doctor", code=3)


def test_a_user_without_rights(fleet: FleetCluster) -> None:
    """Each missing right is one line that names verb and resource; with all of them it works."""

    def refused(*words: str) -> str:
        done = fleet.kubectl("hvprobe", *words, owner=STRANGER)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        return done.stderr

    def grant(kind: str, name: str, *words: str) -> None:
        fleet.cluster.kubectl("create", kind, name, f"--user={STRANGER}", *words)

    for words in ([], ["nodes"], ["doctor"], ["why", f"{VMS}/{ALPHA}"]):
        line = refused(*words)
        assert f"not allowed to list pods in namespace {NAMESPACE}: grant the verb list" in line
        assert f'User "{STRANGER}" cannot list resource "pods"' in line
    within = ("-n", NAMESPACE)
    fleet.cluster.kubectl("create", "role", "lister", "--verb=list", "--resource=pods", *within)
    grant("rolebinding", "lister", "--role=lister", *within)
    line = refused()
    assert f"grant the verb get on the resource pods/proxy in namespace {NAMESPACE}" in line
    assert f'User "{STRANGER}" cannot get resource "pods/proxy"' in line
    grant("rolebinding", "agents", "--clusterrole=hvprobe-fleet-agents", *within)
    done = wait_for(
        lambda: _succeeded(fleet.kubectl("hvprobe", "-o", "json", owner=STRANGER)),
        "the role suffices for what agents say",
    )
    assert rows(json.loads(done[0])) == ALL
    assert done[1].count("\n") == 1
    assert "not allowed to list virtualmachineinstances.kubevirt.io in all namespaces" in done[1]
    assert "grant the verb list on the resource virtualmachineinstances.kubevirt.io" in done[1]
    grant("clusterrolebinding", "hvprobe-test-vmis", "--clusterrole=hvprobe-fleet")
    try:
        done = wait_for(
            lambda: _silent(_succeeded(fleet.kubectl("hvprobe", "-o", "json", owner=STRANGER))),
            "both roles suffice for everything",
        )
        assert rows(json.loads(done[0])) == ALL
    finally:
        fleet.cluster.kubectl("delete", "clusterrolebinding", "hvprobe-test-vmis")


def _succeeded(done: object) -> tuple[str, str] | None:
    code, out, err = (getattr(done, name) for name in ("returncode", "stdout", "stderr"))
    return (out, err) if code == 0 else None


def _silent(done: tuple[str, str] | None) -> tuple[str, str] | None:
    return done if done is not None and done[1] == "" else None


def test_a_vm_that_migrates_appears_once(fleet: FleetCluster) -> None:
    """QEMU moves a guest from one node to the other; at each moment the VM is exactly one row."""
    seen: list[str] = []

    def look(migration: Migration) -> str:
        found = [row for row in fleet.shown()["vmis"] if row["name"] == migration.vm]
        assert len(found) == 1, (seen, found)
        seen.append(found[0]["node"])
        return seen[-1]

    with migrating(fleet.cluster, source=NODE, target=SECOND.name) as migration:
        wait_for(lambda: look(migration) == NODE, "the source is shown")
        migration.prepare()
        assert look(migration) == NODE
        migration.move()
        assert look(migration) == NODE
        migration.hand_over()
        wait_for(lambda: look(migration) == SECOND.name, "the target is shown")
        migration.finish()
        for _ in range(3):
            assert look(migration) == SECOND.name
            time.sleep(0.5)
    assert seen == sorted(seen)
