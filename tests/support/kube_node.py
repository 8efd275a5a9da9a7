# SPDX-License-Identifier: Apache-2.0
"""EDGE: a node of a test's cluster: its namespaces, its container runtime and its kubelet.

Owns how programs run on a node (network and mount namespaces of its own, made by kube_node.sh) and
how nodes are connected. Must not know the control plane. The programs die with the test's process
by PR_SET_PDEATHSIG; containers are ended through their cgroups (kube_cgroups).
"""

import contextlib
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support import kube_build
from tests.support.kernel_world import Started, wait_for
from tests.support.kube_cgroups import KubeCgroups

PAUSE_IMAGE = "localhost/hvprobe-test/pause:1"
START_S = 180.0
_CONTAINERD = """
version = 2
root = "{work}/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  # Never lower than this process's own score, which needs CAP_SYS_RESOURCE.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{runtime}/usr/lib/cni"
    conf_dir = "{work}/cni"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A node's name and addresses (RFC 5737, for documentation)."""

    name: str
    ip: str
    pods: str
    """The network of its pods."""


FIRST = Place(name="worker-1", ip="192.0.2.1", pods="10.244.0.0/24")
SECOND = Place(name="worker-2", ip="192.0.2.2", pods="10.244.1.0/24")


class KubeNode:
    """A node, on which programs run until the stack is closed."""

    def __init__(
        self,
        work: Path,
        place: Place,
        cgroups: KubeCgroups,
        stack: contextlib.ExitStack,
        *,
        beside: "KubeNode | None" = None,
    ) -> None:
        """Make the namespaces. work: an existing folder. beside: the first node, if not this."""
        self.holder: int
        """The number of a process in the namespaces."""
        self.place = place
        self._work = work
        self._cgroups = cgroups
        self._stack = stack
        self._runtime = kube_build.runtime()
        self.kubelet: Started | None = None
        script = Path(__file__).with_name("kube_node.sh")
        command: list[str | Path] = ["unshare", "--net", "--mount", script]
        command += [work, place.ip, place.pods, *((str(beside.holder),) if beside else ())]
        holder = self._keep(Started(command, stderr=None))
        assert holder.line() == "ready\n"
        self.holder = holder.tgid
        self._enter = ("nsenter", f"--target={holder.tgid}", "--net", "--mount", "--")

    def start_runtime(self) -> None:
        """Start containerd and wait until it answers."""
        (self._work / "resolv.conf").write_text(f"nameserver {FIRST.ip}\n")
        (self._work / "cni").mkdir()
        (self._work / "cni/pods.conflist").write_text(json.dumps(_network(self.place.pods)))
        (self._work / "containerd.toml").write_text(
            _CONTAINERD.format(work=self._work, runtime=self._runtime, pause=PAUSE_IMAGE)
        )
        containerd = self.run(
            self._runtime / "usr/bin/containerd", f"--config={self._work}/containerd.toml"
        )
        self._cgroups.put_runtime(self.place.name, containerd.tgid)
        wait_for(lambda: self.containerd("version").returncode == 0, "containerd answers", START_S)

    def start_kubelet(self, kubeconfig: Path) -> None:
        """Start kubelet, which makes the cluster know this node."""
        self.kubelet = self.run(
            kube_build.kubernetes() / "kubelet",
            f"--kubeconfig={kubeconfig}",
            *("--container-runtime=remote", "--root-dir=/var/lib/kubelet"),
            "--container-runtime-endpoint=unix:///run/containerd/containerd.sock",
            *(f"--hostname-override={self.place.name}", f"--node-ip={self.place.ip}"),
            "--node-labels=kubevirt.io/schedulable=true",
            *("--cgroup-driver=cgroupfs", f"--cgroup-root={self._cgroups.pods(self.place.name)}"),
            *("--fail-swap-on=false", "--protect-kernel-defaults=true", "--eviction-hard="),
            *("--make-iptables-util-chains=false", f"--resolv-conf={self._work}/resolv.conf"),
            # Only processes in the nodes' network namespaces reach it.
            *("--anonymous-auth=true", "--authorization-mode=AlwaysAllow"),
        )

    def end_pods(self) -> None:
        """End what the container runtime has started, whether it still runs or not."""
        self._cgroups.end(self.place.name)

    def run(self, program: Path, *arguments: str) -> Started:
        """Start a program on the node; its output goes to a log file of its name."""
        command: list[str | Path] = [*self._enter, *self._environment({})]
        command += ["sh", "-c", 'exec "$@" >>"$0" 2>&1', self._work / f"{program.name}.log"]
        return self._keep(Started([*command, program, *arguments]))

    def call(
        self,
        *command: str | Path,
        given: str | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the node. given: standard input."""
        return subprocess.run(
            [*self._enter, *self._environment(variables or {}), *command],
            check=False,
            capture_output=True,
            text=True,
            input=given,
        )

    def containerd(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Run containerd's own client on the images and containers that kubelet sees."""
        return self.call(self._runtime / "usr/bin/ctr", "--namespace", "k8s.io", *words)

    def log(self, name: str) -> str:
        """The end of a program's log."""
        return (self._work / f"{name}.log").read_text()[-4000:]

    def _environment(self, variables: Mapping[str, str]) -> list[str]:
        """An environment without this machine's variables.

        Proxies and certificates in them are for another network.
        """
        path = f"{self._runtime}/usr/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        given = {"PATH": path, "HOME": str(self._work), **variables}
        return ["env", "-i", *(f"{name}={value}" for name, value in given.items())]

    def _keep(self, started: Started) -> Started:
        def end() -> None:
            if started.popen.returncode is None:
                started.kill()

        self._stack.callback(end)
        return started


def _network(pods: str) -> dict[str, object]:
    """The settings of the network plugin."""
    ipam = {
        "type": "host-local",
        "subnet": pods,
        "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": "/var/lib/cni",
    }
    return {"cniVersion": "0.4.0", "name": "pods", "plugins": [{"type": "ptp", "ipam": ipam}]}
