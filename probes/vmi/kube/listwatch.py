# SPDX-License-Identifier: Apache-2.0
"""Implements the list-and-watch protocol of the Kubernetes API for one resource. Pure.

Owns what a list page and a watch event contain, and the messages about refusals. Must not know
sockets, threads, credentials, how long to wait (timing.py), or what a VMI contains (vmi_object.py).

Source: kubernetes.io/docs/reference/using-api/api-concepts ("Efficient detection of changes",
"Retrieving large results sets in chunks") and client-go's tools/cache/reflector.go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Annotated

import msgspec

from probes.vmi.foreign_text import one_line
from probes.vmi.kube.timing import Failure
from probes.vmi.kube.vmi_object import Json

RESOURCE = "virtualmachineinstances.kubevirt.io"
PATH = "/apis/kubevirt.io/v1/virtualmachineinstances"
NODE_LABEL = "kubevirt.io/nodeName"
"""The label by which KubeVirt's virt-handler selects its own VMIs; it follows status.nodeName."""

_MAX_LINE_BYTES = 32 << 20
"""The longest line of a watch. etcd refuses objects of a tenth of this size, so a longer line is a
broken stream."""
_MAX_WAIT_S = 2**31 - 1
_UNKNOWN_FAILURE = 500
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


class WatchEvent(msgspec.Struct, frozen=True):
    """One line of a watch."""

    type: EventType
    object: msgspec.Raw
    """The VMI; for BOOKMARK an object with only a resourceVersion; for ERROR a Status."""

    @property
    def resource_version(self) -> str | None:
        """The resourceVersion to continue from after this event; None: it does not say."""
        try:
            version = _VERSIONED.decode(self.object).metadata.resource_version
        except (ValueError, RecursionError):
            return None
        return version or None


class _Metadata(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    resource_version: str | None = None
    continue_: str | None = msgspec.field(default=None, name="continue")


class _Versioned(msgspec.Struct, frozen=True, gc=False):
    metadata: _Metadata = _Metadata()


class _Page(_Versioned, frozen=True):
    items: list[msgspec.Raw] | None = None


class _Details(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    retry_after_seconds: Annotated[int, msgspec.Meta(le=_MAX_WAIT_S)] | None = None


class _Status(msgspec.Struct, frozen=True, gc=False):
    """A Status object of the API, which explains a refusal."""

    code: Annotated[int, msgspec.Meta(ge=100, le=999)] | None = None
    message: str | None = None
    details: _Details | None = None


_VERSIONED = msgspec.json.Decoder(_Versioned)
_PAGE = msgspec.json.Decoder(_Page)
_EVENT = msgspec.json.Decoder(WatchEvent)
_STATUS = msgspec.json.Decoder(_Status)


def walk_list(body: bytes, on_item: Callable[[msgspec.Raw], None]) -> ListEnd:
    """Pass each item of a list page to ``on_item``, which decodes it.

    Raises PayloadError when the page violates the protocol.

    An item is a view of the page until it is decoded, and a malformed item spoils no other one.
    """
    try:
        page = _PAGE.decode(body)
    except (ValueError, RecursionError) as err:
        raise PayloadError(f"a list page cannot be decoded: {one_line(str(err))}") from err
    if not page.metadata.resource_version:
        raise PayloadError("a list page has no metadata.resourceVersion")
    for item in page.items or ():
        on_item(item)
    return ListEnd(
        resource_version=page.metadata.resource_version,
        continue_token=page.metadata.continue_ or None,
    )


def decode_event(line: bytes) -> WatchEvent:
    """Decode one line of a watch. Raises PayloadError when it is no event."""
    try:
        event = _EVENT.decode(line)
    except (ValueError, RecursionError) as err:
        raise PayloadError(f"a watch event cannot be decoded: {one_line(str(err))}") from err
    if bytes(memoryview(event.object)[:1]) != b"{":
        raise PayloadError("a watch event has no object")
    return event


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


def failure_of_error_event(server: str, obj: Json) -> ApiError:
    """Turn an ERROR event of a watch, whose object is a Status, into an ApiError."""
    try:
        status = _STATUS.decode(obj)
    except (ValueError, RecursionError):
        status = _Status()
    wait_s = status.details.retry_after_seconds if status.details else None
    said = refusal(
        server,
        Verb.WATCH,
        status.code or _UNKNOWN_FAILURE,
        status.message,
        retry_after_s=float(wait_s) if wait_s and wait_s > 0 else None,
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
        return _STATUS.decode(body).message or None
    except msgspec.ValidationError:
        return None
    except (ValueError, RecursionError):
        return body.decode(errors="replace").strip() or None
