# SPDX-License-Identifier: Apache-2.0
"""The PrometheusRule as Prometheus itself reads it: taken out of the custom resource, slow or fast.

Owns the way from deploy/monitoring/prometheusrule.yaml to a plain rules file. Must not know what
the rules say. Imported by tests of other folders too.
"""

import re
from pathlib import Path
from typing import Any

import yaml

MONITORING = Path(__file__).resolve().parents[2] / "deploy" / "monitoring"
PROMETHEUS_RULE = MONITORING / "prometheusrule.yaml"

_UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_RANGE = re.compile(r"\[([^\]]+)\]")
_DURATION = re.compile(r"(\d+)(ms|s|m|h|d)")


def load_groups(path: Path = PROMETHEUS_RULE) -> list[dict[str, Any]]:
    """The rule groups of the custom resource."""
    resource: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    groups: list[dict[str, Any]] = resource["spec"]["groups"]
    return groups


def all_rules(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every rule of every group, in order."""
    return [rule for group in groups for rule in group["rules"]]


def write_rules(groups: list[dict[str, Any]], path: Path) -> Path:
    """Write the groups as a rules file that promtool and Prometheus read."""
    path.write_text(yaml.safe_dump({"groups": groups}, sort_keys=False), encoding="utf-8")
    return path


def faster(groups: list[dict[str, Any]], factor: int) -> list[dict[str, Any]]:
    """The same rules with every waiting time and window divided by ``factor``.

    So a test sees an alert of five minutes fire for real within seconds: factor 60 makes 5 m 5 s.
    """
    quick: list[dict[str, Any]] = []
    for group in groups:
        rules = []
        for rule in group["rules"]:
            shortened = {**rule, "expr": shorten_ranges(rule["expr"], factor)}
            for field in ("for", "keep_firing_for"):
                if field in rule:
                    shortened[field] = _shorten(rule[field], factor)
            rules.append(shortened)
        quick.append({**group, "interval": "1s", "rules": rules})
    return quick


def shorten_ranges(expr: str, factor: int) -> str:
    """The expression with every range, ``[5m]`` or ``[24h:5m]``, divided by ``factor``."""

    def shorten_range(match: re.Match[str]) -> str:
        parts = match[1].split(":")
        return "[" + ":".join(_shorten(part, factor) if part else "" for part in parts) + "]"

    return _RANGE.sub(shorten_range, expr)


def _shorten(duration: str, factor: int) -> str:
    parts = _DURATION.findall(duration)
    if "".join(number + unit for number, unit in parts) != duration:
        raise ValueError(f"not a Prometheus duration: {duration!r}")
    total_ms = sum(int(number) * _UNIT_MS[unit] for number, unit in parts)
    return f"{max(1, total_ms // factor)}ms"
