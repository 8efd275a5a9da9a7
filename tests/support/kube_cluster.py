# SPDX-License-Identifier: Apache-2.0
"""EDGE: a Kubernetes cluster of one node on this machine, made of the real programs only.

Owns the start and end of etcd, kube-apiserver, controller manager, scheduler, containerd and
kubelet, in network and mount namespaces of their own (kube_node.sh). Must not know what runs in the
cluster. The programs die with the test's process by PR_SET_PDEATHSIG; containers are ended through
their cgroups (kube_cgroups).
"""

import contextlib
import json
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.support import helm_tools, kube_build
from tests.support.kernel_world import Started, wait_for
from tests.support.kube_cgroups import KubeCgroups

NODE = "worker-1"
NODE_IP = "192.0.2.1"
PAUSE_IMAGE = "localhost/hvprobe-test/pause:1"
START_S = 180.0
Json = dict[str, Any]
_SERVICES = "10.96.0.0/24"
_TOKENS = {
    # User and groups by the token's owner (kube-apiserver's --token-auth-file).
    "admin": ("admin", "system:masters"),
    "kubelet": (f"system:node:{NODE}", "system:nodes"),
    "controllers": ("system:kube-controller-manager", "system:masters"),
    "scheduler": ("system:kube-scheduler", ""),
}
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
_NETWORK = {
    "cniVersion": "0.4.0",
    "name": "pods",
    "plugins": [
        {
            "type": "ptp",
            "ipam": {
                "type": "host-local",
                "subnet": "10.244.0.0/24",
                "routes": [{"dst": "0.0.0.0/0"}],
                "dataDir": "/var/lib/cni",
            },
        }
    ],
}


class Cluster:
    """The cluster, with kubectl and helm as its administrator. `prepared` makes it."""

    def __init__(self, work: Path, cgroups: KubeCgroups, stack: contextlib.ExitStack) -> None:
        self._work = work
        self._cgroups = cgroups
        self._stack = stack
        self._programs = kube_build.kubernetes()
        self._runtime = kube_build.runtime()
        self._api: Started | None = None
        holder = self._keep(
            Started(
                ["unshare", "--net", "--mount", Path(__file__).with_name("kube_node.sh"), work],
                stderr=None,
            )
        )
        assert holder.line() == "ready\n"
        self._enter = ("nsenter", f"--target={holder.tgid}", "--net", "--mount", "--")

    def start(self) -> None:
        """Start all programs; return when the node is ready for pods."""
        self._write_files()
        self._run(
            "etcd",
            *("--data-dir=/var/lib/etcd", "--logger=zap", "--log-level=warn"),
            program=self._runtime / "usr/bin/etcd",
        )
        self.start_api_server()
        self._run(
            "kube-controller-manager",
            f"--kubeconfig={self._kubeconfig('controllers')}",
            f"--service-account-private-key-file={self._work}/account.key",
            f"--root-ca-file={self._authority}",
            "--leader-elect=false",
        )
        self._run(
            "kube-scheduler",
            f"--kubeconfig={self._kubeconfig('scheduler')}",
            "--leader-elect=false",
        )
        containerd = self._run(
            "containerd",
            f"--config={self._work}/containerd.toml",
            program=self._runtime / "usr/bin/containerd",
        )
        self._cgroups.put_runtime(containerd.tgid)
        wait_for(lambda: self.containerd("version").returncode == 0, "containerd answers", START_S)
        self._run(
            "kubelet",
            f"--kubeconfig={self._kubeconfig('kubelet')}",
            *("--container-runtime=remote", "--root-dir=/var/lib/kubelet"),
            "--container-runtime-endpoint=unix:///run/containerd/containerd.sock",
            *(f"--hostname-override={NODE}", f"--node-ip={NODE_IP}"),
            "--node-labels=kubevirt.io/schedulable=true",
            *("--cgroup-driver=cgroupfs", f"--cgroup-root={self._cgroups.pods}"),
            *("--fail-swap-on=false", "--protect-kernel-defaults=true", "--eviction-hard="),
            *("--make-iptables-util-chains=false", f"--resolv-conf={self._work}/resolv.conf"),
            # Only processes in its network namespace reach it.
            *("--anonymous-auth=true", "--authorization-mode=AlwaysAllow"),
        )
        wait_for(self._node_is_ready, "the node is ready", START_S)

    def start_api_server(self) -> None:
        """Start kube-apiserver, and wait until it answers."""
        self._api = self._run(
            "kube-apiserver",
            "--etcd-servers=http://127.0.0.1:2379",
            *("--secure-port=443", f"--advertise-address={NODE_IP}", "--allow-privileged=true"),
            *(f"--cert-dir={self._work}", f"--service-cluster-ip-range={_SERVICES}"),
            *(f"--token-auth-file={self._work}/tokens", "--authorization-mode=Node,RBAC"),
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-signing-key-file={self._work}/account.key",
            f"--service-account-key-file={self._work}/account.key",
            "--kubelet-preferred-address-types=InternalIP",
        )
        wait_for(
            lambda: self.kubectl_try("get", "--raw", "/readyz").stdout == "ok",
            "kube-apiserver is ready",
            START_S,
        )

    def stop_api_server(self) -> None:
        """Stop kube-apiserver, as a node sees it when the control plane is unreachable."""
        assert self._api is not None
        self._api.kill()

    def kubectl(self, *words: str, given: str | None = None) -> str:
        """What kubectl prints. Raises AssertionError with its error when it fails."""
        done = self.kubectl_try(*words, given=given)
        assert done.returncode == 0, f"kubectl {' '.join(words)}: {done.stderr}"
        return done.stdout

    def kubectl_try(
        self, *words: str, given: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl and return the result, whether it succeeds or not. given: standard input."""
        home = self._kubeconfig("admin")
        return self._call(self._programs / "kubectl", "--kubeconfig", home, *words, given=given)

    def helm(
        self, *words: str | Path, given: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run helm as the cluster's administrator. given: standard input."""
        home = self._kubeconfig("admin")
        return self._call(helm_tools.helm(), "--kubeconfig", home, *words, given=given)

    def get(self, *words: str) -> Json:
        """The objects that `kubectl get -o json` shows."""
        found: Json = json.loads(self.kubectl("get", "-o", "json", *words))
        return found

    def containerd(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Run containerd's own client on the images and containers that kubelet sees."""
        return self._call(self._runtime / "usr/bin/ctr", "--namespace", "k8s.io", *words)

    def fetch(self, url: str) -> str:
        """The answer of an address in the cluster to a client on the node."""
        done = self._call("curl", "--silent", "--show-error", "--fail", url)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def status_of(self, url: str, *headers: str) -> int:
        """The status of an address' answer to a client on the node with these headers."""
        words = [word for header in headers for word in ("--header", header)]
        shown = ("--silent", "--output", "/dev/null", "--write-out", "%{http_code}")
        return int(self._call("curl", *shown, *words, url).stdout)

    def hvprobe(self, *words: str, code_root: Path) -> subprocess.CompletedProcess[str]:
        """Run this tree's hvprobe beside the cluster, as its administrator."""
        home = ("env", f"PYTHONPATH={code_root}", f"KUBECONFIG={self._kubeconfig('admin')}")
        return self._call(*home, sys.executable, "-m", "probes", *words)

    def log(self, name: str) -> str:
        """The end of a program's log."""
        return (self._work / f"{name}.log").read_text()[-4000:]

    @property
    def _authority(self) -> Path:
        """The certificate that kube-apiserver made for itself."""
        return self._work / "apiserver.crt"

    def _kubeconfig(self, owner: str) -> Path:
        return self._work / f"{owner}.kubeconfig"

    def _write_files(self) -> None:
        tokens = {owner: secrets.token_hex(16) for owner in _TOKENS}
        rows = [
            f'{tokens[owner]},{user},{user},"{group}"' for owner, (user, group) in _TOKENS.items()
        ]
        (self._work / "tokens").write_text("\n".join(rows))
        for owner, token in tokens.items():
            self._kubeconfig(owner).write_text(json.dumps(_kubeconfig(self._authority, token)))
        key = self._work / "account.key"
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
        (self._work / "resolv.conf").write_text(f"nameserver {NODE_IP}\n")
        (self._work / "cni").mkdir()
        (self._work / "cni/pods.conflist").write_text(json.dumps(_NETWORK))
        (self._work / "containerd.toml").write_text(
            _CONTAINERD.format(work=self._work, runtime=self._runtime, pause=PAUSE_IMAGE)
        )

    def _node_is_ready(self) -> bool:
        shown = self.kubectl_try("get", "node", NODE, "-o", "json")
        if shown.returncode != 0:
            return False
        status: Mapping[str, Any] = json.loads(shown.stdout)["status"]
        conditions = {found["type"]: found["status"] for found in status["conditions"]}
        return conditions.get("Ready") == "True"

    def _run(self, name: str, *arguments: str, program: Path | None = None) -> Started:
        """Start a program of the cluster; its output goes to a log file of its name."""
        command: list[str | Path] = [*self._enter, *self._environment()]
        command += ["sh", "-c", 'exec "$@" >>"$0" 2>&1', self._work / f"{name}.log"]
        command += [program or self._programs / name, *arguments]
        return self._keep(Started(command))

    def _environment(self) -> tuple[str, ...]:
        """An environment without this machine's variables.

        Proxies and certificates in them are for another network.
        """
        path = f"{self._runtime}/usr/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return ("env", "-i", f"PATH={path}", f"HOME={self._work}")

    def _keep(self, started: Started) -> Started:
        def end() -> None:
            if started.popen.returncode is None:
                started.kill()

        self._stack.callback(end)
        return started

    def _call(
        self, *command: str | Path, given: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._enter, *self._environment(), *command],
            check=False,
            capture_output=True,
            text=True,
            input=given,
        )


def _kubeconfig(authority: Path, token: str) -> Json:
    """A kubeconfig with this token. It is JSON, which is valid YAML."""
    server = {"server": f"https://{NODE_IP}:443", "certificate-authority": str(authority)}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": server}],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "current-context": "test",
    }


@contextlib.contextmanager
def prepared(work: Path) -> Iterator[Cluster]:
    """A cluster that is not started yet. It ends with the block, together with its pods."""
    with contextlib.ExitStack() as stack:
        cgroups = KubeCgroups()
        stack.callback(cgroups.close)
        yield Cluster(work, cgroups, stack)
