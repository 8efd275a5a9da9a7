# SPDX-License-Identifier: Apache-2.0
"""The pods of agents: where they run, whether they can answer, and how."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from probes.fleet.options import DEFAULT_NAMESPACE, DEFAULT_SELECTOR
from probes.fleet.pods import PodError, by_node, namespaces_of, parse_pod
from probes.fleet.proxy import path_of
from probes.fleet.table import Table, TableRow, as_csv, lines
from tests.support.apipods import PodStore

ROOT = Path(__file__).resolve().parents[2]


def parsed(pod: Any) -> Any:  # noqa: ANN401 - a JSON document
    return parse_pod(json.dumps(pod).encode())


def test_the_daemonset_of_deploy_is_understood() -> None:
    """Its template has the label, the namespace and the port that the defaults expect."""
    daemonset = yaml.safe_load((ROOT / "deploy/base/daemonset.yaml").read_text())
    template = daemonset["spec"]["template"]
    key, _, value = DEFAULT_SELECTOR.partition("=")
    assert template["metadata"]["labels"][key] == value
    base = yaml.safe_load((ROOT / "deploy/base/kustomization.yaml").read_text())
    assert base["namespace"] == DEFAULT_NAMESPACE
    pod = {
        "metadata": {"namespace": DEFAULT_NAMESPACE, "name": "hvprobe-x"},
        "spec": {**template["spec"], "nodeName": "n1"},
        "status": {"phase": "Running"},
    }
    found = parsed(pod)
    assert (found.node, found.port, found.https, found.not_running) == ("n1", 9747, False, None)
    assert path_of(found, "/snapshot") == (
        "/api/v1/namespaces/hvprobe/pods/hvprobe-x:9747/proxy/snapshot"
    )
    for container in pod["spec"]["containers"]:
        container["readinessProbe"]["httpGet"]["scheme"] = "HTTPS"
    assert path_of(parsed(pod), "/doctor").endswith("/pods/https:hvprobe-x:9747/proxy/doctor")


def test_pods_that_cannot_answer() -> None:
    """Each says why: not scheduled, its container waits, it has ended, it is being deleted."""
    store = PodStore()
    pending = store.add(None, name="hvprobe-p", phase="Pending")
    waiting = store.add("n1", waiting="ImagePullBackOff")
    deleted: Any = store.add("n2")
    deleted["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    evicted: Any = store.add("n3", phase="Failed")
    evicted["status"]["reason"] = "Evicted"
    assert [parsed(pod).not_running for pod in (pending, waiting, deleted, evicted)] == [
        "its agent hvprobe/hvprobe-p does not run: Pending",
        "its agent hvprobe/hvprobe-n1 does not run: ImagePullBackOff",
        "its agent hvprobe/hvprobe-n2 is being deleted",
        "its agent hvprobe/hvprobe-n3 does not run: Evicted",
    ]


def test_a_pod_that_is_not_scheduled_has_the_node_it_is_meant_for() -> None:
    """The DaemonSet's controller writes it into the affinity; otherwise the pod stands alone."""
    store = PodStore()
    meant: Any = store.add(None, name="hvprobe-p", phase="Pending")
    field = {"key": "metadata.name", "operator": "In", "values": ["n7"]}
    meant["spec"]["affinity"] = {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchFields": [field]}]
            }
        }
    }
    lost = store.add(None, name="hvprobe-q", phase="Pending")
    assert list(by_node([parsed(meant), parsed(lost)])) == ["n7", "(pod hvprobe-q)"]


def test_one_pod_speaks_for_a_node() -> None:
    """One that runs, then one that is ready, then the youngest."""
    store = PodStore()
    old = store.add("n1", name="old")
    young = store.add("n1", name="young")
    starting = store.add("n1", name="starting", waiting="ContainerCreating")
    pods = [parsed(pod) for pod in (young, starting, old)]
    assert by_node(pods)["n1"].name == "young"
    assert namespaces_of(pods) == ("hvprobe",)


@pytest.mark.parametrize("body", [b"[]", b"{}", b'{"metadata":{"name":"x"}}', b"{"])
def test_what_is_no_pod(body: bytes) -> None:
    """It is refused in one line."""
    with pytest.raises(PodError):
        parse_pod(body)


def test_tables_show_foreign_text_escaped() -> None:
    """Columns are aligned by what is shown, and CSV starts no formula."""
    table = Table(
        headings=("NAME", "EXITS/S"),
        right=frozenset({"EXITS/S"}),
        rows=(TableRow(texts=("a\x1bb", "7")), TableRow(texts=("-", "=1+1"))),
    )
    assert [line.text for line in lines(table, ascii_only=False)] == [
        "NAME     EXITS/S",
        "a\\x1bb         7",
        "-           =1+1",
    ]
    assert as_csv(table) == "name,exits_per_second\na\\x1bb,7\n,'=1+1\n"
