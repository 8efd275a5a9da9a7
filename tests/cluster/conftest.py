"""The API server and the watches that tests/cluster share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from apiserver import ApiServer
from cluster_watch import NODE, QUICK, Begin

from probes.credentials import InCluster, Kubeconfig
from probes.vmiwatch import VmiWatch, WatchTiming


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiServer]:
    """An API server on the loopback address, with no objects."""
    with ApiServer(tmp_path / "api").running() as server:
        yield server


@pytest.fixture
def service_account(api: ApiServer) -> InCluster:
    """What a pod of the cluster gets to reach it."""
    return InCluster(token_file=api.token_file, ca_file=api.authority.ca_file, environ=api.environ)


@pytest.fixture
def log() -> list[str]:
    """The lines a watch logged."""
    return []


@pytest.fixture
def begin(service_account: InCluster, log: list[str]) -> Iterator[Begin]:
    """Start a watch of node-a; it is stopped after the test, and its thread must then be gone."""
    started: list[VmiWatch] = []

    def start(
        config: InCluster | Kubeconfig | None = None,
        timing: WatchTiming = QUICK,
        node: str = NODE,
    ) -> VmiWatch:
        watch = VmiWatch(config or service_account, node, log.append, timing=timing)
        started.append(watch)
        watch.start()
        return watch

    yield start
    for watch in started:
        watch.stop()
