# SPDX-License-Identifier: Apache-2.0
"""Makes the JSON Schema of a report. Pure.

Owns the parts of the schema that follow from the tables of counters, causes and hypervisors.
schema/snapshot.base.json has everything else. docs/snapshot.schema.json is the result, for people;
a test keeps it up to date.
"""

import json
from collections.abc import Iterable
from importlib import resources
from typing import Any

from ebpf import counters
from ebpf.counters import Counter
from probes.host.hypervisors import HypervisorType
from probes.judge.cause import Cause

_BASE = "schema/snapshot.base.json"


def json_schema() -> dict[str, Any]:
    """Return the complete schema of ``hvprobe snapshot``.

    A counter that is added later is not required, because reports of older agents lack it.
    """
    schema: dict[str, Any] = json.loads(
        resources.files("probes.report").joinpath(_BASE).read_text(encoding="utf-8")
    )
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
