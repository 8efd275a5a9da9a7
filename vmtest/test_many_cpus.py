# SPDX-License-Identifier: Apache-2.0
"""A guest with as many possible CPUs as QEMU gives a machine, of which few are present.

Only the tests that concern them run in it. ``make test-many-cpus`` sets HVPROBE_MANY_CPUS, because
an emulated machine takes some minutes for them.
"""

import os
from dataclasses import replace

import pytest

from tests.support.required import require
from vmtest.build import BUILD_S, build
from vmtest.in_guest import DEADLINE_S, PYTEST, SELF_CHECK, environment, verdict
from vmtest.kernels import kernel_named
from vmtest.programs import build_programs
from vmtest.results import results_of
from vmtest.vm import boot, cpus_accepted, unavailable

KERNEL = "6.1"
PRESENT = 4
POSSIBLE = (512, 288, 255)
"""Numbers of possible CPUs, of which the first is taken that QEMU can emulate. hvprobe is meant for
512."""
COMMAND = f"{SELF_CHECK}\nexec {PYTEST} -v tests/kernel/test_many_cpus.py"


@pytest.mark.skipif(
    os.environ.get("HVPROBE_MANY_CPUS") != "1", reason="takes minutes: make test-many-cpus runs it"
)
@pytest.mark.timeout(DEADLINE_S + BUILD_S)
def test_many_cpus() -> None:
    """Counts are exact while vCPUs move between CPUs that come and go, beside hundreds of others.

    The kernel reports all of them as possible, so the tables have room for each.
    """
    kernel = kernel_named(KERNEL)
    require("guests", unavailable(kernel.architecture))
    possible = cpus_accepted(kernel.architecture, POSSIBLE)
    name = f"{KERNEL}-{possible}-cpus"
    guest = replace(build(kernel), smp=f"{PRESENT},maxcpus={possible}")
    with results_of(name) as results:
        build_programs(kernel.architecture, results / "bin")
        result = boot(
            guest,
            COMMAND,
            results,
            deadline_s=DEADLINE_S,
            environment=environment(),
        )
        wrong = verdict(result, results)
    if wrong:
        pytest.fail(f"{name}: {wrong}\n{result.console_tail()}")
