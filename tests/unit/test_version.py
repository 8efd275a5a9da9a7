# SPDX-License-Identifier: Apache-2.0
"""Only pyproject.toml defines the version, and every copy that a person reads agrees with it."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from probes.command.cli import version

ROOT = Path(__file__).resolve().parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
COPIES = {
    "CHANGELOG.md": r"^## (\S+?),? ",
    "deploy/base/daemonset.yaml": r"image: hvprobe:(\S+)",
    "deploy/helm/hvprobe/Chart.yaml": r"^(?:version|appVersion): (\S+)",
    "docs/operators.md": r"/hvprobe:(\d\S*)",
    **{
        path.relative_to(ROOT).as_posix(): r"image: hvprobe:(\S+)"
        for path in sorted((ROOT / "tests/golden/deploy").glob("*.yaml"))
    },
    **{
        path.relative_to(ROOT).as_posix(): r"(?:image: \"hvprobe:|helm.sh/chart: hvprobe-)([\d.]+)"
        for path in sorted((ROOT / "tests/golden/helm").glob("*.yaml"))
    },
}
"""The pattern of the version by file.

Only the first match counts in CHANGELOG.md, because the others are older releases. Measurements and
captured output of tests keep the version that made them.
"""


@pytest.mark.parametrize("name", COPIES)
def test_each_copy_agrees(name: str) -> None:
    """The file names the version of pyproject.toml and no other version."""
    found = re.findall(COPIES[name], (ROOT / name).read_text(), flags=re.MULTILINE)
    if name == "CHANGELOG.md":
        found = found[:1]
    assert set(found) == {VERSION}, f"set the version in {name} to that of pyproject.toml"


def test_every_manifest_is_in_the_table() -> None:
    """Every manifest that names a version of the image is in the table."""
    naming = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "deploy").rglob("*.yaml")
        if re.search(r"image: hvprobe:", path.read_text())
    }
    assert naming <= COPIES.keys()


def test_no_module_holds_a_version() -> None:
    """No module repeats the version, so none can become outdated."""
    holding = [
        path.relative_to(ROOT).as_posix()
        for package in ("ebpf", "probes")
        for path in (ROOT / package).rglob("*.py")
        if f'"{VERSION}"' in path.read_text()
    ]
    assert holding == []


def test_the_program_reads_its_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program reports the version of its installed distribution, or that it has none."""
    monkeypatch.setattr(metadata, "version", {"hvprobe": "1.2.3"}.__getitem__)
    assert version() == "1.2.3"

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert version() == "0+unknown"
