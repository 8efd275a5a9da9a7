# SPDX-License-Identifier: Apache-2.0
"""The locks of Python packages, and the check of scripts/lock.py."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.locks import ROOT, requirements

LOCKS = ("requirements.lock", "requirements-dev.lock")
COPIED = (*LOCKS, "pyproject.toml", "scripts/lock.py", "scripts/pip_config.py")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "scripts").mkdir()
    for name in COPIED:
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def check(tree: Path) -> subprocess.CompletedProcess[str]:
    """What ``scripts/lock.py --check`` reports of a tree, without uv and without network."""
    return subprocess.run(
        [sys.executable, str(tree / "scripts/lock.py"), "--check"],
        capture_output=True,
        check=False,
        text=True,
        env={},
    )


def rewrite(file: Path, before: str, after: str) -> None:
    text = file.read_text()
    assert text.count(before) == 1
    file.write_text(text.replace(before, after))


def test_a_comment_changes_nothing(tree: Path) -> None:
    """A lock answers as long as the requirements are the same, whatever else is in the file."""
    before = check(tree)
    with (tree / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    after = check(tree)
    assert (after.returncode, after.stderr) == (before.returncode, before.stderr)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("dependencies = [\n", 'dependencies = [\n    "example",\n'),
        ("dev = [\n", 'dev = [\n    "example",\n'),
        ('    "build>=1.2",\n', ""),
        ('requires-python = ">=3.11"', 'requires-python = ">=3.12"'),
    ],
    ids=["needed", "of the group", "removed", "interpreter"],
)
def test_changed_requirements_need_a_new_lock(tree: Path, before: str, after: str) -> None:
    """Any changed requirement makes both locks stale, and one line for each says what to run."""
    rewrite(tree / "pyproject.toml", before, after)
    done = check(tree)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"lock: {name} does not answer pyproject.toml: run make lock" for name in LOCKS
    ]


def test_what_is_tested_is_shipped() -> None:
    """Every package that the image contains is in the lock of .venv in the same version."""
    shipped, tested = ({str(found) for found in requirements(name)} for name in LOCKS)
    assert shipped < tested


@pytest.mark.parametrize("name", LOCKS)
def test_each_file_has_a_hash(name: str) -> None:
    """A lock has one version of each package, a hash for each file, and names no index."""
    text = (ROOT / name).read_text()
    package = r"[a-z0-9-]+==[\w.]+( ; [^\n\\]+)?( \\\n    --hash=sha256:[0-9a-f]{64})+\n"
    assert re.fullmatch(rf"(#[^\n]*\n){{2}}({package})+", text)
    assert "//" not in text
    names = [found.name for found in requirements(name)]
    assert len(names) == len(set(names))
