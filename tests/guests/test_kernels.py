"""The kernel tests on other kernels: each boots in QEMU and runs tests/kernel inside.

As many guests run at once as there is room for.

HVPROBE_KERNELS chooses kernels by name, comma separated. What a guest leaves (console, JUnit
report, versions) stays in build/test-kernels/NAME.
"""

import os
import warnings
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

import pytest
from guest_build import build
from guest_kernels import GuestKernel, selected
from guest_programs import build_programs
from guest_results import RESULTS, results_of
from guest_runs import Runs, room
from guest_vm import CONSOLE, GuestResult, boot, unavailable
from required import require

DEADLINE_S = float(os.environ.get("HVPROBE_GUEST_DEADLINE_S", "2100"))
"""For one guest, boot included."""
BUILD_S = 900
"""For what is not in the cache yet, over a slow network."""
JUNIT = "junit.xml"
FACTS = "facts.json"
LEFT_OUT = (
    "test_attacks.py",
    "test_attacks_on_others.py",
    "test_hostile_proc.py",
    "test_lives.py",
    "test_number_reuse.py",
    "test_time_namespace.py",
    "test_vmm_names.py",
)
"""Tests with thousands of threads and processes, many forks, or a new agent for each: an emulated
machine takes many minutes for them. They run on this machine; HVPROBE_GUEST_PYTEST replaces the
choice."""
CHOICE = " ".join(f"--ignore=tests/kernel/{name}" for name in LEFT_OUT)
COMMAND = f"""\
python3 tests/guests/check_guest.py /results/{FACTS} || exit 90
exec python3 -m pytest tests/kernel -p no:cacheprovider --timeout 600 --junitxml=/results/{JUNIT} \
    -o junit_family=xunit2 ${{HVPROBE_GUEST_PYTEST:-{CHOICE}}}
"""
SELF_CHECK_FAILED = 90


def environment() -> dict[str, str]:
    """What the tests in a guest are told."""
    return {
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
        return "the bench's self-check failed, the kernel tests did not run"
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
        result = boot(guest, COMMAND, results, deadline_s=DEADLINE_S, environment=environment())
        return Outcome(
            boots=result.boots,
            wrong=verdict(result, results),
            console_tail=result.console_tail(),
        )


@pytest.fixture(scope="module")
def runs() -> Runs[GuestKernel, Outcome]:
    """All guests that this machine can boot, begun at once or as soon as there is room."""
    possible = [it for it in selected() if unavailable(it.architecture) is None]
    return Runs(run, possible, at_once=room())


@pytest.mark.timeout(len(selected()) * (DEADLINE_S + BUILD_S))
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
