# SPDX-License-Identifier: Apache-2.0
"""Writes the dashboards for Grafana and Perses from deploy/monitoring/dashboard.toml.

python scripts/dashboards.py           # write dashboard.json and perses-dashboard.yaml
python scripts/dashboards.py --check   # are both what would be written?
"""

import argparse
import json
import re
import sys
from pathlib import Path

import grafana_dashboard
import perses_dashboard
import yaml
from dashboard_model import Dashboard
from dashboard_source import SourceError, parse

MONITORING = Path(__file__).resolve().parents[1] / "deploy" / "monitoring"
SOURCE = MONITORING / "dashboard.toml"
_HEAD = """\
# Written by scripts/dashboards.py from dashboard.toml, as dashboard.json for Grafana is.
# For perses-operator, and OpenShift's Cluster Observability Operator: see README.md.
"""
_NO_FOLDING = 1_000_000
"""Columns. A text stays on its line, so that no line of one looks like a key."""


def main() -> int:
    """The exit status: 1 when the source is wrong, or with --check when a file differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, compare only")
    given = parser.parse_args()
    try:
        dashboard = parse(SOURCE.read_text(encoding="utf-8"))
    except SourceError as err:
        print(f"dashboards: {SOURCE.name}: {err}", file=sys.stderr)
        return 1
    differ = 0
    for name, text in files(dashboard).items():
        if not given.check:
            (MONITORING / name).write_text(text, encoding="utf-8")
        elif (MONITORING / name).read_text(encoding="utf-8") != text:
            print(
                f"dashboards: {name} is not what dashboard.toml says: run make dashboards",
                file=sys.stderr,
            )
            differ = 1
    return differ


def files(dashboard: Dashboard) -> dict[str, str]:
    """The text of each file by its name."""
    grafana = json.dumps(grafana_dashboard.rendered(dashboard), indent=2, ensure_ascii=False)
    perses = yaml.safe_dump(
        perses_dashboard.rendered(dashboard), sort_keys=False, allow_unicode=True, width=_NO_FOLDING
    )
    # kubectl and helm read YAML 1.1, where y without quotes is true. PyYAML writes it without.
    perses = re.sub(r"^( +(?:- )?)y: ", r"\1'y': ", perses, flags=re.MULTILINE)
    return {"dashboard.json": grafana + "\n", "perses-dashboard.yaml": _HEAD + perses}


if __name__ == "__main__":
    sys.exit(main())
