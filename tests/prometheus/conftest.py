# SPDX-License-Identifier: Apache-2.0
"""What an end-to-end test needs of this machine: real guests and a real Prometheus."""

import pytest

from tests.support.prometheus_process import missing_programs
from tests.support.required import missing_for_guests, require


@pytest.fixture(scope="session", autouse=True)
def _machine() -> None:
    """Skip where the machine cannot do it, fail where it was promised."""
    programs = missing_programs()
    require("prometheus", f"not installed: {', '.join(programs)}" if programs else None)
    require("kernel", missing_for_guests())
