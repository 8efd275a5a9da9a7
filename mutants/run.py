# SPDX-License-Identifier: Apache-2.0
"""Runs mutants and writes down the outcomes: ``make mutants ARGS="[NAME...] [--sample N]"``.

The stored results of rooms that are not run this time stay as they are.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence

from mutants.document import DOCUMENT, RESULTS, Results, document
from mutants.generator import Mutant, mutants
from mutants.rooms import ROOMS, Room
from mutants.table import TABLE
from mutants.trial import ROOT, Copy, Outcome, copied

TABLE_NAME = "table"


def main(arguments: Sequence[str]) -> int:
    """Run the named rooms and the table, or all of them if no name is given."""
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    names = (TABLE_NAME, *ROOMS)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(names))
    parser.add_argument("--sample", type=int, metavar="N", help="at most N mutants of each room")
    parser.add_argument(
        "--limit-s", type=float, default=120, help="time limit for the tests of one mutant"
    )
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.names) - set(names))
    if unknown:
        parser.error(f"there is no {', '.join(unknown)}: choose from {', '.join(names)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("mutants: ended by SIGTERM"))
    results: Results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with copied(options.limit_s) as tree:
        for name in options.names or names:
            print(f"mutants: {name}", flush=True)
            if name == TABLE_NAME:
                results[name] = _table(tree)
            else:
                results[name] = _room(tree, name, options.sample)
            results[name]["commit"] = _commit()
            _write(results)
    return 0


def _room(tree: Copy, name: str, sample: int | None) -> dict[str, object]:
    """Run a room's mutants, or a sample of them that is the same in every run."""
    room = ROOMS[name]
    _must_pass(tree, room.module, room.tests)
    everything = mutants((ROOT / room.module).read_text())
    outcomes: Counter[Outcome] = Counter()
    survivors: list[dict[str, object]] = []
    for mutant, outcome in _trials(tree, room, _part(name, everything, sample)):
        outcomes[outcome] += 1
        if not outcome.noticed:
            shown = {"line": mutant.line, "before": mutant.before, "after": mutant.after}
            survivors.append(shown)
            print(f"  survived: {room.module}:{mutant.line}: {mutant.before} -> {mutant.after}")
    # If the tests broke during the run, every later mutant would count as noticed.
    _must_pass(tree, room.module, room.tests)
    counts = {outcome.value: outcomes[outcome] for outcome in Outcome}
    return {"possible": len(everything), "outcomes": counts, "survivors": survivors}


def _part(name: str, everything: list[Mutant], sample: int | None) -> list[Mutant]:
    if sample is None or sample >= len(everything):
        return everything
    chosen = random.Random(name).sample(range(len(everything)), sample)
    return [everything[number] for number in sorted(chosen)]


def _trials(tree: Copy, room: Room, chosen: list[Mutant]) -> Iterator[tuple[Mutant, Outcome]]:
    for mutant in chosen:
        yield mutant, tree.run(room.module, mutant.text, room.tests)


def _table(tree: Copy) -> dict[str, object]:
    """Run the handwritten mutants, each against the one test that has to fail."""
    rows: list[dict[str, object]] = []
    for test in sorted({mutant.test for mutant in TABLE}):
        _must_pass(tree, TABLE[0].file, (test,))
    for mutant in TABLE:
        text = (ROOT / mutant.file).read_text().replace(mutant.text, mutant.replacement)
        outcome = tree.run(mutant.file, text, (mutant.test,))
        print(f"  {outcome}: {mutant.breaks}", flush=True)
        row = {"file": mutant.file, "breaks": mutant.breaks, "test": mutant.test}
        rows.append({**row, "outcome": outcome.value})
    return {"rows": rows}


def _must_pass(tree: Copy, file: str, tests: Sequence[str]) -> None:
    """Run tests without a mutant, because their failure with one would otherwise mean nothing.

    Raises SystemExit when they fail.
    """
    if tree.run(file, None, tests) is not Outcome.SURVIVED:
        log = (tree.root / "mutant.log").read_text()
        raise SystemExit(f"{log}\nmutants: {' '.join(tests)} must pass without a mutant")


def _commit() -> str:
    """The commit of the tree that was measured."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.strip()


def _write(results: Results) -> None:
    RESULTS.write_text(json.dumps(results, indent=1) + os.linesep)
    DOCUMENT.write_text(document(results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
