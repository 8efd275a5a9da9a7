# SPDX-License-Identifier: Apache-2.0
"""The published JSON Schemas of ``kubectl hvprobe -o json``."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from probes.fleet.answers import (
    AcceleratorAnswer,
    CheckAnswer,
    DoctorAnswer,
    HookAnswer,
    SnapshotAnswer,
    VmAnswer,
)
from probes.fleet.explained import DOCTORS_SCHEMA, doctors_json
from probes.fleet.json_schema import doctor_schema, fleet_schema
from probes.fleet.merge import merged
from probes.fleet.model import AgentPod, ClusterVmis, NodeAnswer
from probes.fleet.views import FLEET_SCHEMA, fleet_json
from probes.judge.reasons import Severity

DOCS = Path(__file__).resolve().parents[2] / "docs"
PUBLISHED = {
    FLEET_SCHEMA: (fleet_schema(), DOCS / "fleet.schema.json"),
    DOCTORS_SCHEMA: (doctor_schema(), DOCS / "fleet-doctor.schema.json"),
}


def pod(node: str) -> AgentPod:
    return AgentPod(
        namespace="hvprobe", name=f"hvprobe-{node}", node=node, port=9747, https=False,
        not_running=None, ready=True, created="",
    )  # fmt: skip


def outputs() -> Iterator[dict[str, Any]]:
    """What the commands print of a node that answers, one that does not, and no node at all."""
    vm = VmAnswer(
        namespace="default", name="alpha", hypervisor_type="tcg", verified=True, fallback=True,
        cause="emulation_allowed", cause_detail="it is allowed", remedy="remove useEmulation",
        vcpu_exits_per_second=0.5, reasons=("seen",),
    )  # fmt: skip
    plain = SnapshotAnswer(schema="hvprobe/v1", version="0.0.1", vmis=(vm,))
    said = SnapshotAnswer(
        schema="hvprobe/v1", version="0.0.1", vmis=(vm,),
        node=type(plain.node)(
            module="kvm_intel", nested=False,
            accelerators=(AcceleratorAnswer(type="kvm", available=True),
                          AcceleratorAnswer(type="mshv", available=None)),
        ),
        health=type(plain.health)(hooks=(HookAnswer(backend="kprobe"),)),
    )  # fmt: skip
    good = NodeAnswer(node="n1", agent=pod("n1"), snapshot=said)
    gone = NodeAnswer(node="n2", agent=pod("n2"), failure="no answer within 5 s")
    bare = NodeAnswer(node="n3", agent=None, failure="no agent runs on this node")
    for answers in ((good, gone, bare), ()):
        fleet = merged(answers, ClusterVmis(), version="1")
        yield fleet_json(fleet, version="1", notice="a line" if answers else None)
    check = CheckAnswer(question="KVM", outcome="fail", finding="none", remedy="load it")
    doctor = DoctorAnswer(schema="hvprobe-doctor/v1", version="1", checks=(check,))
    yield doctors_json([(good, doctor), (gone, None)], version="1", notice=None)


@pytest.mark.parametrize("name", [*PUBLISHED])
def test_it_is_a_schema_and_docs_has_a_copy(name: str) -> None:
    """It is valid by the draft it names, for the version that the output carries.

    After an intended change, run the test with HVPROBE_UPDATE_GOLDEN=1 and read the difference.
    """
    schema, copied = PUBLISHED[name]
    Draft202012Validator.check_schema(schema)
    assert schema["title"] == name
    text = json.dumps(schema, indent=2) + "\n"
    if os.environ.get("HVPROBE_UPDATE_GOLDEN") == "1":
        copied.write_text(text)
    assert copied.read_text() == text


@pytest.mark.parametrize("found", [*outputs()])
def test_outputs_keep_to_it(found: dict[str, Any]) -> None:
    """Each output is valid, and the schema describes every key of it, at any depth."""
    schema = PUBLISHED[found["schema"]][0]
    Draft202012Validator(schema).validate(json.loads(json.dumps(found)))
    assert list(undescribed(found, schema, schema)) == []


def undescribed(
    value: object, schema: dict[str, Any], top: dict[str, Any], path: str = ""
) -> Iterator[str]:
    """Paths of keys that the schema does not name."""
    if "$ref" in schema:
        schema = top["$defs"][schema["$ref"].rpartition("/")[2]]
    if isinstance(value, list):
        for one in value:
            yield from undescribed(one, schema["items"], top, f"{path}[]")
    elif isinstance(value, dict) and "additionalProperties" not in schema:
        for key, one in value.items():
            if key not in schema["properties"]:
                yield f"{path}.{key}"
            else:
                yield from undescribed(one, schema["properties"][key], top, f"{path}.{key}")


def test_it_names_every_severity() -> None:
    """The words for urgency are those of the report, in the same order."""
    row = fleet_schema()["properties"]["vmis"]["items"]["properties"]
    assert row["severity"]["enum"] == [severity.name.lower() for severity in sorted(Severity)]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema",), "hvprobe-fleet/v2"),
        (("vmis", 0, "hypervisor_type"), "xen"),
        (("vmis", 0, "severity"), "bad"),
        (("vmis", 0, "vcpu_exits_per_second"), -1),
        (("vmis", 0, "reason"), None),
        (("nodes", 2, "hooks_attached"), "1"),
        (("nodes", 0, "accelerators"), {"kvm": "yes"}),
        (("summary", "kvm"), -1),
    ],
)
def test_it_refuses_what_is_wrong(path: tuple[str | int, ...], value: object) -> None:
    """A wrong type, word or number does not pass, and a missing key does not either."""
    wrong: Any = copy.deepcopy(next(outputs()))
    inner = wrong
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    validator = Draft202012Validator(fleet_schema())
    with pytest.raises(ValidationError):
        validator.validate(wrong)
    del inner[path[-1]]
    with pytest.raises(ValidationError):
        validator.validate(wrong)
