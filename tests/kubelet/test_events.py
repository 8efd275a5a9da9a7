# SPDX-License-Identifier: Apache-2.0
"""Events on VMs through a real kube-apiserver, with the component events and without its right."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from probes.judge.cause import Cause
from tests.support.kernel_agent import samples_of
from tests.support.kernel_world import wait_for
from tests.support.kube_cluster import NODE, Cluster
from tests.support.kube_objects import VMS
from tests.support.kube_world import (
    ALPHA,
    BETA,
    NAMESPACE,
    agent_pod,
    install,
    manifests,
    of_vm,
    scrape,
    shows_both,
    until_ready,
    without_right,
)

pytestmark = pytest.mark.timeout(1800)
TOLD_S = 120
"""How long an Event may take: one whose cause is unknown has to last for a minute."""


@pytest.fixture(scope="module")
def installed(vms: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The cluster with the privileged variant and the component events."""
    given = manifests("privileged", tmp_path_factory.mktemp("own"), "events")
    install(vms, given)
    yield vms
    vms.kubectl("delete", "--ignore-not-found", "-f", "-", given=given)
    wait_for(
        lambda: vms.kubectl_try("get", "namespace", NAMESPACE).returncode != 0,
        "the namespace is gone",
        120,
    )


def events(cluster: Cluster) -> list[Any]:
    """Scrape the agent, and return the Events that it has written to the VMs' namespace."""
    assert shows_both(wait_for(lambda: scrape(cluster), "the agent answers", 60))
    found = cluster.get("-n", VMS, "events.v1.events.k8s.io")["items"]
    return [event for event in found if event.get("reportingController") == "hvprobe"]


def new_agent(cluster: Cluster) -> str:
    """Replace the agent and return its new pod, which knows both VMs."""
    cluster.kubectl("-n", NAMESPACE, "delete", "pod", "--all")
    pod: str = agent_pod(cluster)["metadata"]["name"]
    until_ready(cluster, NAMESPACE, pod)
    wait_for(lambda: shows_both(scrape(cluster)), "both VMs are shown, verified", 60)
    return pod


def lines_about_events(cluster: Cluster, pod: str) -> list[str]:
    log = cluster.kubectl("-n", NAMESPACE, "logs", pod)
    return [line for line in log.splitlines() if "Events:" in line]


def test_an_emulated_vm_has_an_event(installed: Cluster) -> None:
    """The VM that is emulated without need has one Event, with cause and remedy; others have none.

    ``kubectl describe`` shows it to the owner of the VM.
    """
    wait_for(lambda: shows_both(scrape(installed)), "both VMs are shown, verified", 60)
    (event,) = wait_for(lambda: events(installed), "the Event", TOLD_S)
    vmi = installed.get("-n", VMS, "virtualmachineinstance", BETA)
    assert event["regarding"] == {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstance",
        "namespace": VMS,
        "name": BETA,
        "uid": vmi["metadata"]["uid"],
    }
    assert (event["type"], event["reason"]) == ("Warning", "SoftwareEmulation")
    assert event["reportingInstance"] == NODE
    info = samples_of(scrape(installed), "kubevirt_vmi_hypervisor_emulation_info")
    ((labels, _),) = info.items()
    cause = dict(labels)["cause"]
    remedy = {known.value: known.remedy for known in Cause}[cause]
    assert labels == of_vm(BETA, cause=cause)
    assert event["note"].endswith(f"Remedy: {remedy}.")
    shown = installed.kubectl("-n", VMS, "describe", "virtualmachineinstance", BETA)
    assert "SoftwareEmulation" in shown
    assert remedy in shown
    assert "SoftwareEmulation" not in installed.kubectl(
        *("-n", VMS, "describe", "virtualmachineinstance", ALPHA)
    )


def test_only_events_may_be_created(installed: Cluster) -> None:
    """The component adds the right to create Events of one API group, and nothing else."""
    account = f"system:serviceaccount:{NAMESPACE}:hvprobe"

    def may(verb: str, resource: str) -> bool:
        words = ("auth", "can-i", verb, resource, "-n", VMS, "--as", account)
        return installed.kubectl_try(*words).stdout.strip() == "yes"

    assert may("create", "events.events.k8s.io")
    for verb in ("get", "list", "watch", "patch", "update", "delete"):
        assert not may(verb, "events.events.k8s.io")
    assert not may("create", "events")
    assert not may("patch", "virtualmachineinstances.kubevirt.io")


def test_an_agent_that_was_restarted_writes_nothing_twice(installed: Cluster) -> None:
    """The next agent finds the same emulation, and the API server keeps the first Event."""
    (before,) = wait_for(lambda: events(installed), "the Event", TOLD_S)
    pod = new_agent(installed)
    for _ in range(5):
        assert events(installed) == [before]
        time.sleep(1.5)  # a scrape within a second shares its refresh with the one before
    assert lines_about_events(installed, pod) == []


def test_without_the_right_one_line_is_logged(installed: Cluster) -> None:
    """403 costs the agent one log line, however often it is scraped, and nothing else."""
    with without_right(installed, "hvprobe-events"):
        pod = new_agent(installed)
        wait_for(
            lambda: scrape(installed) and lines_about_events(installed, pod),
            "the agent says which right it lacks",
            TOLD_S,
        )
        for _ in range(5):
            time.sleep(1.5)
            assert shows_both(scrape(installed))
        (line,) = lines_about_events(installed, pod)
        assert "403 Forbidden" in line
        assert "deploy/components/events" in line
        assert 'cannot create resource "events" in API group "events.k8s.io"' in line
        assert scrape(installed, "/readyz") == "ready\n"
