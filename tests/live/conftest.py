# SPDX-License-Identifier: Apache-2.0
"""Fixtures for tests of the live view, which need a terminal and a machine with real guests."""

from pathlib import Path

import pytest

from tests.support.kernel_world import build_kvmload
from tests.support.required import missing_for_guests, require


@pytest.fixture(scope="session", autouse=True)
def live_required() -> None:
    """Skips the tests where the machine cannot run them, or fails them where they are required."""
    require("kernel", missing_for_guests("tmux"))


@pytest.fixture(scope="session")
def kvmload(live_required: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled program kvmload."""
    return build_kvmload(tmp_path_factory.mktemp("kvmload"))
