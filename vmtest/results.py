# SPDX-License-Identifier: Apache-2.0
"""EDGE: the directories in which guests leave their results.

A run works in a directory of its own, which takes the kernel's name when the run ends. So runs of
one kernel may overlap, and the results of the one that ends last stay. Must not know what the
results are.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vmtest.cache import locked

RESULTS = Path(__file__).resolve().parents[1] / "build" / "test-kernels"
"""Holds the results of each kernel's last run, in a directory named after the kernel."""


@contextlib.contextmanager
def results_of(name: str, below: Path = RESULTS) -> Iterator[Path]:
    """An empty directory for the block to fill. It becomes `below`/`name` when the block ends."""
    below.mkdir(parents=True, exist_ok=True)
    with locked("results"):
        _remove_abandoned(name, below)
        running = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=below))
        running.chmod(0o755)
        held = os.open(running, os.O_RDONLY)
        fcntl.flock(held, fcntl.LOCK_EX)
    try:
        yield running
    finally:
        with locked("results"):
            shutil.rmtree(below / name, ignore_errors=True)
            running.rename(below / name)
        os.close(held)


def _remove_abandoned(name: str, below: Path) -> None:
    """Remove the directories of killed runs, which no process has locked."""
    for directory in below.glob(f".{name}-*"):
        held = os.open(directory, os.O_RDONLY)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(held)
