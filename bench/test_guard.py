# SPDX-License-Identifier: Apache-2.0
"""No ratio got worse than what is stored by more than its tolerance.

Not part of `make test`: it wants a machine that does nothing else. `make bench-guard` runs it.
"""

import json

import pytest

from bench.guard import GUARDED, guard_ratios, worse
from bench.results import RESULTS
from tests.support.required import missing_for_guests, require


@pytest.mark.timeout(180)
def test_no_ratio_got_worse() -> None:
    """Measured once; what seems worse is measured once more, for a neighbour may have run."""
    require("bench", missing_for_guests())
    stored = json.loads(RESULTS.read_text())["guard"]
    assert stored.keys() == GUARDED.keys()
    found = worse(guard_ratios(), stored)
    if found:
        found = worse(guard_ratios(), stored)
    assert not found, "\n".join(found)
