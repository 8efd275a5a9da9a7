# SPDX-License-Identifier: Apache-2.0
"""The dashboard has no fault that a user would otherwise notice only after importing it."""

import itertools
import json
import re
from typing import Any

from tests.support.queries import DASHBOARD, dashboard_queries

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


def test_every_metric_of_the_contract_is_shown() -> None:
    """The dashboard shows every metric that hvprobe exports, its metrics about itself included."""
    drawn = " ".join(query.expr for query in dashboard_queries())
    for metric in (
        "kubevirt_vmi_hypervisor_info",
        "kubevirt_vmi_hypervisor_verified",
        "kubevirt_vmi_hypervisor_fallback",
        "kubevirt_vmi_hypervisor_emulation_info",
        "kubevirt_vmi_vcpu_exits_total",
        "kubevirt_vmi_vcpu_userspace_exits_total",
        "kubevirt_node_hypervisor_available",
        "kubevirt_node_hypervisor_info",
        "hvprobe_build_info",
        "hvprobe_hook_attached",
        "hvprobe_hook_missed_total",
        "hvprobe_ledger_entries",
        "hvprobe_ledger_capacity",
        "hvprobe_ledger_dropped_total",
        "hvprobe_refresh_duration_seconds_bucket",
        "hvprobe_refresh_errors_total",
        "hvprobe_processes",
        "hvprobe_vmi_watch_up",
        "hvprobe_vmi_watch_last_sync_timestamp_seconds",
        "hvprobe_vmi_watch_restarts_total",
        "cluster:kubevirt_vmi_hypervisor:count",
        "namespace:kubevirt_vmi_hypervisor:count",
        "node:kubevirt_vmi_hypervisor:count",
    ):
        assert re.search(rf"{metric}\b", drawn), metric


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
