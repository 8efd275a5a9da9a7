# SPDX-License-Identifier: Apache-2.0
"""``hvprobe fleet`` against an API server, with agents behind its pod proxy."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from probes.command import cli
from probes.fleet import api as fleet_api
from probes.report.json_schema import why_schema
from probes.serve.routes import Request, Response, plain_text
from tests.support import apireviews
from tests.support.apiserver import ApiServer, Fault, FaultKind
from tests.support.certificates import Authority
from tests.support.fleet_world import VERSION, FleetWorld, report_of
from tests.support.rich_report import NONE, vmi
from tests.support.serving import text

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def world(api: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FleetWorld]:
    monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig()))
    monkeypatch.setattr(cli, "version", lambda: VERSION)
    with ExitStack() as stack:
        yield FleetWorld(api, stack, Authority(tmp_path / "agents", "hvprobe"))


def fleet(*words: str) -> int:
    return cli.main(["fleet", *words])


def shown(capsys: Captured, *words: str, code: int = 0) -> dict[str, Any]:
    """What the command prints as JSON."""
    assert fleet(*words, "-o", "json") == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def failure_of(found: dict[str, Any], node: str) -> str:
    (row,) = (row for row in found["nodes"] if row["node"] == node)
    return str(row["failure"])


def test_vms_of_all_nodes_trouble_first(world: FleetWorld, capsys: Captured) -> None:
    """One row for each VM of every node, over HTTP and TLS, and a summary by type."""
    world.node(report_of("n1", "alpha", "beta"))
    world.node(report_of("n2", "gamma", "zeta"), https=True)
    assert fleet() == 0
    out, err = capsys.readouterr()
    assert err == ""
    head, *rows, blank, last = out.splitlines()
    assert head.split() == ["NAMESPACE", "NAME", "NODE", "TYPE", "VERIFIED", "EXITS/S", "CAUSE"]
    assert [row.split()[1:4] for row in rows] == [
        ["beta", "n1", "tcg"],
        ["zeta", "n2", "unknown"],
        ["gamma", "n2", "kvm"],
        ["alpha", "n1", "kvm"],
    ]
    assert rows[0].split() == ["default", "beta", "n1", "tcg", "yes", "-", "emulation_allowed"]
    assert rows[3].split() == ["default", "alpha", "n1", "kvm", "yes", "0", "-"]
    assert blank == ""
    assert last == "4 VMs: 2 kvm, 1 tcg, 1 unknown; 2 of 2 nodes answered"


def test_no_credential_of_the_user_reaches_an_agent(world: FleetWorld) -> None:
    """Agents get neither the token nor anything else that names the user."""
    world.node(report_of("n1", "alpha"))
    fleet()
    (headers,) = world.api.pods.seen
    assert set(headers) <= {"host", "accept", "accept-encoding", "user-agent"}


def test_filters_and_fail_on(world: FleetWorld, capsys: Captured) -> None:
    """Filters choose rows; ``--fail-on`` looks at the rows that are shown."""
    world.node(report_of("n1", "alpha", "beta", "epsilon"))
    world.node(report_of("n2", "gamma", "zeta"))
    for words, names in [
        (["--type", "tcg"], ["beta", "epsilon"]),
        (["--type", "tcg", "--cause", "emulation_allowed"], ["beta"]),
        (["--node", "n2"], ["zeta", "gamma"]),
        (["-n", "default", "--node", "n1", "--type", "kvm"], ["alpha"]),
        (["-n", "other"], []),
    ]:
        assert [row["name"] for row in shown(capsys, *words)["vmis"]] == names
    assert fleet("--fail-on", "tcg,unknown") == 4
    assert fleet("--fail-on", "mshv") == 0
    assert fleet("--node", "n2", "--fail-on", "tcg") == 0
    assert fleet("why", "default/beta", "--fail-on", "tcg") == 4


def test_forms(world: FleetWorld, capsys: Captured) -> None:
    """CSV and wide have reason and remedy."""
    world.node(report_of("n1", "beta"))
    assert fleet("-o", "csv") == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert row["name"] == "beta"
    assert row["cause"] == "emulation_allowed"
    assert row["exits_per_second"] == ""
    assert row["remedy"].startswith("remove useEmulation")
    assert fleet("-o", "wide") == 0
    assert "remove useEmulation" in capsys.readouterr().out


def test_nothing_is_dropped(world: FleetWorld, capsys: Captured) -> None:
    """Each way in which a node can be missing is a row with the reason, and the exit code is 3."""
    world.node(report_of("good", "alpha"))
    world.vm("on-dead", node="dead")
    world.api.pods.add("dead")
    world.api.pods.add("crashing", waiting="CrashLoopBackOff")
    world.vm("on-bare", node="bare")
    world.agent("old", {"/metrics": text("hvprobe_build_info 1")})
    world.agent("newer", {"/snapshot": json_of({"schema": "hvprobe/v2", "version": "9.0"})})
    world.agent("mad", {"/snapshot": text("<html>")})
    world.agent("locked", {"/snapshot": refusing(HTTPStatus.UNAUTHORIZED, "a token is required")})
    world.agent(
        "secret", {"/snapshot": refusing(HTTPStatus.FORBIDDEN, "a client certificate is required")}
    )
    world.agent("busy", {"/snapshot": refusing(HTTPStatus.SERVICE_UNAVAILABLE, "no data yet")})
    found = shown(capsys, code=3)
    for node, words in {
        "dead": "cannot be reached: error trying to reach service: dial tcp",
        "crashing": "hvprobe/hvprobe-crashing does not run: CrashLoopBackOff",
        "bare": "no agent runs on this node",
        "old": "does not know 'snapshot': it is too old",
        "newer": "(version 9.0) answers 'hvprobe/v2' instead of hvprobe/v1",
        "mad": "its answer is not hvprobe's JSON",
        "locked": "wants a token and does not accept the one of the service account",
        "secret": "a client certificate is required",
        "busy": "answers 503: no data yet",
    }.items():
        assert words in failure_of(found, node)
    assert failure_of(found, "good") == "None"
    rows = {row["name"]: row for row in found["vmis"]}
    assert rows.keys() == {"alpha", "on-dead", "on-bare"}
    assert rows["on-bare"]["reason"] == "node bare: no agent runs on this node"
    assert rows["on-dead"]["hypervisor_type"] == "unknown"
    assert fleet() == 3
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "3 VMs: 1 kvm, 2 unknown; 1 of 10 nodes answered"
    assert "CrashLoopBackOff" in out


def test_a_node_that_hangs_costs_its_deadline_only(world: FleetWorld, capsys: Captured) -> None:
    """It is a row after the deadline, while the others are shown."""
    for name in ("n1", "n2", "n3"):
        world.node(report_of(name))
    world.api.inject(Fault(kind=FaultKind.HANG, verb="proxy"))
    begun_s = time.monotonic()
    found = shown(capsys, "--timeout", "2.5", code=3)
    assert time.monotonic() - begun_s < 8
    assert [row["failure"] for row in found["nodes"]] == ["no answer within 2.5 s", None, None]


def test_a_body_that_stalls_is_late(world: FleetWorld, capsys: Captured) -> None:
    """Head and half of a body are no answer, however promptly they came."""
    world.node(report_of("n1"))
    world.api.inject(Fault(kind=FaultKind.STALL, verb="proxy"))
    found = shown(capsys, "--timeout", "1", code=3)
    assert failure_of(found, "n1") == "no answer within 1 s"


def test_a_busy_api_server_is_asked_again(world: FleetWorld, capsys: Captured) -> None:
    """429 with Retry-After delays a node and does not lose it."""
    world.node(report_of("n1", "alpha"))
    busy = Fault(kind=FaultKind.STATUS, verb="proxy", code=429, reason="TooManyRequests",
                 message="slow down", retry_after="1")  # fmt: skip
    world.api.inject(busy)
    assert [row["name"] for row in shown(capsys)["vmis"]] == ["alpha"]


def test_an_agent_of_another_version_is_a_row(world: FleetWorld, capsys: Captured) -> None:
    """Its VMs count, and the difference is shown."""
    world.node(report_of("n1", "alpha", version="0.0.9"))
    found = shown(capsys)
    assert found["nodes"][0]["note"] == "its agent has version 0.0.9, this hvprobe has 0.1.0"
    assert [row["name"] for row in found["vmis"]] == ["alpha"]
    fleet()
    assert "its agent has version 0.0.9" in capsys.readouterr().out


def test_an_agent_that_wants_a_token(world: FleetWorld, capsys: Captured) -> None:
    """It gets one of the service account, for agents only, and never the user's own.

    That replaces a client certificate as well, which the API server shows no agent.
    """
    world.node(report_of("n1", "alpha"), authorized=True)
    world.node(report_of("n2", "beta"), authorized=True, https=True, client_ca=True)
    world.api.reviews.allow("hvprobe", "hvprobe-fleet", "/snapshot", "/doctor", "/why/*")
    assert [row["failure"] for row in shown(capsys)["nodes"]] == [None, None]
    assert world.api.answered("create", 201) == 1
    assert fleet("why", "default/alpha") == 0
    assert "default/alpha" in capsys.readouterr().out
    assert len(shown(capsys, "doctor")["nodes"]) == 2
    specs = [spec for path, spec in world.api.reviews.asked if path == apireviews.TOKENS]
    assert {str(spec["audiences"]) for spec in specs} == {"['hvprobe']"}
    user_token = next(iter(world.api.tokens))
    assert user_token not in {spec["token"] for spec in specs}
    world.api.pods.may_have_token = False
    found = shown(capsys, code=3)
    assert "grant the verb create on the resource serviceaccounts/token" in failure_of(found, "n1")


def test_an_account_without_the_right(world: FleetWorld, capsys: Captured) -> None:
    """The node is a row that says whom the agent refuses, and which path."""
    world.node(report_of("n1", "alpha"), authorized=True)
    world.api.reviews.allow("hvprobe", "hvprobe-fleet", "/doctor")
    line = failure_of(shown(capsys, code=3), "n1")
    assert "system:serviceaccount:hvprobe:hvprobe-fleet may not get /snapshot" in line


def test_an_agent_that_accepts_certificates_only(world: FleetWorld, capsys: Captured) -> None:
    """It cannot be asked through the API server, and the row says where to read about that."""
    world.node(report_of("n1", "alpha"), https=True, client_ca=True)
    line = failure_of(shown(capsys, code=3), "n1")
    assert "a client certificate is required" in line
    assert "docs/operators.md, What passes the proxy" in line


def test_a_named_node_without_an_agent(world: FleetWorld, capsys: Captured) -> None:
    """A node that the user names is a row, even if nothing else is known of it."""
    world.node(report_of("n1", "alpha"))
    for command in (["vmis"], ["nodes"], ["doctor"]):
        found = shown(capsys, *command, "--node", "n1,n9", code=3)
        assert failure_of(found, "n9") == "no agent runs on this node"


def test_a_vm_that_migrates_appears_once(world: FleetWorld, capsys: Captured) -> None:
    """Of two agents that report it, the one counts that the VMI's status names."""
    world.node(report_of("source", "alpha"))
    world.node(report_of("target", of=(vmi("alpha", NONE, vmm=None),)), listed=False)
    assert [(row["name"], row["node"]) for row in shown(capsys)["vmis"]] == [("alpha", "source")]
    world.api.store.edit("default", "alpha", lambda obj: obj["status"].update(nodeName="target"))  # type: ignore[attr-defined]
    assert [(row["name"], row["node"]) for row in shown(capsys)["vmis"]] == [("alpha", "target")]


def test_a_vm_that_its_agent_does_not_report(world: FleetWorld, capsys: Captured) -> None:
    """It is unknown, with the reason; one that does not run is no row."""
    world.node(report_of("n1", "alpha"))
    world.vm("lost", node="n1")
    world.vm("pending", node=None, phase="Scheduling")
    found = shown(capsys, "--fail-on", "unknown", code=4)
    assert [(row["name"], row["reason"]) for row in found["vmis"]] == [
        ("lost", "the agent of node n1 does not report it"),
        ("alpha", found["vmis"][1]["reason"]),
    ]


def test_without_the_right_to_list_vmis(world: FleetWorld, capsys: Captured) -> None:
    """The agents' VMs are shown, and one line names the missing right."""
    world.node(report_of("n1", "alpha"))
    world.vm("on-bare", node="bare")
    world.api.grants = set()
    assert fleet() == 0
    out, err = capsys.readouterr()
    assert "alpha" in out
    assert err.count("\n") == 1
    assert "not allowed to list virtualmachineinstances.kubevirt.io in all namespaces" in err


@pytest.mark.parametrize("command", [[], ["nodes"], ["doctor"], ["why", "default/alpha"]])
def test_a_missing_right_is_one_line(
    world: FleetWorld, capsys: Captured, command: list[str]
) -> None:
    """The line names verb, resource and namespace, and there is no table."""
    world.node(report_of("n1", "alpha"))
    world.api.pods.may_proxy = False
    assert fleet(*command) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "grant the verb get on the resource pods/proxy in namespace hvprobe" in err
    world.api.pods.may_list = set()
    assert fleet(*command) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "not allowed to list pods in namespace hvprobe: grant the verb list" in err


def test_agents_are_found_in_their_namespace(world: FleetWorld, capsys: Captured) -> None:
    """A right in the agents' namespace suffices, and a tenant's pod of their label is no agent."""
    world.node(report_of("n1", "alpha"))
    world.api.pods.add("n1", namespace="tenant", port=9, name="hvprobe-false")
    world.api.pods.may_list = {"hvprobe"}
    assert [row["pod"] for row in shown(capsys)["nodes"]] == ["hvprobe/hvprobe-n1"]
    assert [row["name"] for row in shown(capsys)["vmis"]] == ["alpha"]


def test_agents_elsewhere(world: FleetWorld, capsys: Captured) -> None:
    """Without any in the usual namespace, the only one that has some is used."""
    assert fleet() == 1
    assert "no pod has the label app.kubernetes.io/name=hvprobe" in capsys.readouterr().err
    world.api.pods.add("n1", namespace="observability")
    assert shown(capsys, code=3)["nodes"][0]["pod"] == "observability/hvprobe-n1"
    world.api.pods.add("n2", namespace="tenant")
    assert fleet() == 1
    assert "(observability, tenant)" in capsys.readouterr().err
    words = ["--agent-namespace", "tenant"]
    assert [row["node"] for row in shown(capsys, *words, code=3)["nodes"]] == ["n2"]
    world.api.pods.may_list = {"hvprobe"}
    assert fleet() == 1
    assert "name theirs with --agent-namespace" in capsys.readouterr().err


def test_during_an_update_the_running_pod_speaks(world: FleetWorld, capsys: Captured) -> None:
    """Of two pods on a node, the one that runs counts."""
    world.node(report_of("n1", "alpha"))
    world.api.pods.add("n1", name="hvprobe-new", waiting="ContainerCreating")
    assert [row["pod"] for row in shown(capsys)["nodes"]] == ["hvprobe/hvprobe-n1"]


def test_nodes(world: FleetWorld, capsys: Captured) -> None:
    """One row for each node: accelerator, module, hooks, agent, VMs by type, and what is wrong."""
    world.node(report_of("n1", "alpha", "beta"))
    world.vm("on-bare", node="bare")
    assert fleet("nodes") == 3
    head, bare, good = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["NODE", "ACCELERATOR", "MODULE"]
    assert bare.split()[0] == "bare"
    assert bare.split()[-8:] == [*"1 unknown no agent runs on this node".split()]
    assert good.split()[:3] == ["n1", "kvm", "kvm_intel"]
    assert "1 kvm, 1 tcg" in good
    assert fleet("nodes", "-o", "csv") == 3
    rows = [*csv.DictReader(io.StringIO(capsys.readouterr().out))]
    assert [row["pod"] for row in rows] == ["", "hvprobe/hvprobe-n1"]


def test_why(world: FleetWorld, capsys: Captured) -> None:
    """It prints what the node's own ``hvprobe why`` does, and asks that node only."""
    world.node(report_of("n1", "alpha"))
    world.node(report_of("n2", "beta"))
    assert fleet("why", "default/beta") == 0
    out = capsys.readouterr().out
    assert out.startswith("default/beta is emulated in software (tcg)")
    assert "remove useEmulation" in out
    asked = [request.path for request in world.api.requests if request.verb == "proxy"]
    assert [path.split("/")[6] for path in asked] == ["hvprobe-n2:9747"]
    found = shown(capsys, "why", "default/beta")
    assert found["node"] == "n2"
    # All that the agent says, as `hvprobe why --json` prints it there.
    Draft202012Validator(why_schema()).validate(found)


def test_why_from_an_agent_that_nests_without_end(world: FleetWorld, capsys: Captured) -> None:
    """An answer that cannot be printed costs its node only."""
    deep = 100_000
    body = f'{{"schema":"hvprobe-why/v1","more":{"[" * deep}{"]" * deep}}}'.encode()
    world.agent("n1", {"/why/*": text(body)})
    assert fleet("why", "default/alpha", "-o", "json") == 3
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("hvprobe: node n1: its answer")


def test_why_without_an_explanation(world: FleetWorld, capsys: Captured) -> None:
    """No such VM is a failure; a node that does not answer is a missing node."""
    world.node(report_of("n1", "alpha"))
    assert fleet("why", "default/ghost") == 1
    assert "no agent reports a VM default/ghost" in capsys.readouterr().err
    world.api.pods.add("dead")
    assert fleet("why", "default/ghost") == 3
    assert "node dead: its agent hvprobe/hvprobe-dead" in capsys.readouterr().err
    world.vm("on-bare", node="bare")
    assert fleet("why", "default/on-bare") == 3
    assert capsys.readouterr().err == "hvprobe: node bare: no agent runs on this node\n"


def test_doctor(world: FleetWorld, capsys: Captured) -> None:
    """It shows what is wrong, and with -v what is fine as well."""
    world.node(report_of("n1", "beta"))
    world.api.pods.add("dead")
    assert fleet("doctor") == 3
    out = capsys.readouterr().out
    assert out.startswith("dead: missing: its agent")
    assert "  fail  mshv: /dev/mshv: not here" in out
    assert "  ok " not in out
    assert out.splitlines()[-1] == "2 nodes: 0 fine, 1 with findings, 1 missing"
    fleet("doctor", "-v")
    assert "  ok    KVM: " in capsys.readouterr().out
    fleet("doctor", "-o", "json")
    found = json.loads(capsys.readouterr().out)
    assert [node["node"] for node in found["nodes"]] == ["dead", "n1"]
    assert found["nodes"][1]["checks"]


def test_control_characters_do_not_reach_the_terminal(world: FleetWorld, capsys: Captured) -> None:
    """Nothing that an agent or the API server says can move the cursor."""
    evil = "\x1b[2J\x9b1m\u202e\x07\x7f"
    row = {
        "namespace": "default", "name": "alpha", "hypervisor_type": evil, "verified": False,
        "cause": evil, "reasons": [evil], "remedy": evil,
    }  # fmt: skip
    said = {
        "schema": "hvprobe/v1", "version": evil, "vmis": [row],
        "node": {"module": evil, "accelerators": [{"type": evil, "available": None}]},
    }  # fmt: skip
    why = {
        "schema": "hvprobe-why/v1", "version": evil, "summary": evil,
        "sections": [{"title": evil, "lines": [[evil, evil]]}],
    }  # fmt: skip
    why |= {evil: [evil]}
    check = {"question": evil, "outcome": evil, "finding": evil, "remedy": evil}
    doctor = {"schema": "hvprobe-doctor/v1", "ability": evil, "checks": [check]}
    world.agent("n1", {
        "/snapshot": json_of(said), "/why/*": json_of(why), "/doctor": json_of(doctor),
    })  # fmt: skip
    world.agent("n2", {"/snapshot": refusing(HTTPStatus.BAD_GATEWAY, evil)})
    world.api.pods.add("n3", waiting=evil)
    for words in (
        [], ["-o", "wide"], ["-o", "csv"], ["-o", "json"], ["nodes"], ["nodes", "-o", "wide"],
        ["doctor"], ["doctor", "-o", "json"], ["why", "default/alpha"],
        ["why", "default/alpha", "-o", "json"],
    ):  # fmt: skip
        fleet(*words)
        out, err = capsys.readouterr()
        assert out
        assert [char for char in out + err if not (char.isprintable() or char == "\n")] == []


def test_an_agent_that_names_impossible_vms_is_not_believed(
    world: FleetWorld, capsys: Captured
) -> None:
    """A name that Kubernetes does not permit makes the answer unusable."""
    row = {"namespace": "a\nb", "name": "x", "hypervisor_type": "kvm", "verified": True}
    world.agent("n1", {"/snapshot": json_of({"schema": "hvprobe/v1", "vmis": [row]})})
    assert "names a VM 'a\\nb'/'x'" in failure_of(shown(capsys, code=3), "n1")


def test_an_answer_without_bounds(
    world: FleetWorld, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It costs its node only: one that is too long, also when compressed, or compressed twice."""
    world.node(report_of("good", "alpha"))
    monkeypatch.setattr(fleet_api, "BODY_BYTES_MAX", 1 << 20)
    world.agent("long", {"/snapshot": text(b" " * (1 << 22))})
    twice = (("Content-Encoding", "gzip, gzip"),)
    world.agent("twice", {"/snapshot": json_of({}, *twice)})
    found = shown(capsys, code=3)
    assert failure_of(found, "long") == "its answer is longer than 1048576 bytes"
    assert failure_of(found, "twice") == "its answer has an encoding that was not requested"
    assert failure_of(found, "good") == "None"


class Crowd:
    """An agent that answers no request before this many are under way, and counts them."""

    def __init__(self, wanted: int) -> None:
        self.most = 0
        self._wanted = wanted
        self._now = 0
        self._full = asyncio.Event()

    async def __call__(self, _: Request) -> Response:
        self._now += 1
        self.most = max(self.most, self._now)
        if self._now == self._wanted:
            self._full.set()
        await self._full.wait()
        self._now -= 1
        body = json.dumps({"schema": "hvprobe/v1", "version": VERSION}).encode()
        return Response(content_type="application/json", body=body)


@pytest.mark.parametrize(("words", "parallel"), [([], 16), (["--parallel", "64"], 64)])
def test_a_hundred_nodes(
    world: FleetWorld, capsys: Captured, words: list[str], parallel: int
) -> None:
    """As many as allowed are asked at the same time, never more, and each is a row."""
    crowd = Crowd(parallel)
    world.agent("n0", {"/snapshot": crowd})
    port = next(iter(world.api.pods.addresses.values()))
    for number in range(1, 100):
        world.api.pods.add(f"n{number}", port=port)
    found = shown(capsys, "--timeout", "60", *words)
    assert crowd.most == parallel
    assert {row["node"] for row in found["nodes"]} == {f"n{number}" for number in range(100)}
    assert [row for row in found["nodes"] if row["failure"]] == []
    assert len(world.api.pods.seen) == 100


def test_without_an_api_server(world: FleetWorld, capsys: Captured) -> None:
    """One line says which server cannot be reached."""
    world.api.stop()
    assert fleet() == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"cannot reach API server {world.api.url}: Connection refused" in err


def json_of(found: object, *headers: tuple[str, str]) -> Any:  # noqa: ANN401 - a handler
    async def handler(_: Request) -> Response:
        body = json.dumps(found).encode()
        return Response(content_type="application/json", body=body, headers=headers)

    return handler


def refusing(status: HTTPStatus, line: str) -> Any:  # noqa: ANN401 - a handler
    async def handler(_: Request) -> Response:
        return plain_text(status, line)

    return handler
