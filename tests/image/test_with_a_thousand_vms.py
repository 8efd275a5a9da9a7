# SPDX-License-Identifier: Apache-2.0
"""The image on a node of a cluster that is full of VMs: what it takes, and that it is let live.

1000 KVM processes in the cgroups of virt-launcher pods and an API server that has their VMIs, asked
with the pod's service account.
"""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any

import pytest

from bench.agent import Answer, Connection
from bench.fleet import NAMESPACE, NODE, Fleet, State
from bench.steady import BETWEEN_SCRAPES_S
from probes.vmi.kube.credentials import InCluster
from tests.support.deploy_render import rendered
from tests.support.image_build import Image
from tests.support.image_container import Container, running
from tests.support.image_memory import memory_of
from tests.support.kernel_world import wait_for
from tests.support.pod_cgroups import cgroup2_mount
from tests.support.required import missing_for_guests, require

pytestmark = pytest.mark.timeout(900)
Json = dict[str, Any]
VMS = 1000
REFRESHES = 30
SCRAPES_OF_A_REFRESH = 2
"""Scrapes at the same time, as two Prometheus servers make them."""
MIB = 2**20


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    """A node with ``VMS`` idle VMs."""
    missing = None if cgroup2_mount() else "this needs a mounted cgroup2 hierarchy"
    require("image", missing_for_guests() or missing)
    with Fleet(VMS, State.HALTED) as started:
        yield started


def service_account(fleet: Fleet) -> InCluster:
    """The agent's service account in the fleet's cluster."""
    api = fleet.api
    return InCluster(token_file=api.token_file, ca_file=api.authority.cert, environ=api.environ)


def memory(agent: Container, when: str) -> dict[str, int]:
    """What its cgroup says now; printed, too."""
    found = memory_of(agent.main_tgid())
    shown = {name: round(found[name] / MIB, 1) for name in ("used", "working_set", "peak", "limit")}
    print(when, json.dumps({**shown, "oom_kills": found["oom_kills"]}))
    return found


def scrape(connections: list[Connection], pool: ThreadPoolExecutor) -> list[Answer]:
    """One answer for each connection, requested at the same time, when a refresh is due."""
    time.sleep(BETWEEN_SCRAPES_S)
    return list(pool.map(lambda each: each.get("/metrics"), connections))


def test_stays_within_its_memory(image: Image, crio_seccomp: Json, fleet: Fleet) -> None:
    """It starts beside them under the manifest's limit, and lives with them within its request.

    Started with none of its files in the page cache, it has the compiler's in its own cgroup. What
    counts for the request is what kubelet counts, as in test_on_this_kernel.py. When the VMs have
    ended none is shown as running, and what they cost is not kept.
    """
    manifest = rendered("capabilities").one("DaemonSet")
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    wanted = {
        kind: int(found["memory"].removesuffix("Mi")) * MIB
        for kind, found in container["resources"].items()
    }
    account = service_account(fleet)
    with (
        running(
            image, manifest, crio_seccomp, service_account=account, node=NODE, cold=True
        ) as agent,
        ThreadPoolExecutor(SCRAPES_OF_A_REFRESH) as pool,
        ExitStack() as stack,
    ):
        memory(agent, "serving")
        connections = [
            stack.enter_context(closing(agent.connect())) for _ in range(SCRAPES_OF_A_REFRESH)
        ]
        first = connections[0]
        wait_for(
            lambda: first.get("/metrics").verified_kvm() == VMS, "all are shown as kvm, verified"
        )
        memory(agent, "all verified")
        for _ in range(REFRESHES):
            answers = scrape(connections, pool)
            assert [answer.verified_kvm() for answer in answers] == [VMS] * SCRAPES_OF_A_REFRESH
        full = memory(agent, f"{REFRESHES * SCRAPES_OF_A_REFRESH} scrapes later")
        assert full["limit"] == wanted["limits"]
        assert full["oom_kills"] == 0
        assert full["working_set"] < wanted["requests"]

        fleet.end_vms()
        wait_for(lambda: types(agent) == {"unknown": VMS}, "no VM is shown as running")
        for number in range(VMS):
            fleet.api.store.delete(NAMESPACE, f"vm-{number}")
        wait_for(lambda: types(agent) == {}, "no VMI is shown")
        empty = memory(agent, "VMs and VMIs gone")
        assert empty["oom_kills"] == 0
        assert empty["working_set"] < full["working_set"]


def types(agent: Container) -> dict[str, int]:
    """How many VMs are shown as what."""
    found: dict[str, int] = {}
    for labels in agent.samples("kubevirt_vmi_hypervisor_info"):
        kind = dict(labels)["hypervisor_type"]
        found[kind] = found.get(kind, 0) + 1
    return found
