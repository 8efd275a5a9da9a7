# SPDX-License-Identifier: Apache-2.0
"""The rules by promtool, KubeVirt's conventions for them, and that each rule's tests can fail."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from ebpf.hooks import HOOKS, KVM_EXIT, KVM_USERSPACE_EXIT, KVM_VCPU_IOCTL, MSHV_VP_IOCTL
from probes.judge.cause import Cause
from tests.support.podmonitor import listed, scrape_job, shipped
from tests.support.prometheus_process import missing_programs
from tests.support.rule_files import MONITORING, all_rules, faster, load_groups, write_rules

TESTS = sorted(Path(__file__).parent.glob("*.test.yaml"))
RULES = all_rules(load_groups())
ALERTS = [rule for rule in RULES if "alert" in rule]
PER_VM = {"KubeVirtVMISoftwareEmulation", "KubeVirtVMIHypervisorUnknown"}
SECTIONS = ["Meaning", "Impact", "Diagnosis", "Mitigation"]

needs_promtool = pytest.mark.skipif(
    bool(missing_programs()) and "prometheus" not in os.environ.get("HVPROBE_REQUIRE", ""),
    reason=f"not installed: {', '.join(missing_programs())}",
)


def name_of(rule: dict[str, Any]) -> str:
    """The recorded series or the alert."""
    return str(rule.get("record") or rule["alert"])


def promtool(*arguments: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run promtool in ``folder``; both outputs in stdout."""
    return subprocess.run(
        ["promtool", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )


def run_tests(
    groups: list[dict[str, Any]], folder: Path, about: str = ""
) -> "subprocess.CompletedProcess[str]":
    """``promtool test rules`` with these groups in place of the project's.

    Runs every file of cases, or those that speak of the rule ``about``.
    """
    write_rules(groups, folder / "rules.yaml")
    tests = [test for test in TESTS if about in test.read_text(encoding="utf-8")]
    for test in tests:
        shutil.copy(test, folder)
    return promtool("test", "rules", *(test.name for test in tests), folder=folder)


def changed(name: str, **fields: str) -> list[dict[str, Any]]:
    """The project's groups with some fields of one rule changed."""
    groups = load_groups()
    for rule in all_rules(groups):
        if name_of(rule) == name:
            rule.update(fields)
    return groups


@needs_promtool
def test_rules_pass_promtool_check(tmp_path: Path) -> None:
    """`promtool check rules` finds every rule and no problem."""
    write_rules(load_groups(), tmp_path / "rules.yaml")
    result = promtool("check", "rules", "--lint-fatal", "rules.yaml", folder=tmp_path)
    assert result.returncode == 0, result.stdout
    assert f"{len(RULES)} rules found" in result.stdout


@needs_promtool
def test_rules_behave(tmp_path: Path) -> None:
    """Every case of every *.test.yaml holds."""
    result = run_tests(load_groups(), tmp_path)
    assert result.returncode == 0, result.stdout
    assert result.stdout.count("SUCCESS") == len(TESTS)


@needs_promtool
@pytest.mark.parametrize("name", [name_of(rule) for rule in RULES])
def test_a_rule_that_never_yields_is_noticed(name: str, tmp_path: Path) -> None:
    """The cases notice when a rule records or fires nothing."""
    assert run_tests(changed(name, expr="vector(1) > 1"), tmp_path, name).returncode != 0


@needs_promtool
@pytest.mark.parametrize("name", [name_of(alert) for alert in ALERTS])
@pytest.mark.parametrize("field", ["for", "keep_firing_for"])
def test_an_alert_with_other_timing_is_noticed(name: str, field: str, tmp_path: Path) -> None:
    """The cases notice an alert that fires at once, waits longer, or holds on too long."""
    for duration in ("0s", "20m"):
        if name == "HvprobeDown" and field == "keep_firing_for" and duration == "0s":
            continue  # what it has already
        result = run_tests(changed(name, **{field: duration}), tmp_path, name)
        assert result.returncode != 0, f"{field}: {duration} goes unnoticed"


CUTS = [
    # (rule, the part of its expression, what stands there instead)
    ("cluster:kubevirt_vmi_hypervisor:count", "topk by (namespace, name) (1, ", "("),
    ("namespace:kubevirt_vmi_hypervisor:count", "topk by (namespace, name) (1, ", "("),
    ("node:kubevirt_vmi_hypervisor:count", "topk by (namespace, name) (1, ", "("),
    ("cluster:kubevirt_vmi_hypervisor:count", "timestamp(", "("),
    ("KubeVirtVMISoftwareEmulation", "max by (node, namespace, name) ", ""),
    ("KubeVirtVMISoftwareEmulation", "max(max_over_time(", "min(max_over_time("),
    ("KubeVirtVMISoftwareEmulation", "[15m]", "[1m]"),
    ("KubeVirtVMISoftwareEmulation", "unless on ()", "and on ()"),
    ("KubeVirtVMISoftwareEmulation", '"vm", "$1"', '"other", "$1"'),
    ("KubeVirtEmulationOnCapableNode", "max by (node, namespace, name) ", ""),
    ("KubeVirtEmulationOnCapableNode", "count by (node) ", "count "),
    ("KubeVirtEmulationOnCapableNode", "max(max_over_time(", "min(max_over_time("),
    ("KubeVirtEmulationOnCapableNode", "[15m]", "[1m]"),
    ("KubeVirtEmulationOnCapableNode", "and on ()", "unless on ()"),
    ("KubeVirtVMIHypervisorUnknown", "max by (node, namespace, name) ", ""),
    ("KubeVirtVMIHypervisorUnknown", "unless on (namespace, name)", "unless"),
    ("KubeVirtVMIHypervisorUnknown", '"vm", "$1"', '"other", "$1"'),
    ("KubeVirtNodeHypervisorUnavailable", "max by (node)", "min by (node)"),
    ("KubeVirtNodeHypervisorUnavailable", "[15m]", "[1m]"),
    ("KubeVirtNodeHypervisorUnavailable", "unless on ()", "and on ()"),
    ("HvprobeHookDetached", '{hook!="kvm_exit"}', ""),
    ("HvprobeHookDetached", "and on (node, hook)", "or on (node, hook)"),
    ("HvprobeHookDetached", "[24h:5m]", "[1h:5m]"),
    ("HvprobeHookDetached", "or on (node)", "and on (node)"),
    ("HvprobeHookDetached", '{hook!~"sched_.+|.+_(dev|vm|partition)_ioctl"}', ""),
    ("HvprobeHookDetached", "(kubevirt_node_hypervisor_available) == 0", "(vector(1)) == 0"),
    ("HvprobeCountsIncomplete", "rate(hvprobe_ledger_dropped_total[10m])", "vector(0)"),
    ("HvprobeCountsIncomplete", "rate(hvprobe_hook_missed_total[10m])", "vector(0)"),
    ("HvprobeCountsIncomplete", "sum by (node) ", ""),
    ("HvprobeCountsIncomplete", "[10m]", "[30m]"),
    ("HvprobeCountsIncomplete", "rate(", "delta("),
    ("HvprobeDown", 'phase="running", node!=""', 'node!=""'),
    ("HvprobeDown", 'group by (node) (up{job="hvprobe"})\n', "vector(1) > 1\n"),
    ("HvprobeDown", 'and avg_over_time(up{job="hvprobe"}[5m]) >= 0.5', ""),
    ("HvprobeDown", 'up{job="hvprobe"} == 1 and', ""),
    ("HvprobeDown", 'absent(up{job="hvprobe"})', "(vector(1) > 1)"),
    ("HvprobeDown", "unless on ()", "or"),
    ("HvprobeDown", "(job, instance, pod, node)", "(job, instance, node)"),
]


@needs_promtool
@pytest.mark.parametrize(("name", "part", "instead"), CUTS)
def test_every_part_of_an_expression_is_needed(
    name: str, part: str, instead: str, tmp_path: Path
) -> None:
    """The cases notice when one part of an expression is taken away or turned round."""
    expr = next(rule["expr"] for rule in RULES if name_of(rule) == name)
    assert part in expr
    cut = expr.replace(part, instead)
    # In the same rules file, so a cut that is no PromQL would fail for the wrong reason.
    groups = changed(name, expr=cut)
    write_rules(groups, tmp_path / "rules.yaml")
    check = promtool("check", "rules", "rules.yaml", folder=tmp_path)
    assert check.returncode == 0, check.stdout
    assert run_tests(groups, tmp_path, name).returncode != 0


@pytest.mark.parametrize("name", [name_of(alert) for alert in ALERTS])
def test_every_alert_is_seen_firing_quiet_and_resolved(name: str) -> None:
    """Its cases have it fire, have it stay quiet throughout, and have it end after it fired."""
    histories = []
    for test in TESTS:
        for case in yaml.safe_load(test.read_text(encoding="utf-8"))["tests"]:
            checks = [c for c in case.get("alert_rule_test", []) if c["alertname"] == name]
            if checks:
                histories.append([bool(check["exp_alerts"]) for check in checks])
    assert any(any(history) for history in histories)
    assert any(not any(history) for history in histories)
    assert any(any(history) and not history[-1] for history in histories)


@pytest.mark.parametrize("alert", ALERTS, ids=name_of)
def test_alerts_follow_kubevirts_conventions(alert: dict[str, Any]) -> None:
    """Name, labels and annotations are what KubeVirt's own rule linter asks for."""
    name = alert["alert"]
    assert re.fullmatch(r"([A-Z][A-Za-z0-9]*)+", name)
    assert len(name) <= 50
    labels = alert["labels"]
    assert labels["severity"] in {"critical", "warning", "info"}
    assert labels["operator_health_impact"] in {"critical", "warning", "none"}
    assert labels["kubernetes_operator_part_of"] == "kubevirt"
    assert labels["kubernetes_operator_component"] == "kubevirt"
    annotations = alert["annotations"]
    assert set(annotations) == {"summary", "description", "runbook_url"}
    assert annotations["summary"].endswith(".")
    assert annotations["runbook_url"].endswith(f"/deploy/monitoring/runbooks/{name}.md")
    assert re.fullmatch(r"\d+m", alert["for"])
    if name in PER_VM:
        assert labels["operator_health_impact"] == "none"
        assert alert["expr"].startswith("label_replace(")
        assert '"vm", "$1", "name", "(.+)"' in alert["expr"]


def test_the_alerts_and_records_are_those_of_the_contract() -> None:
    """Names are a public face: none is added, lost or renamed unnoticed."""
    assert {name_of(rule) for rule in RULES} == {
        "cluster:kubevirt_vmi_hypervisor:count",
        "namespace:kubevirt_vmi_hypervisor:count",
        "node:kubevirt_vmi_hypervisor:count",
        "KubeVirtVMISoftwareEmulation",
        "KubeVirtEmulationOnCapableNode",
        "KubeVirtVMIHypervisorUnknown",
        "KubeVirtNodeHypervisorUnavailable",
        "HvprobeHookDetached",
        "HvprobeCountsIncomplete",
        "HvprobeDown",
    }


def test_the_description_names_each_cause_in_the_agents_words() -> None:
    """KubeVirtVMISoftwareEmulation has phrase and remedy of every cause, and of none beside."""
    text = next(
        alert["annotations"]["description"]
        for alert in ALERTS
        if alert["alert"] == "KubeVirtVMISoftwareEmulation"
    )
    branches = re.findall(r'if eq \$cause "(\w+)" }} (.+?)\. Remedy: (.+?)\. {{-', text)
    assert branches == [(cause.value, cause.phrase, cause.remedy) for cause in Cause]


def test_the_runbook_has_each_cause() -> None:
    """The runbook has a section for each cause, in order, which begins with its remedy."""
    page = MONITORING / "runbooks/KubeVirtVMISoftwareEmulation.md"
    found = re.findall(r"^### `(\w+)`: (.+)\n\nRemedy: (.+)\.$", page.read_text(), re.MULTILINE)
    assert found == [(cause.value, cause.phrase, cause.remedy) for cause in Cause]


def test_every_alert_has_a_runbook_with_its_four_sections() -> None:
    """One page per alert, no page without an alert, sections in the usual order, none empty."""
    pages = {page.stem: page for page in (MONITORING / "runbooks").glob("*.md")}
    assert set(pages) == {alert["alert"] for alert in ALERTS}
    for name, page in pages.items():
        text = page.read_text(encoding="utf-8")
        assert text.startswith(f"# {name}\n")
        parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
        assert parts[1::2] == SECTIONS, name
        assert all(len(body.split()) > 15 for body in parts[2::2]), name


def test_links_between_the_pages_lead_somewhere() -> None:
    """Every relative link in the runbooks, README and queries.md names a file that is there."""
    for page in MONITORING.rglob("*.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} → {target}"


def test_the_proving_hooks_of_the_alert_are_those_of_the_agent() -> None:
    """HvprobeHookDetached takes as proof of KVM activity what ebpf/hooks.py calls so."""
    expr = next(alert["expr"] for alert in ALERTS if alert["alert"] == "HvprobeHookDetached")
    excluded = re.search(r'hook!~"([^"]+)"', expr)
    assert excluded is not None
    proving = {hook.name for hook in HOOKS if not re.fullmatch(excluded[1], hook.name)}
    assert proving == {
        hook.name
        for hook in (
            KVM_VCPU_IOCTL,
            KVM_USERSPACE_EXIT,
            KVM_EXIT,
            MSHV_VP_IOCTL,
        )
    }


def test_a_hook_that_may_be_detached_is_never_called_lost() -> None:
    """HvprobeHookDetached leaves out exactly the hooks that the agent attaches on demand."""
    expr = next(alert["expr"] for alert in ALERTS if alert["alert"] == "HvprobeHookDetached")
    left_out = re.findall(r'hook!="([^"]+)"', expr)
    assert left_out == [hook.name for hook in HOOKS if hook.on_demand is not None]


def test_podmonitor_gives_the_rules_what_they_lean_on() -> None:
    """The labels of a VMI win, the job is called hvprobe, every series has its node."""
    job = scrape_job(listed([]), interval="30s")
    assert job["honor_labels"] is True
    spec = shipped()["spec"]
    (endpoint,) = spec["podMetricsEndpoints"]
    assert endpoint["port"] == "metrics"
    assert spec["jobLabel"] == "app.kubernetes.io/name"
    assert spec["selector"]["matchLabels"]["app.kubernetes.io/name"] == "hvprobe"
    node = {
        "source_labels": ["__meta_kubernetes_pod_node_name"],
        "target_label": "node",
        "action": "replace",
    }
    assert node in job["relabel_configs"]


@needs_promtool
def test_faster_rules_are_the_same_rules(tmp_path: Path) -> None:
    """Speeding up changes times only: promtool accepts it, and 5 m becomes 5 s."""
    quick = faster(load_groups(), 60)
    write_rules(quick, tmp_path / "rules.yaml")
    result = promtool("check", "rules", "rules.yaml", folder=tmp_path)
    assert result.returncode == 0, result.stdout
    emulation = next(rule for rule in all_rules(quick) if name_of(rule) == ALERTS[0]["alert"])
    assert emulation["for"] == "5000ms"
    assert "[15000ms]" in emulation["expr"]
