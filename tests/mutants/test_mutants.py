# SPDX-License-Identifier: Apache-2.0
"""Every mutant can be made, because its text occurs once and its test exists. None is run."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from mutants.document import DOCUMENT, RESULTS, document
from mutants.generator import mutants
from mutants.hand_made import HandMade
from mutants.rooms import ROOMS
from mutants.table import TABLE

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("mutant", TABLE, ids=lambda mutant: mutant.breaks)
def test_each_text_stands_in_its_file_once(mutant: HandMade) -> None:
    """Each text occurs exactly once in its file, and its replacement differs from it."""
    assert (ROOT / mutant.file).read_text().count(mutant.text) == 1
    assert mutant.replacement != mutant.text


def test_no_mutant_is_made_twice() -> None:
    """No two mutants have the same description, or the same change."""
    assert len({mutant.breaks for mutant in TABLE}) == len(TABLE)
    assert len({(mutant.file, mutant.text, mutant.replacement) for mutant in TABLE}) == len(TABLE)


def test_each_test_that_is_named_exists() -> None:
    """Pytest finds every test that the tables name."""
    named = {mutant.test for mutant in TABLE} | {
        test for room in ROOMS.values() for test in room.tests
    }
    command = [sys.executable, "-m", "pytest", "--collect-only", "-qq", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *sorted(named)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == pytest.ExitCode.OK, done.stdout + done.stderr


@pytest.mark.parametrize("name", ROOMS)
def test_each_room_has_mutants(name: str) -> None:
    """A room has more than 20 mutants, and each of them differs from the original."""
    source = (ROOT / ROOMS[name].module).read_text()
    texts = [mutant.text for mutant in mutants(source)]
    assert len(texts) > 20
    assert source not in texts


def test_a_mutant_is_one_change_in_its_place() -> None:
    """A mutant changes one line, and neither docstrings nor annotations; columns count bytes."""
    source = '''def f(é: "int" = 1) -> bool:
    """Doc."""
    if "ö" in f"{é + 1}" and é:
        g()
    return é == 2
'''
    found = {(mutant.line, mutant.before, mutant.after) for mutant in mutants(source)}
    assert (1, "1", "2") in found
    assert (3, "'ö'", "'öXX'") in found
    assert (4, "g()", "pass") in found
    assert (5, "é == 2", "é != 2") in found
    assert (5, "return é == 2", "return None") in found
    assert not any("Doc" in before or before == "'int'" for _, before, _ in found)
    assert not any(before == "é + 1" for _, before, _ in found)
    for mutant in mutants(source):
        changed = mutant.text.splitlines()
        original = source.splitlines()
        differ = [
            n for n, pair in enumerate(zip(changed, original, strict=True), 1) if len({*pair}) > 1
        ]
        assert differ == [mutant.line]
        ast.parse(mutant.text)


def test_what_is_stored_is_what_is_shown() -> None:
    """The stored page is the one that the stored results produce."""
    assert DOCUMENT.read_text() == document(json.loads(RESULTS.read_text()))
