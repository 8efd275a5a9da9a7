# SPDX-License-Identifier: Apache-2.0
"""The list-and-watch protocol as values: pages, events, lines, refusals, waiting."""

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
    """Items come in order and unchanged, whatever stands around them and in whichever order."""
    metadata = {"resourceVersion": "17", "continue": token}
    page = {"items": items, **others, "metadata": metadata}
    page = page if items_first else {**others, "metadata": metadata, "items": items}
    seen: list[object] = []
    end = walk_list(json.dumps(page, indent=indent).encode(), seen.append)
    assert seen == page["items"]
    assert end.resource_version == "17"
    assert end.continue_token == (token or None)


def test_a_page_without_items() -> None:
    """Go writes a nil slice as null: an empty page."""
    seen: list[object] = []
    walk_list(b'{"items":null,"metadata":{"resourceVersion":"1"}} \n', seen.append)
    assert seen == []


@given(st.binary() | _JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_page_or_refused(body: bytes) -> None:
    """What is no list page is refused by PayloadError and nothing else."""
    with pytest.raises(PayloadError):
        walk_list(body, lambda item: None)


@given(st.data())
def test_a_cut_page_is_refused(data: st.DataObject) -> None:
    """A page that ends early, wherever, is never taken for a whole one."""
    whole = b'{"items":[{"a":1},{"b":[2]}],"metadata":{"resourceVersion":"1"}}'
    length = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(PayloadError):
        walk_list(whole[:length], lambda item: None)


@pytest.mark.parametrize(
    "body", [b"1" * 5000, b'{"a":' + b"[" * 100_000, b'{"items":[' + b'{"a":' * 100_000, b"{}x"]
)
def test_hostile_pages_are_refused(body: bytes) -> None:
    """Deep nesting and endless numbers are refusals, not crashes."""
    with pytest.raises(PayloadError):
        walk_list(body, lambda item: None)


@given(st.lists(st.binary(min_size=1).filter(lambda b: b"\n" not in b and b.strip())), st.data())
def test_lines_do_not_depend_on_the_cuts(lines: list[bytes], data: st.DataObject) -> None:
    """However the network cuts the stream, the same lines come out."""
    stream = b"".join(line + b"\n" for line in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    chunks = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert list(lines_of(chunks)) == [line.strip() for line in lines]


@pytest.mark.parametrize("cut", [1, 5, 16])
def test_half_an_event_is_no_end(cut: int) -> None:
    """A stream that ends within a line gives the complete ones and is then refused."""
    lines = lines_of([b'{"one":1}\n', b'{"type":"ADDED"}\n'[:cut]])
    assert next(lines) == b'{"one":1}'
    with pytest.raises(PayloadError, match="within an event"):
        next(lines)


def test_an_endless_line_is_refused() -> None:
    """A stream without newlines does not fill the memory."""
    with pytest.raises(PayloadError, match="longer than"):
        list(lines_of(b"x" * (1 << 20) for _ in range(1000)))


def test_an_event() -> None:
    """Type, object and the version to go on from."""
    event = decode_event(b'{"type":"ADDED","object":{"metadata":{"resourceVersion":"5"}}}')
    assert event.type is EventType.ADDED
    assert event.resource_version == "5"
    assert decode_event(b'{"type":"DELETED","object":{"metadata":3}}').resource_version is None


@given(st.binary() | _JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_an_event_or_refused(line: bytes) -> None:
    """What is no event is refused by PayloadError and nothing else."""
    with pytest.raises(PayloadError):
        decode_event(line)


@given(st.integers(400, 599), st.none() | st.text(), st.sampled_from(Verb))
def test_a_refusal_is_one_line(code: int, message: str | None, verb: Verb) -> None:
    """Whatever the server says, the error is one printable line that names server and code."""
    error = refusal(SERVER, verb, code, message)
    assert str(error).isprintable()
    assert SERVER in str(error)
    assert str(code) in str(error)
    assert len(str(error)) < 800
    assert (error.failure is Failure.EXPIRED) == (code == 410)
    assert error.failure.answered


def test_a_forbidden_verb_is_named() -> None:
    """403 says verb, resource and remedy, and what the server said."""
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
def test_what_a_refusal_says_of_our_version(
    code: int, as_status: Failure, as_event: Failure
) -> None:
    """A watch that was refused as such has missed nothing; one that had begun may have."""
    assert refusal(SERVER, Verb.WATCH, code, None).failure is as_status
    assert failure_of_error_event(SERVER, {"code": code}).failure is as_event


@pytest.mark.parametrize(
    ("status", "seconds"),
    [
        ({"code": 429, "details": {"retryAfterSeconds": 7}}, 7.0),
        ({"code": 429, "details": {"retryAfterSeconds": 0}}, None),
        ({"code": 429, "details": {"retryAfterSeconds": "7"}}, None),
        ({"code": 429, "details": 7}, None),
        ({"code": 429}, None),
        ({}, None),
    ],
)
def test_an_error_event_may_ask_for_time(status: dict[str, object], seconds: float | None) -> None:
    """Where HTTP has Retry-After, a Status has its details."""
    assert failure_of_error_event(SERVER, status).retry_after_s == seconds


def test_an_error_event_without_a_code() -> None:
    """It is an error of the server."""
    assert "HTTP 500" in str(failure_of_error_event(SERVER, {}))


def test_the_message_of_a_refusal() -> None:
    """A Status' message, or the text of whoever answered in its place."""
    assert status_message(b'{"kind":"Status","message":"no"}') == "no"
    assert status_message(b"Too many requests.\n") == "Too many requests."
    assert status_message(b"") is None
    assert status_message(b'{"message":7}') is None
