# SPDX-License-Identifier: Apache-2.0
"""The guest as a node whose platform changes from test to test."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.platform_guest import Stage, prepare
from tests.support.required import require
from vmtest.platforms import BOOT_VARIABLE


@pytest.fixture(scope="session")
def stage() -> Iterator[Stage]:
    """The guest of a boot; these tests change the system, so they run nowhere else."""
    in_guest = BOOT_VARIABLE in os.environ
    require("platform", None if in_guest else "this runs in guests: make test-platforms")
    prepare()
    made = Stage(Path(os.environ["HVPROBE_KVMLOAD"]))
    yield made
    made.clear()
