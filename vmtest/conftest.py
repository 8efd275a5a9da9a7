# SPDX-License-Identifier: Apache-2.0
"""Begins the guests of test_kernels.py, one after another beside the other tests.

Those use one CPU most of the time, and a guest needs one for minutes.
"""

import pytest

from vmtest import test_kernels
from vmtest.kernels import GuestKernel, selected
from vmtest.runs import Runs, room
from vmtest.vm import unavailable

_RUNS = pytest.StashKey[Runs[GuestKernel, test_kernels.Outcome]]()


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
