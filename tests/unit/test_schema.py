# SPDX-License-Identifier: Apache-2.0
"""The published JSON Schema: what it takes, what it refuses, and that it describes everything."""

import copy
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from ebpf.exit_reasons.reasons import Isa, ReasonCount
from probes.render.live.frames import frame_json
from probes.report.json_schema import json_schema
from probes.report.model import SCHEMA, NodeReport, to_json
from probes.vmi.model import WatchStatus
from tests.support.live_reports import busy_node
from tests.support.rich_report import measured_report, rich_report

PUBLISHED = json_schema()
FOR_PEOPLE = Path(__file__).resolve().parents[2] / "docs/snapshot.schema.json"
VALIDATOR = Draft202012Validator(PUBLISHED)
WATCH = WatchStatus(
    up=True, synced=True, last_sync_unix_s=1.5, restarts=0, error=None, malformed_total=0
)


def reports() -> Iterator[NodeReport]:
    yield rich_report()
    yield busy_node()[-1]
    yield replace(rich_report(), health=replace(rich_report().health, vmi_watch=WATCH))
    yield replace(rich_report(), processes=(), vmis=(), accelerators=())
    yield measured_report()


def test_it_is_a_schema() -> None:
    """Valid by the draft it names, for the version that reports carry."""
    Draft202012Validator.check_schema(PUBLISHED)
    assert PUBLISHED["title"] == SCHEMA


def test_the_copy_for_people_is_current() -> None:
    """docs/snapshot.schema.json equals the schema that json_schema() makes.

    After an intended change, run the test with HVPROBE_UPDATE_GOLDEN=1 and read the difference.
    """
    text = json.dumps(PUBLISHED, indent=2) + "\n"
    if os.environ.get("HVPROBE_UPDATE_GOLDEN") == "1":
        FOR_PEOPLE.write_text(text)
    assert FOR_PEOPLE.read_text() == text


def test_reports_keep_to_it() -> None:
    """Reports with a case of everything, with and without a cluster and exit reasons."""
    counts = (ReasonCount(isa=Isa.VMX, code=30, name="IO_INSTRUCTION", total=7),)
    for report in reports():
        VALIDATOR.validate(to_json(report))
        VALIDATOR.validate(json.loads(frame_json(report, {4711: counts})))


def test_every_key_is_described() -> None:
    """No key of a report is missing in the schema, at any depth."""
    for report in reports():
        assert list(undescribed(to_json(report), PUBLISHED)) == []


def undescribed(value: object, schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """Paths of keys that the schema does not name."""
    if "$ref" in schema:
        schema = PUBLISHED["$defs"][schema["$ref"].rpartition("/")[2]]
    for branch in schema.get("oneOf", ()):
        if branch.get("type") == "object":
            schema = branch
    if isinstance(value, list):
        for one in value:
            yield from undescribed(one, schema["items"], f"{path}[]")
    elif isinstance(value, dict) and "additionalProperties" not in schema:
        for key, one in value.items():
            if key not in schema.get("properties", {}):
                yield f"{path}.{key}"
            else:
                yield from undescribed(one, schema["properties"][key], f"{path}.{key}")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema",), "hvprobe/v2"),
        (("taken_unix_s",), "now"),
        (("vmis", 0, "hypervisor_type"), "xen"),
        (("vmis", 0, "verified"), None),
        (("vmis", 0, "vcpu_exits_total"), -1),
        (("vmis", 0, "reasons"), []),
        (("processes", 0, "tgid"), 0),
        (("processes", 0, "state"), "gone"),
        (("health", "hooks", 0, "backend"), "fentry"),
        (("health", "counters", "exits"), "maybe"),
        (("vmis", 0, "vcpu_statistics", "guest_cpu_seconds_total"), -0.5),
    ],
)
def test_it_refuses_what_is_wrong(path: tuple[str | int, ...], value: object) -> None:
    """A wrong type, word or number does not pass, and a missing key does not either."""
    wrong: Any = copy.deepcopy(to_json(measured_report()))
    inner = wrong
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    with pytest.raises(ValidationError):
        VALIDATOR.validate(wrong)
    del inner[path[-1]]
    with pytest.raises(ValidationError):
        VALIDATOR.validate(wrong)
