# SPDX-License-Identifier: Apache-2.0
"""One mutant on trial: its text in a copy of the tree, its tests in a child of this process.

The child is forked with the libraries of the tests loaded, in a process group of its own, which is
all that is ever killed.
"""

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory

import hypothesis.strategies  # noqa: F401 (loaded once, for all children)
import pytest

ROOT = Path(__file__).resolve().parents[1]
_LEFT_OUT = (".git", ".venv", "build", "dist", "__pycache__", ".*_cache", ".hypothesis")
_ODD = 3
"""Exit codes: tests failed at their call (1), in their fixtures or at import alone (this)."""


class Outcome(StrEnum):
    """What the tests made of it."""

    KILLED = "killed"
    """A test failed."""
    BROKEN = "broken"
    """No test ran: the module, or what a fixture builds of it, cannot be used at all."""
    ENDLESS = "endless"
    """The tests did not end in time."""
    SURVIVED = "survived"

    @property
    def noticed(self) -> bool:
        """Whether the tests tell that something is wrong."""
        return self is not Outcome.SURVIVED


@dataclass(slots=True)
class _Watcher:
    """Counts tests that failed themselves."""

    failed: int = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed += report.failed and report.when == "call"


@dataclass(slots=True, kw_only=True)
class Copy:
    """A copy of the tree, in which files are changed and put back."""

    root: Path
    limit_s: float
    """For the tests of one mutant."""
    _written: int = field(default=0)

    def run(self, file: str, text: str | None, tests: Sequence[str]) -> Outcome:
        """What these tests say of a file with this text; None: with the text that it has."""
        path = self.root / file
        before = path.read_text()
        try:
            self._write(path, before if text is None else text)
            return self._trial(tests)
        finally:
            self._write(path, before)

    def _write(self, path: Path, text: str) -> None:
        """With a time of its own: Python takes bytecode of the same second for current."""
        path.write_text(text)
        self._written += 1
        os.utime(path, (self._written, self._written))

    def _trial(self, tests: Sequence[str]) -> Outcome:
        child = os.fork()
        if child == 0:
            self._child(tests)
        with contextlib.suppress(OSError):  # the child does the same, perhaps sooner
            os.setpgid(child, child)
        try:
            ended = _has_ended(child, self.limit_s)
        finally:
            os.killpg(child, signal.SIGKILL)  # not waited for yet: the number is still the child's
            _, status = os.waitpid(child, 0)
        if not ended:
            return Outcome.ENDLESS
        match os.waitstatus_to_exitcode(status):
            case pytest.ExitCode.OK:
                return Outcome.SURVIVED
            case pytest.ExitCode.TESTS_FAILED:
                return Outcome.KILLED
            case _:
                return Outcome.BROKEN

    def _child(self, tests: Sequence[str]) -> None:
        code = _ODD
        try:
            os.setpgid(0, 0)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.chdir(self.root)
            os.environ["PYTHONPATH"] = str(self.root)
            log = os.open(self.root / "mutant.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            options = "-x -q -p no:cacheprovider --tb=short --hypothesis-seed=0".split()
            # Hypothesis is loaded before pytest can rewrite its assertions, which is intended here.
            options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
            watcher = _Watcher()
            code = pytest.main([f"--rootdir={self.root}", *options, *tests], plugins=[watcher])
            if code == pytest.ExitCode.TESTS_FAILED and not watcher.failed:
                code = _ODD
        finally:
            sys.stdout.flush()
            os._exit(code)


@contextlib.contextmanager
def copied(limit_s: float) -> Iterator[Copy]:
    """A copy of this tree for as long as the block runs."""
    with TemporaryDirectory(prefix="hvprobe-mutants-") as directory:
        root = Path(directory) / "tree"
        shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns(*_LEFT_OUT), symlinks=True)
        (root / ".venv").symlink_to(ROOT / ".venv")
        yield Copy(root=root, limit_s=limit_s)


def _has_ended(child: int, limit_s: float) -> bool:
    """Whether the child ends within that time."""
    deadline_s = time.monotonic() + limit_s
    while time.monotonic() < deadline_s:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return True
        time.sleep(0.02)
    return False
