# SPDX-License-Identifier: Apache-2.0
"""The kernel tests on other kernels: each boots in QEMU and runs tests/kernel inside.

As many guests run at once as there is room for. Some begin earlier, see conftest.py.

HVPROBE_KERNELS chooses kernels by name, comma separated. On those that HVPROBE_BRIEF names only the
tests run that are marked ``every_kernel``; HVPROBE_GUEST_PYTEST replaces the choice by arguments of
pytest. What a guest leaves (console, JUnit report, versions) stays in build/test-kernels/NAME.
"""

import os
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.required import require
from vmtest.build import BUILD_S, build
from vmtest.kernels import GuestKernel, selected
from vmtest.programs import build_programs
from vmtest.results import RESULTS, results_of
from vmtest.runs import Runs
from vmtest.vm import CONSOLE, GuestResult, boot, unavailable

DEADLINE_S = float(os.environ.get("HVPROBE_GUEST_DEADLINE_S", "3000"))
"""For one guest, boot included, also for one that gets little of a CPU beside other tests."""
JUNIT = "junit.xml"
FACTS = "facts.json"
BRIEF_VARIABLE = "HVPROBE_BRIEF"
FULL = "not host_only"
"""What a guest runs: every test but those for this machine's kernel alone. They do not depend on
the kernel, or an emulated processor takes many minutes for them."""
BRIEF = "every_kernel"
"""What a guest runs whose kernel HVPROBE_BRIEF names: what differs from kernel to kernel."""
COMMAND = f"""\
python3 -m vmtest.check_guest /results/{FACTS} || exit 90
if [ -n "$HVPROBE_GUEST_PYTEST" ]; then set -- $HVPROBE_GUEST_PYTEST; else set -- -m "$CHOICE"; fi
exec python3 -m pytest tests/kernel -p no:cacheprovider --timeout 600 --junitxml=/results/{JUNIT} \
    --durations=15 "$@"
"""
SELF_CHECK_FAILED = 90


def choice(kernel: GuestKernel, environ: Mapping[str, str] = os.environ) -> str:
    """The marker expression of the tests that a kernel's guest runs."""
    brief = [name.strip() for name in environ.get(BRIEF_VARIABLE, "").split(",")]
    return BRIEF if kernel.name in brief else FULL


def environment(kernel: GuestKernel) -> dict[str, str]:
    """The environment of the tests in a guest."""
    return {
        "CHOICE": choice(kernel),
        "HVPROBE_REQUIRE": "kernel",
        "HVPROBE_KVMLOAD": "/results/bin/kvmload",
        "HVPROBE_MODULE_TESTS": "1",
        "HVPROBE_EMULATED": "1",
        "HVPROBE_TEST_DEADLINE_S": "120",
        "HVPROBE_GUEST_PYTEST": os.environ.get("HVPROBE_GUEST_PYTEST", ""),
    }


def not_passed(junit: Path) -> list[str]:
    """Names of the tests that failed, or that could not run."""
    cases = ET.parse(junit).getroot().iter("testcase")
    return [
        f"{case.get('classname')}::{case.get('name')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    ]


def verdict(result: GuestResult, results: Path) -> str | None:
    """Why the guest's run is no success; None when it is one."""
    if result.exit_code is None:
        return "the guest died or met its deadline"
    if result.exit_code == SELF_CHECK_FAILED:
        return "the self-check of vmtest failed, the kernel tests did not run"
    if result.exit_code:
        failed = not_passed(results / JUNIT) if (results / JUNIT).exists() else []
        return "\n  ".join([f"pytest in the guest ended with {result.exit_code}", *failed])
    return None


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
            guest, COMMAND, results, deadline_s=DEADLINE_S, environment=environment(kernel)
        )
        return Outcome(
            boots=result.boots,
            wrong=verdict(result, results),
            console_tail=result.console_tail(),
        )


@pytest.mark.timeout(len(selected()) * (DEADLINE_S + BUILD_S))
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
