# SPDX-License-Identifier: Apache-2.0
"""The writer of Events against an API server: what it writes, logs and survives."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from probes.command import agent
from probes.command.settings import AgentSettings, parse
from probes.vmi.event import NOTE_MAX_BYTES
from probes.vmi.kube.credentials import InCluster, Kubeconfig
from probes.vmi.kube.event_api import name_of
from probes.vmi.kube.event_queue import EventTiming
from probes.vmi.kube.event_writer import EventWriter
from tests.support.apiserver import ApiServer, Fault, FaultKind
from tests.support.cluster_watch import until
from tests.support.rich_report import ALLOWED, TCG, rich_report, vmi
from tests.support.vmi_events import event

QUICK = EventTiming(
    burst=1000,
    per_s=1000.0,
    backoff_base_s=0.02,
    backoff_cap_s=0.1,
    not_allowed_pause_s=0.2,
    connect_timeout_s=5.0,
    answer_deadline_s=5.0,
)
PATIENT = replace(QUICK, not_allowed_pause_s=600.0)

Write = Callable[..., EventWriter]


@pytest.fixture
def granted(api: ApiServer) -> ApiServer:
    """The server, at which hvprobe may create Events."""
    api.grants.add("create")
    return api


@pytest.fixture
def begin(service_account: InCluster, log: list[str]) -> Iterator[Write]:
    """Start a writer; it is stopped after the test, and its thread must then be gone."""
    started: list[EventWriter] = []

    def start(
        timing: EventTiming = QUICK, config: InCluster | Kubeconfig | None = None
    ) -> EventWriter:
        writer = EventWriter(config or service_account, log.append, timing=timing)
        started.append(writer)
        writer.start()
        return writer

    yield start
    for writer in started:
        writer.stop()
        writer._thread.join(10.0)
        assert not writer._thread.is_alive()


def created(api: ApiServer) -> list[str]:
    """The names of the Events that the server has."""
    found: list[Any] = api.events.all()
    return [each["metadata"]["name"] for each in found]


def test_an_event_is_written(granted: ApiServer, begin: Write, log: list[str]) -> None:
    """The server accepts the Event, with the longest note, and nothing is logged."""
    said = event(note="é" * NOTE_MAX_BYTES)
    begin().write(said)
    until(lambda: created(granted) == [name_of(said)], "the Event")
    (request,) = granted.requests
    assert (request.verb, request.status) == ("create", 201)
    assert request.path == "/apis/events.k8s.io/v1/namespaces/default/events"
    assert log == []


def test_a_kubeconfig_works_as_well(granted: ApiServer, begin: Write) -> None:
    """Outside a pod the credentials are those of a kubeconfig."""
    begin(config=Kubeconfig(file=granted.kubeconfig())).write(event())
    until(lambda: created(granted) == [name_of(event())], "the Event")


def test_an_agent_that_was_restarted_reports_nothing_twice(
    granted: ApiServer, begin: Write, log: list[str]
) -> None:
    """The second agent's Event has the same name, so the server keeps the first one, silently."""
    begin().write(event())
    until(lambda: granted.answered("create", 201) == 1, "the Event")
    begin().write(replace(event(), happened_unix_s=1800000000.0, note="The same again."))
    until(lambda: granted.answered("create", 409) == 1, "the refusal")
    (kept,) = granted.events.all()
    assert kept["note"] == event().note
    assert log == []


def test_after_an_hour_it_is_reported_again(granted: ApiServer, begin: Write) -> None:
    """When the server no longer has the Event, the next agent writes it again."""
    begin().write(event())
    until(lambda: granted.answered("create", 201) == 1, "the Event")
    granted.events.forget()
    begin().write(event())
    until(lambda: granted.answered("create", 201) == 2, "the Event again")


def test_without_the_permission_one_line_is_logged(
    api: ApiServer, begin: Write, log: list[str]
) -> None:
    """403 costs one request and one log line, however many events there are."""
    writer = begin(replace(PATIENT, capacity=4))
    for number in range(20):
        writer.write(event(f"vm-{number}"))
    api.wait_for(lambda requests: len(requests) == 1)
    until(lambda: len(log) == 1, "the line")
    for number in range(20, 40):
        writer.write(event(f"vm-{number}"))
    time.sleep(0.3)
    writer.stop()
    assert api.answered("create", 403) == len(api.requests) == 1
    (line,) = log
    assert line.startswith("Events: not allowed to create events.events.k8s.io in namespace defaul")
    assert 'cannot create resource "events" in API group "events.k8s.io"' in line
    assert "deploy/components/events" in line


def test_a_permission_that_comes_later_is_noticed(
    api: ApiServer, begin: Write, log: list[str]
) -> None:
    """The agent tries again after a long pause, without another line, and then loses nothing."""
    writer = begin()
    writer.write(event("a"))
    writer.write(event("b"))
    api.wait_for(lambda requests: len(requests) == 3)
    assert len(log) == 1
    api.grants.add("create")
    until(lambda: len(created(api)) == 2, "both Events")
    until(lambda: len(log) == 2, "the line")
    assert log[1] == "Events: they are written now"


def test_a_namespace_that_ends_is_no_failure(
    granted: ApiServer, begin: Write, log: list[str]
) -> None:
    """403 of a terminating namespace and 404 of a deleted one concern this VM only."""
    granted.events.terminating.add("ending")
    granted.events.gone.add("gone")
    writer = begin(PATIENT)
    writer.write(event(namespace="ending"))
    writer.write(event(namespace="gone"))
    writer.write(event())
    until(lambda: created(granted) == [name_of(event())], "the Event of the namespace that stays")
    assert [request.status for request in granted.requests] == [403, 404, 201]
    assert log == []


def test_a_token_that_was_rotated(granted: ApiServer, begin: Write, log: list[str]) -> None:
    """After 401 the agent reads the token again until the new one is there."""
    granted.tokens = {"token-2": "system:serviceaccount:hvprobe:hvprobe"}
    begin().write(event())
    granted.wait_for(lambda requests: len(requests) >= 3)
    granted.token_file.write_text("token-2")
    until(lambda: created(granted) == [name_of(event())], "the Event")
    until(lambda: len(log) == 2, "both lines")
    assert "401 Unauthorized" in log[0]
    assert "token-" not in "".join(log)


def test_an_api_server_that_is_away(granted: ApiServer, begin: Write, log: list[str]) -> None:
    """Events wait for the server, and the outage is one line, as is its end."""
    granted.stop()
    writer = begin()
    for name in "abc":
        writer.write(event(name))
    until(lambda: len(log) == 1, "the line")
    time.sleep(0.3)
    assert len(log) == 1
    granted.start()
    until(lambda: len(created(granted)) == 3, "all Events")
    until(lambda: len(log) == 2, "the line about the end")
    assert "cannot create events.events.k8s.io" in log[0]


@pytest.mark.parametrize(
    "kind",
    [FaultKind.CLOSE, FaultKind.RESET, FaultKind.HANG, FaultKind.STALL],
    ids=lambda k: k.name,
)
def test_a_broken_connection(
    granted: ApiServer, begin: Write, log: list[str], kind: FaultKind
) -> None:
    """A request that is not answered in time is made again."""
    granted.inject(Fault(kind=kind, verb="create", times=2))
    begin(replace(QUICK, answer_deadline_s=0.3)).write(event())
    until(lambda: created(granted) == [name_of(event())], "the Event")
    until(lambda: len(log) == 2, "both lines")


@pytest.mark.parametrize("code", [500, 503, 504])
def test_a_server_that_fails(granted: ApiServer, begin: Write, log: list[str], code: int) -> None:
    """An error of the server is retried."""
    granted.inject(Fault(kind=FaultKind.STATUS, verb="create", code=code, times=3))
    begin().write(event())
    until(lambda: created(granted) == [name_of(event())], "the Event")
    until(lambda: len(log) == 2, "both lines")
    assert f"HTTP {code}" in log[0]


def test_a_busy_server_is_left_alone(granted: ApiServer, begin: Write, log: list[str]) -> None:
    """After 429 the agent waits as long as Retry-After says."""
    granted.inject(
        Fault(
            kind=FaultKind.STATUS,
            verb="create",
            code=429,
            reason="TooManyRequests",
            message="try again later",
            retry_after="1",
        )
    )
    begin().write(event())
    until(lambda: created(granted) == [name_of(event())], "the Event")
    first, second = granted.requests
    assert second.at_s - first.at_s >= 1.0
    until(lambda: len(log) == 2, "both lines")
    assert "429 Too Many Requests" in log[0]


def test_an_event_that_is_rejected(granted: ApiServer, begin: Write, log: list[str]) -> None:
    """422 costs its event and one line, and the others are written."""
    writer = begin()
    for number in range(3):
        writer.write(event("Not A Name", identity=(str(number),)))
    writer.write(event())
    until(lambda: created(granted) == [name_of(event())], "the valid Event")
    assert granted.answered("create", 422) == 3
    (line,) = log
    assert "HTTP 422" in line
    assert "metadata.name" in line


def test_too_many_events(granted: ApiServer, begin: Write, log: list[str]) -> None:
    """What exceeds the bound is lost: one line says so, and another one how many, at the end."""
    granted.stop()
    writer = begin(replace(QUICK, capacity=3))
    for number in range(8):
        writer.write(event(f"vm-{number}"))
    until(lambda: len(log) == 2, "the lines about the outage and the loss")
    granted.start()
    until(lambda: len(created(granted)) + writer._queue.lost == 8, "all other Events")
    until(lambda: len(log) == 3, "the line about the end of the outage")
    writer.stop()
    # One more than may wait was perhaps on its way.
    assert len(created(granted)) in (3, 4)
    lost = 8 - len(created(granted))
    assert "are lost, because 3 others waited" in log[1]
    assert log[3] == f"Events: {lost} were lost since the start of the agent"


def test_the_rate_is_limited(granted: ApiServer, begin: Write) -> None:
    """After a burst the Events follow each other at the rate that is set."""
    writer = begin(replace(QUICK, burst=2, per_s=4.0))
    for number in range(4):
        writer.write(event(f"vm-{number}"))
    until(lambda: len(created(granted)) == 4, "all Events")
    times_s = [request.at_s for request in granted.requests]
    assert times_s[3] - times_s[0] >= 0.4


def test_writing_never_waits(granted: ApiServer, begin: Write) -> None:
    """An event is handed over at once while the server hangs, and the writer can be stopped."""
    granted.inject(Fault(kind=FaultKind.HANG, verb="create"))
    writer = begin(replace(QUICK, answer_deadline_s=3.0))
    writer.write(event("a"))
    granted.wait_for(lambda requests: len(requests) == 1)
    begun_s = time.monotonic()
    writer.write(event("b"))
    assert time.monotonic() - begun_s < 0.2
    writer.stop()
    assert time.monotonic() - begun_s < 1.0


def test_a_writer_with_nothing_to_write(granted: ApiServer, begin: Write) -> None:
    """Without events no request is made, and the thread ends at once when it is to."""
    writer = begin()
    time.sleep(0.1)
    writer.stop()
    assert granted.requests == []
    assert "event-writer" not in {thread.name for thread in threading.enumerate()}


def test_no_other_path_is_written_to(granted: ApiServer, begin: Write) -> None:
    """A namespace cannot lead the request to another path of the server."""
    begin().write(event(namespace="../../v2/x?y"))
    granted.wait_for(lambda requests: len(requests) == 1)
    (request,) = granted.requests
    assert request.path == "/apis/events.k8s.io/v1/namespaces/..%2F..%2Fv2%2Fx%3Fy/events"
    assert json.loads(json.dumps(request.params)) == {}


@pytest.mark.parametrize("words", [(), ("--events",)], ids=["without", "with"])
def test_the_agent_writes_what_its_reports_say(
    granted: ApiServer, caplog: pytest.LogCaptureFixture, words: tuple[str, ...]
) -> None:
    """With --events a refresh of the agent leads to an Event on the VMI, and otherwise to none."""
    emulated = vmi("alpha", TCG, fallback=True, cause=ALLOWED)._replace(uid="5a5a")
    report = replace(rich_report(), vmis=(emulated,))
    arguments = ("agent", "--kubeconfig", str(granted.kubeconfig()), *words)
    settings = parse(arguments, {}, version="1")
    assert isinstance(settings, AgentSettings)
    with agent._with_events(settings, lambda: report) as refresh:
        assert refresh() is report
        until(lambda: len(granted.events.all()) == len(words), "the Event")
    assert len(granted.requests) == len(words)
    for found in granted.events.all():
        regarding, note = found["regarding"], found["note"]
        assert isinstance(regarding, dict)
        assert isinstance(note, str)
        assert (regarding["name"], regarding["uid"]) == ("alpha", "5a5a")
        assert ALLOWED.sentence in note
        assert ALLOWED.cause.remedy in note
    assert caplog.records == []
