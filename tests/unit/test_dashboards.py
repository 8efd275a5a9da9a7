# SPDX-License-Identifier: Apache-2.0
"""scripts/dashboards.py: two dashboards from one source, and what is said of a wrong source."""

import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "deploy/monitoring"
SOURCE = (MONITORING / "dashboard.toml").read_text(encoding="utf-8")
HEAD = """
[dashboard]
uid = "one"
title = "One"
description = ""
tags = []
refresh = "1m"
duration = "1h"
alerts = "ALERTS"
[[variable]]
name = "node"
title = "Node"
label = "node"
series = "up"
[[section]]
title = "First"
"""
PANEL = """
[[section.panel]]
id = 1
kind = "stat"
title = "Up"
size = [12, 4]
query = [{ expr = "up" }]
"""


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """scripts/dashboard_source.py."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("dashboard_source")


def test_the_files_are_what_the_source_says() -> None:
    """`scripts/dashboards.py --check`: both files are what it would write."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/dashboards.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_file_that_differs_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--check writes nothing and names the file; without it the file is written."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    dashboards = importlib.import_module("dashboards")
    monkeypatch.setattr(dashboards, "MONITORING", tmp_path)
    for name in ("dashboard.json", "perses-dashboard.yaml"):
        (tmp_path / name).write_bytes((MONITORING / name).read_bytes())
    (tmp_path / "dashboard.json").write_text("{}")
    monkeypatch.setattr(sys, "argv", ["dashboards.py", "--check"])
    assert dashboards.main() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "dashboards: dashboard.json is not what dashboard.toml says: run make dashboards"
    assert (tmp_path / "dashboard.json").read_text() == "{}"
    monkeypatch.setattr(sys, "argv", ["dashboards.py"])
    assert dashboards.main() == 0
    made = (tmp_path / "dashboard.json").read_bytes()
    assert made == (MONITORING / "dashboard.json").read_bytes()


def test_the_place_of_a_panel_is_no_truth_value() -> None:
    """In YAML 1.1, which kubectl and helm read, the key y needs quotes, or it is true."""
    text = (MONITORING / "perses-dashboard.yaml").read_text(encoding="utf-8")
    keys = re.findall(r"^ +(?:- )?(\S+): ", text, re.MULTILINE)
    assert keys.count("'y'") == keys.count("x") > 40
    assert not {"y", "Y", "n", "N", "yes", "no", "on", "off"} & set(keys)


def test_panels_flow_from_left_to_right(source: ModuleType) -> None:
    """What does not fit into 24 columns begins the next line, below the tallest of the last."""
    sizes = ((12, 4), (6, 9), (6, 2), (8, 1))
    panels = "".join(
        PANEL.replace("id = 1", f"id = {number}")
        .replace('"Up"', f'"Up {number}"')
        .replace("[12, 4]", str(list(size)))
        for number, size in enumerate(sizes)
    )
    (section,) = source.parse(HEAD + panels).sections
    places = [(panel.place.x, panel.place.y) for panel in section.panels]
    assert places == [(0, 0), (12, 0), (18, 0), (0, 9)]
    assert section.height == 10


@pytest.mark.parametrize(
    ("given", "instead", "said"),
    [
        ("[dashboard]", "[dashboard", "not TOML: "),
        ('uid = "one"\n', "", "dashboard: uid is missing"),
        ('uid = "one"', "uid = 1", "dashboard: uid is no str"),
        ("size = [12, 4]", "size = [25, 4]", "panel 'Up': size is not [width, height] in the grid"),
        ('kind = "stat"', 'kind = "pie"', "panel 'Up': kind 'pie' is none of "),
        ('kind = "stat"\n', "", "panel 'Up': kind is missing"),
        ("id = 1", "id = 1\nunits = 2", "panel 'Up': unknown key units"),
        ("id = 1", 'id = 1\nunit = "cups"', "panel 'Up': unit 'cups' is none of "),
        ("id = 1", 'id = 1\nmin = "0"', "panel 'Up': min is no number"),
        ("id = 1", 'id = 1\nlinks = ["pod"]', "panel 'Up': link to unknown variable pod"),
        ("id = 1", "id = 1\nthreshold = { value = 1 }", "panel 'Up': a threshold has "),
        ('{ expr = "up" }', '{ epxr = "up" }', "panel 'Up', query: expr is missing"),
        (PANEL, PANEL + PANEL, "two panels have the id 1"),
        (PANEL, PANEL + PANEL.replace("id = 1", "id = 2"), "two panels have the title 'Up'"),
    ],
)
def test_a_wrong_source_is_refused_with_a_line(
    source: ModuleType, given: str, instead: str, said: str
) -> None:
    """The line says where in the file, and what."""
    whole = HEAD + PANEL
    assert source.parse(whole).title == "One"
    assert given in whole
    with pytest.raises(source.SourceError) as caught:
        source.parse(whole.replace(given, instead, 1))
    assert str(caught.value).startswith(said)


def test_every_panel_keeps_its_id() -> None:
    """Links to one panel end with its id, so titles may change and ids may not."""
    ids = [int(line.split("=")[1]) for line in SOURCE.splitlines() if line.startswith("id = ")]
    known = {*range(2, 10), *range(11, 14), *range(15, 19), *range(20, 47)}
    assert known <= set(ids)
