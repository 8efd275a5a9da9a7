# SPDX-License-Identifier: Apache-2.0
"""The agent as in a cluster: with an API server, pods' cgroups and real guests, scraped by HTTP."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.apiserver import ApiServer, Fault, FaultKind
from tests.support.cluster_node import (
    KVM,
    NODE,
    TARGET_NODE,
    TCG,
    TCG_FALLBACK,
    UNKNOWN,
    Guests,
    Monitor,
    Scrape,
    Shown,
    answer_of,
    ended_log,
    hvprobe,
)
from tests.support.kernel_agent import Agent
from tests.support.kernel_world import MACHINE, wait_for
from tests.support.pod_cgroups import CgroupTree
from tests.support.vmi_objects import migrated, migrating, pod_uid, vmi

NATIVE, FOREIGN = ("amd64", "arm64") if MACHINE == "x86_64" else ("arm64", "amd64")
Agents = Callable[..., Agent]


@pytest.fixture
def guests(guests_required: None, cgroups: CgroupTree) -> Iterator[Guests]:
    """Starts guests in pods; they end with the test."""
    started = Guests(cgroups)
    yield started
    started.close()


@pytest.fixture
def agents(guests_required: None, api: ApiServer) -> Iterator[Agents]:
    """Starts agents that reach the API server with a kubeconfig; they end with the test."""
    kubeconfig = api.kubeconfig()
    started: list[Agent] = []

    def start(node: str = NODE) -> Agent:
        started.append(Agent("--kubeconfig", str(kubeconfig), "--node", node))
        return started[-1]

    yield start
    for agent in started:
        agent.kill()


def not_ready_answer(agent: Agent, words: str) -> tuple[int, str] | None:
    """The answer of /readyz if it contains the words."""
    status, text = answer_of(agent, "/readyz")
    return (status, text) if words in text else None


def scrape_with_a_guest(agent: Agent) -> Scrape | None:
    """A scrape if it shows a process whose VM is unknown."""
    scrape = Scrape(agent)
    return scrape if scrape.value("hvprobe_processes", state="unattributed") else None


def until_shown(agent: Agent, vms: dict[str, Shown], node: str = NODE) -> Scrape:
    """Scrape until exactly these VMs are shown, each as given; return that scrape."""
    last: list[Scrape] = []

    def shown() -> bool:
        last[:] = [Scrape(agent, node)]
        return last[0].vms() == vms

    try:
        wait_for(shown, f"the VMs are {vms}", deadline_s=20)
    except AssertionError as err:
        raise AssertionError(f"{err}; they are {last[0].vms()}") from err
    return last[0]


def test_types_labels_and_fallback(api: ApiServer, agents: Agents, guests: Guests) -> None:
    """Every VMI that runs here has its series, found by its pod, and nothing else has a series.

    alpha runs on KVM and has libvirt's capability probe and a sleeping impostor in its pod. beta
    and gamma are emulated, gamma because its architecture is not the node's. delta has no process,
    epsilon does not run yet, and zeta is on another node. A QEMU that calls itself delta is in a
    pod of no VMI.
    """
    for name in ("alpha", "beta", "delta"):
        api.store.create(vmi(name, architecture=NATIVE))
    api.store.create(vmi("gamma", namespace="lab", architecture=FOREIGN))
    api.store.create(vmi("epsilon", phase="Scheduled"))
    api.store.create(vmi("zeta", node=TARGET_NODE))
    pod = pod_uid("default", "alpha")
    guests.start(pod, None, "-machine", "none", "-S", accel=())
    guests.start(pod, "default_alpha")
    guests.start_in(pod, ["sleep", "86400"], container_id="5" * 64)
    guests.start(pod_uid("default", "beta"), "default_beta", accel=("tcg",))
    agent = agents()
    guests.start(pod_uid("lab", "gamma"), "lab_gamma", accel=("tcg",))
    guests.start(pod_uid("default", "epsilon"), "default_epsilon")
    guests.start(pod_uid("default", "no-vmi"), "default_delta", accel=("tcg",))
    scrape = until_shown(
        agent,
        {
            "default/alpha": KVM,
            "default/beta": TCG_FALLBACK,
            "default/delta": UNKNOWN,
            "lab/gamma": TCG,
        },
    )
    assert scrape.value("hvprobe_processes", state="attributed") == 3
    assert scrape.value("hvprobe_vmi_watch_up") == 1
    assert scrape.value("hvprobe_vmi_watch_restarts_total") == 0
    assert scrape.value("hvprobe_refresh_errors_total", source="kube") == 0
    assert answer_of(agent, "/readyz")[0] == 200


def test_a_vm_through_its_life(api: ApiServer, agents: Agents, guests: Guests) -> None:
    """A VM is shown right when paused, ended, restarted in a new pod, and deleted while it runs."""
    api.store.create(vmi("alpha", architecture=NATIVE))
    agent = agents()
    first = guests.start(pod_uid("default", "alpha"), "default_alpha", "-qmp", "stdio")
    until_shown(agent, {"default/alpha": KVM})
    monitor = Monitor(first)
    monitor.do("stop")
    assert monitor.do("query-status")["running"] is False
    until_shown(agent, {"default/alpha": KVM})
    first.kill()
    until_shown(agent, {"default/alpha": UNKNOWN})
    api.store.delete("default", "alpha")
    until_shown(agent, {})
    api.store.create(vmi("alpha", architecture=NATIVE, generation=2))
    until_shown(agent, {"default/alpha": UNKNOWN})
    guests.start(pod_uid("default", "alpha", 2), "default_alpha", accel=("tcg",))
    until_shown(agent, {"default/alpha": TCG_FALLBACK})
    api.store.delete("default", "alpha")
    until_shown(agent, {})


def test_a_migration(api: ApiServer, agents: Agents, guests: Guests, tmp_path: Path) -> None:
    """During a real migration the source's agent shows the VM until nodeName changes.

    From then on the target's agent shows it, with its own process. They never both show it.
    """
    stored = vmi("alpha", architecture=NATIVE)
    api.store.create(stored)
    source_agent, target_agent = agents(), agents(TARGET_NODE)
    source = guests.start(pod_uid("default", "alpha"), "default_alpha", "-qmp", "stdio")
    until_shown(source_agent, {"default/alpha": KVM})
    channel = f"unix:{tmp_path}/migration"
    moving = migrating(stored, TARGET_NODE)
    target = guests.start(
        pod_uid("default", "alpha", 1000),
        "default_alpha",
        *("-qmp", "stdio", "-S", "-incoming", channel),
    )
    at_source, at_target = Monitor(source), Monitor(target)
    api.store.update(moving)
    until_shown(source_agent, {"default/alpha": KVM})
    until_shown(target_agent, {}, TARGET_NODE)
    at_source.do("migrate", uri=channel)
    wait_for(lambda: at_source.do("query-migrate").get("status") == "completed", "migrated")
    at_target.do("cont")
    until_shown(target_agent, {}, TARGET_NODE)
    until_shown(source_agent, {"default/alpha": KVM})
    api.store.update(migrated(moving))
    until_shown(source_agent, {})
    until_shown(target_agent, {"default/alpha": KVM}, TARGET_NODE)
    source.kill()
    until_shown(target_agent, {"default/alpha": KVM}, TARGET_NODE)
    target.kill()
    until_shown(target_agent, {"default/alpha": UNKNOWN}, TARGET_NODE)


def test_the_api_server_goes_and_comes_back(api: ApiServer, agents: Agents, guests: Guests) -> None:
    """In an outage the agent keeps the last known VMIs, and learns the changes when it is over.

    The agent stays ready, logs the recovery once, and needs no restart.
    """
    api.store.create(vmi("alpha", architecture=NATIVE))
    agent = agents()
    alpha = guests.start(pod_uid("default", "alpha"), "default_alpha")
    until_shown(agent, {"default/alpha": KVM})
    api.stop()
    wait_for(lambda: Scrape(agent).value("hvprobe_vmi_watch_up") == 0, "the watch is down")
    lost = until_shown(agent, {"default/alpha": KVM})
    assert lost.value("hvprobe_refresh_errors_total", source="kube")
    assert answer_of(agent, "/readyz") == (200, "ready\n")
    alpha.kill()
    ended = until_shown(agent, {"default/alpha": UNKNOWN})
    since = "hvprobe_vmi_watch_last_sync_timestamp_seconds"
    assert lost.value(since)
    assert lost.value(since) == ended.value(since)
    api.store.create(vmi("beta", architecture=NATIVE))
    guests.start(pod_uid("default", "beta"), "default_beta", accel=("tcg",))
    api.start()
    until_shown(agent, {"default/alpha": UNKNOWN, "default/beta": TCG_FALLBACK})
    wait_for(lambda: Scrape(agent).value("hvprobe_vmi_watch_up") == 1, "the watch is up again")
    assert Scrape(agent).value("hvprobe_vmi_watch_restarts_total") == 1
    log = ended_log(agent)
    assert log.count("VMI watch: up again") == 1


def test_starting_without_the_api_server(api: ApiServer, agents: Agents, guests: Guests) -> None:
    """Without the API server the agent is not ready and names no VM, but serves everything else.

    Until then it does not believe a QEMU that calls itself a VM. It is ready when the server is up.
    """
    api.store.create(vmi("alpha", architecture=NATIVE))
    api.stop()
    agent = agents()
    guests.start(pod_uid("default", "alpha"), "default_alpha")
    status, text = wait_for(
        lambda: not_ready_answer(agent, "Connection refused"), "the reason is reported"
    )
    assert status == 503
    assert len(text.splitlines()) == 1
    assert answer_of(agent, "/healthz") == (200, "alive\n")
    scrape = wait_for(lambda: scrape_with_a_guest(agent), "the guest is seen")
    assert scrape.vms() == {}
    assert scrape.value("hvprobe_vmi_watch_up") == 0
    assert scrape.value("hvprobe_vmi_watch_last_sync_timestamp_seconds") is None
    attached = [sample for sample in scrape.samples if sample.name == "hvprobe_hook_attached"]
    assert any(sample.value == 1 for sample in attached)
    api.start()
    until_shown(agent, {"default/alpha": KVM})
    assert answer_of(agent, "/readyz") == (200, "ready\n")


def test_a_missing_permission(api: ApiServer, agents: Agents) -> None:
    """403 is one line in the log and in /readyz, with the verb, until the permission is granted."""
    api.grants = {"get", "watch"}
    agent = agents()
    status, text = wait_for(lambda: not_ready_answer(agent, "403"), "the refusal is reported")
    assert status == 503
    assert len(text.splitlines()) == 1
    assert "grant the verb list on virtualmachineinstances.kubevirt.io" in text
    api.grants = {"get", "list", "watch"}
    wait_for(lambda: answer_of(agent, "/readyz")[0] == 200, "ready")
    lines = [line for line in ended_log(agent).splitlines() if "403" in line]
    assert len(lines) == 1
    assert "grant the verb list" in lines[0]


@pytest.mark.parametrize("fault", [FaultKind.HANG, FaultKind.STALL])
def test_a_signal_ends_it_while_the_api_server_hangs(
    api: ApiServer, agents: Agents, fault: FaultKind
) -> None:
    """A signal ends the agent within 2 s, wherever the watch waits."""
    api.inject(Fault(kind=fault, verb="list"))
    agent = agents()
    api.wait_for(bool)
    assert answer_of(agent, "/readyz")[0] == 503
    assert agent.end(signal.SIGTERM, 2.0) == 0


def test_commands_that_refresh_once(api: ApiServer, guests: Guests) -> None:
    """``snapshot`` and ``doctor`` wait for the first list of VMIs and name the VMs by it."""
    api.store.create(vmi("alpha", architecture=NATIVE))
    guests.start(pod_uid("default", "alpha"), "default_beta", accel=("tcg",))
    flags = ("--kubeconfig", str(api.kubeconfig()), "--node", NODE)
    ran = hvprobe("snapshot", *flags)
    assert ran.returncode == 0, ran.stderr
    taken = json.loads(ran.stdout)
    types = [(entry["name"], entry["hypervisor_type"]) for entry in taken["vmis"]]
    assert types == [("alpha", "tcg")]
    assert taken["health"]["vmi_watch"]["synced"] is True
    checks = hvprobe("doctor", *flags).stdout
    assert "ok    VMI names: from the API server" in checks


def test_commands_that_refresh_once_without_an_api_server(
    guests_required: None, api: ApiServer
) -> None:
    """``doctor`` waits a few seconds for the VMIs, says so, and continues without names."""
    api.stop()
    ran = hvprobe("doctor", "--kubeconfig", str(api.kubeconfig()), "--node", NODE)
    assert "no VMI names after 5 s" in ran.stderr
    assert "fail  VMI names: unavailable" in ran.stdout
    assert "Connection refused" in ran.stdout


SERVICE_ACCOUNT = """
mount -t tmpfs tmpfs /run && dir=/run/secrets/kubernetes.io/serviceaccount &&
mkdir -p "$dir" && cp "$1" "$dir/token" && cp "$2" "$dir/ca.crt" && shift 2 && exec "$@"
"""
"""Runs a program with the service account that a pod has, in a mount namespace of its own."""


def test_a_mounted_service_account_means_a_cluster(api: ApiServer, guests: Guests) -> None:
    """With a mounted service account, names come from the API server; --standalone overrides it."""
    api.store.create(vmi("by-pod", architecture=NATIVE))
    guests.start(pod_uid("default", "by-pod"), "default_by-domain", accel=("tcg",))
    files = (str(api.token_file), str(api.authority.cert))
    before = ("unshare", "--mount", "sh", "-c", SERVICE_ACCOUNT, "sh", *files)
    for flags, name in (((), "by-pod"), (("--standalone",), "by-domain")):
        ran = hvprobe("snapshot", "--node", NODE, *flags, before=before, **api.environ)
        assert ran.returncode == 0, ran.stderr
        taken = json.loads(ran.stdout)
        assert {entry["name"] for entry in taken["vmis"]} & {"by-pod", "by-domain"} == {name}
        assert (taken["health"]["vmi_watch"] is None) == bool(flags)
