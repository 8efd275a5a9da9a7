# SPDX-License-Identifier: Apache-2.0
"""The platforms of platforms.py: each boot runs tests/platform in a guest.

HVPROBE_PLATFORMS chooses boots by name, separated by commas, or ``all``. What a guest leaves stays
in build/test-platforms/BOOT.
"""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
import yaml

from tests.support.required import require
from vmtest.build import BUILD_S, BuiltGuest, build
from vmtest.by_name import rows_in
from vmtest.platform_model import Boot, Variant
from vmtest.platforms import (
    BOOT_VARIABLE,
    BOOTS,
    EXTRA_PACKAGES,
    LONE_PACKAGES,
    SELECTION_VARIABLE,
    SELINUX_POLICY,
    WHAT,
)
from vmtest.programs import build_programs
from vmtest.results import results_of
from vmtest.root import build_root
from vmtest.selinux import POLICY, build_policy
from vmtest.vm import CONSOLE, REPOSITORY, boot, unavailable

RESULTS = REPOSITORY / "build" / "test-platforms"
RENDERED = REPOSITORY / "tests" / "golden" / "deploy"
"""The manifests, as tests/deploy holds them to be rendered."""
DEADLINE_S = float(os.environ.get("HVPROBE_GUEST_DEADLINE_S", "3000"))
JUNIT = "junit.xml"
FACTS = "facts.json"
COMMAND = f"""\
python3 -m vmtest.check_guest --facts-only /results/{FACTS} || exit 90
eval "set -- $HVPROBE_GUEST_PYTEST"
exec python3 -m pytest tests/platform -p no:cacheprovider --timeout 600 -v \
    -o log_cli=true -o log_cli_level=INFO --junitxml=/results/{JUNIT} "$@"
"""


def built(chosen: Boot) -> BuiltGuest:
    """The guest of a boot: that of its kernel, with the programs of a node."""
    kernel = chosen.kernel
    root = build_root(
        kernel.root_suite, kernel.architecture, extra=EXTRA_PACKAGES, alone=LONE_PACKAGES
    )
    return dataclasses.replace(build(kernel), root=root)


def write_manifests(folder: Path) -> None:
    """Write each variant's DaemonSet as JSON."""
    folder.mkdir()
    for variant in Variant:
        objects = yaml.safe_load_all((RENDERED / f"{variant.value}.yaml").read_text())
        (daemonset,) = [each for each in objects if each["kind"] == "DaemonSet"]
        (folder / f"{variant.value}.json").write_text(json.dumps(daemonset))


def environment(chosen: Boot) -> dict[str, str]:
    """The environment of the tests in a guest."""
    return {
        BOOT_VARIABLE: chosen.name,
        "HVPROBE_REQUIRE": "platform",
        "HVPROBE_KVMLOAD": "/results/bin/kvmload",
        "HVPROBE_EMULATED": "1",
        "HVPROBE_TEST_DEADLINE_S": os.environ.get("HVPROBE_TEST_DEADLINE_S", "120"),
        "HVPROBE_GUEST_PYTEST": os.environ.get("HVPROBE_GUEST_PYTEST", ""),
    }


@pytest.mark.timeout(DEADLINE_S + 2 * BUILD_S)
@pytest.mark.parametrize(
    "chosen", rows_in(SELECTION_VARIABLE, BOOTS, what=WHAT), ids=lambda chosen: chosen.name
)
def test_boot(chosen: Boot) -> None:
    """Every platform of the boot is as its row says, for each variant of the agent."""
    require("guests", unavailable(chosen.kernel.architecture))
    guest = built(chosen)
    with results_of(chosen.name, RESULTS) as results:
        build_programs(chosen.kernel.architecture, results / "bin")
        write_manifests(results / "manifests")
        if chosen.selinux:
            shutil.copy(build_policy() / POLICY, results / SELINUX_POLICY)
        done = boot(
            guest,
            COMMAND,
            results,
            deadline_s=DEADLINE_S,
            environment=environment(chosen),
            kernel_arguments=chosen.kernel_arguments,
        )
        tail = done.console_tail()
    assert done.exit_code == 0, f"{chosen.name}: {RESULTS / chosen.name / CONSOLE}:\n{tail}"
