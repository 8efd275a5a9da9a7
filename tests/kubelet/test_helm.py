# SPDX-License-Identifier: Apache-2.0
"""hvprobe installed by the real helm, and by one file of ``make manifests``, in a real cluster."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import helm_tools
from tests.support.deploy_render import ROOT, Json
from tests.support.helm_render import CHART, NO_MONITORING
from tests.support.kernel_agent import samples_of
from tests.support.kernel_world import wait_for
from tests.support.kube_cluster import Cluster
from tests.support.kube_objects import AGENT_IMAGE, AGENT_TAG
from tests.support.kube_world import (
    BETA,
    NAMESPACE,
    agent_pod,
    of_vm,
    scrape,
    shows_both,
    until_rolled_out,
)
from tests.support.required import require

pytestmark = pytest.mark.timeout(1800)
VALUES: Json = {
    # No capability is missing in a privileged container, and this server knows all of its fields.
    "variant": "privileged",
    "image": {"repository": AGENT_IMAGE, "tag": AGENT_TAG},
    "monitoring": NO_MONITORING,
}
OLD_SERVER = ("--server-side=false", "--disable-openapi-validation")
"""Kubernetes 1.20 is older than what Helm 4 supports: it has no /openapi/v3, and applying on the
server's side was beta."""
RELEASE = ("hvprobe", CHART, "--namespace", NAMESPACE)
CLUSTER_WIDE = "clusterrole,clusterrolebinding,priorityclass"


@pytest.fixture
def empty(vms: Cluster) -> Iterator[Cluster]:
    """The cluster with the VMs and nothing of hvprobe, also after the test."""
    require("helm", helm_tools.missing())
    yield vms
    vms.helm("uninstall", "hvprobe", "--namespace", NAMESPACE, "--ignore-not-found")
    vms.helm("uninstall", "hvprobe", "--namespace", "default", "--ignore-not-found")
    names = ("hvprobe", "hvprobe-events", "hvprobe-authorization", "hvprobe-metrics")
    vms.kubectl_try("delete", CLUSTER_WIDE, *names, "hvprobe-reader", "--ignore-not-found")
    vms.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found")
    wait_for(
        lambda: vms.kubectl_try("get", "namespace", NAMESPACE).returncode != 0,
        "the namespace is gone",
        120,
    )


def helm(cluster: Cluster, *words: str | Path, values: Json) -> str:
    """What helm prints. Raises AssertionError with its error when it fails."""
    done = cluster.helm(*words, "--values", "-", given=json.dumps(values))
    assert done.returncode == 0, done.stderr
    return done.stdout


def cluster_wide(cluster: Cluster) -> list[str]:
    """The objects of hvprobe that are in no namespace."""
    found = cluster.kubectl("get", CLUSTER_WIDE, "-o", "name").splitlines()
    return sorted(name for name in found if "hvprobe" in name)


def test_installs_upgrades_and_uninstalls(empty: Cluster) -> None:
    """A dry run makes nothing, an upgrade replaces the agent, and uninstall leaves a namespace."""
    empty.kubectl("create", "namespace", NAMESPACE)
    install = ("install", *RELEASE, *OLD_SERVER)
    shown = helm(empty, *install, "--dry-run=server", values=VALUES)
    assert "kind: DaemonSet" in shown
    assert cluster_wide(empty) == []
    notes = helm(empty, *install, values=VALUES)
    assert "hvprobe doctor" in notes
    until_rolled_out(empty)
    wait_for(lambda: shows_both(scrape(empty)), "both VMs are shown, verified", 60)
    first = agent_pod(empty)["metadata"]["name"]

    changed = {**VALUES, "events": True, "vcpuStats": True}
    helm(empty, "upgrade", *RELEASE, "--disable-openapi-validation", values=changed)
    wait_for(lambda: agent_pod(empty)["metadata"]["name"] != first, "the agent is replaced", 120)
    until_rolled_out(empty)
    wait_for(lambda: shows_both(scrape(empty)), "both VMs are shown, verified", 60)
    assert samples_of(scrape(empty), "kubevirt_vmi_hypervisor_fallback")[of_vm(BETA)] == 1.0
    assert "clusterrole.rbac.authorization.k8s.io/hvprobe-events" in cluster_wide(empty)
    (release,) = json.loads(empty.helm("list", "--namespace", NAMESPACE, "--output", "json").stdout)
    assert [release["status"], str(release["revision"])] == ["deployed", "2"]

    done = empty.helm("uninstall", "hvprobe", "--namespace", NAMESPACE)
    assert done.returncode == 0, done.stderr
    assert cluster_wide(empty) == []
    wait_for(lambda: not empty.get("-n", NAMESPACE, "pod")["items"], "the agent has ended", 120)


def test_an_upgrade_keeps_the_certificates_that_helm_made(empty: Cluster) -> None:
    """Agents are ready with them, over HTTPS, and an upgrade finds them in the cluster."""

    def secrets() -> list[Json]:
        names = ("hvprobe-tls", "hvprobe-scraper")
        return [empty.get("-n", NAMESPACE, "secret", name)["data"] for name in names]

    empty.kubectl("create", "namespace", NAMESPACE)
    values = {**VALUES, "tls": {"mode": "selfSigned"}, "authorization": "kubernetes"}
    helm(empty, "install", *RELEASE, *OLD_SERVER, values=values)
    until_rolled_out(empty)
    first = secrets()
    changed = {**values, "events": True}
    helm(empty, "upgrade", *RELEASE, "--disable-openapi-validation", values=changed)
    until_rolled_out(empty)
    assert secrets() == first


def test_the_chart_makes_the_namespace(empty: Cluster) -> None:
    """The release is kept elsewhere; the namespace has its labels, and goes with the release."""
    values = {**VALUES, "namespace": {"name": NAMESPACE, "create": True}}
    install = ("install", "hvprobe", CHART, "--namespace", "default", *OLD_SERVER)
    helm(empty, *install, values=values)
    until_rolled_out(empty)
    wait_for(lambda: shows_both(scrape(empty)), "both VMs are shown, verified", 60)
    labels = empty.get("namespace", NAMESPACE)["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "privileged"
    done = empty.helm("uninstall", "hvprobe", "--namespace", "default")
    assert done.returncode == 0, done.stderr
    wait_for(
        lambda: empty.kubectl_try("get", "namespace", NAMESPACE).returncode != 0,
        "the namespace is gone",
        120,
    )
    assert cluster_wide(empty) == []


def test_helm_installs_nothing_without_prometheus_operators_resources(empty: Cluster) -> None:
    """Helm looks up all kinds before it makes the first object, and names what is missing."""
    values = {**VALUES, "monitoring": {}}
    install = ("install", *RELEASE, "--create-namespace", *OLD_SERVER)
    done = empty.helm(*install, "--values", "-", given=json.dumps(values))
    assert done.returncode != 0
    assert 'no matches for kind "PodMonitor"' in done.stderr
    assert cluster_wide(empty) == []


def test_one_file_installs_all_but_the_resources_that_are_missing(
    empty: Cluster, tmp_path: Path
) -> None:
    """kubectl applies the rest, names the two kinds and fails; the agent runs all the same."""
    command: list[str | Path] = [sys.executable, ROOT / "scripts/manifests.py"]
    command += [f"{AGENT_IMAGE}:{AGENT_TAG}", "--allow-tag"]
    command += ["--output", tmp_path, "--kubectl", helm_tools.kubectl()]
    subprocess.run(command, check=True, capture_output=True)
    given = (tmp_path / "install-privileged-monitoring.yaml").read_text()
    done = empty.kubectl_try("apply", "-f", "-", given=given)
    assert done.returncode != 0
    for kind in ("PodMonitor", "PrometheusRule"):
        assert f'no matches for kind "{kind}"' in done.stderr
    until_rolled_out(empty)
    wait_for(lambda: shows_both(scrape(empty)), "both VMs are shown, verified", 60)

    given = (tmp_path / "install-privileged.yaml").read_text()
    again = empty.kubectl("apply", "-f", "-", given=given)
    assert {line.rpartition(" ")[2] for line in again.splitlines()} == {"unchanged"}
    empty.kubectl("delete", "-f", "-", given=given)
    assert cluster_wide(empty) == []
