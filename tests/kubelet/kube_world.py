"""What tests say to the cluster and hear of it: manifests as an operator writes them, metrics."""

import json
import re
from pathlib import Path
from typing import Any

import yaml
from deploy_render import examples, rendered_beside
from image_container import possible_capabilities
from kernel_agent import Labels, samples_of
from kernel_world import wait_for
from kube_cluster import NODE, Cluster
from kube_objects import AGENT_IMAGE, AGENT_TAG, VMS

ALPHA, BETA = "alpha", "beta"
NAMESPACE = "hvprobe"
ROLLOUT_S = 120
Json = dict[str, Any]


def manifests(variant: str, directory: Path) -> str:
    """The manual's example for clusters without prometheus-operator, with the image built here.

    Without capabilities that this machine's root has not itself: no container can get them.
    """
    _, example, _ = examples("docs/operators.md")
    own = example.replace("components/capabilities", f"components/{variant}")
    own = own.replace("registry.example/hvprobe", AGENT_IMAGE)
    own = re.sub(r"digest: \S+", f"newTag: {AGENT_TAG}", own)
    directory.mkdir(exist_ok=True)
    objects = rendered_beside(directory, own)
    context = objects.container["securityContext"]
    if "capabilities" in context:
        possible = {name.removeprefix("CAP_") for name in possible_capabilities()}
        context["capabilities"]["add"] = sorted(possible & set(context["capabilities"]["add"]))
    return yaml.safe_dump_all(objects.objects)


def create(cluster: Cluster, *objects: Json) -> None:
    for each in objects:
        cluster.kubectl("create", "-f", "-", given=json.dumps(each))


def install(cluster: Cluster, given: str) -> None:
    """As the manual does; returns when the agent on the node is ready.

    --validate=false: this kubectl is older than the field appArmorProfile.
    """
    cluster.kubectl("apply", "--validate=false", "-f", "-", given=given)
    done = cluster.kubectl_try(
        *("-n", NAMESPACE, "rollout", "status", "daemonset/hvprobe", f"--timeout={ROLLOUT_S}s")
    )
    if done.returncode != 0:
        pods = cluster.kubectl("-n", NAMESPACE, "describe", "pod")
        log = cluster.kubectl_try("-n", NAMESPACE, "logs", "daemonset/hvprobe").stdout
        raise AssertionError(f"{done.stderr}{pods[-2000:]}{log}")


def agent_pods(cluster: Cluster) -> list[Json]:
    """Those of the agent's pods that are not about to go."""
    pods = cluster.get("-n", NAMESPACE, "pod")["items"]
    return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]


def agent_pod(cluster: Cluster) -> Json:
    """The agent's pod, when there is one."""
    (pod,) = wait_for(lambda: agent_pods(cluster), "there is a pod of the agent")
    return pod


def pod_is_ready(cluster: Cluster, namespace: str, name: str) -> bool:
    shown = cluster.get("-n", namespace, "pod", name)["status"]
    return {"type": "Ready", "status": "True"} in [
        {"type": it["type"], "status": it["status"]} for it in shown.get("conditions", ())
    ]


def until_ready(cluster: Cluster, namespace: str, name: str, deadline_s: float = 90) -> None:
    """Wait for a pod; where it does not come, say what kubelet says of it."""
    try:
        wait_for(lambda: pod_is_ready(cluster, namespace, name), f"{name} is ready", deadline_s)
    except AssertionError as late:
        shown = cluster.kubectl("-n", namespace, "describe", "pod", name)
        raise AssertionError(f"{late}: {shown[-2000:]}") from late


def scrape(cluster: Cluster, path: str = "/metrics") -> str:
    """What the agent answers on its pod's own address, by way of the API server."""
    pod = agent_pod(cluster)["metadata"]["name"]
    where = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}:9747/proxy{path}"
    return cluster.kubectl("get", "--raw", where)


def of_vm(name: str, **more: str) -> Labels:
    """A VM's labels."""
    return tuple(sorted({"namespace": VMS, "name": name, "node": NODE, **more}.items()))


def shows_both(text: str) -> bool:
    """Whether alpha is shown as kvm, beta as tcg, both verified, and nothing else."""
    return samples_of(text, "kubevirt_vmi_hypervisor_info") == {
        of_vm(ALPHA, hypervisor_type="kvm"): 1.0,
        of_vm(BETA, hypervisor_type="tcg"): 1.0,
    } and samples_of(text, "kubevirt_vmi_hypervisor_verified") == {
        of_vm(ALPHA): 1.0,
        of_vm(BETA): 1.0,
    }
