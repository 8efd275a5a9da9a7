# SPDX-License-Identifier: Apache-2.0
"""Dashboard → the JSON that Grafana 10 and later import.

Pure. The schema is Grafana's dashboard model, version 39.
"""

from typing import Any

from dashboard_model import Dashboard, Kind, Panel, Query, Value, Variable

Json = dict[str, Any]
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
"""Every query's data source: the variable, not one particular Grafana's source."""
RUNBOOKS = "https://github.com/hvprobe/hvprobe/blob/main/deploy/monitoring/runbooks"
_ALL = {"selected": True, "text": ["All"], "value": ["$__all"]}


def rendered(dashboard: Dashboard) -> Json:
    """The dashboard as one JSON object."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": list(dashboard.tags),
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": dashboard.refresh,
        "time": {"from": f"now-{dashboard.duration}", "to": "now"},
        "timezone": "browser",
        "links": [],
        "fiscalYearStartMonth": 0,
        "liveNow": False,
        "weekStart": "",
        "annotations": {"list": [_builtin_annotation(), _alerts(dashboard.alerts)]},
        "templating": {"list": [_datasource(), *map(_variable, dashboard.variables)]},
        "panels": _panels(dashboard),
    }


def _panels(dashboard: Dashboard) -> list[Json]:
    """Sections are rows, which have ids of their own, above the panels'."""
    made: list[Json] = []
    top = 0
    row_id = 1 + max(panel.id for panel in dashboard.panels)
    for section in dashboard.sections:
        row = {"id": row_id, "type": "row", "title": section.title, "collapsed": False}
        made.append({**row, "gridPos": {"x": 0, "y": top, "w": 24, "h": 1}, "panels": []})
        made += [_panel(panel, top + 1) for panel in section.panels]
        row_id, top = row_id + 1, top + 1 + section.height
    return made


def _panel(panel: Panel, top: int) -> Json:
    place = panel.place
    made: Json = {
        "id": panel.id,
        "type": panel.kind.value,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "gridPos": {"x": place.x, "y": top + place.y, "w": place.width, "h": place.height},
        "fieldConfig": {"defaults": _defaults(panel), "overrides": _overrides(panel)},
        "options": _options(panel),
        "targets": [_target(panel.kind, *each) for each in enumerate(panel.queries)],
    }
    if panel.kind is Kind.TABLE:
        made["transformations"] = [_organize(panel)]
    return made


def _defaults(panel: Panel) -> Json:
    steps: list[Json] = [{"color": panel.color, "value": None}]
    if panel.threshold is not None:
        steps.append({"color": panel.threshold.color, "value": panel.threshold.value})
    made: Json = {
        "color": {"mode": "thresholds" if panel.kind is Kind.STAT else "palette-classic"},
        "mappings": _mappings(panel.value),
        "thresholds": {"mode": "absolute", "steps": steps},
    }
    for name in ("unit", "min", "max", "decimals"):
        if getattr(panel, name) is not None:
            made[name] = getattr(panel, name)
    if panel.kind is Kind.TIMESERIES:
        made["custom"] = {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 60 if panel.stacked else 10,
            "showPoints": "never",
            "spanNulls": False,
        }
        if panel.stacked:
            made["custom"]["stacking"] = {"mode": "normal", "group": "A"}
    if links := _links(panel):
        made["links"] = links
    return made


def _mappings(value: Value | None) -> list[Json]:
    if value is None or value.yes is None:
        return []
    words = {
        "0": {"text": "no", "color": value.no, "index": 0},
        "1": {"text": "yes", "color": value.yes, "index": 1},
    }
    return [{"type": "value", "options": words}]


def _links(panel: Panel) -> list[Json]:
    here = "/d/${__dashboard.uid}?${datasource:queryparam}"
    links: list[Json] = [
        {
            "title": f"This dashboard: {label} ${{__data.fields.{label}}}",
            "url": f"{here}&var-{label}=${{__data.fields.{label}}}&${{__url_time_range}}",
        }
        for label in panel.links
    ]
    if panel.runbook is not None:
        url = f"{RUNBOOKS}/{panel.runbook}.md"
        links.append({"title": "Runbook", "url": url, "targetBlank": True})
    return links


def _overrides(panel: Panel) -> list[Json]:
    return [
        {
            "matcher": {"id": "byName", "options": series},
            "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": color}}],
        }
        for series, color in panel.colors.items()
    ]


def _options(panel: Panel) -> Json:
    if panel.kind is Kind.STAT:
        return {
            "reduceOptions": {"values": False, "calcs": ["lastNotNull"], "fields": ""},
            "colorMode": "background",
            "graphMode": "none",
            "textMode": "auto",
            "justifyMode": "auto",
            "orientation": "auto",
        }
    if panel.kind is Kind.TIMESERIES:
        return {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    made: Json = {"showHeader": True, "cellHeight": "sm"}
    if panel.value is not None and panel.value.sort is not None:
        made["sortBy"] = [
            {"displayName": panel.value.header, "desc": panel.value.sort == "desc"},
        ]
    return made


def _organize(panel: Panel) -> Json:
    """Labels in the given order, then the value, or no value."""
    names = [column.label for column in panel.columns]
    headers = {each.label: each.header for each in panel.columns if each.header != each.label}
    hidden = {"Time": True}
    if panel.value is None:
        hidden["Value"] = True
    else:
        names.append("Value")
        headers["Value"] = panel.value.header
    return {
        "id": "organize",
        "options": {
            "excludeByName": hidden,
            "indexByName": {name: index for index, name in enumerate(names)},
            "renameByName": headers,
        },
    }


def _target(kind: Kind, number: int, query: Query) -> Json:
    over_time = kind is Kind.TIMESERIES
    made: Json = {
        "refId": "ABCDEFGH"[number],
        "datasource": SOURCE,
        "editorMode": "code",
        "expr": query.expr,
        "legendFormat": query.legend,
        "range": over_time,
        "instant": not over_time,
    }
    if kind is Kind.TABLE:
        made["format"] = "table"
    return made


def _datasource() -> Json:
    return {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "refresh": 1,
        "hide": 0,
        "includeAll": False,
        "multi": False,
        "regex": "",
        "skipUrlSync": False,
        "options": [],
        "current": {},
    }


def _variable(variable: Variable) -> Json:
    query = f"label_values({variable.series}, {variable.label})"
    return {
        "name": variable.name,
        "label": variable.title,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": "StandardVariableQuery"},
        "definition": query,
        "refresh": 2,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "sort": 1,
        "hide": 0,
        "regex": "",
        "skipUrlSync": False,
        "options": [],
        "current": _ALL,
    }


def _builtin_annotation() -> Json:
    return {
        "builtIn": 1,
        "datasource": {"type": "grafana", "uid": "-- Grafana --"},
        "enable": True,
        "hide": True,
        "iconColor": "rgba(0, 211, 255, 1)",
        "name": "Annotations & Alerts",
        "type": "dashboard",
    }


def _alerts(expr: str) -> Json:
    return {
        "datasource": SOURCE,
        "enable": True,
        "hide": False,
        "iconColor": "red",
        "name": "hvprobe alerts",
        "expr": expr,
        "titleFormat": "{{alertname}}",
        "textFormat": "{{node}} {{namespace}} {{name}} {{hook}}",
        "step": "60s",
    }
