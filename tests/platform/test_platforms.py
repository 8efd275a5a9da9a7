# SPDX-License-Identifier: Apache-2.0
"""The agent of each variant on each platform of vmtest/platforms.py, beside real VMs."""

import json
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.image_container import Container
from tests.support.kernel_world import wait_for
from tests.support.platform_guest import Stage, agent
from vmtest.by_name import row_named
from vmtest.platform_model import ABSENT, Expected, Platform, Variant
from vmtest.platforms import BOOT_VARIABLE, BOOTS, WHAT

log = logging.getLogger(__name__)
Json = dict[str, Any]
REFRESHES = 4
"""How many refreshes an agent makes before what it reports counts: some verdicts need two."""
_BOOT = os.environ.get(BOOT_VARIABLE)
CASES = [
    pytest.param(platform, variant, id=f"{platform.name}-{variant.value}")
    for platform in (row_named(BOOTS, _BOOT, what=WHAT).platforms if _BOOT else ())
    for variant in platform.expected
]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What an agent reports."""

    vmis: dict[str, Json]
    hooks: dict[str, str]
    """The backend of each hook, or why it is detached."""
    doctor: list[str]
    ability: str
    log: list[str]

    def of(self, vm: str, name: str) -> str:
        """What is reported of a VM under this name; empty: nothing."""
        return self.vmis.get(vm, {}).get(name) or ""


def verdict(vmi: Json) -> str:
    """Type and certainty of a VM."""
    return f"{vmi['hypervisor_type']}, {'verified' if vmi['verified'] else 'inferred'}"


def seen(container: Container) -> Seen:
    """What the agent reports now."""
    report: Json = json.loads(container.get("/snapshot"))
    doctor: Json = json.loads(container.get("/doctor"))
    return Seen(
        vmis={vmi["name"]: vmi for vmi in report["vmis"]},
        hooks={hook["hook"]: hook["backend"] for hook in report["health"]["hooks"]},
        doctor=[_line(check) for check in doctor["checks"]],
        ability=doctor["ability"],
        log=container.log,
    )


def _line(check: Json) -> str:
    remedy = f"; {check['remedy']}" if check["remedy"] else ""
    return f"{check['outcome']}: {check['question']}: {check['finding']}{remedy}"


def wait_until_settled(container: Container, expected: Expected) -> Seen:
    """What the agent reports once it has had time to say it, and until it says what is expected."""
    wanted = {"alpha": expected.kvm, "halted": expected.halted, "beta": expected.tcg}
    refreshes = 0

    def settled() -> bool:
        nonlocal refreshes
        report: Json = json.loads(container.get("/snapshot"))
        refreshes += 1
        reported = {vmi["name"]: verdict(vmi) for vmi in report["vmis"]}
        return refreshes >= REFRESHES and wanted == {
            **dict.fromkeys(wanted, ABSENT),
            **reported,
        }

    try:
        wait_for(settled, f"VMs are {wanted}")
    finally:
        found = seen(container)
        log.info("%s", found)
    return found


def record(found: Seen, tell: Callable[[str, object], None]) -> None:
    """Record for docs/platforms.md what an agent reports."""
    for name in ("alpha", "halted", "beta"):
        vmi = found.vmis.get(name)
        tell(name, f"{verdict(vmi)}: {vmi['reasons'][0]}" if vmi else ABSENT)
    tell("cause", found.of("beta", "cause"))
    tell("exits", found.of("halted", "vcpu_exits_source"))
    hooks = [f"{name} ({backend})" for name, backend in found.hooks.items()]
    tell("hooks", ", ".join(hooks))
    tell("ability", found.ability)
    wrong = [line for line in found.doctor if not line.startswith("ok:")]
    for number, line in enumerate(wrong):
        tell(f"doctor_{number}", line)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("platform", "variant"), CASES)
def test_platform(
    stage: Stage,
    platform: Platform,
    variant: Variant,
    record_property: Callable[[str, object], None],
) -> None:
    """The agent reports exactly what this platform lets it know, and says why it knows no more."""
    stage.set_up(platform)
    expected = platform.expected[variant]
    with agent(variant, platform.pod) as container:
        try:
            found = wait_until_settled(container, expected)
        finally:
            print("\n".join(container.log))
            print(
                json.dumps(
                    {
                        "s": json.loads(container.get("/snapshot")),
                        "d": json.loads(container.get("/doctor")),
                    }
                )
            )
    record(found, record_property)
    assert found.of("beta", "cause") == expected.cause
    assert found.of("halted", "vcpu_exits_source") == expected.exits
    assert found.ability == expected.ability
    doctor = "\n".join(found.doctor)
    assert [words for words in expected.doctor if words not in doctor] == [], doctor
    warnings = [line for line in found.log if re.match(r"\S+ WARNING", line)]
    assert bool(warnings) == (expected.log is not None), warnings
    assert expected.log is None or expected.log in warnings[0]
