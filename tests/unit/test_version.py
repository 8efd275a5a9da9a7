# SPDX-License-Identifier: Apache-2.0
"""Only pyproject.toml defines the version, and every copy that a person reads agrees with it."""

import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from probes.command.cli import version
from tests.support.scripts import script

ROOT = Path(__file__).resolve().parents[2]
script_version = script("version")
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What holds a version, in a folder of its own."""
    files = [ROOT / "pyproject.toml", ROOT / "CHANGELOG.md"]
    files += [file for copy in script_version.COPIES for file in ROOT.glob(copy.files)]
    for file in files:
        target = tmp_path / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    return tmp_path


def headings(tree: Path) -> list[str]:
    lines = (tree / "CHANGELOG.md").read_text().splitlines()
    return [line for line in lines if line.startswith("## ")]


def test_each_copy_agrees() -> None:
    """Every file that repeats the version has that of pyproject.toml and no other."""
    assert script_version.disagreeing(ROOT) == []


def test_each_copy_exists() -> None:
    """Each row of the table matches files, and these name a version."""
    for copy in script_version.COPIES:
        files = sorted(ROOT.glob(copy.files))
        assert files, copy.files
        for file in files:
            assert copy.pattern.findall(file.read_text()), file


def test_every_copy_can_be_set(tree: Path) -> None:
    """After a change no file has the old version, and every other text stays."""
    before = {file: file.read_text() for file in tree.rglob("*") if file.is_file()}
    script_version.set_version(tree, "12.34.56")
    assert script_version.read(tree) == "12.34.56"
    assert script_version.disagreeing(tree) == []
    for file, text in before.items():
        assert file.read_text() != text, file
        changed = [
            (old, new)
            for old, new in zip(text.splitlines(), file.read_text().splitlines(), strict=False)
            if old != new
        ]
        if file.name != "CHANGELOG.md":
            assert all(new == old.replace(VERSION, "12.34.56") for old, new in changed), file
    script_version.set_version(tree, VERSION)
    assert script_version.disagreeing(tree) == []


@pytest.mark.parametrize("name", ["deploy/helm/hvprobe/Chart.yaml", "docs/operators.md"])
def test_a_copy_that_differs_is_named(name: str, tree: Path) -> None:
    """The line has the file, both versions, and what to do."""
    file = tree / name
    file.write_text(file.read_text().replace(VERSION, "9.9.9"))
    (line,) = script_version.disagreeing(tree)
    assert line == (
        f"{name} has 9.9.9, pyproject.toml has {VERSION}: set it with make version SET={VERSION}"
    )


def test_the_changelog_follows(tree: Path) -> None:
    """A section without date is renamed, is dated once, and a next version begins another."""
    script_version.set_version(tree, "3.0.0")
    (tree / "CHANGELOG.md").write_text("# Changelog\n\n## 3.0.0, unreleased\n\n- one\n")
    script_version.set_version(tree, "3.1.0")
    assert headings(tree) == ["## 3.1.0, unreleased"]
    script_version.set_date(tree, "2026-12-31")
    assert headings(tree) == ["## 3.1.0, 2026-12-31"]
    script_version.set_date(tree, "2026-12-31")
    with pytest.raises(script_version.VersionError, match=r"3\.1\.0, 2026-12-31"):
        script_version.set_date(tree, "2027-01-01")
    script_version.set_version(tree, "3.1.0")
    assert headings(tree) == ["## 3.1.0, 2026-12-31"]
    script_version.set_version(tree, "3.2.0")
    assert headings(tree) == ["## 3.2.0, unreleased", "## 3.1.0, 2026-12-31"]
    assert (tree / "CHANGELOG.md").read_text().endswith("2026-12-31\n\n- one\n")


def test_a_local_part_fits_each_place(tree: Path) -> None:
    """A snapshot's + is no character of an image's tag, and stays where versions are versions."""
    script_version.set_version(tree, "1.2.3+snapshot.g12")
    assert script_version.disagreeing(tree) == []
    assert "image: hvprobe:1.2.3_snapshot.g12" in (tree / "deploy/base/daemonset.yaml").read_text()
    assert (
        "\nversion: 1.2.3+snapshot.g12\n" in (tree / "deploy/helm/hvprobe/Chart.yaml").read_text()
    )


@pytest.mark.parametrize(
    "words", [["1.2"], ["v1.2.3"], ["1.2.3rc1"], ["01.2.3"], ["--date", "soon"]]
)
def test_refuses_what_is_no_version_or_date(words: list[str]) -> None:
    """One line says what is wanted, and nothing is written."""
    before = (ROOT / "pyproject.toml").read_bytes()
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/version.py", *words],
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"version: {words[-1]!r} is not ")
    assert (ROOT / "pyproject.toml").read_bytes() == before


def test_prints_the_version() -> None:
    """The output is the version alone, for scripts."""
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/version.py"], check=True, capture_output=True, text=True
    )
    assert done.stdout == f"{VERSION}\n"


def test_every_manifest_is_in_the_table() -> None:
    """Every manifest that names a version of the image is in the table."""
    naming = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "deploy").rglob("*.yaml")
        if re.search(r"image: hvprobe:", path.read_text())
    }
    listed = {
        file.relative_to(ROOT).as_posix()
        for copy in script_version.COPIES
        for file in ROOT.glob(copy.files)
    }
    assert naming <= listed


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
