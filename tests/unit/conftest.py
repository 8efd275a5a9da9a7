# SPDX-License-Identifier: Apache-2.0
"""What several unit tests need to be set up."""

from pathlib import Path

import hypothesis
import pytest

from tests.support.facts import plant_node

# How long an example takes is the machine's affair, which may be shared and busy; nothing is kept
# between runs, so that each begins the same.
hypothesis.settings.register_profile("unit", deadline=None, database=None)
hypothesis.settings.load_profile("unit")


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """An empty /proc: no process in it yet."""
    return plant_node(tmp_path / "proc")
