# SPDX-License-Identifier: Apache-2.0
"""The rendered manifests satisfy their readers' schemas, and a security linter."""

import copy
import json
import re
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

from tests.support.deploy_render import NAMES, ROOT, Json, rendered
from tests.support.deploy_schemas import schema_of
from tests.support.deploy_tools import python_tools

pytestmark = pytest.mark.timeout(300)
KUBERNETES = ("1.31.0", "1.37.0")
"""The oldest and the newest version whose schemas the manifests are checked against."""
CUSTOM = ("monitoring.coreos.com", "cert-manager.io", "security.openshift.io")
EXCEPTIONS = {
    "CKV_K8S_11": "no CPU limit: throttling would make scrapes late",
    "CKV_K8S_15": "a pinned image need not be pulled at each start",
    "CKV_K8S_17": "hostPID: BPF numbers processes as the initial PID namespace does",
    "CKV_K8S_23": "root: no other user gets capabilities or can read tracefs",
    "CKV_K8S_29": "the security context is the container's",
    "CKV_K8S_31": "no seccomp filter: CRI-O's denies perf_event_open, see the component",
    "CKV_K8S_38": "the agent reads VirtualMachineInstances with the token",
    "CKV_K8S_40": "root, as CKV_K8S_23",
    "CKV_K8S_43": "the operator pins the digest, see docs/operators.md",
}
"""Checks that every overlay fails, each with its reason."""
PRIVILEGED = {
    "CKV_K8S_16": "the overlay exists to be privileged",
    "CKV_K8S_20": "privileged implies it",
    "CKV_K8S_28": "privileged has every capability",
    "CKV_K8S_37": "privileged has every capability",
}
CAPABILITIES = {"CKV_K8S_25": "five capabilities, each shown to be needed by tests/image"}
DOCKERFILE = {
    "CKV_DOCKER_7": "the base image is an argument, which checkov does not resolve",
    "CKV_DOCKER_8": "root, as CKV_K8S_23",
    "CKV_DOCKER_9": "the Dockerfile removes apt, which checkov takes for a use of it",
}


def tool(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a Python module of tools.txt."""
    return subprocess.run(
        [python_tools(), "-m", *arguments],
        check=False,
        capture_output=True,
        text=True,
        input=stdin,
    )


def is_custom(manifest: str) -> bool:
    found = re.search(r"^apiVersion: (.+)$", manifest, re.MULTILINE)
    return found is not None and found[1].split("/")[0] in CUSTOM


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("overlay", NAMES)
def test_kubernetes_knows_every_field(overlay: str, version: str, tmp_path: Path) -> None:
    """Each object is valid by Kubernetes' own schema and has no unknown field."""
    documents = rendered(overlay).text.split("\n---\n")
    manifests = [manifest for manifest in documents if not is_custom(manifest)]
    (tmp_path / "all.yaml").write_text("\n---\n".join(manifests))
    checked = tool("kubernetes_validate", "--strict", "-k", version, str(tmp_path / "all.yaml"))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert checked.stdout.count("INFO") >= len(manifests), checked.stdout


def refused(found: Json) -> list[str]:
    """What an object violates in the schema of its custom resource, one line for each fault."""
    schema = schema_of(found["apiVersion"], found["kind"])
    errors = jsonschema.Draft202012Validator(schema).iter_errors(found)
    return [f"{error.json_path}: {error.message}" for error in errors]


@pytest.mark.parametrize("overlay", NAMES)
def test_operators_accept_their_resources(overlay: str) -> None:
    """Objects of prometheus-operator, cert-manager and OpenShift are valid by their schemas."""
    custom = [
        resource
        for resource in rendered(overlay).objects
        if resource["apiVersion"].split("/")[0] in CUSTOM
    ]
    assert {"PodMonitor", "PrometheusRule"} <= {resource["kind"] for resource in custom}
    faults = [(resource["kind"], refused(resource)) for resource in custom]
    assert [(kind, lines) for kind, lines in faults if lines] == []


def refused_dashboard(config: Json) -> list[str]:
    """What perses-operator's schema says against a dashboard.

    The cluster had version v1alpha1 of it, whose spec is the spec.config of v1alpha2.
    """
    spec = schema_of("perses.dev/v1alpha1", "PersesDashboard")["properties"]["spec"]
    errors = jsonschema.Draft202012Validator(spec).iter_errors(config)
    return [f"{error.json_path}: {error.message}" for error in errors]


def test_perses_operator_accepts_the_dashboard() -> None:
    """It is valid by the schema of the custom resource, which rejects a field that is not there."""
    text = (ROOT / "deploy/monitoring/perses-dashboard.yaml").read_text(encoding="utf-8")
    resource: Json = yaml.safe_load(text)
    assert (resource["apiVersion"], resource["kind"]) == ("perses.dev/v1alpha2", "PersesDashboard")
    assert list(resource["spec"]) == ["config"]
    config = resource["spec"]["config"]
    assert refused_dashboard(config) == []
    assert len(refused_dashboard(config | {"annotations": []})) == 1
    assert len(refused_dashboard(config | {"duration": 6})) == 1


@pytest.mark.parametrize(
    ("overlay", "kind", "field", "value"),
    [
        ("tls", "PodMonitor", "selector", "all"),
        ("tls", "PodMonitor", "podMetricsEndpoint", []),
        ("tls", "PrometheusRule", "groups", [{"name": "one", "rules": [{"record": 1}]}]),
        ("tls", "Certificate", "dnsNames", "metrics.hvprobe.svc"),
        ("tls", "Issuer", "selfsigned", {}),
    ],
)
def test_operators_would_refuse_a_wrong_one(
    overlay: str, kind: str, field: str, value: object
) -> None:
    """The schemas reject a wrong type and an unknown field, so their approval means something."""
    wrong = copy.deepcopy(rendered(overlay).of_kind(kind)[0])
    wrong["spec"][field] = value
    assert any(f"$.spec.{field}" in line or repr(field) in line for line in refused(wrong))


def test_openshift_would_refuse_a_wrong_constraint() -> None:
    """The schema rejects a wrong security context constraint, whose fields are at its top level."""
    wrong = copy.deepcopy(rendered("openshift").one("SecurityContextConstraints"))
    del wrong["volumes"]
    wrong["allowHostPid"] = True
    assert len(refused(wrong)) == 2


def failed_checks(framework: str, file: Path) -> set[str]:
    """The ids of checkov's checks that fail."""
    checked = tool(
        *("checkov.main", "--framework", framework, "--output", "json", "--compact"),
        *("--skip-download", "--file", str(file)),
    )
    report = json.loads(checked.stdout)
    assert report["summary"]["passed"] > 0, checked.stderr
    return {found["check_id"] for found in report["results"]["failed_checks"]}


@pytest.mark.parametrize("overlay", NAMES)
def test_security_linter_finds_only_what_is_known(overlay: str, tmp_path: Path) -> None:
    """checkov reports exactly the exceptions that are listed here with their reasons."""
    (tmp_path / "all.yaml").write_text(rendered(overlay).text)
    own = PRIVILEGED if overlay == "privileged" else CAPABILITIES
    assert failed_checks("kubernetes", tmp_path / "all.yaml") == EXCEPTIONS.keys() | own.keys()


def test_security_linter_accepts_the_dockerfile() -> None:
    """checkov reports nothing about the Dockerfile but the exceptions listed here."""
    assert failed_checks("dockerfile", ROOT / "Dockerfile") <= DOCKERFILE.keys()
