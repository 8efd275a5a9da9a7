# SPDX-License-Identifier: Apache-2.0
"""scripts/prose.py: the text that it reads, its findings, and its lists."""

import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROSE: dict[str, Any] = runpy.run_path(str(ROOT / "scripts/prose.py"), run_name="prose")
WORDS = [
    PROSE["Word"](text="gadzooks", say="indeed"),
    PROSE["Word"](text="by my troth", say="certainly"),
]


def found(name: str, text: str) -> list[str]:
    """The lines that are printed for one file."""
    return [str(finding) for finding in PROSE["findings"](name, text, WORDS)]


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("a.py", '"""Does this.\n\nGadzooks, it does.\n"""\n', 3),
        ("a.py", "x = 1  # gadzooks\n", 1),
        ("a.py", 'raise OSError("gadzooks")\n', 1),
        ("a.py", 'log(f"{x}: gadzooks {y}")\n', 1),
        ("a.c", "int x; /* one\n * gadzooks */\n", 2),
        ("a.h", "// gadzooks\n", 1),
        ("docs/a.md", "One.\n\n* gadzooks\n", 3),
        ("a.sh", "set -e\n# gadzooks\n", 2),
        ("a.yaml", "description: gadzooks\n", 1),
        ("Makefile", "run: ## gadzooks\n", 1),
    ],
)
def test_prose_of_each_kind_of_file(name: str, text: str, line: int) -> None:
    """Docstrings, strings, comments and documents are read, and a finding has the word's line."""
    assert found(name, text) == [f"{name}:{line}: gadzooks: say indeed"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.py", "gadzooks = 1\n"),
        ("a.py", '"""Sets ``gadzooks`` and `gadzooks`."""\n'),
        ("a.py", "# an is_gadzooks, a gadzooks-like\n"),
        ("a.c", 'char *gadzooks = "gadzooks";\n'),
        ("a.md", "Text.\n\n```\ngadzooks\n```\n\nand `gadzooks`.\n"),
        ("a.json", '{"gadzooks": 1}\n'),
    ],
)
def test_what_is_not_prose(name: str, text: str) -> None:
    """Code, quotations and data are not read, and a part of a longer word is not a finding."""
    assert found(name, text) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.py", "# so be it, by\n# my troth\n"),
        ("a.py", 'x = """By my\n    troth."""\n'),
        ("a.c", "/* by my\n * troth */\n"),
        ("a.md", "> by my\n> troth\n"),
    ],
)
def test_a_phrase_across_lines(name: str, text: str) -> None:
    """A phrase that spans two lines is reported at its first line."""
    assert found(name, text) == [f"{name}:1: by my troth: say certainly"]


def test_a_phrase_does_not_span_code() -> None:
    """Two comments with a statement between them are separate texts."""
    assert found("a.py", "# by my\nx = 1\n# troth\n") == []


def test_a_backtick_without_a_partner_hides_nothing_below() -> None:
    """A quotation ends at the end of its paragraph."""
    assert found("a.md", "A ` here.\n\nGadzooks.\n\nA ` there.\n") == [
        "a.md:3: gadzooks: say indeed"
    ]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree with the checker, one word and one pending file."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/prose.py", tmp_path / "scripts")
    (tmp_path / "scripts/prose_words.txt").write_text("# words\ngadzooks: indeed\n")
    (tmp_path / "scripts/prose_pending.txt").write_text("# pending\nOLD.md: not yet rewritten\n")
    (tmp_path / "OLD.md").write_text("Gadzooks.\n")
    return tmp_path


@pytest.fixture
def run(tree: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A function that runs the command in that tree."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, tree / "scripts/prose.py", *arguments],
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_only_pending_files_are_accepted(
    tree: Path, run: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """The words are findings in every file that is not in the list."""
    assert (run().returncode, run().stdout) == (0, "")
    (tree / "docs").mkdir()
    (tree / "docs/new.md").write_text("Gadzooks.\n")
    ran = run()
    assert (ran.returncode, ran.stdout) == (1, "docs/new.md:1: gadzooks: say indeed\n")


def test_a_pending_file_that_is_clean_leaves_the_list(
    tree: Path, run: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """A clean file in the list is a finding until ``--shrink`` has removed its line."""
    (tree / "OLD.md").write_text("Indeed.\n")
    ran = run()
    assert ran.returncode == 1
    assert ran.stdout == (
        "scripts/prose_pending.txt: OLD.md is clean: run scripts/prose.py --shrink\n"
    )
    assert run("--shrink").returncode == 0
    assert (tree / "scripts/prose_pending.txt").read_text() == "# pending\n"
    assert run().returncode == 0


def test_a_malformed_list_is_an_error() -> None:
    """A line without a replacement raises ``ValueError``."""
    with pytest.raises(ValueError, match="line 2 is not of the form"):
        list(PROSE["entries"]("# words\ngadzooks\n"))


def test_this_tree_is_clean() -> None:
    """Only pending files use the words, and each of them has a reason."""
    pending = dict(PROSE["entries"](PROSE["PENDING"].read_text()))
    findings, clean = PROSE["check"](ROOT, PROSE["words"](), pending)
    assert [str(finding) for finding in findings] == []
    assert clean == set()
