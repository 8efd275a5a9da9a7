# SPDX-License-Identifier: Apache-2.0
"""The rights of those who use ``kubectl hvprobe``: no more than it needs, and no binding."""

from pathlib import Path

import pytest
import yaml

from probes.fleet.options import DEFAULT_ACCOUNT
from tests.support.deploy_render import NAMES, ROOT, Rendered, rendered, rendered_beside

COMPONENT = ROOT / "deploy/components/fleet"
KUSTOMIZATION = """\
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [../deploy/overlays/{overlay}]
components: [../deploy/components/fleet]
"""


@pytest.fixture(params=NAMES)
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Rendered:
    """Each overlay with the component."""
    return rendered_beside(tmp_path, KUSTOMIZATION.format(overlay=request.param))


def test_it_reads_agents_and_vmis(objects: Rendered) -> None:
    """Agents by the proxy of their pods, and VMIs; nothing is written."""
    roles = {role["metadata"]["name"]: role["rules"] for role in objects.of_kind("ClusterRole")}
    assert roles["hvprobe-fleet-agents"] == [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
        {"apiGroups": [""], "resources": ["pods/proxy"], "verbs": ["get"]},
        {
            "apiGroups": [""],
            "resources": ["serviceaccounts/token"],
            "resourceNames": [DEFAULT_ACCOUNT],
            "verbs": ["create"],
        },
    ]
    assert roles["hvprobe-fleet"] == [
        {
            "apiGroups": ["kubevirt.io"],
            "resources": ["virtualmachineinstances"],
            "verbs": ["get", "list"],
        }
    ]


def test_no_binding_grants_it(objects: Rendered) -> None:
    """No binding names the roles, and no label aggregates them to another role."""
    fleet = {"hvprobe-fleet", "hvprobe-fleet-agents"}
    bindings = objects.of_kind("ClusterRoleBinding") + objects.of_kind("RoleBinding")
    assert fleet & {binding["roleRef"]["name"] for binding in bindings} == set()
    for role in objects.of_kind("ClusterRole"):
        if role["metadata"]["name"] in fleet:
            assert "aggregationRule" not in role
            labels = role["metadata"].get("labels") or {}
            assert [key for key in labels if "aggregate-to" in key] == []


def test_the_account_reads_agents_only(objects: Rendered) -> None:
    """The service account whose token agents get may read their paths, and nothing else."""
    accounts = [one["metadata"]["name"] for one in objects.of_kind("ServiceAccount")]
    assert DEFAULT_ACCOUNT in accounts
    namespaces = {one["metadata"].get("namespace") for one in objects.of_kind("ServiceAccount")}
    assert namespaces == {"hvprobe"}
    (binding,) = (
        one
        for one in objects.of_kind("ClusterRoleBinding")
        if one["subjects"][0]["name"] == DEFAULT_ACCOUNT
    )
    assert binding["subjects"][0]["namespace"] == "hvprobe"
    (role,) = (
        one
        for one in objects.of_kind("ClusterRole")
        if one["metadata"]["name"] == binding["roleRef"]["name"]
    )
    assert role["rules"] == [
        {"nonResourceURLs": ["/snapshot", "/doctor", "/why/*"], "verbs": ["get"]}
    ]
    others = objects.of_kind("RoleBinding")
    assert [one for one in others if one["subjects"][0]["name"] == DEFAULT_ACCOUNT] == []


def test_the_api_server_may_reach_the_agents(objects: Rendered) -> None:
    """The policy of the overlay stays, and one rule more admits any source to the agents' port."""
    rules = objects.one("NetworkPolicy")["spec"]["ingress"]
    assert rules[-1] == {"ports": [{"port": "metrics", "protocol": "TCP"}]}
    admitted = rules[0]["from"][0]["namespaceSelector"]["matchLabels"]
    overlay = "openshift" if "openshift-monitoring" in admitted.values() else "privileged"
    assert rules[:-1] == rendered(overlay).one("NetworkPolicy")["spec"]["ingress"]


def test_each_rule_has_a_comment() -> None:
    """A line above each rule says what it is for."""
    lines = (COMPONENT / "rbac.yaml").read_text().splitlines()
    starts = [at for at, line in enumerate(lines) if line.startswith(("  - apiG", "  - nonR"))]
    roles = [one for one in yaml.safe_load_all("\n".join(lines)) if "rules" in one]
    assert len(starts) == sum(len(role["rules"]) for role in roles)
    assert [at for at in starts if not lines[at - 1].startswith("  # ")] == []
