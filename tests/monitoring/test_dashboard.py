# SPDX-License-Identifier: Apache-2.0
"""The dashboard has no fault that a user would otherwise notice only after importing it."""

import itertools
import json
import re
from typing import Any

import pytest

from tests.support.exported_metrics import exported_metrics
from tests.support.queries import DASHBOARD, Query, all_queries, dashboard_queries
from tests.support.rule_files import all_rules, load_groups
from tests.support.scraped_cluster import World

BOARD: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))


def overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    """Whether two panels share a cell of Grafana's grid."""
    return (
        one["x"] < other["x"] + other["w"]
        and other["x"] < one["x"] + one["w"]
        and one["y"] < other["y"] + other["h"]
        and other["y"] < one["y"] + one["h"]
    )


def test_panels_have_their_own_id_and_place() -> None:
    """No two panels share an id or a cell, and none leaves the 24 columns."""
    panels = BOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24, panel["title"]
    for one, other in itertools.combinations(panels, 2):
        assert not overlap(one["gridPos"], other["gridPos"]), (one["title"], other["title"])


def test_every_panel_uses_the_chosen_data_source() -> None:
    """Every panel and query uses the data source variable, not one particular Grafana's source."""
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    assert [v["name"] for v in BOARD["templating"]["list"]] == ["datasource", "node", "namespace"]
    for panel in BOARD["panels"]:
        if panel["type"] != "row":
            assert panel["datasource"] == chosen, panel["title"]
            assert panel["targets"], panel["title"]
            assert all(target["datasource"] == chosen for target in panel["targets"])


def names_in(expr: str) -> set[str]:
    """The metrics that an expression asks for."""
    without_labels = re.sub(r"\{[^}]*\}|\b(by|on|group_left) \([^)]*\)|\"[^\"]*\"", " ", expr)
    return set(
        re.findall(r"\b(?:\w+:)?(?:kubevirt|hvprobe|kme|kube|process)_[\w:]+", without_labels)
    )


OTHERS = (
    "virt-handler",
    "virt-controller",
    "virt-operator",
    "kube-state-metrics",
    "kubevirt-metrics-exporter",
)
QUERIES = all_queries()
EXPORTED = exported_metrics()
NOT_DRAWN = {
    "hvprobe_refresh_failed",  # HvprobeDown and the failures by cause say it
    "hvprobe_tls_certificate_expiry_timestamp_seconds",
    "hvprobe_tls_reload_failed",
    "hvprobe_vmi_watch_malformed_total",
}
"""What only matters on the day on which an agent's log is read anyway."""
RECORDED = {str(rule["record"]) for rule in all_rules(load_groups()) if "record" in rule}


def test_every_metric_of_hvprobe_is_shown() -> None:
    """The dashboards show every metric of VMs, nodes and probes, and every recorded series."""
    drawn = set().union(*(names_in(query.expr) for query in dashboard_queries()))
    assert len(EXPORTED) > 25
    assert (EXPORTED | RECORDED) - drawn == NOT_DRAWN


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.where)
def test_queries_ask_for_metrics_that_exist(query: Query) -> None:
    """Each name is one that hvprobe exports or records, or that another component really has."""
    others = {"process_resident_memory_bytes", "process_cpu_seconds_total"}
    for component in OTHERS:
        text = World().exposition(component, "n1")
        others |= set(re.findall(r"^(\w+)", text, re.MULTILINE))
    assert names_in(query.expr) <= EXPORTED | RECORDED | others


def test_the_table_of_emulated_vmis_links_onwards() -> None:
    """The row of an emulated VMI links to its node, its namespace and the runbook."""
    (table,) = [panel for panel in BOARD["panels"] if panel["title"] == "Emulated VMIs"]
    urls = [link["url"] for link in table["fieldConfig"]["defaults"]["links"]]
    assert any("var-node=${__data.fields.node}" in url for url in urls)
    assert any("var-namespace=${__data.fields.namespace}" in url for url in urls)
    assert any(url.endswith("/runbooks/KubeVirtVMISoftwareEmulation.md") for url in urls)


def test_the_table_of_emulated_vmis_shows_their_causes() -> None:
    """The cause is a column of the table, beside whether the node could accelerate the VMI."""
    (table,) = [panel for panel in BOARD["panels"] if panel["title"] == "Emulated VMIs"]
    (target,), (organize,) = table["targets"], table["transformations"]
    assert "group_left (cause)" in target["expr"]
    assert list(organize["options"]["indexByName"])[-2:] == ["cause", "Value"]
