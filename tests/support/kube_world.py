# SPDX-License-Identifier: Apache-2.0
"""A test's access to the cluster: manifests as an operator writes them, faults, and metrics."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.support.deploy_render import examples, rendered_beside
from tests.support.image_container import possible_capabilities
from tests.support.kernel_agent import Labels, samples_of
from tests.support.kernel_world import wait_for
from tests.support.kube_cluster import NODE, Cluster
from tests.support.kube_node import KubeNode
from tests.support.kube_objects import AGENT_IMAGE, AGENT_TAG, VMS, launcher_pod, running_vmi

ALPHA, BETA = "alpha", "beta"
NAMESPACE = "hvprobe"
VM_NODE_LABEL = "kubevirt.io/schedulable"
ROLLOUT_S = 120
Json = dict[str, Any]


def manifests(variant: str, directory: Path, *components: str) -> str:
    """Return the manual's manifests for clusters without prometheus-operator, with this image.

    Capabilities that this machine's root lacks are left out, because no container can get them.
    components: further ones of deploy/components.
    """
    (example,) = (
        text for text in examples("docs/operators.md") if "components/capabilities" in text
    )
    folder = "../deploy/components/"
    wanted = ", ".join(f"{folder}{name}" for name in (variant, *components))
    own = example.replace(f"{folder}capabilities", wanted)
    own = own.replace("registry.example/hvprobe", AGENT_IMAGE)
    own = re.sub(r"digest: \S+", f"newTag: {AGENT_TAG}", own)
    directory.mkdir(exist_ok=True)
    objects = rendered_beside(directory, own)
    context = objects.container["securityContext"]
    if "capabilities" in context:
        possible = {name.removeprefix("CAP_") for name in possible_capabilities()}
        context["capabilities"]["add"] = sorted(possible & set(context["capabilities"]["add"]))
    text: str = yaml.safe_dump_all(objects.objects)
    return text


def create(cluster: Cluster, *objects: Json) -> None:
    for each in objects:
        cluster.kubectl("create", "-f", "-", given=json.dumps(each))


def install(cluster: Cluster, given: str) -> None:
    """Install the manifests as the manual does, and return when the node's agent is ready.

    --validate=false is needed because this kubectl is older than the field appArmorProfile.
    """
    cluster.kubectl("apply", "--validate=false", "-f", "-", given=given)
    until_rolled_out(cluster)


def until_rolled_out(cluster: Cluster) -> None:
    """Wait until the node's agent is ready. Raises AssertionError with what pod and log say."""
    done = cluster.kubectl_try(
        *("-n", NAMESPACE, "rollout", "status", "daemonset/hvprobe", f"--timeout={ROLLOUT_S}s")
    )
    if done.returncode != 0:
        pods = cluster.kubectl("-n", NAMESPACE, "describe", "pod")
        log = cluster.kubectl_try("-n", NAMESPACE, "logs", "daemonset/hvprobe").stdout
        raise AssertionError(f"{done.stderr}{pods[-2000:]}{log}")


@contextmanager
def without_vmi(cluster: Cluster, vm: str) -> Iterator[Json]:
    """Delete a VMI whose pod keeps running, yield the object, and restore it after the block."""
    gone = cluster.get("-n", VMS, "virtualmachineinstance", vm)
    pod = cluster.get("-n", VMS, "pod", f"virt-launcher-{vm}")
    cluster.kubectl("-n", VMS, "delete", "virtualmachineinstance", vm)
    try:
        yield gone
    finally:
        create(cluster, running_vmi(vm, pod["metadata"]["uid"]))


@contextmanager
def without_api_server(cluster: Cluster) -> Iterator[None]:
    """Stop the API server, and start it again after the block."""
    cluster.stop_api_server()
    try:
        yield
    finally:
        cluster.start_api_server()


@contextmanager
def without_right(cluster: Cluster, name: str = "hvprobe") -> Iterator[None]:
    """Remove a permission of the agent, by default to read VMIs, and restore it after the block."""
    binding = cluster.get("clusterrolebinding", name)
    del binding["metadata"]["resourceVersion"], binding["metadata"]["uid"]
    cluster.kubectl("delete", "clusterrolebinding", name)
    try:
        yield
    finally:
        create(cluster, binding)


@contextmanager
def node_restored(cluster: Cluster) -> Iterator[None]:
    """Undo the block's labels and taints, so that VMs and any pod can run on the node again."""
    try:
        yield
    finally:
        # Fails where there is no such taint.
        cluster.kubectl_try("taint", "node", NODE, "dedicated-")
        cluster.kubectl("label", "--overwrite", "node", NODE, f"{VM_NODE_LABEL}=true")


def agent_pods(cluster: Cluster) -> list[Json]:
    """Return the agent's pods that are not being deleted."""
    pods = cluster.get("-n", NAMESPACE, "pod")["items"]
    return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]


def agent_pod(cluster: Cluster) -> Json:
    """Wait for the agent's only pod and return it."""
    (pod,) = wait_for(lambda: agent_pods(cluster), "there is a pod of the agent")
    return pod


def agent_pods_on(cluster: Cluster, node: KubeNode) -> list[Json]:
    """Return the agent's pods on a node that are not being deleted."""
    return [pod for pod in agent_pods(cluster) if pod["spec"].get("nodeName") == node.place.name]


def main_tgid(node: KubeNode, pod: Json) -> int:
    """Return the number on this machine of the process that a pod's only container runs."""
    (status,) = pod["status"]["containerStatuses"]
    number = status["containerID"].removeprefix("containerd://")
    shown = node.containerd("tasks", "ls").stdout
    found = re.search(rf"^{number} +(\d+) +RUNNING", shown, re.MULTILINE)
    assert found, shown
    return int(found[1])


def add_vm(cluster: Cluster, vm: str, accel: str, node: str = NODE) -> None:
    """Run a VM in its pod on a node, and make its VMI."""
    create(cluster, launcher_pod(vm, accel, node=node))
    name = f"virt-launcher-{vm}"
    until_ready(cluster, VMS, name)
    pod = cluster.get("-n", VMS, "pod", name)
    create(cluster, running_vmi(vm, pod["metadata"]["uid"], node=node))


def pod_is_ready(cluster: Cluster, namespace: str, name: str) -> bool:
    shown = cluster.get("-n", namespace, "pod", name)["status"]
    return {"type": "Ready", "status": "True"} in [
        {"type": condition["type"], "status": condition["status"]}
        for condition in shown.get("conditions", ())
    ]


def until_ready(cluster: Cluster, namespace: str, name: str, deadline_s: float = 90) -> None:
    """Wait until a pod is ready. Raises AssertionError with its description when it is too late."""
    try:
        wait_for(lambda: pod_is_ready(cluster, namespace, name), f"{name} is ready", deadline_s)
    except AssertionError as late:
        shown = cluster.kubectl("-n", namespace, "describe", "pod", name)
        raise AssertionError(f"{late}: {shown[-2000:]}") from late


def scrape(cluster: Cluster, path: str = "/metrics") -> str:
    """Return the agent's answer on its pod's own address, through the API server's proxy."""
    pod = agent_pod(cluster)["metadata"]["name"]
    where = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}:9747/proxy{path}"
    return cluster.kubectl("get", "--raw", where)


def of_vm(name: str, **more: str) -> Labels:
    """Return a VM's labels."""
    return tuple(sorted({"namespace": VMS, "name": name, "node": NODE, **more}.items()))


def shows_both(text: str) -> bool:
    """Return whether exactly alpha as kvm and beta as tcg are shown, both verified."""
    return samples_of(text, "kubevirt_vmi_hypervisor_info") == {
        of_vm(ALPHA, hypervisor_type="kvm"): 1.0,
        of_vm(BETA, hypervisor_type="tcg"): 1.0,
    } and samples_of(text, "kubevirt_vmi_hypervisor_verified") == {
        of_vm(ALPHA): 1.0,
        of_vm(BETA): 1.0,
    }
