# SPDX-License-Identifier: Apache-2.0
"""Makes the JSON Schemas of a report and of an explanation. Pure.

Owns the parts of the schemas that follow from the tables of counters, causes and hypervisors, and
what an explanation takes over from a report. The files in schema/ have everything else.
docs/snapshot.schema.json and docs/why.schema.json are the results, for people; a test keeps them up
to date.
"""

import json
from collections.abc import Iterable
from importlib import resources
from typing import Any

from ebpf import counters
from ebpf.counters import Counter
from probes.host.hypervisors import HypervisorType
from probes.judge.cause import Cause

_OF_WHY: dict[str, Any] = {
    "is_main": {
        "type": "boolean",
        "description": "It runs the VM, or is the process that was asked about.",
    },
    "program": {
        "type": ["string", "null"],
        "description": "Base name of its executable; null: unreadable.",
    },
    "asked_for": {
        "type": ["array", "null"],
        "items": {"type": "string"},
        "description": "Accelerators that its command line names, in order: its own word.",
    },
    "pod": {
        "type": ["string", "null"],
        "description": "Uid of the pod that its cgroup names; null: none.",
    },
    "evidence": {"$ref": "#/$defs/evidence"},
}
"""What an explanation has of a process beside what a report has."""


def json_schema() -> dict[str, Any]:
    """Return the complete schema of ``hvprobe snapshot``.

    A counter that is added later is not required, because reports of older agents lack it.
    """
    schema = _base("snapshot")
    properties = schema["properties"]
    properties["health"]["properties"]["counters"]["properties"] = {
        counter.name: {"$ref": "#/$defs/trust"} for counter in counters.trusted()
    }
    of_vmis = [counter for counter in counters.COUNTERS if counter.metric is not None]
    properties["vmis"]["items"]["properties"] |= _totals(of_vmis)
    properties["processes"]["items"]["properties"] |= _totals(counters.COUNTERS)
    schema["$defs"]["cause"] = {
        "enum": [*(cause.value for cause in Cause), None],
        "description": "Why the guest is emulated, the first cause that holds. null: "
        "hypervisor_type is not tcg. Absent before this key was added to hvprobe/v1.",
    }
    schema["$defs"]["hypervisor_type"] = {"enum": [kind.value for kind in HypervisorType]}
    return schema


def why_schema() -> dict[str, Any]:
    """Return the complete schema of ``hvprobe why --json``."""
    schema, report = _base("why"), json_schema()
    vmi = report["properties"]["vmis"]["items"]
    process = report["properties"]["processes"]["items"]
    schema["$defs"] |= report["$defs"] | {
        "vmi": vmi,
        "process": process
        | {
            "properties": process["properties"] | _OF_WHY,
            "required": [*process["required"], *_OF_WHY],
        },
    }
    return schema


def _base(name: str) -> dict[str, Any]:
    """Return the part of a schema that is written by hand."""
    text = resources.files("probes.report").joinpath(f"schema/{name}.base.json").read_text("utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def _totals(given: Iterable[Counter]) -> dict[str, object]:
    return {
        counter.json: {
            "type": ["integer", "null"],
            "description": f"{counter.counts}; null: not counted here.",
            "minimum": 0,
        }
        for counter in given
        if counter.json is not None
    }
