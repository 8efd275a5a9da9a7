# SPDX-License-Identifier: Apache-2.0
"""Implements the list-and-watch protocol of the Kubernetes API for one resource. Pure.

Owns decoding list pages and watch events without building more than one object at a time, and the
messages about refusals. Must not know sockets, threads, credentials, how long to wait (timing.py),
or what a VMI means.

Source: kubernetes.io/docs/reference/using-api/api-concepts ("Efficient detection of changes",
"Retrieving large results sets in chunks") and client-go's tools/cache/reflector.go.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from probes.vmi.foreign_text import one_line
from probes.vmi.kube.timing import Failure

RESOURCE = "virtualmachineinstances.kubevirt.io"
PATH = "/apis/kubevirt.io/v1/virtualmachineinstances"
NODE_LABEL = "kubevirt.io/nodeName"
"""The label by which KubeVirt's virt-handler selects its own VMIs; it follows status.nodeName."""

_MAX_LINE_BYTES = 32 << 20
"""The longest line of a watch. etcd refuses objects of a tenth of this size, so a longer line is a
broken stream."""
_DECODER = json.JSONDecoder()
_BLANK = re.compile(r"[ \t\r\n]*")
_EXPIRED = 410
_REFUSED = {401, 403, 429, 502, 503}
"""Status codes that say nothing about the requested resourceVersion.

Other codes may: a cluster that was restored from a backup answers 504 to versions that it has yet
to reach.
"""


class Verb(Enum):
    """The RBAC verb of a request."""

    LIST = "list"
    WATCH = "watch"
    CREATE = "create"


class ApiError(Exception):
    """The API server did not do what was requested.

    The message is one line: what failed, on what, why, what to do.
    """

    def __init__(
        self,
        line: str,
        failure: Failure = Failure.UNANSWERED,
        *,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(line)
        self.failure = failure
        self.retry_after_s = retry_after_s
        """The wait that the server asked for (Retry-After), in seconds; None: it asked for none."""


class PayloadError(ValueError):
    """The body of a successful answer violates the protocol."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListEnd:
    """What a list page contains besides its items."""

    resource_version: str
    continue_token: str | None
    """Token of the next page; None: this was the last page."""


class EventType(Enum):
    """Type of a watch event."""

    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"
    BOOKMARK = "BOOKMARK"
    ERROR = "ERROR"


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchEvent:
    """One line of a watch."""

    type: EventType
    object: Mapping[str, object]
    """The VMI; for BOOKMARK an object with only a resourceVersion; for ERROR a Status."""
    resource_version: str | None
    """The resourceVersion to continue from after this event; None: the event does not say."""


def walk_list(body: bytes, on_item: Callable[[object], None]) -> ListEnd:
    """Pass each item of a list page to ``on_item`` as soon as it is decoded.

    Raises PayloadError when the page violates the protocol.

    A page of VMIs takes megabytes, of which a few hundred bytes per VMI are kept. Decoding item by
    item ensures that the remainder never exists as Python objects at the same time.
    """
    metadata: object = None
    try:
        cursor = _Cursor(body.decode())
    except UnicodeDecodeError as err:
        raise PayloadError(f"a list page is not UTF-8: {err}") from err
    for name in cursor.members("{", "}"):
        if name == "items" and cursor.sees("["):
            for _ in cursor.members("[", "]"):
                on_item(cursor.value())
        else:
            value = cursor.value()
            metadata = value if name == "metadata" else metadata
    cursor.finish()
    resource_version = _string(metadata, "resourceVersion")
    if resource_version is None:
        raise PayloadError("a list page has no metadata.resourceVersion")
    return ListEnd(resource_version=resource_version, continue_token=_string(metadata, "continue"))


class _Cursor:
    """A position in a JSON text that is read one level at a time."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def sees(self, char: str) -> bool:
        """Whether ``char`` comes next, after blanks."""
        blank = _BLANK.match(self._text, self._at)
        self._at = self._at if blank is None else blank.end()
        return self._text.startswith(char, self._at)

    def value(self) -> object:
        """Read the complete value that comes next."""
        self.sees("")
        try:
            value, self._at = _DECODER.raw_decode(self._text, self._at)
        except (ValueError, RecursionError) as err:
            raise PayloadError(f"a list page is not JSON: {err}") from err
        return value

    def members(self, opening: str, closing: str) -> Iterator[object]:
        """Stop before each member's value and yield its name, or None in an array."""
        self._expect(opening)
        if not self._take(closing):
            while True:
                name = None
                if opening == "{":
                    name = self.value()
                    self._expect(":")
                yield name
                if not self._take(","):
                    break
            self._expect(closing)

    def finish(self) -> None:
        """Check that only blanks are left. Raises PayloadError when there is more."""
        self.sees("")
        if self._at != len(self._text):
            raise PayloadError(f"a list page goes on after its end, at character {self._at}")

    def _take(self, char: str) -> bool:
        found = self.sees(char)
        self._at += found
        return found

    def _expect(self, char: str) -> None:
        if not self._take(char):
            raise PayloadError(f"a list page has no {char} at character {self._at}")


def decode_event(line: bytes) -> WatchEvent:
    """Decode one line of a watch. Raises PayloadError when it is no event."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError) as err:
        raise PayloadError(f"a watch event is not JSON: {err}") from err
    if not isinstance(event, dict) or not isinstance(event.get("object"), dict):
        raise PayloadError("a watch event has no object")
    try:
        kind = EventType(event.get("type"))
    except ValueError as err:
        raise PayloadError(f"a watch event has the unknown type {event.get('type')!r}") from err
    obj: dict[str, object] = event["object"]
    return WatchEvent(
        type=kind,
        object=obj,
        resource_version=_string(obj.get("metadata"), "resourceVersion"),
    )


def lines_of(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Assemble complete lines from chunks; blank lines are dropped.

    Raises PayloadError when a line is endless, and when the stream ends within a line, because half
    an event must not be missed.
    """
    parts: list[bytes] = []
    held_bytes = 0
    for chunk in chunks:
        *ended, rest = chunk.split(b"\n")
        for piece in ended:
            line = b"".join((*parts, piece)).strip()
            parts.clear()
            held_bytes = 0
            if line:
                yield line
        parts.append(rest)
        held_bytes += len(rest)
        if held_bytes > _MAX_LINE_BYTES:
            raise PayloadError(f"a watch event is longer than {_MAX_LINE_BYTES} bytes")
    if b"".join(parts).strip():
        raise PayloadError("a watch ends within an event")


def failure_of_error_event(server: str, status: Mapping[str, object]) -> ApiError:
    """Turn an ERROR event of a watch, whose object is a Status, into an ApiError."""
    code = status.get("code")
    details = status.get("details")
    wait_s = details.get("retryAfterSeconds") if isinstance(details, dict) else None
    said = refusal(
        server,
        Verb.WATCH,
        code if isinstance(code, int) else 500,
        _string(status, "message"),
        retry_after_s=float(wait_s) if isinstance(wait_s, int) and wait_s > 0 else None,
    )
    if said.failure is Failure.REFUSED:
        # The watch had begun, so the changes that it had yet to report are lost.
        said.failure = Failure.BROKEN
    return said


def refusal(
    server: str,
    verb: Verb,
    code: int,
    message: str | None,
    *,
    credentials: str = "the credentials",
    retry_after_s: float | None = None,
) -> ApiError:
    """Describe a refusal in one line that names the remedy. ``message`` comes from its Status."""
    said = f"; it says: {one_line(message)}" if message else ""
    match code:
        case 401:
            line = f"API server {server} refuses {credentials} (401 Unauthorized): check it{said}"
        case 403:
            line = (
                f"not allowed to {verb.value} {RESOURCE} at {server} (403 Forbidden): grant the "
                f"verb {verb.value} on {RESOURCE} by a ClusterRole (get, list, watch){said}"
            )
        case 404:
            line = f"API server {server} has no {RESOURCE}/v1 (404 Not Found): install KubeVirt"
        case 410:
            line = (
                f"API server {server} no longer has our resourceVersion (410 Gone): listing again"
            )
        case 429:
            line = f"API server {server} is busy (429 Too Many Requests): asking again later{said}"
        case _:
            line = f"API server {server} failed to {verb.value} {RESOURCE} (HTTP {code}){said}"
    failure = Failure.REFUSED if code in _REFUSED else Failure.BROKEN
    return ApiError(
        line, Failure.EXPIRED if code == _EXPIRED else failure, retry_after_s=retry_after_s
    )


def status_message(body: bytes) -> str | None:
    """Return the message in the body of a refusal: a Status object, or what a proxy wrote."""
    try:
        status = json.loads(body)
    except (ValueError, RecursionError):
        return body.decode(errors="replace").strip() or None
    return _string(status, "message")


def _string(parent: object, key: str) -> str | None:
    """Read a non-empty string field of a value that may be no object."""
    value = parent.get(key) if isinstance(parent, dict) else None
    return value if isinstance(value, str) and value else None
