# SPDX-License-Identifier: Apache-2.0
"""Every documented and every dashboard query in a real Prometheus, and the alerts live."""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from probes.judge.cause import Cause
from tests.support.prometheus_process import missing_programs, running_prometheus
from tests.support.queries import (
    all_queries,
    ask,
    documented_queries,
    run_query,
    wait_until_all_answer,
)
from tests.support.rule_files import all_rules, faster, load_groups, shorten_ranges, write_rules
from tests.support.scraped_cluster import Machine, World, scrape_configs, served

DEADLINE_S = 60
FACTOR = 60
"""Alerts that wait minutes wait seconds here."""

if missing_programs() and "prometheus" not in os.environ.get("HVPROBE_REQUIRE", ""):
    pytest.skip(f"not installed: {', '.join(missing_programs())}", allow_module_level=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A served world and the Prometheus that scrapes it."""

    world: World
    url: str

    def firing(self) -> set[tuple[str, str]]:
        """(alert, what it is about) of every alert that fires now."""
        alerts = ask(self.url, "alerts")["alerts"]
        return {
            (alert["labels"]["alertname"], _subject(alert["labels"]))
            for alert in alerts
            if alert["state"] == "firing"
        }


def _subject(labels: dict[str, str]) -> str:
    return labels.get("vm") or labels.get("hook") or labels.get("node") or "cluster"


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """The world as it begins, scraped every second, with all rules loaded, 60 times as fast."""
    rules = write_rules(faster(load_groups(), FACTOR), tmp_path / "rules.yaml")
    world = World()
    with served(world) as address:
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(rules)],
            "scrape_configs": scrape_configs(address),
        }
        with running_prometheus(tmp_path, config) as url:
            yield Scene(world=world, url=url)


def wait_until(condition: Callable[[], bool], what: Callable[[], object]) -> None:
    """Wait for the condition; after the deadline fail with what there is instead."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, what()
        time.sleep(0.2)


def failing_rules(url: str) -> list[dict[str, str]]:
    """The rules that Prometheus could not evaluate, with its reasons. All rules must be loaded."""
    loaded = [rule for group in ask(url, "rules")["groups"] for rule in group["rules"]]
    assert len(loaded) == len(all_rules(load_groups()))
    return [rule for rule in loaded if rule["health"] != "ok"]


@pytest.mark.timeout(400)
def test_every_query_answers_and_every_alert_fires_and_resolves(scene: Scene) -> None:
    """All documented and dashboard queries return data; alerts follow the cluster as it changes."""
    wait_until(
        lambda: (
            scene.firing()
            == {
                ("KubeVirtVMISoftwareEmulation", "beta"),
                ("KubeVirtVMIHypervisorUnknown", "delta"),
                ("KubeVirtNodeHypervisorUnavailable", "n4"),
                ("HvprobeDown", "n3"),
            }
        ),
        scene.firing,
    )

    assert failing_rules(scene.url) == []
    (described,) = [
        alert["annotations"]["description"]
        for alert in ask(scene.url, "alerts")["alerts"]
        if alert["labels"]["alertname"] == "KubeVirtVMISoftwareEmulation"
    ]
    allowed = Cause.EMULATION_ALLOWED
    assert described.endswith(f"Cause: {allowed.phrase}. Remedy: {allowed.remedy}.")

    # A VMI migrates to a node where it is emulated, and a hook of n1 is lost.
    moved = Machine(node="n2", namespace="lab", name="mover", hypervisor_type="tcg")
    scene.world.replace("mover", moved)
    scene.world.lost_hooks.add(("n1", "kvm_vcpu_ioctl"))
    wait_until_all_answer(scene.url, all_queries(), deadline_s=DEADLINE_S)
    lost = ("HvprobeHookDetached", "kvm_vcpu_ioctl")
    wait_until(lambda: lost in scene.firing(), scene.firing)

    assert failing_rules(scene.url) == []

    # What was wrong is repaired: beta and delta stop, n1 gets its hook back.
    scene.world.replace("beta", None)
    scene.world.replace("delta", None)
    scene.world.lost_hooks.clear()
    wait_until(
        lambda: (
            scene.firing() == {("KubeVirtNodeHypervisorUnavailable", "n4"), ("HvprobeDown", "n3")}
        ),
        scene.firing,
    )


@pytest.mark.timeout(200)
def test_joins_give_the_right_numbers(scene: Scene) -> None:
    """CPU, memory and counts are split by hypervisor as the cluster really is split."""
    # rate() divides by its whole range: the ranges are shortened to what a test has scraped.
    documented = {
        query.where.split(": ", 1)[1]: shorten_ranges(query.expr, FACTOR)
        for query in documented_queries()
    }

    def by_type(heading: str) -> dict[str, float]:
        samples = run_query(scene.url, documented[heading])
        return {each["metric"]["hypervisor_type"]: float(each["value"][1]) for each in samples}

    # Two emulated VMIs use 1.6 cores each, two accelerated ones 0.4 each, so does the unknown one;
    # the one on n3, where no agent is, belongs to no type.
    cpu = "CPU use by hypervisor, in cores"
    cores = {"tcg": 3.2, "kvm": 0.8, "unknown": 0.4}
    wait_until(lambda: by_type(cpu) == pytest.approx(cores, rel=0.1), lambda: by_type(cpu))
    running = "Time vCPUs run, by hypervisor"
    wait_until(lambda: by_type(running) == pytest.approx(cores, rel=0.1), lambda: by_type(running))

    counted = run_query(scene.url, "cluster:kubevirt_vmi_hypervisor:count")
    by_count = {each["metric"]["hypervisor_type"]: each["value"][1] for each in counted}
    assert by_count == {"kvm": "2", "tcg": "2", "unknown": "1"}
    systems = run_query(scene.url, documented["VMIs by hypervisor and guest operating system"])
    assert sum(float(each["value"][1]) for each in systems) == 5
    memory = "Memory by hypervisor: resident on the host, and given to the guests"
    assert by_type(memory) == {"kvm": 2e9, "tcg": 2e9, "unknown": 1e9}
    shares = run_query(scene.url, documented["Share of VM exits that go all the way to QEMU"])
    assert {each["metric"]["name"] for each in shares} == {"alpha", "mover"}
    for each in shares:
        assert float(each["value"][1]) == pytest.approx(30 / 900, rel=0.05)
    missing = run_query(scene.url, documented["Running VMIs that no agent reports"])
    assert [each["metric"]["name"] for each in missing] == ["orphan"]

    def by_name(heading: str) -> dict[str, float]:
        samples = run_query(scene.url, documented[heading])
        return {each["metric"]["name"]: float(each["value"][1]) for each in samples}

    # Rates are right once a range is full of scrapes, and each target is first scraped at a time of
    # its own. The exporter counts n3's VMI as well, and both VMIs that hvprobe knows to be
    # accelerated.
    def settle(heading: str, share: float) -> None:
        expected = {name: pytest.approx(share, rel=0.1) for name in ("alpha", "mover")}
        wait_until(lambda: by_name(heading) == expected, lambda: by_name(heading))

    settle("VM exits by hvprobe over those by the exporter", 1)
    settle("Share of VM exits of idle vCPUs", 100 / 900)
    settle("Share of CPU time in guest code", 0.75)
    assert set(by_name("VMIs with KVM exits that hvprobe does not call kvm")) == {"delta", "orphan"}
