# SPDX-License-Identifier: Apache-2.0
"""How much of the kubernetes package the watch brings into the process."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from urllib3.connection import HTTPConnection

from probes.vmi.kube.client import ApiReader
from probes.vmi.kube.credentials import InCluster, Kubeconfig
from probes.vmi.kube.listwatch import Verb
from tests.support.apiserver import ApiServer

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json, sys
from probes.vmi.kube.credentials import InCluster
from probes.vmi.kube.client import ApiReader
token, ca, port = sys.argv[1:]
environ = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": port}
from pathlib import Path
reader = ApiReader(
    InCluster(token_file=Path(token), ca_file=Path(ca), environ=environ),
    connect_timeout_s=5.0, answer_deadline_s=5.0,
)
from probes.vmi.kube.listwatch import Verb
response = reader.get(Verb.LIST, {})
assert json.loads(response.read())["kind"] == "VirtualMachineInstanceList"
names = sorted(sys.modules)
import kubernetes
assert kubernetes.client.CoreV1Api is not None
assert kubernetes.watch.Watch is not None
json.dump(names, sys.stdout)
"""


def test_in_a_cluster_most_of_the_package_stays_out(api: ApiServer) -> None:
    """In cluster mode no models, OAuth, YAML or pydantic are loaded; the rest still can be."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            PROGRAM,
            str(api.token_file),
            str(api.authority.cert),
            str(api.port),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    names = set(json.loads(done.stdout))
    assert "urllib3" in names
    for costly in (
        "pydantic",
        "oauthlib",
        "requests",
        "yaml",
        "websocket",
        "dateutil",
        "kubernetes",
    ):
        assert costly not in names


@pytest.mark.parametrize("kubeconfig", [False, True], ids=["service account", "kubeconfig"])
def test_a_peer_that_is_gone_is_found(
    api: ApiServer, service_account: InCluster, kubeconfig: bool
) -> None:
    """The kernel probes a silent connection, and no part of urllib3's own settings is lost."""
    config = Kubeconfig(file=api.kubeconfig()) if kubeconfig else service_account
    reader = ApiReader(config, connect_timeout_s=5.0, answer_deadline_s=5.0)
    response = reader.get(Verb.LIST, {})
    connection = response.connection
    assert isinstance(connection, HTTPConnection)
    sock = connection.sock
    assert sock is not None
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
    idle_s, interval_s, count = (sock.getsockopt(socket.IPPROTO_TCP, option) for option in options)
    assert idle_s + interval_s * count <= 30
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    response.close()
    reader.close()
