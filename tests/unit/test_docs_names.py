# SPDX-License-Identifier: Apache-2.0
"""The modules that docstrings, ARCHITECTURE and CONTRIBUTING name exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    path
    for folder in ("ebpf", "probes", "tests", "bench", "vmtest", "mutants", "scripts")
    for path in (ROOT / folder).rglob("*.py")
)
MODULE = re.compile(r"(?<![\w./{},*<-])[\w/]+\.py\b")


def texts(source: Path) -> list[str]:
    """All docstrings of modules, classes, functions and fields."""
    return [
        node.value.value
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ]


def missing(text: str) -> set[str]:
    """The names of modules in a text that match no file of the repository."""
    files = [f"/{path.relative_to(ROOT)}" for path in SOURCES]
    return {
        name
        for name in MODULE.findall(text)
        if not any(file.endswith(f"/{name}") for file in files)
    }


def test_docstrings_name_modules_that_exist() -> None:
    """Every module that a docstring names exists."""
    found = {
        f"{source.relative_to(ROOT)}: {name}"
        for source in SOURCES
        if source.is_relative_to(ROOT / "ebpf") or source.is_relative_to(ROOT / "probes")
        for text in texts(source)
        for name in missing(text)
    }
    assert found == set()


@pytest.mark.parametrize("document", ["ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_documents_name_modules_that_exist(document: str) -> None:
    """Every module that a document for developers names exists."""
    assert missing((ROOT / document).read_text()) == set()


def test_a_module_that_is_missing_is_found() -> None:
    """Missing modules are found by a name with or without a folder."""
    text = "See vmiwatch.py and probes/kube.py, but also probes/vmi/kube/watch.py and watch.py."
    assert missing(text) == {"vmiwatch.py", "probes/kube.py"}


@pytest.mark.parametrize("room", ["ebpf", "probes/*", "probes/vmi/kube", "probes/render/live"])
def test_architecture_names_each_module(room: str) -> None:
    """ARCHITECTURE's tables list every module of a room, except those of ``http/``."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    modules = {
        path.stem
        for path in ROOT.glob(f"{room}/*")
        if path.suffix == ".py" and not path.stem.startswith("__")
    }
    assert modules
    named = set(re.findall(r"`(?:[\w/]+/)?(\w+)(?:\.py)?`", text))
    assert modules - named == set()
