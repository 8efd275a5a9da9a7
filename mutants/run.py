# SPDX-License-Identifier: Apache-2.0
"""Runs mutants and writes what came of them: ``make mutants ARGS="[NAME...] [--sample N]"``.

Results of what is not run this time stay as they are.
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
    """Run what is asked for; without a name, everything."""
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    names = (TABLE_NAME, *ROOMS)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(names))
    parser.add_argument("--sample", type=int, metavar="N", help="at most so many of each room")
    parser.add_argument("--limit-s", type=float, default=120, help="for one mutant's tests")
    asked = parser.parse_args(arguments)
    unknown = sorted(set(asked.names) - set(names))
    if unknown:
        parser.error(f"there is no {', '.join(unknown)}: choose from {', '.join(names)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("mutants: ended by SIGTERM"))
    results: Results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with copied(asked.limit_s) as tree:
        for name in asked.names or names:
            print(f"mutants: {name}", flush=True)
            if name == TABLE_NAME:
                results[name] = _table(tree)
            else:
                results[name] = _room(tree, name, asked.sample)
            results[name]["commit"] = _commit()
            _write(results)
    return 0


def _room(tree: Copy, name: str, sample: int | None) -> dict[str, object]:
    """A room's mutants, or the same part of them in every run."""
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
    # What breaks on the machine meanwhile would pass for mutants that are noticed.
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
    """The mutants made by hand, each against the one test that has to fail."""
    rows: list[dict[str, object]] = []
    for test in sorted({it.test for it in TABLE}):
        _must_pass(tree, TABLE[0].file, (test,))
    for it in TABLE:
        text = (ROOT / it.file).read_text().replace(it.text, it.replacement)
        outcome = tree.run(it.file, text, (it.test,))
        print(f"  {outcome}: {it.breaks}", flush=True)
        rows.append(
            {"file": it.file, "breaks": it.breaks, "test": it.test, "outcome": outcome.value}
        )
    return {"rows": rows}


def _must_pass(tree: Copy, file: str, tests: Sequence[str]) -> None:
    """Without a mutant; otherwise a failure would say nothing."""
    if tree.run(file, None, tests) is not Outcome.SURVIVED:
        said = (tree.root / "mutant.log").read_text()
        raise SystemExit(f"{said}\nmutants: {' '.join(tests)} must pass without a mutant")


def _commit() -> str:
    """Of the tree that was measured."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.strip()


def _write(results: Results) -> None:
    RESULTS.write_text(json.dumps(results, indent=1) + os.linesep)
    DOCUMENT.write_text(document(results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
