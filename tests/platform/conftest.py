# SPDX-License-Identifier: Apache-2.0
"""The guest as a node whose platform changes from test to test."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.platform_guest import prepare, shell, vms
from tests.support.required import require
from vmtest.platforms import BOOT_VARIABLE, Platform


class Stage:
    """The guest, set up for one platform at a time."""

    def __init__(self, kvmload: Path) -> None:
        self._kvmload = kvmload
        self._platform: Platform | None = None
        self._running = contextlib.ExitStack()

    def set_up(self, platform: Platform) -> None:
        """Undo the platform before this one, and set this one up, with VMs of its own."""
        if self._platform is platform:
            return
        self.clear()
        self._platform = platform
        shell(*platform.enter)
        self._running.callback(shell, *platform.leave)
        self._running.enter_context(vms(self._kvmload, confined=platform.vms_confined))

    def clear(self) -> None:
        """End the VMs and undo the platform."""
        self._running.close()
        self._platform = None


@pytest.fixture(scope="session")
def stage() -> Iterator[Stage]:
    """The guest of a boot; these tests change the system, so they run nowhere else."""
    in_guest = BOOT_VARIABLE in os.environ
    require("platform", None if in_guest else "this runs in guests: make test-platforms")
    prepare()
    made = Stage(Path(os.environ["HVPROBE_KVMLOAD"]))
    yield made
    made.clear()
