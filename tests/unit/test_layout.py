# SPDX-License-Identifier: Apache-2.0
"""The layout of modules: tests share code only through tests.support, never with each other."""

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
"""The packages of this repository that a test, a helper or another program may import."""


def code_of_tests() -> list[Path]:
    folders = ("tests", "bench", "vmtest", "mutants")
    return [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]


def imports(source: str) -> Iterator[str]:
    """The full name of every import, including those inside functions and conditions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("file", code_of_tests(), ids=lambda file: str(file.relative_to(ROOT)))
def test_helpers_have_one_import_path(file: Path) -> None:
    """A test imports only the product, the programs and tests.support from this repository."""
    neighbours = {neighbour.stem for neighbour in file.parent.glob("*.py")}
    for name in imports(file.read_text()):
        top = name.partition(".")[0]
        if top in PACKAGES:
            assert any(name == shared or name.startswith(f"{shared}.") for shared in SHARED), name
        else:
            assert top not in neighbours, f"{name}: import it as a module of its package"


@pytest.mark.parametrize("file", code_of_tests(), ids=lambda file: str(file.relative_to(ROOT)))
def test_no_test_module_is_imported(file: Path) -> None:
    """No module imports a test module or a conftest. Shared code belongs in tests.support."""
    for name in imports(file.read_text()):
        modules = name.split(".")[:-1]
        assert [each for each in modules if each.startswith("test_") or each == "conftest"] == [], (
            name
        )


def test_below_tests_there_are_tests_and_support() -> None:
    """Each folder below tests holds only tests, because a helper there needs another path."""
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
    """Pytest adds only the root to the import path."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["tool"]["pytest"]["ini_options"]["pythonpath"] == ["."]


def test_the_made_up_agents_have_the_hooks_of_the_product() -> None:
    """The simulated agents that Prometheus scrapes export the product's hooks and backends."""
    shown = [
        line.partition("{")[2].partition("}")[0]
        for line in World().exposition("agent", "n1").splitlines()
        if line.startswith("hvprobe_hook_attached{")
    ]
    for hook in hooks.HOOKS:
        labels = [line for line in shown if f'hook="{hook.name}"' in line]
        backends = {f'backend="{point.backend}"' for point in hook.points}
        assert len(labels) == (0 if hook.optional else 1)
        assert all(any(backend in line for backend in backends) for line in labels)
