# SPDX-License-Identifier: Apache-2.0
"""Joins with kubevirt-metrics-exporter, by promtool, on its label sets, and that names differ."""

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.exported_metrics import exported_metrics
from tests.support.prometheus_process import missing_programs
from tests.support.queries import DOCUMENT, documented_queries
from tests.support.rule_files import all_rules, load_groups

QUERIES = {query.where.split(": ", 1)[1]: query.expr for query in documented_queries()}
EXPORTER = "kubevirt-metrics-exporter"
LABEL_SETS: Mapping[str, str] = {
    # What its PodMonitor gives: Prometheus keeps the target's namespace and pod.
    "as shipped": (
        'exported_namespace="{namespace}",exported_pod="virt-launcher-{name}-abcde",'
        f'namespace="{EXPORTER}",pod="{EXPORTER}-{{node}}",job="{EXPORTER}/{EXPORTER}"'
    ),
    "labels honoured": (
        f'namespace="{{namespace}}",pod="virt-launcher-{{name}}-abcde",job="{EXPORTER}"'
    ),
}
OURS = 'node="{node}",namespace="{namespace}",name="{name}",job="hvprobe",instance="{node}"'
VMIS = (("n1", "lab", "alpha"), ("n2", "lab", "beta"), ("n2", "web", "alpha"))
"""Node, namespace and name. Two have the same name."""

needs_promtool = pytest.mark.skipif(
    bool(missing_programs()) and "prometheus" not in os.environ.get("HVPROBE_REQUIRE", ""),
    reason=f"not installed: {', '.join(missing_programs())}",
)


def series(metric: str, labels: str, vmi: tuple[str, str, str], values: str) -> dict[str, str]:
    """One input series of promtool."""
    node, namespace, name = vmi
    filled = labels.format(node=node, namespace=namespace, name=name)
    return {"series": f"{metric}{{{filled}}}", "values": values}


def world(label_set: str) -> list[dict[str, str]]:
    """Two VMIs that both count, and one of which hvprobe knows nothing."""
    theirs = f'name="{{name}}",node="{{node}}",{LABEL_SETS[label_set]}'
    found = [
        {
            "series": f'kubevirt_node_hypervisor_info{{node="{node}",hypervisor_type="kvm",'
            f'module="{module}",nested="{nested}",job="hvprobe",instance="{node}"}}',
            "values": "1+0x40",
        }
        for node, module, nested in (("n1", "kvm_amd", "false"), ("n2", "kvm_intel", "true"))
    ]
    for index, vmi in enumerate(VMIS):
        for metric, step in (("exits", 3000), ("halt_exits", 600), ("tlb_flushes", 30)):
            rising = f"0+{step * (index + 1)}x40"
            found.append(series(f"kubevirt_vmi_kvm_{metric}_total", theirs, vmi, rising))
    for index, vmi in enumerate(VMIS[:2]):
        rising = f"7+{3000 * (index + 1)}x40"
        found.append(series("kubevirt_vmi_vcpu_exits_total", OURS, vmi, rising))
        info = OURS + ',hypervisor_type="kvm"'
        found.append(series("kubevirt_vmi_hypervisor_info", info, vmi, "1+0x40"))
    return found


EXPECTED: Mapping[str, Mapping[str, float]] = {
    "VM exits by hvprobe over those by the exporter": {
        '{namespace="lab", name="alpha"}': 1,
        '{namespace="lab", name="beta"}': 1,
    },
    "Share of VM exits of idle vCPUs": {
        '{namespace="lab", name="alpha"}': 0.2,
        '{namespace="lab", name="beta"}': 0.2,
    },
    "TLB flushes by kind of node": {
        '{module="kvm_amd", nested="false"}': 1,
        '{module="kvm_intel", nested="true"}': 5,
    },
    "VMIs with KVM exits that hvprobe does not call kvm": {
        '{namespace="web", name="alpha", node="n2"}': 180_000,
    },
}


def promtool(cases: dict[str, Any], folder: Path) -> "subprocess.CompletedProcess[str]":
    """``promtool test rules`` of queries, with no rules loaded."""
    file = folder / "joins.test.yaml"
    file.write_text(yaml.safe_dump(cases, sort_keys=False), encoding="utf-8")
    return subprocess.run(
        ["promtool", "test", "rules", file.name],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )


def cases(label_set: str, heading: str, expected: Mapping[str, float]) -> dict[str, Any]:
    """A query of queries.md after 15 minutes of that world."""
    samples = [{"labels": labels, "value": value} for labels, value in expected.items()]
    test = {"expr": QUERIES[heading], "eval_time": "15m", "exp_samples": samples}
    return {
        "rule_files": [],
        "evaluation_interval": "30s",
        "tests": [
            {
                "interval": "30s",
                "input_series": world(label_set),
                "promql_expr_test": [test],
            }
        ],
    }


@needs_promtool
@pytest.mark.parametrize("heading", EXPECTED)
@pytest.mark.parametrize("label_set", LABEL_SETS)
def test_joins_by_either_label_set(label_set: str, heading: str, tmp_path: Path) -> None:
    """Each documented join gives exact numbers, as the exporter is scraped and with its labels."""
    done = promtool(cases(label_set, heading, EXPECTED[heading]), tmp_path)
    assert done.returncode == 0, done.stdout


@needs_promtool
def test_a_join_that_is_wrong_is_noticed(tmp_path: Path) -> None:
    """Without label_replace the shipped label set joins nothing, and promtool says so."""
    heading = "VM exits by hvprobe over those by the exporter"
    wrong = cases("as shipped", heading, EXPECTED[heading])
    (test,) = wrong["tests"][0]["promql_expr_test"]
    test["expr"] = re.sub(r'label_replace\((.+), "namespace".+\)', r"\1", test["expr"])
    assert "label_replace" not in test["expr"]
    assert "got:" in promtool(wrong, tmp_path).stdout


def test_every_documented_join_with_the_exporter_is_tested() -> None:
    """Each query over the exporter's metrics has its numbers here."""
    theirs = {heading for heading, expr in QUERIES.items() if "kubevirt_vmi_kvm_" in expr}
    assert theirs == set(EXPECTED)


def exporter_names() -> set[str]:
    """The exporter's metrics that queries.md lists."""
    text = DOCUMENT.read_text(encoding="utf-8")
    return set(re.findall(r"^\| `(kubevirt_\w+)` \|", text, re.MULTILINE))


def test_no_name_of_ours_is_one_of_the_exporters() -> None:
    """No metric or record of hvprobe has the exporter's name or one of its prefixes."""
    assert len(exporter_names()) == 4
    ours = {str(rule["record"]) for rule in all_rules(load_groups()) if "record" in rule}
    ours |= exported_metrics()
    assert {"kubevirt_vmi_vcpu_exits_total", "hvprobe_build_info"} <= ours
    assert not ours & exporter_names()
    # What the exporter's README reserves: kubevirt_vmi_kvm_*, kubevirt_vmi_storage_*, kme_*.
    taken = ("kubevirt_vmi_kvm_", "kubevirt_vmi_storage_", "kme_", "container_")
    assert [name for name in sorted(ours) if name.startswith(taken)] == []
