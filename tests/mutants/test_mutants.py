# SPDX-License-Identifier: Apache-2.0
"""The mutants can be made: each text is there once, each test exists. None is run here."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from mutants.document import DOCUMENT, RESULTS, document
from mutants.generator import mutants
from mutants.rooms import ROOMS
from mutants.table import TABLE, HandMade

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("it", TABLE, ids=lambda it: it.breaks)
def test_each_text_stands_in_its_file_once(it: HandMade) -> None:
    """Otherwise the mutant is none, or more than one."""
    assert (ROOT / it.file).read_text().count(it.text) == 1
    assert it.replacement != it.text


def test_no_mutant_is_made_twice() -> None:
    """What breaks names a mutant."""
    assert len({it.breaks for it in TABLE}) == len(TABLE)
    assert len({(it.file, it.text, it.replacement) for it in TABLE}) == len(TABLE)


def test_each_test_that_is_named_exists() -> None:
    """Pytest refuses names that it does not find."""
    named = {it.test for it in TABLE} | {test for room in ROOMS.values() for test in room.tests}
    command = [sys.executable, "-m", "pytest", "--collect-only", "-qq", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *sorted(named)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == pytest.ExitCode.OK, done.stdout + done.stderr


@pytest.mark.parametrize("name", ROOMS)
def test_each_room_has_mutants(name: str) -> None:
    """Each is another text than the room's, and no two are the same."""
    source = (ROOT / ROOMS[name].module).read_text()
    texts = [it.text for it in mutants(source)]
    assert len(texts) > 20
    assert source not in texts


def test_a_mutant_is_one_change_in_its_place() -> None:
    """Docstrings, annotations and other lines stay; columns are those of the bytes."""
    source = '''def f(é: "int" = 1) -> bool:
    """Doc."""
    if "ö" in f"{é + 1}" and é:
        g()
    return é == 2
'''
    found = {(it.line, it.before, it.after) for it in mutants(source)}
    assert (1, "1", "2") in found
    assert (3, "'ö'", "'öXX'") in found
    assert (4, "g()", "pass") in found
    assert (5, "é == 2", "é != 2") in found
    assert (5, "return é == 2", "return None") in found
    assert not any("Doc" in before or before == "'int'" for _, before, _ in found)
    assert not any(before == "é + 1" for _, before, _ in found)
    for it in mutants(source):
        changed = it.text.splitlines()
        original = source.splitlines()
        differ = [
            n for n, pair in enumerate(zip(changed, original, strict=True), 1) if len({*pair}) > 1
        ]
        assert differ == [it.line]
        ast.parse(it.text)


def test_what_is_stored_is_what_is_shown() -> None:
    """The page is made of the results."""
    assert DOCUMENT.read_text() == document(json.loads(RESULTS.read_text()))
