# SPDX-License-Identifier: Apache-2.0
"""scripts/prose.py: the text that it reads, its findings, and its list of words."""

import runpy
import shutil
import subprocess
import sys
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


def test_the_command_prints_each_finding(tmp_path: Path) -> None:
    """The exit code is 0 for a clean tree, and 1 if any file that is prose uses a word."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/prose.py", tmp_path / "scripts")
    (tmp_path / "scripts/prose_words.txt").write_text("# words\ngadzooks: indeed\n")

    def run() -> tuple[int, str]:
        ran = subprocess.run(
            [sys.executable, tmp_path / "scripts/prose.py"],
            capture_output=True,
            text=True,
            check=False,
        )
        return ran.returncode, ran.stdout

    (tmp_path / "README.md").write_text("Indeed.\n")
    assert run() == (0, "")
    (tmp_path / "README.md").write_text("Indeed.\nGadzooks.\n")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/new.md").write_text("Gadzooks.\n")
    assert run() == (
        1,
        "README.md:2: gadzooks: say indeed\ndocs/new.md:1: gadzooks: say indeed\n",
    )


def test_a_malformed_list_is_an_error() -> None:
    """A line without a replacement raises ``ValueError``."""
    with pytest.raises(ValueError, match="line 2 is not of the form"):
        list(PROSE["entries"]("# words\ngadzooks\n"))


def test_this_tree_is_clean() -> None:
    """No file of the repository uses the words."""
    assert [str(finding) for finding in PROSE["check"](ROOT, PROSE["words"]())] == []
