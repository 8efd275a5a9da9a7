# SPDX-License-Identifier: Apache-2.0
"""Dashboard → the custom resource PersesDashboard of perses-operator (perses.dev/v1alpha2).

Pure. ``spec.config`` is the ``spec`` of a plain Perses dashboard. The plugins are those that Perses
ships (perses/plugins: TimeSeriesChart, StatChart, Table, PrometheusTimeSeriesQuery,
PrometheusLabelValuesVariable). Fields that only their newest versions have are avoided, because an
older Perses refuses the dashboard for them. No query names a datasource, so each uses the default
one of its Perses.
"""

import re
from typing import Any

from dashboard_model import Dashboard, Kind, Panel, Query, Section, Value, Variable
from grafana_dashboard import RUNBOOKS

Json = dict[str, Any]
UNITS = {
    "bytes": "bytes",
    "cps": "counts/sec",
    "percentunit": "percent-decimal",
    "s": "seconds",
    "short": "decimal",
}
COLORS = {"blue": "#5794f2", "green": "#56a64b", "orange": "#ff780a", "red": "#e02f44"}


def rendered(dashboard: Dashboard) -> Json:
    """The custom resource."""
    return {
        "apiVersion": "perses.dev/v1alpha2",
        "kind": "PersesDashboard",
        "metadata": {
            "name": dashboard.uid,
            "namespace": "hvprobe",
            "labels": {
                "app.kubernetes.io/name": "hvprobe",
                "app.kubernetes.io/part-of": "kubevirt",
            },
        },
        "spec": {
            "config": {
                "display": {"name": dashboard.title, "description": dashboard.description},
                "duration": dashboard.duration,
                "refreshInterval": dashboard.refresh,
                "variables": [_variable(variable) for variable in dashboard.variables],
                "panels": {key(panel): _panel(panel) for panel in dashboard.panels},
                "layouts": [_layout(section) for section in dashboard.sections],
            }
        },
    }


def key(panel: Panel) -> str:
    """The panel's key: its title with what Perses permits in one."""
    return re.sub(r"[^a-z0-9]+", "-", panel.title.lower()).strip("-")


def _variable(variable: Variable) -> Json:
    return {
        "kind": "ListVariable",
        "spec": {
            "name": variable.name,
            "display": {"name": variable.title},
            "allowAllValue": True,
            "allowMultiple": True,
            "customAllValue": ".*",
            "defaultValue": ["$__all"],
            "sort": "alphabetical-asc",
            "plugin": {
                "kind": "PrometheusLabelValuesVariable",
                "spec": {"labelName": variable.label, "matchers": [variable.series]},
            },
        },
    }


def _layout(section: Section) -> Json:
    return {
        "kind": "Grid",
        "spec": {
            "display": {"title": section.title, "collapse": {"open": True}},
            "items": [
                {
                    "x": panel.place.x,
                    "y": panel.place.y,
                    "width": panel.place.width,
                    "height": panel.place.height,
                    "content": {"$ref": f"#/spec/panels/{key(panel)}"},
                }
                for panel in section.panels
            ],
        },
    }


def _panel(panel: Panel) -> Json:
    display = {"name": panel.title}
    if panel.description:
        display["description"] = panel.description
    spec: Json = {
        "display": display,
        "plugin": {
            Kind.STAT: _stat,
            Kind.TIMESERIES: _timeseries,
            Kind.TABLE: _table,
        }[panel.kind](panel),
        "queries": [_query(query) for query in panel.queries],
    }
    if panel.runbook is not None:
        url = f"{RUNBOOKS}/{panel.runbook}.md"
        spec["links"] = [{"name": "Runbook", "url": url, "targetBlank": True}]
    return {"kind": "Panel", "spec": spec}


def _query(query: Query) -> Json:
    spec = {"query": re.sub(r"\n\s*", " ", query.expr)}
    if query.legend:
        spec["seriesNameFormat"] = query.legend
    plugin = {"kind": "PrometheusTimeSeriesQuery", "spec": spec}
    return {"kind": "TimeSeriesQuery", "spec": {"plugin": plugin}}


def _format(panel: Panel) -> Json:
    made: Json = {"unit": UNITS[panel.unit or "short"]}
    if panel.decimals is not None:
        made["decimalPlaces"] = panel.decimals
    return made


def _stat(panel: Panel) -> Json:
    thresholds: Json = {"defaultColor": COLORS[panel.color]}
    if panel.threshold is not None:
        color = COLORS[panel.threshold.color]
        thresholds["steps"] = [{"value": panel.threshold.value, "color": color}]
    spec = {"calculation": "last-number", "format": _format(panel), "thresholds": thresholds}
    return {"kind": "StatChart", "spec": spec}


def _timeseries(panel: Panel) -> Json:
    axis: Json = {"show": True, "format": _format(panel)}
    axis |= {name: limit for name in ("min", "max") if (limit := getattr(panel, name)) is not None}
    visual: Json = {"display": "line", "lineWidth": 1, "areaOpacity": 0.1}
    if panel.stacked:
        visual |= {"areaOpacity": 0.6, "stack": "all"}
    legend = {"position": "bottom", "mode": "list"}
    return {
        "kind": "TimeSeriesChart",
        "spec": {"legend": legend, "yAxis": axis, "visual": visual},
    }


def _table(panel: Panel) -> Json:
    columns: list[Json] = [{"name": "timestamp", "hide": True}]
    columns += [{"name": each.label, "header": each.header} for each in panel.columns]
    spec: Json = {"density": "compact", "columnSettings": columns}
    value = panel.value
    if value is None:
        columns.append({"name": "value", "hide": True})
        return {"kind": "Table", "spec": spec}
    columns.append({"name": "value", "header": value.header})
    if value.sort is not None:
        columns[-1] |= {"enableSorting": True, "sort": value.sort}
    if cells := _cells(value):
        spec["cellSettings"] = cells
    return {"kind": "Table", "spec": spec}


def _cells(value: Value) -> list[Json]:
    words = (("1", "yes", value.yes), ("0", "no", value.no))
    return [
        {
            "condition": {"kind": "Value", "spec": {"value": number}},
            "text": word,
            "textColor": COLORS[color],
        }
        for number, word, color in words
        if color is not None
    ]
