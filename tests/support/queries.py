# SPDX-License-Identifier: Apache-2.0
"""Every query the project documents or draws, and a way to run them all against a Prometheus.

Owns finding the queries (dashboard.json, perses-dashboard.yaml, queries.md) and asking a Prometheus
server for them. Must not know where the series come from: tests/monitoring serves made-up ones,
tests of other folders call ``wait_until_all_answer`` with a real agent behind the same dashboards.
"""

import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.support.rule_files import MONITORING

DASHBOARD = MONITORING / "dashboard.json"
PERSES_DASHBOARD = MONITORING / "perses-dashboard.yaml"
DOCUMENT = MONITORING / "queries.md"

_FENCE = re.compile(r"^```promql\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^## (.+)$", re.MULTILINE)
_LABEL_VALUES = re.compile(r"^label_values\((?P<selector>.+), *(?P<label>\w+)\)$")
_VARIABLES = {
    "$__rate_interval": "1m",
    "$__interval": "15s",
    "$__range": "1h",
    "$node": ".*",
    "$namespace": ".*",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One query and where it stands."""

    where: str
    """Panel title, variable name or heading: for the message when it fails."""
    expr: str
    """PromQL with every dashboard variable replaced."""


def documented_queries(path: Path = DOCUMENT) -> list[Query]:
    """Every block fenced as promql, called by the heading above it."""
    text = path.read_text(encoding="utf-8")
    headings = [(match.start(), match[1]) for match in _HEADING.finditer(text)]
    queries = []
    for block in _FENCE.finditer(text):
        above = [title for start, title in headings if start < block.start()]
        queries.append(Query(where=f"{path.name}: {above[-1]}", expr=block[1].strip()))
    return queries


def dashboard_queries(path: Path = DASHBOARD) -> list[Query]:
    """Every query of the dashboard's panels, variables and annotations."""
    dashboard: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    queries = [
        Query(where=f"panel {panel['title']!r}", expr=_substitute(target["expr"]))
        for panel in _panels(dashboard["panels"])
        for target in panel.get("targets", [])
    ]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            expr = _variable_query(variable["query"]["query"])
            queries.append(Query(where=f"variable {variable['name']!r}", expr=expr))
    for annotation in dashboard["annotations"]["list"]:
        if "expr" in annotation:
            expr = _substitute(annotation["expr"])
            queries.append(Query(where=f"annotation {annotation['name']!r}", expr=expr))
    return queries


def perses_queries(path: Path = PERSES_DASHBOARD) -> list[Query]:
    """Every query of the Perses dashboard's panels and variables."""
    config: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))["spec"]["config"]
    queries = [
        Query(
            where=f"Perses panel {panel['spec']['display']['name']!r}",
            expr=_substitute(query["spec"]["plugin"]["spec"]["query"]),
        )
        for panel in config["panels"].values()
        for query in panel["spec"]["queries"]
    ]
    for variable in config["variables"]:
        values = variable["spec"]["plugin"]["spec"]
        (series,) = values["matchers"]
        expr = _variable_query(f"label_values({series}, {values['labelName']})")
        queries.append(Query(where=f"Perses variable {variable['spec']['name']!r}", expr=expr))
    return queries


def all_queries() -> list[Query]:
    """The queries of the document and of both dashboards, each expression once."""
    found = [*documented_queries(), *dashboard_queries(), *perses_queries()]
    return list({" ".join(query.expr.split()): query for query in reversed(found)}.values())


def leave_out(queries: Iterable[Query], *, metrics: Iterable[str]) -> list[Query]:
    """Without the queries over metrics that the caller's world cannot have, named one by one."""
    unwanted = tuple(metrics)
    return [query for query in queries if not any(metric in query.expr for metric in unwanted)]


def _panels(panels: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for panel in panels:
        yield panel
        yield from _panels(panel.get("panels", []))


def _substitute(expr: str) -> str:
    """Replace Grafana's variables as Grafana does when "All" is chosen."""
    for variable, value in _VARIABLES.items():
        expr = expr.replace(variable, value)
    if re.search(r"\$(?!\d)", expr):  # label_replace has "$1"
        raise ValueError(f"a dashboard variable has no value in this test: {expr}")
    return expr


def _variable_query(definition: str) -> str:
    match = _LABEL_VALUES.match(definition)
    if match is None:
        raise ValueError(f"not a label_values() query: {definition}")
    label = match["label"]
    # A series without the label would be offered as an empty choice: it is not data.
    return f"group by ({label}) ({_substitute(match['selector'])}) unless on ({label}) vector(1)"


def ask(url: str, path: str, parameters: dict[str, str] | None = None) -> dict[str, Any]:
    """The ``data`` of a Prometheus API answer. Raises ValueError with the server's own words."""
    address = f"{url}/api/v1/{path}"
    if parameters:
        address += "?" + urllib.parse.urlencode(parameters)
    try:
        with urllib.request.urlopen(address, timeout=30) as response:
            answer: dict[str, Any] = json.load(response)
    except urllib.error.HTTPError as err:
        with err:
            said = err.read().decode()
        raise ValueError(f"{path} {parameters}: {err.code} {said}") from err
    data: dict[str, Any] = answer["data"]
    return data


def run_query(url: str, expr: str) -> list[dict[str, Any]]:
    """The instant vector of ``expr`` now; NaN is no data."""
    samples: list[dict[str, Any]] = ask(url, "query", {"query": expr})["result"]
    return [sample for sample in samples if sample["value"][1] != "NaN"]


def wait_until_all_answer(url: str, queries: Iterable[Query], *, deadline_s: float) -> None:
    """Return when every query has returned data once. Raises AssertionError naming the others."""
    waiting = list(queries)
    end = time.monotonic() + deadline_s
    while True:
        waiting = [query for query in waiting if not run_query(url, query.expr)]
        if not waiting:
            return
        if time.monotonic() > end:
            named = "\n".join(f"{query.where}: {query.expr}" for query in waiting)
            raise AssertionError(f"no data within {deadline_s} s from:\n{named}")
        time.sleep(0.2)
