# SPDX-License-Identifier: Apache-2.0
"""Makes the JSON Schemas of what ``kubectl hvprobe -o json`` prints. Pure.

Owns the parts that follow from the table of hypervisors; the files in schema/ have everything else.
docs/fleet.schema.json and docs/fleet-doctor.schema.json are the results, for people; a test keeps
them up to date. ``kubectl hvprobe why -o json`` prints what the agent says, which keeps to
docs/why.schema.json.
"""

import json
from importlib import resources
from typing import Any

from probes.host.hypervisors import HypervisorType


def fleet_schema() -> dict[str, Any]:
    """Return the complete schema of ``kubectl hvprobe`` and ``kubectl hvprobe nodes``."""
    schema = _base("fleet")
    types = [kind.value for kind in HypervisorType]
    schema["$defs"] = {
        "hypervisor_type": {
            "enum": types,
            "description": "What runs the guest; unknown: no agent says, or this hvprobe does not "
            "know the agent's word.",
        },
        "by_type": {
            "type": "object",
            "description": "Number of VMs by hypervisor_type.",
            "properties": {kind: {"type": "integer", "minimum": 0} for kind in types},
            "required": types,
        },
    }
    return schema


def doctor_schema() -> dict[str, Any]:
    """Return the complete schema of ``kubectl hvprobe doctor``."""
    return _base("doctor")


def _base(name: str) -> dict[str, Any]:
    """Return the part of a schema that is written by hand."""
    text = resources.files("probes.fleet").joinpath(f"schema/{name}.base.json").read_text("utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema
