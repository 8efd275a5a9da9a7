# SPDX-License-Identifier: Apache-2.0
"""The component authorization: the flag, two rights of the agent, and a token for Prometheus."""

from pathlib import Path

import jsonschema
import pytest
import yaml

from probes.serve.endpoints import OPEN_TO_ALL, Endpoints
from probes.serve.refresh import RefreshCache
from tests.support.deploy_render import (
    NAMES,
    ROOT,
    Json,
    Rendered,
    examples,
    rendered,
    rendered_beside,
)
from tests.support.deploy_schemas import schema_of
from tests.support.rich_report import rich_report

COMPONENT = ROOT / "deploy/components/authorization"
KUSTOMIZATION = """\
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [../deploy/overlays/{overlay}]
components: [../deploy/components/authorization]
"""


@pytest.fixture(params=NAMES)
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Rendered:
    """Each overlay with the component."""
    return rendered_beside(tmp_path, KUSTOMIZATION.format(overlay=request.param))


def rules_of(objects: Rendered) -> dict[str, list[Json]]:
    return {role["metadata"]["name"]: role["rules"] for role in objects.of_kind("ClusterRole")}


def bound_to(objects: Rendered, account: str) -> set[str]:
    """The cluster roles that a service account of the agents' namespace has."""
    subject = {"kind": "ServiceAccount", "name": account, "namespace": "hvprobe"}
    return {
        binding["roleRef"]["name"]
        for binding in objects.of_kind("ClusterRoleBinding")
        if subject in binding["subjects"]
    }


def test_the_agent_may_review(objects: Rendered) -> None:
    """It may have tokens and access reviewed, and has no further right."""
    rules = rules_of(objects)
    assert bound_to(objects, "hvprobe") == {"hvprobe", "hvprobe-authorization"}
    assert rules["hvprobe-authorization"] == [
        {
            "apiGroups": ["authentication.k8s.io"],
            "resources": ["tokenreviews"],
            "verbs": ["create"],
        },
        {
            "apiGroups": ["authorization.k8s.io"],
            "resources": ["subjectaccessreviews"],
            "verbs": ["create"],
        },
    ]
    variables = {one["name"]: one.get("value") for one in objects.container["env"]}
    assert variables["HVPROBE_AUTHORIZATION"] == "kubernetes"


@pytest.mark.parametrize("overlay", NAMES)
def test_without_the_component_there_is_no_such_right(overlay: str) -> None:
    """No overlay has the flag, the rights or a token by itself."""
    plain = rendered(overlay)
    assert set(rules_of(plain)) == {"hvprobe"}
    assert "HVPROBE_AUTHORIZATION" not in plain.text
    assert plain.of_kind("Secret") == []


def test_prometheus_shows_a_token(objects: Rendered) -> None:
    """The PodMonitor takes it from a Secret of its own namespace, of an account with one right."""
    (endpoint,) = objects.one("PodMonitor")["spec"]["podMetricsEndpoints"]
    secret = objects.one("Secret")
    credentials = {"name": secret["metadata"]["name"], "key": "token"}
    assert endpoint["authorization"] == {"type": "Bearer", "credentials": credentials}
    assert secret["metadata"]["namespace"] == objects.one("PodMonitor")["metadata"]["namespace"]
    assert secret["type"] == "kubernetes.io/service-account-token"
    account = secret["metadata"]["annotations"]["kubernetes.io/service-account.name"]
    accounts = {one["metadata"]["name"]: one for one in objects.of_kind("ServiceAccount")}
    assert accounts[account]["automountServiceAccountToken"] is False
    assert accounts[account]["metadata"]["namespace"] == secret["metadata"]["namespace"]
    assert bound_to(objects, account) == {"hvprobe-metrics"}
    path = endpoint["path"]
    assert rules_of(objects)["hvprobe-metrics"] == [{"nonResourceURLs": [path], "verbs": ["get"]}]
    schema = schema_of("monitoring.coreos.com/v1", "PodMonitor")
    jsonschema.Draft202012Validator(schema).validate(objects.one("PodMonitor"))


def test_readers_may_get_every_path_that_is_not_open(objects: Rendered) -> None:
    """The role names exactly the agent's routes; no binding or aggregation grants it."""
    (rule,) = rules_of(objects)["hvprobe-reader"]
    routes = Endpoints(RefreshCache(rich_report), examine=lambda _: {}).routes
    assert (set(rule), rule["verbs"]) == ({"nonResourceURLs", "verbs"}, ["get"])
    assert {*rule["nonResourceURLs"]} == {*routes} - OPEN_TO_ALL
    bindings = objects.of_kind("ClusterRoleBinding") + objects.of_kind("RoleBinding")
    assert "hvprobe-reader" not in {binding["roleRef"]["name"] for binding in bindings}
    for role in objects.of_kind("ClusterRole"):
        assert "aggregationRule" not in role
        labels = role["metadata"].get("labels") or {}
        assert [key for key in labels if "aggregate-to" in key] == []


def test_each_rule_has_a_comment() -> None:
    """A line above each rule says what it is for."""
    for name in ("rbac.yaml", "scraper.yaml"):
        lines = (COMPONENT / name).read_text().splitlines()
        starts = [at for at, line in enumerate(lines) if line.startswith(("  - apiG", "  - nonR"))]
        roles = [one for one in yaml.safe_load_all("\n".join(lines)) if "rules" in one]
        assert len(starts) == sum(len(role["rules"]) for role in roles) > 0
        assert [at for at in starts if not lines[at - 1].startswith("  # ")] == []


def test_the_manual_shows_how_to_ask_for_tokens(tmp_path: Path) -> None:
    """Its third example has TLS and authorization: a token and a certificate for Prometheus."""
    _, _, example, _, _ = examples("docs/operators.md")
    objects = rendered_beside(tmp_path, example)
    names = {variable["name"] for variable in objects.container["env"]}
    assert {"HVPROBE_AUTHORIZATION", "HVPROBE_TLS_CERT", "HVPROBE_TLS_CLIENT_CA"} <= names
    (endpoint,) = objects.one("PodMonitor")["spec"]["podMetricsEndpoints"]
    assert endpoint["scheme"] == "https"
    assert {"authorization", "tlsConfig"} <= set(endpoint)


def test_the_manual_shows_how_to_admit_another_namespace(tmp_path: Path) -> None:
    """Its patch names the namespace in which Prometheus runs, and changes nothing else."""
    text = (ROOT / "docs/operators.md").read_text()
    patch = next(part for part in text.split("```yaml\n") if "metadata.name" in part)
    patch = patch.partition("```")[0]
    head = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"
    resources = "resources: [../deploy/overlays/capabilities]\n"
    objects = rendered_beside(tmp_path, f"{head}{resources}{patch}")
    (rule,) = objects.one("NetworkPolicy")["spec"]["ingress"]
    labels = {"kubernetes.io/metadata.name": "observability"}
    assert rule["from"] == [{"namespaceSelector": {"matchLabels": labels}}]
    rule["from"][0]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] = (
        "monitoring"
    )
    assert objects.objects == rendered("capabilities").objects
