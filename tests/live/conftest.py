# SPDX-License-Identifier: Apache-2.0
"""What tests of the live view need: a terminal, and a machine with real guests."""

from pathlib import Path

import pytest

from tests.support.kernel_world import build_kvmload
from tests.support.required import missing_for_guests, require


@pytest.fixture(scope="session", autouse=True)
def live_required() -> None:
    """Skip where the machine cannot do it, fail where it was promised."""
    require("kernel", missing_for_guests("tmux"))


@pytest.fixture(scope="session")
def kvmload(live_required: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled kvmload program."""
    return build_kvmload(tmp_path_factory.mktemp("kvmload"))
