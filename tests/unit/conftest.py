# SPDX-License-Identifier: Apache-2.0
"""Fixtures that several unit tests share."""

from pathlib import Path

import hypothesis
import pytest

from tests.support.facts import plant_node

# Examples have no deadline, because the machine may be shared and busy. Nothing is kept between
# runs, so that each run starts from the same state.
hypothesis.settings.register_profile("unit", deadline=None, database=None)
hypothesis.settings.load_profile("unit")


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A /proc without any process."""
    return plant_node(tmp_path / "proc")
