"""The rendered manifests against the schemas of their readers, and against a security linter."""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from deploy_render import NAMES, ROOT, Json, rendered
from deploy_tools import npm_packages, python_tools
from required import require

pytestmark = pytest.mark.timeout(300)
KUBERNETES = ("1.31.0", "1.37.0")
"""Oldest and newest that the manifests are checked against."""
CUSTOM = ("monitoring.coreos.com", "cert-manager.io", "security.openshift.io")
MODELS = ("@kubernetes-models/prometheus-operator@6.0.0", "@kubernetes-models/cert-manager@4.4.4")
MODULES = {
    "monitoring.coreos.com/v1": "prometheus-operator/monitoring.coreos.com/v1",
    "cert-manager.io/v1": "cert-manager/cert-manager.io/v1",
}
VALIDATE = """
import {readFileSync} from "fs";
const {modules, objects} = JSON.parse(readFileSync(0));
for (const it of objects) {
    const model = await import(`@kubernetes-models/${modules[it.apiVersion]}/${it.kind}`);
    new model[it.kind](it).validate();
    console.log(it.kind);
}
"""

EXCEPTIONS = {
    "CKV_K8S_11": "no CPU limit: throttling would make scrapes late",
    "CKV_K8S_15": "a pinned image need not be pulled at each start",
    "CKV_K8S_17": "hostPID: BPF numbers processes as the initial PID namespace does",
    "CKV_K8S_23": "root: nobody else gets capabilities, and tracefs is root's",
    "CKV_K8S_29": "the security context is the container's",
    "CKV_K8S_31": "no seccomp filter: CRI-O's denies perf_event_open, see the component",
    "CKV_K8S_38": "the token is what VirtualMachineInstances are asked for with",
    "CKV_K8S_40": "root, as CKV_K8S_23",
    "CKV_K8S_43": "the digest is the operator's to pin, see docs/operators.md",
}
"""Checks that every overlay fails, each with its reason."""
PRIVILEGED = {
    "CKV_K8S_16": "that is what the overlay is",
    "CKV_K8S_20": "privileged implies it",
    "CKV_K8S_28": "privileged has every capability",
    "CKV_K8S_37": "privileged has every capability",
}
CAPABILITIES = {"CKV_K8S_25": "five capabilities, each shown to be needed by tests/image"}
DOCKERFILE = {
    "CKV_DOCKER_7": "the base image is an argument, which checkov does not resolve",
    "CKV_DOCKER_8": "root, as CKV_K8S_23",
    "CKV_DOCKER_9": "what checkov takes for apt's use is its removal",
}


def tool(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """A Python module of tools.txt, run."""
    environment = {**os.environ, "PYTHONPATH": str(python_tools())}
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        check=False,
        capture_output=True,
        text=True,
        input=stdin,
        env=environment,
    )


def is_custom(manifest: str) -> bool:
    found = re.search(r"^apiVersion: (.+)$", manifest, re.MULTILINE)
    return found is not None and found[1].split("/")[0] in CUSTOM


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("overlay", NAMES)
def test_kubernetes_knows_every_field(overlay: str, version: str, tmp_path: Path) -> None:
    """Each object is valid by Kubernetes' own schema, in which no field is unknown."""
    manifests = [it for it in rendered(overlay).text.split("\n---\n") if not is_custom(it)]
    (tmp_path / "all.yaml").write_text("\n---\n".join(manifests))
    checked = tool("kubernetes_validate", "--strict", "-k", version, str(tmp_path / "all.yaml"))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert checked.stdout.count("INFO") >= len(manifests), checked.stdout


def validated(objects: Sequence[Json]) -> subprocess.CompletedProcess[str]:
    """The validators that @kubernetes-models generates from the CRDs, run on objects."""
    require("image", None if shutil.which("npm") else "this needs npm and node")
    packages = npm_packages(*MODELS)
    program = packages / f"validate-{os.getpid()}.mjs"
    program.write_text(VALIDATE)
    try:
        return subprocess.run(
            ["node", str(program)],
            check=False,
            capture_output=True,
            text=True,
            input=json.dumps({"modules": MODULES, "objects": objects}),
        )
    finally:
        program.unlink()


@pytest.mark.parametrize("overlay", ["capabilities", "tls"])
def test_operators_accept_their_resources(overlay: str) -> None:
    """prometheus-operator's and cert-manager's objects are valid by their CRDs' schemas."""
    objects = [it for it in rendered(overlay).objects if it["apiVersion"] in MODULES]
    assert objects
    done = validated(objects)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [it["kind"] for it in objects]


def test_operators_would_refuse_a_wrong_one() -> None:
    """A PodMonitor without endpoints, as a proof that the validators look."""
    wrong = copy.deepcopy(rendered("tls").one("PodMonitor"))
    del wrong["spec"]["podMetricsEndpoints"]
    wrong["spec"]["selector"] = "all"
    done = validated([wrong])
    assert done.returncode != 0
    assert "selector" in done.stderr


def failed_checks(framework: str, file: Path) -> set[str]:
    """Ids of checkov's checks that fail."""
    checked = tool(
        *("checkov.main", "--framework", framework, "--output", "json", "--compact"),
        *("--skip-download", "--file", str(file)),
    )
    report = json.loads(checked.stdout)
    assert report["summary"]["passed"] > 0, checked.stderr
    return {found["check_id"] for found in report["results"]["failed_checks"]}


@pytest.mark.parametrize("overlay", NAMES)
def test_security_linter_finds_only_what_is_known(overlay: str, tmp_path: Path) -> None:
    """checkov complains of exactly the exceptions listed here with their reasons."""
    (tmp_path / "all.yaml").write_text(rendered(overlay).text)
    own = PRIVILEGED if overlay == "privileged" else CAPABILITIES
    assert failed_checks("kubernetes", tmp_path / "all.yaml") == EXCEPTIONS.keys() | own.keys()


def test_security_linter_accepts_the_dockerfile() -> None:
    """The same for the Dockerfile."""
    assert failed_checks("dockerfile", ROOT / "Dockerfile") <= DOCKERFILE.keys()
