# SPDX-License-Identifier: Apache-2.0
"""A cluster of two nodes with agents, and kubectl with its plugin, as an administrator has them.

Owns the second node, which is there only as long as `two_nodes` lasts, and faults of its agent.
Must not know how nodes are made.
"""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support import helm_tools
from tests.support.deploy_render import ROOT
from tests.support.fleet_plugin import Plugin
from tests.support.kernel_world import wait_for
from tests.support.kube_cluster import Cluster
from tests.support.kube_node import SECOND, KubeNode
from tests.support.kube_objects import VMS, copy_images
from tests.support.kube_world import (
    NAMESPACE,
    VM_NODE_LABEL,
    add_vm,
    agent_pods_on,
    create,
    install,
    main_tgid,
    until_ready,
)

GAMMA = "gamma"
"""The VM on the second node."""
OLDER = "hvprobe-older"
Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetCluster:
    """Two nodes, both with an agent: alpha and beta run on the first, gamma on the second."""

    cluster: Cluster
    second: KubeNode
    plugin: Plugin

    def kubectl(self, *words: str, owner: str = "admin") -> subprocess.CompletedProcess[str]:
        """Run kubectl on the first node, with the plugin on its PATH, as a user of the cluster."""
        variables = {
            "PATH": self.plugin.path,
            "KUBECONFIG": str(self.cluster.kubeconfig(owner)),
            "HOME": "/nonexistent",
        }
        return self.cluster.first.call(helm_tools.kubectl(), *words, variables=variables)

    def hvprobe(self, *words: str, code: int = 0, owner: str = "admin") -> str:
        """Return what ``kubectl hvprobe`` prints. Raises AssertionError for another exit code."""
        done = self.kubectl("hvprobe", *words, owner=owner)
        assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
        return done.stdout

    def shown(self, *words: str, code: int = 0) -> Json:
        """Return what ``kubectl hvprobe -o json`` prints."""
        found: Json = json.loads(self.hvprobe(*words, "-o", "json", code=code))
        return found

    def agent(self) -> Json:
        """Wait for the agent's pod on the second node and return it."""
        found: Json = wait_for(
            lambda: next(iter(agent_pods_on(self.cluster, self.second)), None),
            "there is an agent's pod on the second node",
        )
        return found

    def all_answer(self) -> bool:
        """Whether both nodes answer, and all VMs are verified."""
        done = self.kubectl("hvprobe", "-o", "json")
        if done.returncode != 0:
            return False
        return all(row["verified"] for row in json.loads(done.stdout)["vmis"])


@contextmanager
def two_nodes(cluster: Cluster, plugin: Plugin, given: str) -> Iterator[FleetCluster]:
    """Let a second node join, run gamma on it, and install the manifests."""
    with cluster.joined(SECOND) as second:
        copy_images(cluster.first, second)
        cluster.start_kubelet(second)
        fleet = FleetCluster(cluster=cluster, second=second, plugin=plugin)
        try:
            add_vm(cluster, GAMMA, "kvm", SECOND.name)
            install(cluster, given)
            yield fleet
        finally:
            words = ("-n", VMS, "delete", "--ignore-not-found", "--grace-period=0", "--force")
            cluster.kubectl(*words, "virtualmachineinstance", GAMMA)
            cluster.kubectl(*words, "pod", f"virt-launcher-{GAMMA}")
            # While its kubelet can still end them.
            cluster.kubectl("delete", "--ignore-not-found", "-f", "-", given=given)
            wait_for(
                lambda: cluster.kubectl_try("get", "namespace", NAMESPACE).returncode != 0,
                "the namespace is gone",
                120,
            )


@contextmanager
def hanging(fleet: FleetCluster) -> Iterator[None]:
    """Stop the agent of the second node, whose port stays open."""
    tgid = main_tgid(fleet.second, fleet.agent())
    os.kill(tgid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(tgid, signal.SIGCONT)


@contextmanager
def killed(fleet: FleetCluster) -> Iterator[None]:
    """Kill the agent of the second node, and let kubelet see that after the block."""
    kubelet = fleet.second.kubelet
    assert kubelet is not None
    tgid = main_tgid(fleet.second, fleet.agent())
    os.kill(kubelet.tgid, signal.SIGSTOP)
    try:
        os.kill(tgid, signal.SIGKILL)
        wait_for(lambda: not Path(f"/proc/{tgid}").exists(), "the agent has ended")
        yield
    finally:
        os.kill(kubelet.tgid, signal.SIGCONT)


@contextmanager
def without_agent(fleet: FleetCluster) -> Iterator[None]:
    """Take the label from the second node by which the DaemonSet chooses nodes."""
    fleet.cluster.kubectl("label", "node", SECOND.name, f"{VM_NODE_LABEL}-")
    try:
        on_node = ("-n", NAMESPACE, "pod", f"--field-selector=spec.nodeName={SECOND.name}")
        wait_for(lambda: not fleet.cluster.get(*on_node)["items"], "its agent is gone", 60)
        yield
    finally:
        fleet.cluster.kubectl("label", "--overwrite", "node", SECOND.name, f"{VM_NODE_LABEL}=true")


@contextmanager
def older_agent(fleet: FleetCluster, tree: Path) -> Iterator[str]:
    """Run an agent of another tree on the second node, which has no other. Yields its pod's name.

    It has a DaemonSet of its own, because that of the agents adopts and deletes a pod of its label.
    """
    spec = fleet.cluster.get("-n", NAMESPACE, "daemonset", "hvprobe")["spec"]
    labels = {**spec["template"]["metadata"]["labels"], OLDER: "true"}
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    # The image's program is isolated from PYTHONPATH, its interpreter is not.
    container["command"] = ["/opt/hvprobe/bin/python", "-m", "probes"]
    container["env"] += [{"name": "PYTHONPATH", "value": "/older"}]
    container["volumeMounts"] += [{"name": "older", "mountPath": "/older", "readOnly": True}]
    pod["volumes"] += [{"name": "older", "hostPath": {"path": str(tree), "type": "Directory"}}]
    del pod["affinity"]
    pod["nodeSelector"] = {"kubernetes.io/hostname": SECOND.name}
    template = {"metadata": {"labels": labels}, "spec": pod}
    older = {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": OLDER, "namespace": NAMESPACE},
        "spec": {"selector": {"matchLabels": labels}, "template": template},
    }
    create(fleet.cluster, older)
    try:
        name: str = fleet.agent()["metadata"]["name"]
        until_ready(fleet.cluster, NAMESPACE, name, 180)
        yield name
    finally:
        fleet.cluster.kubectl("-n", NAMESPACE, "delete", "daemonset", OLDER)


def tree_before(path: str, work: Path) -> Path | None:
    """Return this repository as it was before a file was added; None: its history is not here."""
    found = _git("log", "--diff-filter=A", "--format=%H", "--", path)
    added = found.stdout.split() if found.returncode == 0 else []
    if not added or _git("cat-file", "-e", f"{added[-1]}~1").returncode != 0:
        return None
    archive, tree = work / "tree.tar", work / "tree"
    tree.mkdir()
    packed = _git("archive", f"--output={archive}", f"{added[-1]}~1", "ebpf", "probes")
    assert packed.returncode == 0, packed.stderr
    subprocess.run(["tar", "-x", "-C", tree, "-f", archive], check=True)
    return tree


def _git(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", "-C", str(ROOT), *words], check=False, capture_output=True, text=True
    )
