# SPDX-License-Identifier: Apache-2.0
"""The form of an Event in the Kubernetes API, and what the server's answers mean."""

import json
import re
from dataclasses import replace

import pytest

from probes.vmi.event import NOTE_MAX_BYTES, VmiEvent
from probes.vmi.foreign_text import cut_bytes
from probes.vmi.kube.answer import Answer
from probes.vmi.kube.event_api import Fate, Meaning, body_of, meaning_of, name_of
from tests.support.vmi_events import event

DNS_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


def test_the_body() -> None:
    """The Event is one of group events.k8s.io, about the VMI, in the VMI's namespace."""
    said = event()
    assert json.loads(body_of(said)) == {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": name_of(said), "namespace": "default"},
        "eventTime": "2023-11-14T22:15:00.500000Z",
        "type": "Warning",
        "reason": "SoftwareEmulation",
        "action": "DetectHypervisor",
        "note": "The virtual machine runs in software emulation.",
        "regarding": {
            "apiVersion": "kubevirt.io/v1",
            "kind": "VirtualMachineInstance",
            "namespace": "default",
            "name": "alpha",
            "uid": "5a5a",
        },
        "reportingController": "hvprobe",
        "reportingInstance": "node-a",
    }


def test_the_bounds() -> None:
    """Note and instance are not longer than the server permits, which counts bytes."""
    body = json.loads(body_of(event(note="é" * 9000, node="n" * 253)))
    assert len(body["note"].encode()) in range(NOTE_MAX_BYTES - 1, NOTE_MAX_BYTES + 1)
    assert body["note"].endswith("é...")
    assert len(body["reportingInstance"]) == 128


def test_the_name_is_always_the_same() -> None:
    """An agent that was restarted makes the same name, whatever the time and the words are then."""
    said = event()
    again = replace(said, happened_unix_s=1.0, note="Other words for the same.")
    assert name_of(again) == name_of(said)
    assert re.fullmatch(r"alpha\.[0-9a-f]{20}", name_of(said))


@pytest.mark.parametrize(
    "other",
    [
        event(uid="6b6b"),
        event(node="node-b"),
        event(identity=("accelerator_refused", "4711", "6000")),
        event(identity=("emulation_allowed", "4712", "6000")),
        event(identity=("emulation_allowed", "4711", "6001")),
        replace(event(), reason="HardwareAcceleration"),
    ],
    ids=["VMI", "node", "cause", "process", "start", "reason"],
)
def test_another_event_has_another_name(other: VmiEvent) -> None:
    """Another VMI, node, cause, process or reason is another event."""
    assert name_of(other) != name_of(event())


@pytest.mark.parametrize("length", [1, 63, 231, 232, 233, 253])
@pytest.mark.parametrize("char", ["a", "a.", "a-"])
def test_the_name_is_valid(length: int, char: str) -> None:
    """The name of an Event is a DNS subdomain, whatever the VMI's name is."""
    vmi = f"{(char * length)[: length - 1]}a"
    name = name_of(event(vmi))
    assert DNS_SUBDOMAIN.fullmatch(name)
    assert len(name) <= 253


@pytest.mark.parametrize(
    ("longest", "cut"),
    [
        (10, "aéaéaéa"),
        (9, "aéaé..."),
        (8, "aéa..."),
        (7, "aéa..."),
        (6, "aé..."),
        (5, "a..."),
        (0, "..."),
    ],
)
def test_cut_at_a_character(longest: int, cut: str) -> None:
    """A text that is too long is cut between two characters."""
    assert cut_bytes("aéaéaéa", longest) == cut


def status(reason: str, message: str, **details: object) -> bytes:
    return json.dumps({"kind": "Status", "reason": reason, "message": message, **details}).encode()


DENIED = status(
    "Forbidden", 'User "x" cannot create resource "events" in API group "events.k8s.io"'
)
TERMINATING = status(
    "Forbidden",
    'events.events.k8s.io "a" is forbidden',
    details={"causes": [{"reason": "Other"}, {"reason": "NamespaceTerminating"}]},
)
TERMINATING_TEXT = status(
    "Forbidden",
    "unable to create new content in namespace lab because it is being terminated",
    details={"causes": ["?"]},
)
NO_NAMESPACE = status("NotFound", 'namespaces "lab" not found', details={"kind": "namespaces"})
NO_RESOURCE = status("NotFound", "the server could not find the requested resource", details={})


def meaning(code: int, body: bytes = b"") -> Meaning:
    return meaning_of(
        Answer(status=code, body=body, retry_after_s=None),
        server="https://api",
        credentials="the service account in /run",
        namespace="lab",
    )


@pytest.mark.parametrize(
    ("code", "body", "fate"),
    [
        (200, b"{}", Fate.DONE),
        (201, b"{}", Fate.DONE),
        (202, b"", Fate.DONE),
        (409, status("AlreadyExists", "already exists"), Fate.DONE),
        (404, NO_NAMESPACE, Fate.DONE),
        (404, NO_RESOURCE, Fate.NOT_ALLOWED),
        (404, b"404 page not found\n", Fate.NOT_ALLOWED),
        (405, b"", Fate.NOT_ALLOWED),
        (403, DENIED, Fate.NOT_ALLOWED),
        (403, b"[]", Fate.NOT_ALLOWED),
        (403, b"\xff", Fate.NOT_ALLOWED),
        (403, TERMINATING, Fate.DONE),
        (403, TERMINATING_TEXT, Fate.DONE),
        (401, status("Unauthorized", "Unauthorized"), Fate.LATER),
        (429, status("TooManyRequests", "later"), Fate.LATER),
        (408, b"", Fate.LATER),
        (400, b"", Fate.REJECTED),
        (413, b"", Fate.REJECTED),
        (415, b"", Fate.REJECTED),
        (422, status("Invalid", "note: Invalid value"), Fate.REJECTED),
        (302, b"", Fate.LATER),
        (500, status("InternalError", "etcd"), Fate.LATER),
        (503, b"<html>", Fate.LATER),
        (504, b"", Fate.LATER),
    ],
)
def test_answers(code: int, body: bytes, fate: Fate) -> None:
    """Each answer has one meaning, and everything but success has one line."""
    found = meaning(code, body)
    assert found.fate is fate
    assert (found.line is None) == (fate is Fate.DONE)
    assert "\n" not in (found.line or "")


@pytest.mark.parametrize(
    ("code", "body", "parts"),
    [
        (
            403,
            DENIED,
            ["create events.events.k8s.io in namespace lab", "components/events", "User"],
        ),
        (404, b"", ["no events.k8s.io/v1", "Kubernetes 1.19"]),
        (401, b"", ["refuses the service account in /run"]),
        (422, status("Invalid", "note: Invalid"), ["HTTP 422", "it says: note: Invalid"]),
        (500, b"", ["HTTP 500", "https://api"]),
    ],
)
def test_lines(code: int, body: bytes, parts: list[str]) -> None:
    """A line says what failed, on what, why, and what to do."""
    line = meaning(code, body).line or ""
    assert [part for part in parts if part not in line] == []
