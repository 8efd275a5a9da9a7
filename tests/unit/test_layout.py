# SPDX-License-Identifier: Apache-2.0
"""Where modules lie: what tests share is in one place, and no test lends from another."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from ebpf import hooks
from tests.support.scraped_cluster import World

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("ebpf", "probes", "tests", "bench", "vmtest", "mutants")
SHARED = ("ebpf", "probes", "tests.support", "bench", "vmtest", "mutants")
"""What a test, a helper or a program beside the tests may import of this repository."""


def code_of_tests() -> list[Path]:
    folders = ("tests", "bench", "vmtest", "mutants")
    return [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]


def imports(source: str) -> Iterator[str]:
    """The full name of everything that is imported, also below a condition."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("file", code_of_tests(), ids=lambda it: str(it.relative_to(ROOT)))
def test_helpers_have_one_import_path(file: Path) -> None:
    """Of the repository a test imports the product, the programs and tests.support."""
    folder = file.parent
    beside = {it.stem for it in folder.glob("*.py")}
    for name in imports(file.read_text()):
        top = name.partition(".")[0]
        if top in PACKAGES:
            assert any(name == it or name.startswith(f"{it}.") for it in SHARED), name
        else:
            assert top not in beside, f"{name}: import it as a module of its package"


@pytest.mark.parametrize("file", code_of_tests(), ids=lambda it: str(it.relative_to(ROOT)))
def test_no_test_module_is_imported(file: Path) -> None:
    """What two tests need is in tests.support."""
    for name in imports(file.read_text()):
        lent = [it for it in name.split(".")[:-1] if it.startswith("test_") or it == "conftest"]
        assert lent == [], name


def test_below_tests_there_are_tests_and_support() -> None:
    """A helper beside a test would need another import path."""
    stray = [
        str(file.relative_to(ROOT))
        for folder in (ROOT / "tests").iterdir()
        if folder.is_dir() and folder.name not in ("support", "fixtures")
        for file in folder.glob("*.py")
        if not file.name.startswith("test_") and file.name != "conftest.py"
    ]
    assert stray == []
    assert not list((ROOT / "tests/support").glob("test_*"))


def test_pytest_finds_modules_in_the_root_alone() -> None:
    """Ordinary imports need no further folder."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["tool"]["pytest"]["ini_options"]["pythonpath"] == ["."]


def test_the_made_up_agents_have_the_hooks_of_the_product() -> None:
    """A hook that is added, or attached otherwise, is so in the cluster that Prometheus scrapes."""
    shown = [
        line.partition("{")[2].partition("}")[0]
        for line in World().exposition("agent", "n1").splitlines()
        if line.startswith("hvprobe_hook_attached{")
    ]
    for hook in hooks.HOOKS:
        labels = [it for it in shown if f'hook="{hook.name}"' in it]
        backends = {f'backend="{point.backend}"' for point in hook.points}
        assert len(labels) == (0 if hook.optional else 1)
        assert all(any(backend in it for backend in backends) for it in labels)
