# SPDX-License-Identifier: Apache-2.0
"""EDGE: how often the last guests had to be booted, in a small file of the cache.

Owns that file and the sentence made of it. QEMU's emulation sometimes hangs, and a guest that is
booted again passes its tests as any other: without this record no report would show how often.
"""

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from vmtest.cache import cache_directory, locked

KEPT = 200
"""The most runs that are kept. Older ones are forgotten."""
REPORTED = 40
"""The number of runs, the last ones, that a report covers."""
_NAME = "boots.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of a guest."""

    kernel: str
    """The name of its line in kernels.py."""
    ended_unix_s: float
    boots: int
    """How many times it was booted. Above 1, the emulated machine hung before."""


def add(kernel: str, boots: int) -> None:
    """Add a run that ends now."""
    run = Run(kernel=kernel, ended_unix_s=time.time(), boots=boots)
    with locked("boots"):
        kept = [*last_runs(KEPT), run][-KEPT:]
        unfinished = _file().with_suffix(".new")
        unfinished.write_text("".join(f"{json.dumps(asdict(each))}\n" for each in kept))
        unfinished.rename(_file())


def last_runs(count: int = REPORTED) -> list[Run]:
    """The last runs, the oldest first. A line that is not one of a run is left out."""
    runs = []
    lines = _file().read_text().splitlines() if _file().exists() else []
    for line in lines:
        with contextlib.suppress(ValueError, TypeError):
            runs.append(Run(**json.loads(line)))
    return runs[-count:]


def summary(runs: Sequence[Run]) -> str:
    """How often a guest had to be booted again, and which: one line."""
    if not runs:
        return "boots repeated: no guest has run yet"
    again = [run for run in runs if run.boots > 1]
    which = ", ".join(
        f"{run.kernel} on {_day(run.ended_unix_s)} ({run.boots} boots)" for run in again
    )
    of = f"the last {len(runs)}" if len(runs) > 1 else "the only run"
    return f"boots repeated: {len(again)} of {of}{f': {which}' if which else ''}"


def _day(unix_s: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(unix_s))


def _file() -> Path:
    return cache_directory() / _NAME
