# SPDX-License-Identifier: Apache-2.0
"""Defines the form of an Event in the Kubernetes API, and what the server's answers mean. Pure.

Owns the body and the name of an Event of group events.k8s.io, and the messages about refusals. Must
not know sockets, threads, how long to wait (event_queue.py), or when there is an event.

The name of an Event is made from what it says, so that the same event always has the same name. An
agent that was restarted creates it again, and the server answers 409 as long as it keeps the first
one. So the permission to create Events suffices, and none is read, counted or changed.

Source: kubernetes.io/docs/reference/kubernetes-api (Event v1 events.k8s.io) and the server's
pkg/apis/core/validation/events.go.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum

from probes.vmi.event import NOTE_MAX_BYTES, VmiEvent
from probes.vmi.foreign_text import cut_bytes, one_line
from probes.vmi.kube.answer import Answer

EVENTS = "events.events.k8s.io"
REPORTING_CONTROLLER = "hvprobe"
ACTION = "DetectHypervisor"
"""What hvprobe did, for programs; the API requires it."""
_NAME_MAX = 253
_INSTANCE_MAX_BYTES = 128
_DIGEST_CHARS = 20


class Fate(Enum):
    """What becomes of an event after an answer."""

    DONE = "done"
    """The server has it, or there is no namespace left to write it to."""
    NOT_ALLOWED = "not allowed"
    """hvprobe may not create Events, or the server has no such resource. That holds for every
    event, and only an administrator can change it."""
    REJECTED = "rejected"
    """The server rejects this event and always will."""
    LATER = "later"
    """The server may accept it later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """What an answer means."""

    fate: Fate
    line: str | None
    """What failed, on what, why, what to do; None: nothing did."""


def body_of(event: VmiEvent) -> bytes:
    """Return the Event as JSON."""
    happened = datetime.fromtimestamp(event.happened_unix_s, UTC)
    return json.dumps(
        {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": name_of(event), "namespace": event.namespace},
            "eventTime": happened.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "type": event.type.value,
            "reason": event.reason,
            "action": ACTION,
            "note": cut_bytes(event.note, NOTE_MAX_BYTES),
            "regarding": {
                "apiVersion": "kubevirt.io/v1",
                "kind": "VirtualMachineInstance",
                "namespace": event.namespace,
                "name": event.name,
                "uid": event.uid,
            },
            "reportingController": REPORTING_CONTROLLER,
            "reportingInstance": cut_bytes(event.node, _INSTANCE_MAX_BYTES),
        }
    ).encode()


def name_of(event: VmiEvent) -> str:
    """Return the name that an Event always has: the VMI's name and a digest of what it says."""
    said = "\0".join((event.uid, event.node, event.reason, *event.identity))
    digest = hashlib.sha256(said.encode()).hexdigest()[:_DIGEST_CHARS]
    return f"{event.name[: _NAME_MAX - 1 - _DIGEST_CHARS].rstrip('-.')}.{digest}"


def meaning_of(answer: Answer, *, server: str, credentials: str, namespace: str) -> Meaning:
    """Return what an answer to the creation of an Event in this namespace means."""
    status = _status(answer.body)
    message = status.get("message")
    said = f"; it says: {one_line(message)}" if isinstance(message, str) and message else ""
    where = f"{EVENTS} in namespace {one_line(namespace)} at {server}"
    match answer.status:
        case 200 | 201 | 202 | 409:
            return _done()
        case 404 if _names_a_namespace(status):
            return _done()
        case 403 if _is_terminating(status):
            return _done()
        case 403:
            return _not_allowed(
                f"not allowed to create {where} (403 Forbidden): apply "
                f"deploy/components/events, or remove --events{said}"
            )
        case 404 | 405:
            return _not_allowed(
                f"API server {server} has no events.k8s.io/v1 (HTTP {answer.status}): use "
                "Kubernetes 1.19 or later, or remove --events"
            )
        case 401:
            return _later(
                f"API server {server} refuses {credentials} (401 Unauthorized): check it{said}"
            )
        case 429:
            return _later(
                f"API server {server} is busy (429 Too Many Requests): asking again later{said}"
            )
        case code if 400 <= code < 500 and code != 408:
            return Meaning(
                fate=Fate.REJECTED,
                line=f"API server {server} rejects an Event in namespace {one_line(namespace)} "
                f"(HTTP {code}): this is a defect in hvprobe or a policy of the cluster{said}",
            )
        case code:
            return _later(f"API server {server} failed to create {EVENTS} (HTTP {code}){said}")


def _done() -> Meaning:
    return Meaning(fate=Fate.DONE, line=None)


def _not_allowed(line: str) -> Meaning:
    return Meaning(fate=Fate.NOT_ALLOWED, line=line)


def _later(line: str) -> Meaning:
    return Meaning(fate=Fate.LATER, line=line)


def _status(body: bytes) -> dict[str, object]:
    """Decode the Status object of a refusal; empty: it is none, as what a proxy writes."""
    try:
        status = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return status if isinstance(status, dict) else {}


def _names_a_namespace(status: dict[str, object]) -> bool:
    """Whether the namespace is what the server did not find."""
    details = status.get("details")
    return isinstance(details, dict) and details.get("kind") == "namespaces"


def _is_terminating(status: dict[str, object]) -> bool:
    """Whether the server refuses because the namespace is being deleted (NamespaceLifecycle)."""
    details = status.get("details")
    causes = details.get("causes") if isinstance(details, dict) else None
    if isinstance(causes, list) and any(
        isinstance(cause, dict) and cause.get("reason") == "NamespaceTerminating"
        for cause in causes
    ):
        return True
    message = status.get("message")
    return isinstance(message, str) and "because it is being terminated" in message
