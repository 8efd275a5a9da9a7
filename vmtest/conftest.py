# SPDX-License-Identifier: Apache-2.0
"""Begins the guests of test_kernels.py, one after another beside the other tests.

Those use one CPU most of the time, and a guest needs one for minutes.
"""

import time

import pytest

from vmtest import boot_history, test_kernels
from vmtest.kernels import GuestKernel, selected
from vmtest.runs import Runs, room
from vmtest.vm import unavailable

_BEGUN_UNIX_S = pytest.StashKey[float]()
_RUNS = pytest.StashKey[Runs[GuestKernel, test_kernels.Outcome]]()


def pytest_sessionstart(session: pytest.Session) -> None:
    """Note when the session begins."""
    session.config.stash[_BEGUN_UNIX_S] = time.time()


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say how often guests had to be booted again lately, if one ran in this session."""
    runs = boot_history.last_runs()
    if runs and runs[-1].ended_unix_s >= config.stash.get(_BEGUN_UNIX_S, time.time()):
        terminalreporter.write_line(boot_history.summary(runs))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Begin guests from the last one if all are to run, whatever runs before them."""
    possible = [kernel for kernel in selected() if unavailable(kernel.architecture) is None]
    session.stash[_RUNS] = Runs(test_kernels.run, possible)
    tested = [
        item.nodeid
        for item in session.items
        if isinstance(item, pytest.Function)
        and item.originalname == test_kernels.test_kernel.__name__
    ]
    if len(tested) == len(selected()) and not session.config.option.collectonly:
        session.stash[_RUNS].begin_early()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """End the guest of a session that was interrupted."""
    if begun := session.stash.get(_RUNS, None):
        begun.end()


@pytest.fixture(scope="session")
def runs(request: pytest.FixtureRequest) -> Runs[GuestKernel, test_kernels.Outcome]:
    """All guests that this machine can boot, as soon as there is room."""
    begun = request.session.stash[_RUNS]
    begun.begin(at_once=room())
    return begun
