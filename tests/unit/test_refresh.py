# SPDX-License-Identifier: Apache-2.0
"""Refreshes that are shared, that fail or that hang, and how the endpoints report each."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_of
from prometheus_client.parser import text_string_to_metric_families as families_of

from probes.render.exposition import Format
from probes.render.page_frame import CONTENT_SECURITY_POLICY, VMI_FOLDER
from probes.report.model import NodeReport
from probes.serve import refresh
from probes.serve.endpoints import LAST_KNOWN_S, Endpoints
from probes.serve.listen import TlsState
from probes.serve.refresh import RefreshCache
from probes.serve.routes import BELOW, Handler, Request, Response, prefers_openmetrics
from probes.vmi.model import WatchStatus
from tests.support.rich_report import rich_report

WAIT_S = 20.0


@dataclass
class Node:
    """A node whose refreshes return, raise or block as the test sets; it counts them."""

    outcome: NodeReport | Exception = field(default_factory=rich_report)
    refreshes: int = 0
    gate: threading.Event = field(default_factory=threading.Event)
    under_way: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    def refresh(self) -> NodeReport:
        self.refreshes += 1
        self.under_way.set()
        assert self.gate.wait(WAIT_S)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


@dataclass
class Clock:
    """A clock that only the test moves."""

    now_s: float = 1000.0

    def monotonic(self) -> float:
        return self.now_s

    def time(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(refresh, "time", found)
    return found


def run(steps: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run the steps of a test within a time limit."""

    async def limited() -> None:
        async with asyncio.timeout(WAIT_S):
            await steps()

    asyncio.run(limited())


def shared(node: Node) -> RefreshCache:
    return RefreshCache(node.refresh)


def endpoints_of(node: Node, *, tls: Callable[[], TlsState] | None = None) -> Endpoints:
    return Endpoints(shared(node), tls=tls)


async def ask(
    endpoints: Endpoints,
    path: str,
    *,
    accept: str | None = None,
    route: str | None = None,
    query: str = "",
) -> Response:
    """The answer to a request; route is the one that serves the path, if that is another."""
    handler: Handler = endpoints.routes[route or path]
    return await handler(Request(path=path, query=query, accept=accept))


async def samples(endpoints: Endpoints) -> dict[str, float]:
    """The current samples of /metrics: value by name and labels."""
    text = (await ask(endpoints, "/metrics")).body.decode()
    return {
        sample.name + "".join(f" {value}" for value in sample.labels.values()): sample.value
        for family in families_of(text)
        for sample in family.samples
    }


def per_vm(found: dict[str, float]) -> set[str]:
    return {name for name in found if name.startswith("kubevirt_vmi_")}


def test_callers_share_a_refresh(clock: Clock) -> None:
    """Simultaneous callers and one within the next second share a refresh; later ones do not."""
    node = Node()

    async def steps() -> None:
        cache = shared(node)
        node.gate.clear()
        callers = asyncio.gather(*(cache.latest() for _ in range(10)))
        assert await asyncio.to_thread(node.under_way.wait, WAIT_S)
        node.gate.set()
        latest = await callers
        assert {id(each.report) for each in latest} == {id(node.outcome)}
        clock.now_s += refresh.SHARED_FOR_S * 0.9
        await cache.latest()
        assert node.refreshes == 1
        clock.now_s += refresh.SHARED_FOR_S
        node.outcome = rich_report()
        newest = await cache.latest()
        assert node.refreshes == 2
        assert newest.report is node.outcome
        assert newest.previous is latest[0].report

    run(steps)


def test_a_defect_keeps_the_last_report(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """A failing refresh is reported, logged once with its traceback, and keeps the last report."""
    node = Node()
    good = node.outcome

    async def steps() -> None:
        cache = shared(node)
        assert (await cache.latest()).failing_s == 0
        for failures in range(3):
            clock.now_s += 10
            node.outcome = ZeroDivisionError("a defect")
            latest = await cache.latest()
            assert latest.report is good
            assert latest.failure == "the refresh failed: ZeroDivisionError('a defect')"
            assert latest.failing_s == failures * 10
        clock.now_s += 10
        node.outcome = rich_report()
        latest = await cache.latest()
        assert (latest.failure, latest.failing_s) == (None, 0)

    with caplog.at_level(logging.INFO):
        run(steps)
    logged = [
        (record.levelname, bool(record.exc_info))
        for record in caplog.records
        if record.name == refresh.__name__
    ]
    assert logged == [("ERROR", True), ("INFO", False)]


def test_callers_do_not_wait_for_a_refresh_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first caller waits, until the deadline, and no second refresh begins."""
    monkeypatch.setattr(refresh, "DEADLINE_S", 0.05)
    monkeypatch.setattr(refresh, "SHARED_FOR_S", 0.0)
    node = Node()

    async def steps() -> None:
        cache = shared(node)
        good = (await cache.latest()).report
        node.gate.clear()
        node.outcome = replace(rich_report(), node="after")
        for _ in range(5):
            latest = await cache.latest()
            assert latest.failure == "the refresh has not finished within 0.05 s"
            assert latest.report is good
        assert node.refreshes == 2
        node.gate.set()
        while (latest := await cache.latest()).failure is not None:
            await asyncio.sleep(0.001)
        assert latest.report is node.outcome

    run(steps)


def test_a_refresh_that_hangs_does_not_keep_the_agent_running(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stopping waits no longer than the grace period, and a later result is dropped."""
    monkeypatch.setattr(refresh, "DEADLINE_S", 0.01)
    monkeypatch.setattr(refresh, "STOP_GRACE_S", 0.01)
    node = Node()
    node.gate.clear()

    async def steps() -> None:
        cache = shared(node)
        assert (await cache.latest()).report is None
        await cache.stop()

    run(steps)
    assert node.refreshes == 1
    (thread,) = [each for each in threading.enumerate() if each.name == "refresh"]
    assert thread.daemon
    node.gate.set()
    thread.join(WAIT_S)
    assert not thread.is_alive()


def test_metrics_while_refreshes_fail(clock: Clock) -> None:
    """VMs keep their last series for a minute; health and the failure are always exported."""
    node = Node()

    async def steps() -> None:
        served = endpoints_of(node)
        well = await samples(served)
        assert well["hvprobe_refresh_failed"] == 0
        assert well["hvprobe_refresh_failures_total error"] == 0
        node.outcome = KeyError("a defect")
        clock.now_s += 10
        for failures in (1, 2):
            bad = await samples(served)
            assert bad["hvprobe_refresh_failed"] == 1
            assert bad["hvprobe_refresh_failures_total error"] == failures
            assert per_vm(bad) == per_vm(well) != set()
            clock.now_s += LAST_KNOWN_S - 1
        old = await samples(served)
        assert old["hvprobe_refresh_failures_total error"] == 3
        assert [name for name in old if name.startswith(("kubevirt_", "hvprobe_processes"))] == []
        assert {name for name in well if name.startswith("hvprobe_hook_attached")} <= set(old)
        node.outcome = rich_report()
        clock.now_s += 2
        again = await samples(served)
        assert again["hvprobe_refresh_failed"] == 0
        assert per_vm(again) == per_vm(well)

    run(steps)


def test_one_failure_between_rare_scrapes_drops_no_vm(clock: Clock) -> None:
    """With an hour between scrapes the first failed refresh drops no VM, but a minute later does.

    A successful refresh in between starts the minute again.
    """
    node = Node()
    good = node.outcome

    async def steps() -> None:
        served = endpoints_of(node)
        well = await samples(served)
        for _ in range(2):
            node.outcome = KeyError("a defect")
            clock.now_s += 3600
            assert per_vm(await samples(served)) == per_vm(well) != set()
            node.outcome = good
            clock.now_s += 3600
            assert per_vm(await samples(served)) == per_vm(well)
        node.outcome = KeyError("a defect")
        clock.now_s += 3600
        assert per_vm(await samples(served)) == per_vm(well)
        clock.now_s += LAST_KNOWN_S
        assert per_vm(await samples(served)) == set()

    run(steps)


@pytest.mark.parametrize("path", ["/metrics", "/"])
def test_callers_share_a_rendered_response(clock: Clock, path: str) -> None:
    """Callers that share a refresh get the same response, and the next refresh gives a new one."""
    node = Node()

    async def steps() -> None:
        served = endpoints_of(node)
        answers = await asyncio.gather(*(ask(served, path) for _ in range(10)))
        clock.now_s += refresh.SHARED_FOR_S * 0.9
        answers.append(await ask(served, path))
        assert {id(each) for each in answers} == {id(answers[0])}
        clock.now_s += refresh.SHARED_FOR_S
        node.outcome = replace(rich_report(), node="another")
        newest = await ask(served, path)
        assert b"another" in newest.body
        assert b"another" not in answers[0].body

    run(steps)


def test_formats_are_not_mixed_up(clock: Clock) -> None:
    """A client gets the format that it requests, in whichever order the formats are requested."""
    node = Node()
    strict = "application/openmetrics-text"

    async def steps() -> None:
        served = endpoints_of(node)
        for _ in range(2):
            plain = await ask(served, "/metrics")
            assert plain.content_type == Format.TEXT.value
            assert b"# EOF" not in plain.body
            other = await ask(served, "/metrics", accept=strict)
            assert other.content_type == Format.OPENMETRICS.value
            assert other.body.endswith(b"# EOF\n")
            assert (await ask(served, "/")).body.startswith(b"<!doctype html>")
        assert node.refreshes == 1

    run(steps)


def test_a_failure_is_reported_at_once(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A response from before a failure is not served after it or while the refresh hangs."""
    monkeypatch.setattr(refresh, "DEADLINE_S", 0.0)
    node = Node()
    failed = False

    async def steps() -> None:
        nonlocal failed
        served = endpoints_of(node, tls=lambda: TlsState(reload_failed=failed, expiry_unix_s=4e9))
        node.gate.clear()
        late = await samples(served)
        assert late["hvprobe_refresh_failed"] == 1
        assert late["hvprobe_refresh_failures_total deadline"] == 1
        failed = True
        assert await samples(served) == late  # shared
        clock.now_s += refresh.SHARED_FOR_S
        assert (await samples(served))["hvprobe_tls_reload_failed"] == 1
        node.gate.set()
        while (found := await samples(served))["hvprobe_refresh_failed"]:
            await asyncio.sleep(0.001)
        assert per_vm(found)
        assert found["hvprobe_refresh_duration_seconds_count"] == 1

    run(steps)


def test_metrics_before_the_first_successful_refresh(clock: Clock) -> None:
    """/metrics has only the agent's own series and the failure, and is no HTTP error."""
    node = Node(outcome=OSError("no /proc"))

    async def steps() -> None:
        served = endpoints_of(node)
        found = await samples(served)
        assert found["hvprobe_refresh_failed"] == 1
        assert found["process_open_fds"] > 0
        assert not [name for name in found if name.startswith(("kubevirt_", "hvprobe_build_info"))]

    run(steps)


def test_readiness_and_liveness(clock: Clock) -> None:
    """The agent is ready while refreshes succeed, and alive whenever it answers."""
    node = Node(outcome=OSError("no /proc"))

    async def steps() -> None:
        served = endpoints_of(node)
        answer = await ask(served, "/readyz")
        assert answer.status is HTTPStatus.SERVICE_UNAVAILABLE
        assert answer.body == b"not ready: the refresh failed: OSError('no /proc')\n"
        assert (await ask(served, "/healthz")).status is HTTPStatus.OK
        node.outcome = rich_report()
        clock.now_s += 2
        assert (await ask(served, "/readyz")).body == b"ready\n"

    run(steps)


def test_no_created_series_in_either_format() -> None:
    """Counters and histograms have no ``_created`` series, and the OpenMetrics text is valid."""
    node = Node()

    async def steps() -> None:
        served = endpoints_of(node)
        plain = await ask(served, "/metrics")
        assert plain.content_type == Format.TEXT.value
        strict = await ask(served, "/metrics", accept="application/openmetrics-text")
        assert strict.content_type == Format.OPENMETRICS.value
        for answer in (plain, strict):
            assert b"_created" not in answer.body
        names = {family.name for family in openmetrics_of(strict.body.decode())}
        assert {"hvprobe_refresh_duration_seconds", "hvprobe_refresh_failures"} <= names
        assert strict.body.endswith(b"# EOF\n")

    run(steps)


def test_tls_series_exist_only_with_tls(clock: Clock) -> None:
    """The reload series is 1 while the files are unusable. Without TLS there is no series of it."""
    node = Node()
    failed = False

    async def steps() -> None:
        nonlocal failed
        served = endpoints_of(node, tls=lambda: TlsState(reload_failed=failed, expiry_unix_s=4e9))
        assert (await samples(served))["hvprobe_tls_reload_failed"] == 0
        failed = True
        clock.now_s += refresh.SHARED_FOR_S
        assert (await samples(served))["hvprobe_tls_reload_failed"] == 1
        expiry = "hvprobe_tls_certificate_expiry_timestamp_seconds"
        assert (await samples(served))[expiry] == 4e9
        plain = await samples(endpoints_of(node))
        assert not [name for name in plain if name.startswith("hvprobe_tls")]

    run(steps)


PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


@pytest.mark.parametrize(
    ("accept", "openmetrics"),
    [
        (None, False),
        ("", False),
        ("*/*", False),
        ("text/html,application/xhtml+xml,*/*;q=0.8", False),
        ("application/openmetrics-text", True),
        (" Application/OpenMetrics-Text ; Version=1.0.0", True),
        (PROMETHEUS_2, True),
        (PROMETHEUS_3, True),
        ("application/openmetrics-text;version=0.0.1,text/plain;q=0.5", False),
        ("application/openmetrics-text;q=0.1,text/plain;q=0.9", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;version=abc", False),
        ("application/openmetrics-text;q=high", False),
        (";;;,,;=;q=,version", False),
    ],
)
def test_format_by_accept(accept: str | None, openmetrics: bool) -> None:
    """A client that ranks OpenMetrics at least as high gets it. A malformed header is no error."""
    assert prefers_openmetrics(accept) is openmetrics


def test_page_is_served_with_its_policy() -> None:
    """The page is HTML with a strict policy, and no cache may store it."""
    node = Node()

    async def steps() -> None:
        answer = await ask(endpoints_of(node), "/")
        headers = dict(answer.headers)
        assert answer.content_type == "text/html; charset=utf-8"
        assert headers["Content-Security-Policy"] == CONTENT_SECURITY_POLICY
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"

    run(steps)


class Moving(Node):
    """A node whose time passes and whose counters grow from refresh to refresh."""

    def refresh(self) -> NodeReport:
        found = super().refresh()
        vmis = tuple(
            each._replace(counters={name: n + self.refreshes for name, n in each.counters.items()})
            for each in found.vmis
        )
        return replace(found, vmis=vmis, taken_unix_s=found.taken_unix_s + self.refreshes)


def test_the_first_page_has_rates() -> None:
    """It waits for a second refresh, which /metrics does not: that shares the first one."""
    node = Moving()

    async def steps() -> None:
        served = endpoints_of(node)
        begun_s = time.monotonic()
        pages = [asyncio.create_task(ask(served, "/")) for _ in range(5)]
        while not node.refreshes:
            await asyncio.sleep(0)
        await ask(served, "/metrics")
        assert node.refreshes == 1
        bodies = {(await each).body for each in pages}
        assert node.refreshes == 2
        assert refresh.SHARED_FOR_S <= time.monotonic() - begun_s < refresh.DEADLINE_S
        assert [b"Rates are over 1 s." in body for body in bodies] == [True]
        begun_s = time.monotonic()
        await ask(served, "/")
        assert time.monotonic() - begun_s < refresh.SHARED_FOR_S

    run(steps)


def test_a_page_after_the_first_scrape_waits_for_what_is_left_of_a_second() -> None:
    """The scrape's report is the previous one, so both together take a second and no longer."""
    node = Moving()

    async def steps() -> None:
        served = endpoints_of(node)
        await ask(served, "/metrics")
        begun_s = time.monotonic()
        assert b"Rates are over 1 s." in (await ask(served, "/")).body
        assert time.monotonic() - begun_s < refresh.SHARED_FOR_S + 0.5
        assert node.refreshes == 2

    run(steps)


def test_a_page_does_not_wait_long_for_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the second refresh hangs, the page shows the first one within the deadline."""
    monkeypatch.setattr(refresh, "SHARED_FOR_S", 0.05)
    monkeypatch.setattr(refresh, "DEADLINE_S", 0.5)
    node = Node()

    async def steps() -> None:
        served = endpoints_of(node)
        await ask(served, "/metrics")
        node.gate.clear()
        begun_s = time.monotonic()
        body = (await ask(served, "/")).body
        assert b"default/alpha" in body.replace(b"</bdi>/<bdi>", b"/")
        assert b"Rates are unknown" in body
        assert time.monotonic() - begun_s < 2
        node.gate.set()

    run(steps)


def test_a_page_without_a_report_waits_for_nothing_else(clock: Clock) -> None:
    """When the first refresh fails, the page says so at once."""
    node = Node(outcome=OSError("no /proc"))

    async def steps() -> None:
        begun_s = time.monotonic()
        assert b"There is no data yet." in (await ask(endpoints_of(node), "/")).body
        assert time.monotonic() - begun_s < refresh.SHARED_FOR_S

    run(steps)


def test_a_page_is_kept_in_two_variants(clock: Clock) -> None:
    """A client that sends ever new queries gets one of two answers, each rendered once."""
    node = Node()

    async def steps() -> None:
        served = endpoints_of(node)
        await ask(served, "/")
        clock.now_s += 2
        queries = ["", "refresh=off", *(f"x={number}" for number in range(100)), "refresh=off&y"]
        answers = [await ask(served, "/", query=query) for query in queries]
        assert len({id(each) for each in answers}) == 2
        assert answers[0] is answers[2]
        assert answers[1] is answers[-1]
        assert b"http-equiv" in answers[0].body
        assert b"http-equiv" not in answers[1].body
        assert len(served._answers) == 2
        vm = {"route": f"/{VMI_FOLDER}{BELOW}"}
        on = await ask(served, "/vmi/default/beta", **vm)
        off = await ask(served, "/vmi/default/beta", query="refresh=off", **vm)
        assert (b"http-equiv" in on.body, b"http-equiv" in off.body) == (True, False)

    run(steps)


def test_page_has_rates_of_two_refreshes(clock: Clock) -> None:
    """The page computes rates from the last two refreshes."""
    node = Node()

    async def steps() -> None:
        served = endpoints_of(node)
        assert b"Rates are unknown" in (await ask(served, "/")).body
        clock.now_s += 30
        node.outcome = replace(rich_report(), taken_unix_s=rich_report().taken_unix_s + 30)
        assert b"Rates are over 30 s." in (await ask(served, "/")).body

    run(steps)


async def why(endpoints: Endpoints, path: str) -> Response:
    return await ask(endpoints, path, route="/vmi/*")


def test_a_vm_has_a_page_with_the_policy() -> None:
    """Its page says what ``why`` prints, and has the same headers as the page at ``/``."""
    node = Node()

    async def steps() -> None:
        served = endpoints_of(node)
        answer = await why(served, "/vmi/default/beta")
        assert answer.status is HTTPStatus.OK
        assert answer.content_type == "text/html; charset=utf-8"
        assert answer.headers == (await ask(served, "/")).headers
        assert b"default/beta is emulated in software (tcg), although" in answer.body

    run(steps)


def test_a_vm_and_the_page_share_a_refresh(clock: Clock) -> None:
    """Requests for pages within a second share one refresh, and a later one makes another."""
    node = Node()

    async def steps() -> None:
        served = endpoints_of(node)
        await ask(served, "/")
        for name in ("alpha", "beta", "none"):
            await why(served, f"/vmi/default/{name}")
        assert node.refreshes == 1
        clock.now_s += refresh.SHARED_FOR_S
        await why(served, "/vmi/default/alpha")
        assert node.refreshes == 2

    run(steps)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/vmi/default/bet", "no VM default/bet runs on node node-1; the nearest names are"),
        ("/vmi/lab/beta", "the nearest names are default/beta"),
        ("/vmi/q/x", "no VM here has a similar name"),
        ("/vmi/", "use /vmi/NAMESPACE/NAME"),
        ("/vmi/default", "use /vmi/NAMESPACE/NAME"),
        ("/vmi/default/", "use /vmi/NAMESPACE/NAME"),
        ("/vmi//beta", "use /vmi/NAMESPACE/NAME"),
        ("/vmi/default/beta/", "use /vmi/NAMESPACE/NAME"),
        ("/vmi/default/beta/x", "use /vmi/NAMESPACE/NAME"),
        ("/vmi/default%2Fbeta", "use /vmi/NAMESPACE/NAME"),
        ("/vmi/default/%62eta%00", "use /vmi/NAMESPACE/NAME"),
        ("/vmi/default/%2562eta", "use /vmi/NAMESPACE/NAME"),
        ("/vmi/default/%ff", "use /vmi/NAMESPACE/NAME"),
        ("/vmi/default/%zz", "use /vmi/NAMESPACE/NAME"),
        ("/vmi/../beta", "use /vmi/NAMESPACE/NAME"),
        ("/vmi/default/<b>", "use /vmi/NAMESPACE/NAME"),
        ("/vmi/default/" + "a" * 5000, "use /vmi/NAMESPACE/NAME"),
    ],
)
def test_a_vm_that_is_not_there(path: str, says: str) -> None:
    """The answer is 404 with one short line, the nearest names if the name is valid."""

    async def steps() -> None:
        answer = await why(endpoints_of(Node()), path)
        assert answer.status is HTTPStatus.NOT_FOUND
        assert answer.content_type == "text/plain; charset=utf-8"
        assert says in answer.body.decode()
        assert answer.body.count(b"\n") == 1
        assert len(answer.body) < 1500

    run(steps)


def test_names_are_decoded_once() -> None:
    """A percent-encoded letter is the letter."""

    async def steps() -> None:
        answer = await why(endpoints_of(Node()), "/vmi/%64efault/bet%61")
        assert answer.status is HTTPStatus.OK

    run(steps)


def test_a_vm_while_refreshes_fail(clock: Clock) -> None:
    """Its page shows the last known state with the failure; without any state it is 503."""
    node = Node()

    async def steps() -> None:
        served = endpoints_of(node)
        await why(served, "/vmi/default/beta")
        node.outcome = RuntimeError("broken")
        clock.now_s += refresh.SHARED_FOR_S
        answer = await why(served, "/vmi/default/beta")
        assert answer.status is HTTPStatus.OK
        assert b'class="alarm"' in answer.body
        answer = await why(endpoints_of(node), "/vmi/default/beta")
        assert answer.status is HTTPStatus.SERVICE_UNAVAILABLE

    run(steps)


def test_a_vm_before_names_are_known() -> None:
    """Until the API server has answered, no VM is said to be absent."""
    watch = replace(WATCHING, up=False, synced=False)
    plain = rich_report()
    node = Node(outcome=replace(plain, vmis=(), health=replace(plain.health, vmi_watch=watch)))

    async def steps() -> None:
        answer = await why(endpoints_of(node), "/vmi/default/beta")
        assert answer.status is HTTPStatus.SERVICE_UNAVAILABLE

    run(steps)


WATCHING = WatchStatus(
    up=True, synced=True, last_sync_unix_s=1700000099.5, restarts=3, error=None, malformed_total=2
)


def watched(status: WatchStatus) -> NodeReport:
    plain = rich_report()
    return replace(plain, health=replace(plain.health, vmi_watch=status))


def test_the_watch_of_vmis_is_exported(clock: Clock) -> None:
    """The watch has a series for each known figure in cluster mode, and none standalone."""
    node = Node(outcome=watched(WATCHING))

    async def steps() -> None:
        served = endpoints_of(node)
        names = "up last_sync_timestamp_seconds restarts_total malformed_total".split()
        found = await samples(served)
        assert [found[f"hvprobe_vmi_watch_{name}"] for name in names] == [1, 1700000099.5, 3, 2]
        node.outcome = watched(replace(WATCHING, up=False, last_sync_unix_s=None))
        clock.now_s += 2
        lost = await samples(served)
        assert lost["hvprobe_vmi_watch_up"] == 0
        assert "hvprobe_vmi_watch_last_sync_timestamp_seconds" not in lost
        node.outcome = rich_report()
        clock.now_s += 2
        standalone = await samples(served)
        assert not [name for name in standalone if name.startswith("hvprobe_vmi_watch")]

    run(steps)


def test_not_ready_before_the_first_list(clock: Clock) -> None:
    """In cluster mode readiness waits for the first list. A later break does not end readiness."""
    node = Node(outcome=watched(replace(WATCHING, up=False, synced=False, error="forbidden")))

    async def steps() -> None:
        served = endpoints_of(node)
        assert (await ask(served, "/readyz")).body == b"not ready: no VMI names: forbidden\n"
        assert b"forbidden" in (await ask(served, "/")).body
        clock.now_s += 2
        node.outcome = watched(replace(WATCHING, up=False, synced=False))
        assert (await ask(served, "/readyz")).status is HTTPStatus.SERVICE_UNAVAILABLE
        clock.now_s += 2
        node.outcome = watched(replace(WATCHING, up=False, error="connection lost"))
        assert (await ask(served, "/readyz")).body == b"ready\n"

    run(steps)
