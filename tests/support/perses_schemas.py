# SPDX-License-Identifier: Apache-2.0
"""JSON Schemas of the Perses plugins that our dashboard uses.

The custom resource's own schema permits anything as a plugin's ``spec``; Perses itself checks it
with the CUE schemas of perses/plugins. These are those schemas, for the fields that they had in
2025 and have now, each closed as there:

    TimeSeriesChart                timeserieschart/schemas/time-series.cue
    StatChart                      statchart/schemas/stat.cue
    Table                          table/schemas/table.cue
    PrometheusTimeSeriesQuery      prometheus/schemas/prometheus-time-series-query/query.cue
    PrometheusLabelValuesVariable  prometheus/schemas/prometheus-label-values/…-label-values.cue

Units, thresholds and legends are perses/shared's cue/common, variables and layouts perses/spec's
go/dashboard. Must not know which panels there are.
"""

from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]
NUMBER: Json = {"type": "number"}
TEXT: Json = {"type": "string"}
FLAG: Json = {"type": "boolean"}
SOME_TEXT: Json = {"type": "string", "minLength": 1}
COLOR: Json = {"type": "string", "pattern": "^#(?:[0-9a-fA-F]{3}){1,2}$"}
PANEL_KEY = "^[a-zA-Z0-9_.:-]{1,75}$"
"""ValidateID of perses/spec's go/common."""


def closed(required: Mapping[str, Json], optional: Mapping[str, Json] | None = None) -> Json:
    """An object with these fields and no other."""
    return {
        "type": "object",
        "required": list(required),
        "properties": {**required, **(optional or {})},
        "additionalProperties": False,
    }


def listed(items: Json) -> Json:
    return {"type": "array", "items": items}


def one_of(*values: str) -> Json:
    return {"enum": list(values)}


FORMAT = closed(
    {"unit": one_of("bytes", "counts/sec", "percent-decimal", "seconds", "decimal")},
    {"decimalPlaces": NUMBER},
)
THRESHOLDS = closed(
    {},
    {
        "mode": one_of("percent", "absolute"),
        "defaultColor": TEXT,
        "steps": listed(closed({"value": NUMBER}, {"color": TEXT, "name": TEXT})),
    },
)
DATASOURCE = closed({"kind": {"const": "PrometheusDatasource"}}, {"name": TEXT})
_VALUE_CONDITION = closed({"kind": {"const": "Value"}, "spec": closed({"value": SOME_TEXT})})
PLUGINS: Mapping[str, Json] = {
    "TimeSeriesChart": closed(
        {},
        {
            "legend": closed(
                {"position": one_of("bottom", "right")}, {"mode": one_of("list", "table")}
            ),
            "thresholds": THRESHOLDS,
            "yAxis": closed(
                {}, {"show": FLAG, "label": TEXT, "format": FORMAT, "min": NUMBER, "max": NUMBER}
            ),
            "visual": closed(
                {},
                {
                    "display": one_of("line", "bar"),
                    "lineWidth": {"type": "number", "minimum": 0.25, "maximum": 3},
                    "areaOpacity": {"type": "number", "minimum": 0, "maximum": 1},
                    "showPoints": one_of("auto", "always"),
                    "stack": one_of("all", "percent"),
                    "connectNulls": FLAG,
                },
            ),
        },
    ),
    "StatChart": closed(
        {
            "calculation": one_of(
                *("first", "last", "first-number", "last-number"), *("mean", "sum", "min", "max")
            )
        },
        {"format": FORMAT, "thresholds": THRESHOLDS, "valueFontSize": NUMBER},
    ),
    "Table": closed(
        {},
        {
            "density": one_of("compact", "standard", "comfortable"),
            "columnSettings": listed(
                closed(
                    {"name": SOME_TEXT},
                    {
                        "header": TEXT,
                        "align": one_of("left", "center", "right"),
                        "enableSorting": FLAG,
                        "sort": one_of("asc", "desc"),
                        "hide": FLAG,
                    },
                )
            ),
            "cellSettings": listed(
                closed(
                    {"condition": _VALUE_CONDITION},
                    {"text": TEXT, "textColor": COLOR, "backgroundColor": COLOR},
                )
            ),
        },
    ),
    "PrometheusTimeSeriesQuery": closed(
        {"query": SOME_TEXT},
        {"seriesNameFormat": TEXT, "minStep": TEXT, "datasource": DATASOURCE},
    ),
    "PrometheusLabelValuesVariable": closed(
        {"labelName": TEXT}, {"matchers": listed(TEXT), "datasource": DATASOURCE}
    ),
}
LIST_VARIABLE = closed(
    {
        "name": SOME_TEXT,
        "allowAllValue": FLAG,
        "allowMultiple": FLAG,
        "plugin": {"type": "object"},
    },
    {
        "display": closed({}, {"name": TEXT, "description": TEXT, "hidden": FLAG}),
        "defaultValue": {"anyOf": [TEXT, listed(TEXT)]},
        "customAllValue": TEXT,
        "capturingRegexp": TEXT,
        "sort": one_of("none", "alphabetical-asc", "alphabetical-desc"),
    },
)
GRID = closed(
    {
        "items": listed(
            closed(
                {
                    **{name: {"type": "integer", "minimum": 0} for name in ("x", "y")},
                    **{name: {"type": "integer", "minimum": 1} for name in ("width", "height")},
                    "content": closed({"$ref": TEXT}),
                }
            )
        )
    },
    {"display": closed({"title": TEXT}, {"collapse": closed({"open": FLAG})})},
)
