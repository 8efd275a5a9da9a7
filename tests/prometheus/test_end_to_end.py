# SPDX-License-Identifier: Apache-2.0
"""A real Prometheus scrapes a real agent over TLS, which watches real guests.

The same Prometheus scrapes stand-ins for KubeVirt's components, with their own label sets.
"""

import os
import signal
import urllib.error
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.kernel_world import Qemu, wait_for
from tests.support.prometheus_process import running_prometheus
from tests.support.queries import (
    Query,
    all_queries,
    ask,
    documented_queries,
    leave_out,
    run_query,
    wait_until_all_answer,
)
from tests.support.rule_files import all_rules, faster, load_groups, write_rules
from tests.support.scraped_cluster import Machine, World, scrape_configs_of_others, served
from tests.support.secure_agent import Keys, SecureAgent, scrape_config
from tests.support.watched_node import DEADLINE_S, Alerts, WatchedNode

NODE = "n1"
ALPHA, BETA, PAUSED, ORPHAN = (
    f"{name}-{os.getpid()}" for name in ("alpha", "beta", "paused", "orphan")
)
FACTOR = 60
"""Speeds the rules up: an alert that waits minutes waits seconds here."""

EMULATED: Alerts = {("KubeVirtVMISoftwareEmulation", BETA)}
DOWN: Alerts = {("HvprobeDown", NODE)}

NOT_HERE = (
    # The agent runs without a cluster, so it watches no API server.
    "hvprobe_vmi_watch_",
    # The node's accelerator works, so the query for schedulable nodes without one has no result.
    "kube_node_labels",
    # Only a QEMU that holds KVM's statistics open has these (8.1 and later); no guest is nested.
    "kubevirt_vmi_vcpu_exits_by_class_total",
    "kubevirt_vmi_vcpu_halt_polling_seconds_total",
    "kubevirt_vmi_nested_guest_runs_total",
    # Whether guests that hardly run have guest time depends on how the kernel accounts it.
    "kubevirt_vmi_guest_cpu_seconds_total",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """An agent, its keys and certificates, and the Prometheus that scrapes it."""

    keys: Keys
    agent: SecureAgent
    node: WatchedNode


def kubevirt() -> World:
    """What KubeVirt reports of the same node: the running guests, and a VMI without a process."""
    return World(
        machines=[
            Machine(node=NODE, namespace="default", name=ALPHA, hypervisor_type="kvm"),
            Machine(node=NODE, namespace="lab", name=BETA, hypervisor_type="tcg"),
            Machine(node=NODE, namespace="lab", name=ORPHAN, hypervisor_type="kvm"),
        ]
    )


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """A running scene: scraped every second, with the rules loaded and 60 times as fast."""
    keys = Keys(tmp_path)
    rules = write_rules(faster(load_groups(), FACTOR), tmp_path / "rules.yaml")
    with served(kubevirt()) as address, SecureAgent(keys, NODE) as agent:
        others = scrape_configs_of_others(address)
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(rules)],
            "scrape_configs": [scrape_config(keys, agent.port, NODE), *others],
        }
        with running_prometheus(tmp_path, config) as url:
            yield Scene(
                keys=keys,
                agent=agent,
                node=WatchedNode(url, ours={NODE, ALPHA, BETA, PAUSED, ORPHAN}),
            )


def failing_rules(url: str) -> list[dict[str, str]]:
    """The rules that Prometheus could not evaluate, with its reasons. All rules must be loaded."""
    loaded = [rule for group in ask(url, "rules")["groups"] for rule in group["rules"]]
    assert len(loaded) == len(all_rules(load_groups()))
    return [rule for rule in loaded if rule["health"] != "ok"]


def queries_that_can_answer(node: WatchedNode) -> tuple[list[Query], list[Query]]:
    """The queries that must answer while an emulated guest runs, and those about changes."""
    # A kernel that cannot count VM exits (kvm_pvm) has no series for them.
    exits = "kubevirt_vmi_vcpu_exits_total"
    absent = NOT_HERE if run_query(node.url, exits) else (*NOT_HERE, exits)
    left = leave_out(all_queries(), metrics=absent)
    changes = [query for query in left if "changed their hypervisor" in query.where]
    assert changes
    return [query for query in left if query not in changes], changes


@pytest.mark.timeout(400)
def test_from_guest_to_alert(scene: Scene) -> None:
    """Only the alert for the emulated guest fires, until it stops, and every query answers.

    The alert says why the guest is emulated, and what to do.
    """
    node = scene.node
    with (
        Qemu(f"default_{ALPHA}"),
        Qemu(f"lab_{PAUSED}", "-S"),
        Qemu(f"lab_{BETA}", accel=("tcg",)) as beta,
    ):
        node.wait_until_firing(EMULATED)
        assert node.types() == {ALPHA: "kvm", BETA: "tcg", PAUSED: "kvm"}
        cause = node.cause(BETA)
        described = node.description("KubeVirtVMISoftwareEmulation", BETA)
        assert described.endswith(f"Cause: {cause.phrase}. Remedy: {cause.remedy}.")
        assert failing_rules(node.url) == []
        (verified,) = run_query(node.url, f'kubevirt_vmi_hypervisor_verified{{name="{BETA}"}}')
        expected = {"node": NODE, "namespace": "lab", "name": BETA}
        assert expected.items() <= verified["metric"].items()
        assert not [label for label in verified["metric"] if label.startswith("exported_")]
        now, changes = queries_that_can_answer(node)
        wait_until_all_answer(node.url, now, deadline_s=DEADLINE_S)
        (reported,) = [query for query in documented_queries() if "no agent reports" in query.where]
        (orphan,) = run_query(node.url, reported.expr)
        assert orphan["metric"]["name"] == ORPHAN

        beta.kill()
        node.wait_until_firing(set())
        # KubeVirt's setting was repaired and the VM restarted: the same name, another hypervisor.
        with Qemu(f"lab_{BETA}"):
            wait_for(lambda: node.types().get(BETA) == "kvm", "beta is accelerated now")
            wait_until_all_answer(node.url, changes, deadline_s=DEADLINE_S)
            assert node.firing() == set()


@pytest.mark.timeout(400)
def test_certificates_replaced_under_scrapes(scene: Scene) -> None:
    """A renewed pair is served at once, a broken one is reported instead, and no scrape fails."""
    node, keys, agent = scene.node, scene.keys, scene.agent
    failed = "hvprobe_tls_reload_failed"
    node.wait_for_value('up{job="hvprobe"}', 1)
    old = keys.served
    assert agent.shown_certificate() == old
    new = keys.renew()
    assert new != old
    wait_for(lambda: agent.shown_certificate() == new, "the new certificate is served")
    node.wait_for_scrapes(3)
    assert node.value(failed) == 0

    keys.spoil()
    node.wait_for_value(failed, 1)
    assert agent.shown_certificate() == new
    node.wait_for_scrapes(3)

    newest = keys.renew()
    node.wait_for_value(failed, 0)
    assert agent.shown_certificate() == newest
    node.wait_for_scrapes(3)
    assert node.firing() == set()


@pytest.mark.timeout(400)
def test_an_agent_that_is_killed(scene: Scene) -> None:
    """When the agent is killed, HvprobeDown fires for its node until the agent is back."""
    scene.node.wait_for_value('up{job="hvprobe"}', 1)
    port = scene.agent.port
    scene.agent.end(signal.SIGKILL, DEADLINE_S)
    scene.node.wait_until_firing(DOWN)
    with SecureAgent(scene.keys, NODE, port=port):
        scene.node.wait_until_firing(set())


def test_a_scraper_without_certificate_is_refused(tmp_path: Path) -> None:
    """A client without a certificate gets only /healthz and /readyz, which kubelet needs."""
    keys = Keys(tmp_path)
    with SecureAgent(keys, NODE) as agent:
        assert "hvprobe_build_info" in agent.get("/metrics")
        agent._context = keys.authority.client_context()
        for path in ("/metrics", "/", "/snapshot"):
            with pytest.raises(urllib.error.HTTPError) as caught:
                agent.get(path)
            with caught.value as refused:
                assert refused.code == 403
                assert refused.read() == b"a client certificate is required\n"
        assert agent.get("/healthz") == "alive\n"
        assert agent.get("/readyz") == "ready\n"
