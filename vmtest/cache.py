# SPDX-License-Identifier: Apache-2.0
"""EDGE: the cache of artefacts that vmtest makes once.

Owns where artefacts are and that they are complete. Each is a directory named by a digest of its
recipe. It is made under another name and renamed at the end, under a lock of its own, so a killed
build leaves nothing that counts as made, and two runs at once make it once. Must not know what the
artefacts are.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path

CACHE_VARIABLE = "HVPROBE_CACHE"
SILENT: ContextVar[bool] = ContextVar("SILENT", default=False)
"""True in a process beside tests, of which some look at what is written to stderr."""


def cache_directory() -> Path:
    """The folder in which vmtest keeps what it built."""
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given).resolve() / "guests"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "hvprobe" / "guests"


def say(line: str) -> None:
    """Report progress on stderr, unless SILENT says otherwise."""
    if SILENT.get():
        return
    print(f"guests: {line}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the lock of that name; the kernel releases it when its holder dies."""
    locks = cache_directory() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / name).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def made_once(name: str, recipe: Sequence[str], make: Callable[[Path], None]) -> Path:
    """The directory `name`-DIGEST; if it is not there, `make` fills it.

    `recipe` is everything that decides the content: another recipe is another directory.
    """
    digest = hashlib.sha256("\n".join(recipe).encode()).hexdigest()[:12]
    finished = cache_directory() / f"{name}-{digest}"
    if finished.is_dir():
        return finished
    with locked(f"{name}-{digest}"):
        if finished.is_dir():
            return finished
        begun_s = time.monotonic()
        unfinished = finished.with_name(f"{finished.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        make(unfinished)
        unfinished.rename(finished)
        say(f"{name}: made in {time.monotonic() - begun_s:.0f} s")
    return finished
