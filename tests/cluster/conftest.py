# SPDX-License-Identifier: Apache-2.0
"""The API server, the watches and the cgroups that tests/cluster share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from probes.vmi.kube.credentials import InCluster, Kubeconfig
from probes.vmi.kube.timing import WatchTiming
from probes.vmi.kube.watch import VmiWatch
from tests.support.apiserver import ApiServer
from tests.support.cluster_watch import NODE, QUICK, Begin
from tests.support.kernel_world import build_kvmload
from tests.support.pod_cgroups import CgroupTree, cgroup2_mount
from tests.support.required import missing_for_guests, require


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiServer]:
    """An API server on the loopback address, with no objects and frequent bookmarks."""
    with ApiServer(tmp_path / "api", bookmark_interval_s=0.05).running() as server:
        yield server


@pytest.fixture
def service_account(api: ApiServer) -> InCluster:
    """What a pod of the cluster gets to reach it."""
    return InCluster(token_file=api.token_file, ca_file=api.authority.cert, environ=api.environ)


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


def missing(*, guests: bool) -> str | None:
    """Why this machine cannot play a node of a cluster; None: it can."""
    if os.geteuid() != 0:
        return "this needs root, to move processes between cgroups"
    if cgroup2_mount() is None:
        return "this needs a mounted cgroup2 hierarchy"
    return missing_for_guests() if guests else None


@pytest.fixture(scope="session")
def cluster_required() -> None:
    """What tests with real cgroups need."""
    require("cluster", missing(guests=False))


@pytest.fixture(scope="session")
def guests_required() -> None:
    """What tests with real guests in real cgroups need."""
    require("cluster", missing(guests=True))


@pytest.fixture(scope="session")
def kvmload(guests_required: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled tests/support/kvmload.c."""
    return build_kvmload(tmp_path_factory.mktemp("kvmload"))


@pytest.fixture(scope="session")
def cgroups(cluster_required: None) -> Iterator[CgroupTree]:
    """A tree of cgroups of the tests' own."""
    mount = cgroup2_mount()
    assert mount is not None
    tree = CgroupTree(mount)
    yield tree
    tree.close()
