# SPDX-License-Identifier: Apache-2.0
"""docs/mutants.md, made of the stored results."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mutants.rooms import ROOMS
from mutants.table import NOT_THERE

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).with_name("results.json")
DOCUMENT = ROOT / "docs/mutants.md"

Results = dict[str, dict[str, Any]]
"""``table``, and each room that was run, by name."""

_HEAD = """\
# Mutants

A mutant is hvprobe with one deliberate defect. A mutant that no test notices shows where a test is
missing. `make mutants` runs them. It is not part of `make test` or of continuous integration.

```
make mutants                                   # everything: some 1100 mutants, an hour
make mutants ARGS="verdict evidence"           # two modules
make mutants ARGS="tracker --sample 40"        # a part of a module, the same part in every run
make mutants ARGS=table                        # those made by hand
```

Each run changes a copy of the tree and runs the module's tests in a separate process, which is
ended after 120 s (`--limit-s`). The results are in `mutants/results.json`. This page is generated
from them: do not edit it.
"""

_ROOMS_HEAD = """
## Modules

Modules that only compute are mutated one place at a time: comparisons, conditions, numbers, words,
returned values, and statements that are left out. The words of enumerations are not mutated,
because they are for outputs, which other tests compare with stored ones. A mutant counts as
*noticed* if a test fails, if it cannot be imported, or if it does not end. Some that survive are
not defects, because they do the same in another way: a cache that is left out, a boundary that
nothing can reach.

| module | mutants | run | noticed | score | at commit |
|---|---:|---:|---:|---:|---|
"""

_TABLE_HEAD = """
## Made by hand

Defects that once went unnoticed, or that are easy to make in the BPF text. Each is run against the
one test that must fail. The BPF text is compiled and run as an ordinary program
(`tests/unit/ledger_code.c`).

| file | what breaks | test | outcome |
|---|---|---|---|
"""


def document(results: Results) -> str:
    """The complete page."""
    return _HEAD + _rooms(results) + _table(results.get("table", {})) + _survivors(results)


def _rooms(results: Results) -> str:
    lines = [
        f"| `{room.module}` | {_row(results[name])} |"
        for name, room in ROOMS.items()
        if name in results
    ]
    return _ROOMS_HEAD + "\n".join(lines) + "\n"


def _row(result: Mapping[str, Any]) -> str:
    outcomes = result["outcomes"]
    run = sum(outcomes.values())
    noticed = run - outcomes["survived"]
    score = f"{100 * noticed // run} %" if run else ""
    return f"{result['possible']} | {run} | {noticed} | {score} | {result['commit']}"


def _table(result: Mapping[str, Any]) -> str:
    lines = [
        f"| `{row['file']}` | {row['breaks']} | `{row['test'].removeprefix('tests/')}` "
        f"| {row['outcome']} |\n"
        for row in result.get("rows", ())
    ]
    gone = "".join(f"- {defect}\n" for defect in NOT_THERE)
    commit = f"\nMeasured at {result['commit']}.\n" if result else ""
    why = "\nThese defects have no mutant, because the code that had them is gone:\n\n"
    return _TABLE_HEAD + "".join(lines) + commit + why + gone


def _survivors(results: Results) -> str:
    lines: list[str] = []
    for name, room in ROOMS.items():
        survivors = results.get(name, {}).get("survivors", ())
        if not survivors:
            continue
        lines.append(f"\n`{room.module}`, by line at that commit:\n\n")
        lines += [
            f"- {mutant['line']}: {_code(mutant['before'])} → {_code(mutant['after'])}\n"
            for mutant in survivors
        ]
    return "\n## Open\n\nMutants of modules that no test noticed.\n" + "".join(lines)


def _code(text: str) -> str:
    """A piece of code as one line of Markdown, quoted so that its backticks are shown."""
    short = text if len(text) <= 90 else f"{text[:87]}..."
    return f"`` {short} ``" if "`" in short else f"`{short}`"
