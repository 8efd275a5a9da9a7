# SPDX-License-Identifier: Apache-2.0
"""What every guest that runs tests is given, and what its run means.

Owns the environment of the tests, the names of the files that they leave and the verdict on them.
Must not know which tests a guest runs, nor on which kernel.
"""

import os
import xml.etree.ElementTree as ET
from pathlib import Path

from vmtest.vm import GuestResult

DEADLINE_S = float(os.environ.get("HVPROBE_GUEST_DEADLINE_S", "3000"))
"""For one guest, boot included, also for one that gets little of a CPU beside other tests."""
JUNIT = "junit.xml"
FACTS = "facts.json"
SELF_CHECK_FAILED = 90
SELF_CHECK = f"python3 -m vmtest.check_guest /results/{FACTS} || exit {SELF_CHECK_FAILED}"
"""The first line of a guest's command."""
PYTEST = f"python3 -m pytest -p no:cacheprovider --timeout 600 --junitxml=/results/{JUNIT}"


def environment() -> dict[str, str]:
    """The environment of the tests in a guest."""
    return {
        "HVPROBE_REQUIRE": "kernel",
        "HVPROBE_KVMLOAD": "/results/bin/kvmload",
        "HVPROBE_MODULE_TESTS": "1",
        "HVPROBE_EMULATED": "1",
        "HVPROBE_TEST_DEADLINE_S": "120",
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
        return "the self-check of vmtest failed, the tests did not run"
    if result.exit_code:
        failed = not_passed(results / JUNIT) if (results / JUNIT).exists() else []
        return "\n  ".join([f"pytest in the guest ended with {result.exit_code}", *failed])
    return None
