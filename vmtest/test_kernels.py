# SPDX-License-Identifier: Apache-2.0
"""The kernel tests on other kernels: each boots in QEMU and runs tests/kernel inside.

As many guests run at once as there is room for. Some begin earlier, see conftest.py.

HVPROBE_KERNELS chooses kernels by name, comma separated, and HVPROBE_BRIEF those on which only some
of the tests run (choice.py). HVPROBE_GUEST_PYTEST replaces the choice by arguments of pytest. What
a guest leaves (console, JUnit report, versions) stays in build/test-kernels/NAME.
"""

import os
import warnings
from dataclasses import dataclass

import pytest

from tests.support.required import require
from vmtest.build import BUILD_S, build
from vmtest.choice import choice, deadline_s
from vmtest.in_guest import PYTEST, SELF_CHECK, environment, verdict
from vmtest.kernels import GuestKernel, selected
from vmtest.programs import build_programs
from vmtest.results import RESULTS, results_of
from vmtest.runs import Runs
from vmtest.vm import CONSOLE, boot, unavailable

COMMAND = f"""\
{SELF_CHECK}
if [ -n "$HVPROBE_GUEST_PYTEST" ]; then set -- $HVPROBE_GUEST_PYTEST; else set -- -m "$CHOICE"; fi
exec {PYTEST} tests/kernel --durations=15 "$@"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of the kernel tests in one guest."""

    boots: int
    wrong: str | None
    console_tail: str


def run(kernel: GuestKernel) -> Outcome:
    """Build the guest, run the kernel tests in it, keep what they left."""
    guest = build(kernel)
    with results_of(kernel.name) as results:
        build_programs(kernel.architecture, results / "bin")
        result = boot(
            guest,
            COMMAND,
            results,
            deadline_s=deadline_s(kernel),
            environment={
                **environment(),
                "CHOICE": choice(kernel),
                "HVPROBE_GUEST_PYTEST": os.environ.get("HVPROBE_GUEST_PYTEST", ""),
            },
        )
        return Outcome(
            boots=result.boots,
            wrong=verdict(result, results),
            console_tail=result.console_tail(),
        )


@pytest.mark.timeout(sum(deadline_s(kernel) + BUILD_S for kernel in selected()))
# A machine that had to be booted again is no failure; the summary shows it.
@pytest.mark.filterwarnings("default:.*the emulated machine hung:UserWarning")
@pytest.mark.parametrize("kernel", selected(), ids=lambda kernel: kernel.name)
def test_kernel(kernel: GuestKernel, runs: Runs[GuestKernel, Outcome]) -> None:
    """All kernel tests pass inside the guest, with real hooks and real nested KVM guests."""
    require("guests", unavailable(kernel.architecture))
    outcome = runs.result(kernel)
    if outcome.boots > 1:
        warnings.warn(
            f"{kernel.name}: the emulated machine hung, it was booted {outcome.boots} times",
            stacklevel=1,
        )
    if outcome.wrong:
        place = RESULTS / kernel.name / CONSOLE
        pytest.fail(f"{kernel.name}: {outcome.wrong}\n{place}:\n{outcome.console_tail}")
