# SPDX-License-Identifier: Apache-2.0
"""After a failure the VMI watch is back soon, and says so only when it knows of deletions."""

from __future__ import annotations

import random
import threading
from dataclasses import replace
from functools import partial

import pytest

from probes.vmi.kube.credentials import InCluster, Kubeconfig
from probes.vmi.kube.timing import WatchTiming
from probes.vmi.kube.watch import VmiWatch
from tests.support.apiserver import ApiServer, Fault, FaultKind, Request
from tests.support.apistore import JsonObject
from tests.support.cluster_watch import QUICK, Begin, knows, names, until
from tests.support.vmi_objects import vmi

IMPATIENT = replace(QUICK, answer_deadline_s=0.5, idle_deadline_s=0.5)
PRODUCTION = WatchTiming()
NEVER_S = 600.0
"""A pause that no test outlives."""

GONE = Fault(kind=FaultKind.ERROR_EVENT, verb="watch", code=410, reason="Expired")
BUSY = Fault(kind=FaultKind.STATUS, verb="watch", code=429, retry_after="0")


def watches(requests: list[Request]) -> list[Request]:
    return [request for request in requests if request.verb == "watch"]


def has_restarted_since(watch: VmiWatch, restarts: int) -> bool:
    """Whether the watch has come up again since it had restarted so many times."""
    return watch.status().restarts > restarts


def up(watch: VmiWatch) -> None:
    until(lambda: watch.status().up, "watch up", 30.0)


def has_restarted(watch: VmiWatch, times: int) -> bool:
    """Whether the watch has come up again exactly so many times."""
    return watch.status().restarts == times


AFTER_A_FAILURE = {
    "410 as the first line": GONE,
    "500 as the first line": replace(GONE, code=500),
    "429 as the first line": replace(GONE, code=429),
    "410 as the status": Fault(kind=FaultKind.STATUS, verb="watch", code=410),
    "429 with Retry-After": BUSY,
    "401": replace(BUSY, code=401, retry_after=None),
    "503": replace(BUSY, code=503, retry_after=None),
    "504": replace(BUSY, code=504, retry_after=None),
    "headers and then nothing": Fault(kind=FaultKind.STALL, verb="watch"),
    "no answer": Fault(kind=FaultKind.HANG, verb="watch"),
    "no list": Fault(kind=FaultKind.HANG, verb="list"),
    "half a list": Fault(kind=FaultKind.TRUNCATE, verb="list"),
    "a closed connection": Fault(kind=FaultKind.CLOSE),
    "a reset connection": Fault(kind=FaultKind.RESET, verb="watch"),
    "nonsense": Fault(kind=FaultKind.GARBAGE, verb="watch"),
    "half an event": Fault(kind=FaultKind.GARBAGE, verb="watch", body=b'{"type":"BOOKM'),
    "an end at once": Fault(kind=FaultKind.EMPTY_WATCH, verb="watch"),
}


@pytest.mark.parametrize("fault", AFTER_A_FAILURE.values(), ids=AFTER_A_FAILURE.keys())
def test_up_is_said_once_and_then_holds(
    api: ApiServer, begin: Begin, log: list[str], fault: Fault
) -> None:
    """A watch goes silent, a VMI is deleted unheard, and three times the new watch fails.

    It is up again once, not for a moment between, and what it then shows is what is there.
    """
    api.store.create(vmi("alpha"))
    api.store.create(vmi("beta"))
    watch = begin(timing=IMPATIENT)
    up(watch)
    api.inject(replace(fault, times=3))
    with api.store.changed:
        api.mute_watches()
        api.store.delete("default", "alpha")
    until(lambda: watch.status().restarts > 0, "up again", 30.0)
    assert names(watch) == {"default/beta"}
    up(watch)
    until(lambda: log[-1] == "VMI watch: up again", "the recovery in the log")
    assert watch.status().restarts == 1
    assert sum(line == "VMI watch: up again" for line in log) == 1


@pytest.mark.parametrize("seed", range(3))
def test_up_means_that_deletions_are_known(api: ApiServer, begin: Begin, seed: int) -> None:
    """A server that refuses, hangs and drops at random, and deletes while the watch is silent.

    Whenever the watch is up again after that, no VMI is left of those deleted before.
    """
    chance = random.Random(seed)
    faults = [*AFTER_A_FAILURE.values()]
    watch = begin(timing=IMPATIENT)
    up(watch)
    for number in range(6):
        restarts = watch.status().restarts
        api.store.create(vmi(f"vm-{number}"))
        until(partial(knows, watch, f"default/vm-{number}"), "the VMI", 30.0)
        for fault in chance.sample(faults, 2):
            api.inject(fault)
        with api.store.changed:
            api.mute_watches()
            api.store.delete("default", f"vm-{number}")
        if chance.random() < 0.5:
            api.restart(busy=chance.randrange(2))
        if chance.random() < 0.5:
            api.cut_watches()
        until(partial(has_restarted_since, watch, restarts), "up again", 30.0)
        assert names(watch) == set()
        api.clear_faults()
        up(watch)


def test_an_open_connection_is_not_up(api: ApiServer, begin: Begin) -> None:
    """Headers alone are no proof that the server follows us."""
    api.store.create(vmi("alpha"))
    api.inject(Fault(kind=FaultKind.STALL, verb="watch"))
    watch = begin()
    api.wait_for(lambda requests: len(watches(requests)) == 1)
    until(lambda: watch.status().synced, "listed")
    assert not watch.status().up
    assert names(watch) == {"default/alpha"}


def test_a_quiet_node_is_up_before_the_first_bookmark(api: ApiServer, begin: Begin) -> None:
    """The end of a first, short watch proves what would take a minute; later ones are longer."""
    api.bookmark_interval_s = 60.0
    watch = begin(timing=PRODUCTION)
    up(watch)
    api.wait_for(lambda requests: len(watches(requests)) == 3, 60.0)
    asked_s = [int(request.params["timeoutSeconds"]) for request in watches(api.requests)]
    assert asked_s[0] == 1
    assert asked_s[0] < asked_s[1] < asked_s[2]
    assert api.answered("list") == 1
    assert watch.status().restarts == 0
    api.cut_watches()
    api.wait_for(lambda requests: len(watches(requests)) == 4, 60.0)
    assert watches(api.requests)[3].params["timeoutSeconds"] == "1"


def test_a_restarted_server_is_followed_soon(api: ApiServer, begin: Begin) -> None:
    """With the pauses of production: 429 and forgotten versions after an outage of many tries."""
    api.store.create(vmi("alpha"))
    watch = begin(timing=PRODUCTION)
    up(watch)
    api.stop()
    until(lambda: "Connection refused" in (watch.status().error or ""), "the outage", 30.0)
    api.store.create(vmi("beta"))
    api.restart(busy=2)
    until(lambda: watch.status().restarts == 1, "up again", 30.0)
    assert names(watch) == {"default/alpha", "default/beta"}
    assert api.answered("watch", 429) == 2


def test_an_expired_version_is_listed_at_once(api: ApiServer, begin: Begin) -> None:
    """Where any other failure would wait for ten minutes, 410 does not wait at all, every time.

    The watch is up in between, which makes the next 410 another one.
    """
    timing = replace(QUICK, backoff_base_s=NEVER_S, backoff_cap_s=NEVER_S)
    watch = begin(timing=timing)
    up(watch)
    for times in range(1, 4):
        api.send_raw(b'{"type":"ERROR","object":{"kind":"Status","code":410}}\n')
        until(partial(has_restarted, watch, times), "up again", 30.0)
    assert api.answered("list") == 4


def test_retry_after_replaces_the_pause(api: ApiServer, begin: Begin) -> None:
    """Where the next pause would be ten minutes, the server's second holds."""
    timing = replace(QUICK, backoff_cap_s=NEVER_S)
    watch = begin(timing=timing)
    up(watch)
    api.inject(replace(BUSY, retry_after="1", times=2))
    watch._backoff._failures = 30
    api.end_watches()
    until(lambda: watch.status().restarts == 1, "up again", 30.0)
    assert api.answered("watch", 429) == 2


def test_failures_before_a_good_watch_are_forgotten(api: ApiServer, begin: Begin) -> None:
    """Six failures take seconds; six more, without the good watch between, would take minutes."""
    timing = replace(QUICK, backoff_base_s=0.05, backoff_cap_s=NEVER_S)
    watch = begin(timing=timing)
    up(watch)
    for times in range(1, 3):
        api.inject(Fault(kind=FaultKind.STATUS, code=500, times=5))
        api.cut_watches()
        until(partial(has_restarted, watch, times), "up again", 30.0)


def test_an_answered_list_ends_the_silence(api: ApiServer, begin: Begin) -> None:
    """Six lists without an answer make the pauses long; one with an answer makes them short."""
    watch = begin(timing=replace(QUICK, backoff_cap_s=NEVER_S))
    up(watch)
    api.inject(Fault(kind=FaultKind.CLOSE, verb="list", times=6))
    api.inject(Fault(kind=FaultKind.CLOSE, verb="watch", times=5))
    api.cut_watches()
    until(lambda: watch.status().restarts == 1, "up again", 30.0)


def test_brief_watches_are_not_a_spin(api: ApiServer, begin: Begin) -> None:
    """Watches that end in order after their first line are good, and asked for at a measured pace.

    No list is needed between them.
    """
    bookmark = b'{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"1000"}}}\n'
    api.inject(Fault(kind=FaultKind.GARBAGE, verb="watch", body=bookmark, times=1000))
    watch = begin(timing=replace(QUICK, backoff_base_s=0.1))
    api.wait_for(lambda requests: len(watches(requests)) >= 6)
    at_s = [request.at_s for request in watches(api.requests)]
    assert at_s[5] - at_s[0] >= 0.5
    assert api.answered("list") == 1
    assert watch.status().restarts == 0
    assert watch.status().up


@pytest.mark.parametrize("close_after_watch", [False, True])
def test_a_watch_may_be_silent_for_longer_than_an_answer(
    api: ApiServer, begin: Begin, close_after_watch: bool
) -> None:
    """The short deadline for an answer's head does not end a watch between two bookmarks."""
    api.close_after_watch = close_after_watch
    api.bookmark_interval_s = 1.0
    watch = begin(timing=replace(QUICK, answer_deadline_s=0.5))
    until(lambda: watch.status().up, "watch up")
    first = watch.status().last_sync_unix_s or 0.0
    until(lambda: (watch.status().last_sync_unix_s or 0.0) > first + 1.5, "two bookmarks")
    assert watch.status().restarts == 0
    assert api.answered("watch") == 1


@pytest.mark.parametrize("kubeconfig", [False, True], ids=["service account", "kubeconfig"])
def test_a_replaced_token_is_used_by_the_next_request(
    api: ApiServer, service_account: InCluster, begin: Begin, kubeconfig: bool
) -> None:
    """The old token is still good, and yet the new one is used as soon as there is a request."""
    config = Kubeconfig(file=api.kubeconfig()) if kubeconfig else service_account
    watch = begin(config)
    up(watch)
    api.tokens = {"token-2": api.tokens["token-1"], **api.tokens}
    api.token_file.write_text("token-2")
    api.kubeconfig()
    api.end_watches()
    api.wait_for(lambda requests: len(watches(requests)) == 2)
    assert (api.requests[-1].authorization or "").split()[-1] == "token-2"
    assert api.answered("list") == 1


@pytest.mark.parametrize("missing", ["token", "role"])
def test_a_mended_right_is_found_soon(api: ApiServer, begin: Begin, missing: str) -> None:
    """With the pauses of production, refused many times, the watch is back once it is allowed."""
    api.store.create(vmi("alpha"))
    watch = begin(timing=PRODUCTION)
    up(watch)
    if missing == "token":
        api.tokens = {"token-2": api.tokens["token-1"]}
    else:
        api.grants = set()
    api.cut_watches()
    api.wait_for(lambda requests: sum(r.status in {401, 403} for r in requests) >= 4, 30.0)
    api.store.create(vmi("beta"))
    api.token_file.write_text("token-2" if missing == "token" else "token-1")
    api.grants = {"get", "list", "watch"}
    until(lambda: watch.status().restarts == 1, "up again", 15.0)
    assert names(watch) == {"default/alpha", "default/beta"}


def test_a_server_that_is_slow_is_understood_in_the_end(
    begin: Begin, api: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers that take longer than the first deadline come in time for a later one."""
    api.store.create(vmi("alpha"))
    snapshot = api.store.snapshot

    def late(version: int | None) -> tuple[int, list[JsonObject]]:
        threading.Event().wait(0.8)
        return snapshot(version)

    monkeypatch.setattr(api.store, "snapshot", late)
    watch = begin(timing=replace(QUICK, answer_deadline_s=0.3))
    until(lambda: names(watch) == {"default/alpha"}, "the list", 30.0)
