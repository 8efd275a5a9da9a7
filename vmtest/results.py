# SPDX-License-Identifier: Apache-2.0
"""EDGE: where a guest's run leaves what it made.

Owns the results' place. A run works in a directory of its own and takes the kernel's name at its
end, so that runs of one kernel may overlap; the last one stays. Must not know what is in it.
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
"""The results of each kernel's last run, in a directory of its name."""


@contextlib.contextmanager
def results_of(name: str, below: Path = RESULTS) -> Iterator[Path]:
    """An empty directory for the block to fill, `below`/`name` afterwards."""
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
    """Remove directories of killed runs: nobody holds their lock."""
    for directory in below.glob(f".{name}-*"):
        held = os.open(directory, os.O_RDONLY)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(held)
