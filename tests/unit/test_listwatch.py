# SPDX-License-Identifier: Apache-2.0
"""The list-and-watch protocol: pages, events, lines, refusals and retry times."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.vmi.kube.listwatch import (
    EventType,
    PayloadError,
    Verb,
    decode_event,
    failure_of_error_event,
    lines_of,
    refusal,
    status_message,
    walk_list,
)
from probes.vmi.kube.timing import Failure
from tests.support.vmi_objects import encoded

SERVER = "https://10.96.0.1:443"
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    items=st.lists(_JSON, max_size=5),
    others=st.dictionaries(st.text(), _JSON, max_size=3),
    token=st.text(),
    indent=st.sampled_from([None, 1]),
    items_first=st.booleans(),
)
def test_a_page_gives_its_items(
    items: list[object],
    others: dict[str, object],
    token: str,
    indent: int | None,
    items_first: bool,
) -> None:
    """Items arrive in order and unchanged, whatever other fields the page has, in any order."""
    metadata = {"resourceVersion": "17", "continue": token}
    page = {"items": items, **others, "metadata": metadata}
    page = page if items_first else {**others, "metadata": metadata, "items": items}
    seen: list[object] = []
    body = json.dumps(page, indent=indent).encode()
    end = walk_list(body, lambda item: seen.append(json.loads(bytes(item))))
    assert seen == page["items"]
    assert end.resource_version == "17"
    assert end.continue_token == (token or None)


def test_a_page_without_items() -> None:
    """A null, which Go writes for a nil slice, is an empty page."""
    seen: list[object] = []
    walk_list(b'{"items":null,"metadata":{"resourceVersion":"1"}} \n', seen.append)
    assert seen == []


@given(st.binary() | _JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_page_or_refused(body: bytes) -> None:
    """Anything but a list page raises ``PayloadError`` and no other exception."""
    with pytest.raises(PayloadError):
        walk_list(body, lambda item: None)


@given(st.data())
def test_a_cut_page_is_refused(data: st.DataObject) -> None:
    """A page that ends early, at any byte, is never taken for a complete one."""
    complete = b'{"items":[{"a":1},{"b":[2]}],"metadata":{"resourceVersion":"1"}}'
    length = data.draw(st.integers(0, len(complete) - 1))
    with pytest.raises(PayloadError):
        walk_list(complete[:length], lambda item: None)


@pytest.mark.parametrize(
    "body", [b"1" * 5000, b'{"a":' + b"[" * 100_000, b'{"items":[' + b'{"a":' * 100_000, b"{}x"]
)
def test_hostile_pages_are_refused(body: bytes) -> None:
    """Deep nesting and very long numbers are refused and do not crash the agent."""
    with pytest.raises(PayloadError):
        walk_list(body, lambda item: None)


@given(st.lists(st.binary(min_size=1).filter(lambda b: b"\n" not in b and b.strip())), st.data())
def test_lines_do_not_depend_on_the_chunks(lines: list[bytes], data: st.DataObject) -> None:
    """The lines are the same, however the network splits the stream into chunks."""
    stream = b"".join(line + b"\n" for line in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    chunks = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert list(lines_of(chunks)) == [line.strip() for line in lines]


@pytest.mark.parametrize("cut", [1, 5, 16])
def test_half_an_event_is_refused(cut: int) -> None:
    """A stream that ends within a line yields the complete lines before it and is then refused."""
    lines = lines_of([b'{"one":1}\n', b'{"type":"ADDED"}\n'[:cut]])
    assert next(lines) == b'{"one":1}'
    with pytest.raises(PayloadError, match="within an event"):
        next(lines)


def test_an_endless_line_is_refused() -> None:
    """A stream without newlines is refused before it fills the memory."""
    with pytest.raises(PayloadError, match="longer than"):
        list(lines_of(b"x" * (1 << 20) for _ in range(1000)))


def test_an_event() -> None:
    """An event has its type, its object and the version from which a watch continues."""
    event = decode_event(b'{"type":"ADDED","object":{"metadata":{"resourceVersion":"5"}}}')
    assert event.type is EventType.ADDED
    assert event.resource_version == "5"
    assert decode_event(b'{"type":"DELETED","object":{"metadata":3}}').resource_version is None


@given(st.binary() | _JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_an_event_or_refused(line: bytes) -> None:
    """Anything but an event raises ``PayloadError`` and no other exception."""
    with pytest.raises(PayloadError):
        decode_event(line)


@given(st.integers(400, 599), st.none() | st.text(), st.sampled_from(Verb))
def test_a_refusal_is_one_line(code: int, message: str | None, verb: Verb) -> None:
    """Whatever the server says, the error is one printable line that names server and code."""
    refused = refusal(SERVER, verb, code, message)
    assert str(refused).isprintable()
    assert SERVER in str(refused)
    assert str(code) in str(refused)
    assert len(str(refused)) < 800
    assert (refused.failure is Failure.EXPIRED) == (code == 410)
    assert refused.failure.answered


def test_a_forbidden_verb_is_named() -> None:
    """The error of a 403 names the verb, the resource, the remedy and the server's message."""
    line = str(refusal(SERVER, Verb.WATCH, 403, 'User "x" cannot watch resource'))
    assert "not allowed to watch virtualmachineinstances.kubevirt.io" in line
    assert "grant the verb watch" in line
    assert 'User "x" cannot watch resource' in line


@pytest.mark.parametrize(
    ("code", "as_status", "as_event"),
    [
        (400, Failure.BROKEN, Failure.BROKEN),
        (401, Failure.REFUSED, Failure.BROKEN),
        (403, Failure.REFUSED, Failure.BROKEN),
        (404, Failure.BROKEN, Failure.BROKEN),
        (410, Failure.EXPIRED, Failure.EXPIRED),
        (429, Failure.REFUSED, Failure.BROKEN),
        (500, Failure.BROKEN, Failure.BROKEN),
        (503, Failure.REFUSED, Failure.BROKEN),
        (504, Failure.BROKEN, Failure.BROKEN),
    ],
)
def test_what_a_refusal_says_about_our_version(
    code: int, as_status: Failure, as_event: Failure
) -> None:
    """A refused watch has missed no event. A watch that had begun may have missed some."""
    assert refusal(SERVER, Verb.WATCH, code, None).failure is as_status
    assert failure_of_error_event(SERVER, encoded({"code": code})).failure is as_event


@pytest.mark.parametrize(
    ("status", "seconds"),
    [
        ({"code": 429, "details": {"retryAfterSeconds": 7}}, 7.0),
        ({"code": 429, "details": {"retryAfterSeconds": 0}}, None),
        ({"code": 429, "details": {"retryAfterSeconds": "7"}}, None),
        ({"code": 429, "details": {"retryAfterSeconds": 10**400}}, None),
        ({"code": 429, "details": None}, None),
        ({"code": 429, "details": 7}, None),
        ({"code": 429}, None),
        ({}, None),
    ],
)
def test_an_error_event_may_ask_for_time(status: dict[str, object], seconds: float | None) -> None:
    """A Status carries in its details what HTTP carries in ``Retry-After``."""
    assert failure_of_error_event(SERVER, encoded(status)).retry_after_s == seconds


def test_an_error_event_without_a_code() -> None:
    """An error event without a code counts as HTTP 500."""
    assert "HTTP 500" in str(failure_of_error_event(SERVER, b"{}"))


def test_the_message_of_a_refusal() -> None:
    """The message is that of the Status, or the text that a proxy answered instead."""
    assert status_message(b'{"kind":"Status","message":"no"}') == "no"
    assert status_message(b"Too many requests.\n") == "Too many requests."
    assert status_message(b"") is None
    assert status_message(b'{"message":7}') is None
