# SPDX-License-Identifier: Apache-2.0
"""perses-dashboard.yaml is what perses-operator and Perses accept."""

import copy
import itertools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema
import pytest
import yaml

from tests.support.perses_schemas import GRID, LIST_VARIABLE, PANEL_KEY, PLUGINS
from tests.support.queries import DASHBOARD, PERSES_DASHBOARD

Json = dict[str, Any]
RESOURCE: Json = yaml.safe_load(PERSES_DASHBOARD.read_text(encoding="utf-8"))
GRAFANA: Json = json.loads(DASHBOARD.read_text(encoding="utf-8"))


def plugins(config: Json) -> Iterator[Json]:
    """Each plugin of the dashboard: of panels, queries and variables."""
    for panel in config["panels"].values():
        yield panel["spec"]["plugin"]
        for query in panel["spec"]["queries"]:
            yield query["spec"]["plugin"]
    for variable in config["variables"]:
        yield variable["spec"]["plugin"]


def faults(config: Json) -> list[str]:
    """What Perses would refuse, one line for each fault."""
    found: list[str] = []

    def check(value: object, schema: Json) -> None:
        errors = jsonschema.Draft202012Validator(schema).iter_errors(value)
        found.extend(f"{error.json_path}: {error.message}" for error in errors)

    for plugin in plugins(config):
        check(plugin["spec"], PLUGINS[plugin["kind"]])
    for variable in config["variables"]:
        check(variable["spec"], LIST_VARIABLE)
    for layout in config["layouts"]:
        check(layout["spec"], GRID)
    return found


def test_perses_knows_every_field() -> None:
    """Plugins, variables and layouts are valid by Perses' own schemas, which are closed."""
    assert faults(RESOURCE["spec"]["config"]) == []


def set_unit(config: Json) -> None:
    config["panels"]["ledger-fill"]["spec"]["plugin"]["spec"]["yAxis"]["format"]["unit"] = "cps"


def set_field(config: Json) -> None:
    config["panels"]["hooks"]["spec"]["plugin"]["spec"]["columns"] = []


def drop_query(config: Json) -> None:
    del config["panels"]["hooks"]["spec"]["queries"][0]["spec"]["plugin"]["spec"]["query"]


def move_panel(config: Json) -> None:
    config["layouts"][0]["spec"]["items"][0]["x"] = -1


@pytest.mark.parametrize("change", [set_unit, set_field, drop_query, move_panel])
def test_perses_would_refuse_a_wrong_one(change: Callable[[Json], None]) -> None:
    """The schemas reject an unknown unit or field, a missing query and a wrong place."""
    wrong = copy.deepcopy(RESOURCE["spec"]["config"])
    change(wrong)
    assert len(faults(wrong)) == 1


def test_every_panel_has_one_place() -> None:
    """Each panel is in one layout, none leaves the 24 columns or covers another one."""
    config = RESOURCE["spec"]["config"]
    shown = []
    for layout in config["layouts"]:
        items = layout["spec"]["items"]
        shown += [item["content"]["$ref"].removeprefix("#/spec/panels/") for item in items]
        for item in items:
            assert item["x"] + item["width"] <= 24
        for one, other in itertools.combinations(items, 2):
            assert not (
                one["x"] < other["x"] + other["width"]
                and other["x"] < one["x"] + one["width"]
                and one["y"] < other["y"] + other["height"]
                and other["y"] < one["y"] + one["height"]
            ), (one, other)
    assert shown == list(config["panels"])
    assert all(re.fullmatch(PANEL_KEY, key) for key in config["panels"])


def test_both_dashboards_ask_the_same() -> None:
    """Panels, their order, their sections and queries are those of Grafana's dashboard."""
    config = RESOURCE["spec"]["config"]
    ours = [
        (
            panel["spec"]["display"]["name"],
            [
                " ".join(q["spec"]["plugin"]["spec"]["query"].split())
                for q in panel["spec"]["queries"]
            ],
        )
        for panel in config["panels"].values()
    ]
    panels = [panel for panel in GRAFANA["panels"] if panel["type"] != "row"]
    theirs = [
        (panel["title"], [" ".join(target["expr"].split()) for target in panel["targets"]])
        for panel in panels
    ]
    assert ours == theirs
    titles = [panel["title"] for panel in GRAFANA["panels"] if panel["type"] == "row"]
    assert [layout["spec"]["display"]["title"] for layout in config["layouts"]] == titles
