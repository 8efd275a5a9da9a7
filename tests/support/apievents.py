# SPDX-License-Identifier: Apache-2.0
"""The Events that the test API server stores, refused as kube-apiserver refuses them.

The order of the checks is the real server's: the namespace's state (admission plugin
NamespaceLifecycle), validation (pkg/apis/core/validation/events.go), then the name.
"""

from __future__ import annotations

import json
import re
import threading
from dataclasses import dataclass, field

from tests.support.apistore import JsonObject

GROUP = "events.k8s.io"
ROUTE = re.compile(rf"/apis/{re.escape(GROUP)}/v1/namespaces/([^/]+)/events")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_QUALIFIED = re.compile(rf"({_LABEL}(\.{_LABEL})*/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_KNOWN = {
    "action", "apiVersion", "eventTime", "kind", "metadata", "note", "reason", "regarding",
    "related", "reportingController", "reportingInstance", "series", "type",
}  # fmt: skip
"""Fields of a new Event; the deprecated ones must be absent."""


class EventRefusedError(Exception):
    """What the server answers instead of 201."""

    def __init__(self, code: int, reason: str, message: str, details: JsonObject) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.details = details


@dataclass(slots=True)
class EventStore:
    """The Events by namespace and name. Thread-safe."""

    gone: set[str] = field(default_factory=set)
    """Namespaces that do not exist; all others do."""
    terminating: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _events: dict[tuple[str, str], JsonObject] = field(default_factory=dict)

    def all(self) -> list[JsonObject]:
        """Every Event, in the order of creation."""
        with self._lock:
            return list(self._events.values())

    def forget(self) -> None:
        """Remove all Events, as the server does an hour after their creation."""
        with self._lock:
            self._events.clear()

    def create(self, namespace: str, body: bytes) -> JsonObject:
        """Store an Event. Raises EventRefusedError as the real server refuses it."""
        event = json.loads(body)
        name = event["metadata"]["name"]
        if namespace in self.gone:
            raise EventRefusedError(
                404,
                "NotFound",
                f'namespaces "{namespace}" not found',
                {"name": namespace, "kind": "namespaces"},
            )
        if namespace in self.terminating:
            raise EventRefusedError(
                403,
                "Forbidden",
                f'events.{GROUP} "{name}" is forbidden: unable to create new content in namespace '
                f"{namespace} because it is being terminated",
                _terminating(name, namespace),
            )
        faults = _faults(namespace, event)
        details: JsonObject = {"name": name, "group": GROUP, "kind": "Event"}
        if faults:
            message = f'Event.{GROUP} "{name}" is invalid: {faults[0]}'
            raise EventRefusedError(422, "Invalid", message, details)
        with self._lock:
            if (namespace, name) in self._events:
                message = f'events.{GROUP} "{name}" already exists'
                raise EventRefusedError(409, "AlreadyExists", message, details)
            self._events[namespace, name] = event
        return {**event}


def _terminating(name: str, namespace: str) -> JsonObject:
    cause = {
        "reason": "NamespaceTerminating",
        "message": f"namespace {namespace} is being terminated",
        "field": "metadata.namespace",
    }
    return {"name": name, "group": GROUP, "kind": "events", "causes": [cause]}


def _faults(namespace: str, event: JsonObject) -> list[str]:
    """What the server's validation finds, one line for each fault."""
    metadata, regarding = event["metadata"], event["regarding"]
    assert isinstance(metadata, dict)
    assert isinstance(regarding, dict)
    checks = {
        "apiVersion": event["apiVersion"] == f"{GROUP}/v1" and event["kind"] == "Event",
        "unknown fields": set(event) <= _KNOWN,
        "metadata.name": _fits(metadata["name"], 253, _SUBDOMAIN),
        "metadata.namespace": metadata["namespace"] == namespace,
        "eventTime": _TIME.fullmatch(str(event["eventTime"])) is not None,
        "reportingController": _fits(event["reportingController"], 63, _QUALIFIED),
        "reportingInstance": _fits(event["reportingInstance"], 128),
        "action": _fits(event["action"], 128),
        "reason": _fits(event["reason"], 128),
        "note": _fits(event["note"], 1024),
        "type": event["type"] in {"Normal", "Warning"},
        "involvedObject.namespace": regarding["namespace"] == namespace,
    }
    return [f"{field}: Invalid value" for field, valid in checks.items() if not valid]


def _fits(text: object, most_bytes: int, form: re.Pattern[str] = re.compile(r".+")) -> bool:
    """Whether a text is not empty, not too long and of this form. Go counts bytes."""
    fits = isinstance(text, str) and len(text.encode()) <= most_bytes
    return fits and form.fullmatch(str(text)) is not None
