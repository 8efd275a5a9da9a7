# SPDX-License-Identifier: Apache-2.0
"""EDGE: a Kubernetes cluster on this machine, made of the real programs only.

Owns the start and end of etcd, kube-apiserver, controller manager and scheduler, which run on the
first node, and the nodes that join. Must not know what runs in the cluster, nor how a node is made
(kube_node.py).
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
from tests.support.kube_node import FIRST, SECOND, START_S, KubeNode, Place

NODE = FIRST.name
STRANGER = "stranger"
"""A user without any right."""
Json = dict[str, Any]
_SERVICES = "10.96.0.0/24"
_TOKENS = {
    # User and groups by the token's owner (kube-apiserver's --token-auth-file).
    "admin": ("admin", "system:masters"),
    FIRST.name: (f"system:node:{FIRST.name}", "system:nodes"),
    SECOND.name: (f"system:node:{SECOND.name}", "system:nodes"),
    "controllers": ("system:kube-controller-manager", "system:masters"),
    "scheduler": ("system:kube-scheduler", ""),
    STRANGER: (STRANGER, ""),
}


class Cluster:
    """The cluster, with kubectl and helm as its administrator. `prepared` makes it."""

    def __init__(self, work: Path, cgroups: KubeCgroups, stack: contextlib.ExitStack) -> None:
        self._work = work
        self._cgroups = cgroups
        self._programs = kube_build.kubernetes()
        self._api: Started | None = None
        self.first = KubeNode(work, FIRST, cgroups, stack)
        """The node on which the control plane runs."""

    def start(self) -> None:
        """Start all programs; return when the node is ready for pods."""
        self._write_files()
        self.first.run(
            kube_build.runtime() / "usr/bin/etcd",
            *("--data-dir=/var/lib/etcd", "--logger=zap", "--log-level=warn"),
        )
        self.start_api_server()
        self.first.run(
            self._programs / "kube-controller-manager",
            f"--kubeconfig={self.kubeconfig('controllers')}",
            f"--service-account-private-key-file={self._work}/account.key",
            f"--root-ca-file={self._authority}",
            "--leader-elect=false",
        )
        self.first.run(
            self._programs / "kube-scheduler",
            f"--kubeconfig={self.kubeconfig('scheduler')}",
            "--leader-elect=false",
        )
        self.first.start_runtime()
        self.start_kubelet(self.first)

    def start_api_server(self) -> None:
        """Start kube-apiserver, and wait until it answers."""
        self._api = self.first.run(
            self._programs / "kube-apiserver",
            "--etcd-servers=http://127.0.0.1:2379",
            *("--secure-port=443", f"--advertise-address={FIRST.ip}", "--allow-privileged=true"),
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

    @contextlib.contextmanager
    def joined(self, place: Place) -> Iterator[KubeNode]:
        """Make a further node, whose kubelet `start_kubelet` starts. It leaves after the block."""
        work = self._work / place.name
        work.mkdir()
        with contextlib.ExitStack() as stack:
            node = KubeNode(work, place, self._cgroups, stack, beside=self.first)
            # Containers outlive their runtime, so they are ended after it.
            stack.callback(node.end_pods)
            node.start_runtime()
            yield node
        self.kubectl("delete", "node", place.name, "--ignore-not-found")

    def start_kubelet(self, node: KubeNode) -> None:
        """Start a node's kubelet, and wait until the node is ready for pods."""
        node.start_kubelet(self.kubeconfig(node.place.name))
        wait_for(lambda: self._is_ready(node), f"node {node.place.name} is ready", START_S)

    def kubectl(self, *words: str, given: str | None = None) -> str:
        """What kubectl prints. Raises AssertionError with its error when it fails."""
        done = self.kubectl_try(*words, given=given)
        assert done.returncode == 0, f"kubectl {' '.join(words)}: {done.stderr}"
        return done.stdout

    def kubectl_try(
        self, *words: str, given: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl and return the result, whether it succeeds or not. given: standard input."""
        home = self.kubeconfig("admin")
        program = self._programs / "kubectl"
        return self.first.call(program, "--kubeconfig", home, *words, given=given)

    def helm(
        self, *words: str | Path, given: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run helm as the cluster's administrator. given: standard input."""
        home = self.kubeconfig("admin")
        return self.first.call(helm_tools.helm(), "--kubeconfig", home, *words, given=given)

    def get(self, *words: str) -> Json:
        """The objects that `kubectl get -o json` shows."""
        found: Json = json.loads(self.kubectl("get", "-o", "json", *words))
        return found

    def fetch(self, url: str) -> str:
        """The answer of an address in the cluster to a client on the first node."""
        done = self.first.call("curl", "--silent", "--show-error", "--fail", url)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def status_of(self, url: str, *headers: str) -> int:
        """The status of an address' answer to a client on the first node with these headers."""
        words = [word for header in headers for word in ("--header", header)]
        shown = ("--silent", "--output", "/dev/null", "--write-out", "%{http_code}")
        return int(self.first.call("curl", *shown, *words, url).stdout)

    def hvprobe(self, *words: str, code_root: Path) -> subprocess.CompletedProcess[str]:
        """Run this tree's hvprobe beside the cluster, as its administrator."""
        variables = {"PYTHONPATH": str(code_root), "KUBECONFIG": str(self.kubeconfig("admin"))}
        command = (sys.executable, "-m", "probes", *words)
        return self.first.call(*command, variables=variables)

    def kubeconfig(self, owner: str) -> Path:
        """The kubeconfig of a user: admin, STRANGER, a node or a part of the control plane."""
        return self._work / f"{owner}.kubeconfig"

    @property
    def _authority(self) -> Path:
        """The certificate that kube-apiserver made for itself."""
        return self._work / "apiserver.crt"

    def _write_files(self) -> None:
        tokens = {owner: secrets.token_hex(16) for owner in _TOKENS}
        rows = [
            f'{tokens[owner]},{user},{user},"{group}"' for owner, (user, group) in _TOKENS.items()
        ]
        (self._work / "tokens").write_text("\n".join(rows))
        for owner, token in tokens.items():
            self.kubeconfig(owner).write_text(json.dumps(_kubeconfig(self._authority, token)))
        key = self._work / "account.key"
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)

    def _is_ready(self, node: KubeNode) -> bool:
        shown = self.kubectl_try("get", "node", node.place.name, "-o", "json")
        if shown.returncode != 0:
            return False
        status: Mapping[str, Any] = json.loads(shown.stdout)["status"]
        conditions = {found["type"]: found["status"] for found in status["conditions"]}
        return conditions.get("Ready") == "True"


def _kubeconfig(authority: Path, token: str) -> Json:
    """A kubeconfig with this token. It is JSON, which is valid YAML."""
    server = {"server": f"https://{FIRST.ip}:443", "certificate-authority": str(authority)}
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
