# SPDX-License-Identifier: Apache-2.0
"""Measures every row on this machine: `make bench`.

  python -m bench.run                      all rows; writes the stored results and their page
  python -m bench.run --only hook,guest    these alone; writes build/bench/results.json
  python -m bench.run --short              few samples, to see that it works; writes there, too

Ends with 1 when a goal is missed.
"""

import argparse
import sys
import time
from pathlib import Path

from bench.document import write_document
from bench.guard import guard_ratios
from bench.results import RESULTS, lines, results_json, say, write
from bench.rows import Row, measurements
from bench.steady import SHORT, Bench, Plan
from tests.support.required import missing_for_guests

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    options = _options()
    missing = missing_for_guests()
    if missing:
        sys.exit(f"bench: {missing}")
    wanted = [
        measurement
        for measurement in measurements()
        if not options.only or measurement.name in options.only
    ]
    complete = not options.only and not options.short
    begun_s = time.monotonic()
    rows: list[Row] = []
    with Bench(SHORT if options.short else Plan()) as bench:
        for measurement in wanted:
            for row in measurement.measure(bench):
                rows.append(row)
                for line in lines(row):
                    say(line)
    guard = guard_ratios() if complete else {}
    took_s = time.monotonic() - begun_s
    results = results_json(rows, guard, seconds=took_s)
    file = RESULTS if complete else ROOT / "build/bench/results.json"
    write(results, file)
    written = [file.relative_to(ROOT)]
    if complete:
        written.append(write_document().relative_to(ROOT))
    missed = [row for row in rows if row.passed is False]
    judged = sum(row.passed is not None for row in rows)
    say(f"bench: {len(rows)} rows in {took_s:.0f} s, {judged - len(missed)} of {judged} goals met;")
    say(f"bench: written: {', '.join(str(path) for path in written)}")
    for row in missed:
        say(f"bench: missed: {row.what}: {row.value:.3g} {row.unit}, goal {row.goal:g}")
    return 1 if missed else 0


def _options() -> argparse.Namespace:
    names = [measurement.name for measurement in measurements()]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--short", action="store_true", help="few samples, figures not kept")
    parser.add_argument(
        "--only",
        type=lambda text: text.split(","),
        default=[],
        metavar="NAME,...",
        help=f"of {', '.join(names)}",
    )
    options = parser.parse_args()
    unknown = set(options.only) - set(names)
    if unknown:
        parser.error(f"there is no {', '.join(sorted(unknown))}: {', '.join(names)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
