# SPDX-License-Identifier: Apache-2.0
"""Converts the doctor's checks to JSON. Pure.

Must not know what is checked, nor how checks look (doctor_view.py). The agent imports this module,
so it must not import what only terminals need.
"""

from collections.abc import Sequence

from probes.render.doctor import Ability, Check

DOCTOR_SCHEMA = "hvprobe-doctor/v1"


def doctor_json(checks: Sequence[Check], ability: Ability) -> dict[str, object]:
    """Convert checks to plain JSON values. Keys are a public interface."""
    return {
        "schema": DOCTOR_SCHEMA,
        "ability": ability.name.lower(),
        "exit_code": ability.value,
        "checks": [
            {
                "question": check.label,
                "outcome": check.outcome.value,
                "finding": check.finding,
                "remedy": check.remedy,
            }
            for check in checks
        ],
    }
