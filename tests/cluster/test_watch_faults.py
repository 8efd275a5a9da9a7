# SPDX-License-Identifier: Apache-2.0
"""The VMI watch under faults: what it reports, which VMIs it keeps, how it recovers."""

from __future__ import annotations

import json
import random
import threading
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from probes.vmi.kube.credentials import InCluster, Kubeconfig
from probes.vmi.kube.timing import WatchTiming
from probes.vmi.kube.watch import VmiWatch
from tests.support.apiserver import ApiServer, Fault, FaultKind, Request
from tests.support.certificates import Authority
from tests.support.cluster_watch import QUICK, Begin, names, until
from tests.support.vmi_objects import Vmi, vmi

IMPATIENT = replace(QUICK, answer_deadline_s=0.3, idle_deadline_s=0.3)


def watches(requests: list[Request]) -> list[Request]:
    return [request for request in requests if request.verb == "watch"]


def up(watch: VmiWatch) -> None:
    until(lambda: watch.status().up, "watch up")


def error_with(watch: VmiWatch, *parts: str) -> str:
    """Wait for an error with these parts, and check that it is one line without the token."""
    until(lambda: all(p in (watch.status().error or "") for p in parts), f"error with {parts}")
    error = watch.status().error or ""
    assert "\n" not in error
    assert "token-1" not in error
    return error


def test_a_cut_watch_is_followed_by_a_list(api: ApiServer, begin: Begin) -> None:
    """After a reset connection, which may have lost events, the VMIs are listed again.

    One list is enough even if the watches after it are refused, and all of it is one restart.
    """
    watch = begin()
    up(watch)
    api.inject(Fault(kind=FaultKind.STATUS, verb="watch", code=503, times=2))
    api.cut_watches()
    api.store.create(vmi("during-the-cut"))
    until(lambda: names(watch) == {"default/during-the-cut"}, "the VMI made during the cut")
    up(watch)
    assert api.answered("list") == 2
    assert watch.status().restarts == 1
    assert watch.status().error is None


@pytest.mark.parametrize("over_http", [False, True], ids=["ERROR event", "HTTP status"])
def test_an_expired_version_is_listed_again(api: ApiServer, begin: Begin, over_http: bool) -> None:
    """410 in either form leads to a new list, without the VMIs that were deleted before it."""
    api.bookmark_interval_s = 60.0
    api.expire_over_http = over_http
    watch = begin()
    api.wait_for(lambda requests: len(watches(requests)) == 1)
    api.store.create(vmi("old"))
    up(watch)
    with api.store.changed:
        api.end_watches()
        api.store.delete("default", "old")
        api.store.create(vmi("new"))
        api.store.compact()
    until(lambda: names(watch) == {"default/new"}, "the new list")
    api.wait_for(lambda requests: len(watches(requests)) == 3)
    api.store.create(vmi("later"))
    until(lambda: watch.status().restarts == 1, "the next watch up")
    assert names(watch) == {"default/new", "default/later"}
    assert api.answered("list") == 2


def test_a_restored_cluster_is_listed_again(api: ApiServer, begin: Begin) -> None:
    """When the server's versions are older than the watch's, the VMIs are listed again."""
    api.store.create(vmi("alpha"))
    watch = begin()
    up(watch)
    with api.store.changed:
        api.end_watches()
        api.store.restore(500)
        api.store.delete("default", "alpha")
        api.store.create(vmi("beta"))
    until(lambda: names(watch) == {"default/beta"}, "the restored VMIs")
    up(watch)
    assert api.answered("watch", 504) >= 1


def test_a_deletion_of_an_unnamed_vmi_lists_again(api: ApiServer, begin: Begin) -> None:
    """After a DELETED event without a name, which may mean any VMI, the VMIs are listed again."""
    api.store.create(vmi("alpha"))
    watch = begin()
    up(watch)
    api.send_raw(b'{"type":"DELETED","object":{"metadata":{}}}\n')
    api.wait_for(lambda requests: sum(r.verb == "list" for r in requests) == 2)
    up(watch)
    assert names(watch) == {"default/alpha"}
    assert watch.status().malformed_total == 1


def test_pages_that_expire_are_read_in_one(api: ApiServer, begin: Begin) -> None:
    """When a continue token expires, the next list is read without pages, so no lists are mixed.

    The lists after that one have pages again.
    """
    for number in range(8):
        api.store.create(vmi(f"vm-{number}"))
    api.inject(
        Fault(kind=FaultKind.STATUS, verb="list", code=410, reason="Expired", later_pages_only=True)
    )
    watch = begin()
    up(watch)
    assert len(names(watch)) == 8
    listed = [request for request in api.requests if request.verb == "list"]
    assert [r.status for r in listed] == [200, 410, 200]
    assert ["limit" in r.params for r in listed] == [True, True, False]
    api.cut_watches()
    api.wait_for(lambda requests: sum(r.verb == "list" for r in requests) >= 6)
    listed = [request for request in api.requests if request.verb == "list"]
    assert ["limit" in r.params for r in listed[3:6]] == [True, True, True]


def test_a_silent_watch_is_given_up(api: ApiServer, begin: Begin, log: list[str]) -> None:
    """A watch that receives nothing, not even a bookmark, is given up at the idle deadline."""
    watch = begin(timing=IMPATIENT)
    up(watch)
    api.mute_watches()
    api.store.create(vmi("unheard"))
    until(lambda: names(watch) == {"default/unheard"}, "found by the next list")
    until(lambda: watch.status().restarts >= 1, "the next watch up")
    assert any("sent no data for 0.3 s" in line for line in log)


@pytest.mark.parametrize("kind", [FaultKind.HANG, FaultKind.STALL])
@pytest.mark.parametrize("verb", ["list", "watch"])
def test_an_answer_that_never_comes_is_given_up(
    api: ApiServer, begin: Begin, kind: FaultKind, verb: str
) -> None:
    """A list or watch that hangs before or after its headers is requested again."""
    api.bookmark_interval_s = 0.05
    api.store.create(vmi("alpha"))
    api.inject(Fault(kind=kind, verb=verb))
    watch = begin(timing=IMPATIENT)
    # Its restart or its second list shows that the hanging request was given up.
    api.wait_for(lambda requests: sum(r.verb == verb for r in requests) >= 2)
    up(watch)
    assert names(watch) == {"default/alpha"}


@pytest.mark.parametrize(
    "fault",
    [
        Fault(kind=FaultKind.CLOSE, times=3),
        Fault(kind=FaultKind.RESET, times=3),
        Fault(kind=FaultKind.STATUS, code=500, times=3),
        Fault(kind=FaultKind.STATUS, code=503, times=3),
        Fault(kind=FaultKind.STATUS, code=504, times=3),
        Fault(kind=FaultKind.STATUS, code=400, times=3),
        Fault(kind=FaultKind.STATUS, code=404, times=3),
        Fault(kind=FaultKind.STATUS, code=302, times=3),
        Fault(kind=FaultKind.GARBAGE, times=3),
        Fault(kind=FaultKind.GARBAGE, times=3, body=b"\xff\xfe"),
        Fault(kind=FaultKind.GARBAGE, times=3, body=b"[" * 100_000),
        Fault(kind=FaultKind.GARBAGE, times=3, body=b'{"kind":"List","items":[]}'),
        Fault(kind=FaultKind.GARBAGE, times=3, body=b""),
        Fault(kind=FaultKind.TRUNCATE, verb="list", times=3),
        Fault(kind=FaultKind.EMPTY_WATCH, verb="watch", times=3),
    ],
    ids=lambda fault: f"{fault.kind.name}-{fault.code}-{fault.body[:5]!r}",
)
def test_every_fault_passes(api: ApiServer, begin: Begin, fault: Fault) -> None:
    """Whatever wrong answers the server gives, the watch comes up by itself when they end."""
    for number in range(5):
        api.store.create(vmi(f"vm-{number}"))
    api.inject(fault)
    watch = begin()
    up(watch)
    api.store.create(vmi("last"))
    until(lambda: len(names(watch)) == 6, "all VMIs")
    assert watch.status().error is None


def test_slow_pieces_are_put_together(api: ApiServer, begin: Begin) -> None:
    """A list that arrives in pieces, cut anywhere, is read like one that arrives at once."""
    for number in range(5):
        api.store.create(vmi(f"vm-{number}"))
    api.inject(Fault(kind=FaultKind.SLOW, verb="list", times=2))
    watch = begin()
    up(watch)
    assert len(names(watch)) == 5


def test_no_server_names_nothing(service_account: InCluster, api: ApiServer, begin: Begin) -> None:
    """Without an API server the watch is not synced and says why. It recovers when one starts."""
    api.store.create(vmi("alpha"))
    api.stop()
    watch = begin()
    error_with(watch, "cannot list", "Connection refused", api.url)
    assert not watch.status().synced
    assert not watch.status().up
    assert watch.index().vmis == {}
    assert watch.status().last_sync_unix_s is None
    api.start()
    up(watch)
    assert names(watch) == {"default/alpha"}
    assert watch.status().restarts == 0


def test_a_lost_server_leaves_the_last_known_vmis(
    api: ApiServer, begin: Begin, log: list[str]
) -> None:
    """While the API server is lost, the VMIs stay but are not confirmed; the watch recovers."""
    api.store.create(vmi("alpha"))
    watch = begin()
    up(watch)
    api.stop()
    error_with(watch, "Connection refused")
    lost = watch.status()
    assert (lost.synced, lost.up) == (True, False)
    assert lost.last_sync_unix_s is not None
    assert names(watch) == {"default/alpha"}
    assert watch.status().last_sync_unix_s == lost.last_sync_unix_s
    api.store.create(vmi("beta"))
    api.start()
    until(lambda: names(watch) == {"default/alpha", "default/beta"}, "recovered")
    up(watch)
    assert watch.status().up
    assert watch.status().restarts == 1
    until(lambda: log[-1] == "VMI watch: up again", "the recovery in the log")


def test_an_outage_is_logged_once(api: ApiServer, begin: Begin, log: list[str]) -> None:
    """Repeated failures for the same reason are one line in the log."""
    api.inject(Fault(kind=FaultKind.STATUS, code=500, times=6))
    watch = begin()
    up(watch)
    assert sum("HTTP 500" in line for line in log) == 1


def test_a_foreign_ca_is_reported_and_survived(
    api: ApiServer, service_account: InCluster, begin: Begin, tmp_path: Path
) -> None:
    """A server certificate of another CA is refused, and trusted with the right CA in the file."""
    right = service_account.ca_file.read_bytes()
    foreign = Authority(tmp_path / "foreign", "kubernetes")
    service_account.ca_file.write_bytes(foreign.cert.read_bytes())
    watch = begin()
    error_with(watch, "TLS to API server", api.url)
    assert not watch.status().synced
    service_account.ca_file.write_bytes(right)
    up(watch)


def test_a_rotated_ca_is_followed(
    api: ApiServer, service_account: InCluster, begin: Begin, tmp_path: Path
) -> None:
    """When the cluster's CA and the mounted file change, the watch continues with the new CA."""
    watch = begin()
    up(watch)
    successor = Authority(tmp_path / "successor", "kubernetes")
    api.context = successor.server_context()
    service_account.ca_file.write_bytes(successor.cert.read_bytes())
    api.cut_watches()
    api.store.create(vmi("alpha"))
    until(lambda: names(watch) == {"default/alpha"}, "the VMI")


def test_a_server_without_tls_is_reported(begin: Begin, tmp_path: Path, api: ApiServer) -> None:
    """The error for a port that does not speak TLS is one line, which names the address."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as plain:
        port = plain.getsockname()[1]

        def answer() -> None:
            connection, _ = plain.accept()
            connection.recv(100)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        environ = {**api.environ, "KUBERNETES_SERVICE_PORT": str(port)}
        config = InCluster(token_file=api.token_file, ca_file=api.authority.cert, environ=environ)
        watch = begin(config)
        thread.join()
        error_with(watch, f"127.0.0.1:{port}")


def test_a_refused_token_is_reported(api: ApiServer, begin: Begin) -> None:
    """The error for 401 is one line, which names the token's folder. A good token there is used."""
    api.token_file.write_text("wrong")
    watch = begin()
    error_with(watch, "401 Unauthorized", str(api.token_file.parent))
    assert not watch.status().synced
    api.token_file.write_text("token-1\n")
    up(watch)


@pytest.mark.parametrize(
    "content", ["", "a\nb", "t\u00f6ken"], ids=["empty", "two lines", "umlaut"]
)
def test_a_malformed_token_file_is_reported(api: ApiServer, begin: Begin, content: str) -> None:
    """The error for a file without a valid token is one line, and the file is read again later."""
    api.token_file.write_text(content)
    watch = begin()
    error = error_with(watch, str(api.token_file.parent))
    assert "ken" not in error.replace("token", "").replace("Token", "")
    api.token_file.write_text("token-1")
    up(watch)


def test_a_rotated_token_is_used(api: ApiServer, begin: Begin) -> None:
    """When the old token is revoked, the file's new token is used, and no new list is needed."""
    api.store.create(vmi("alpha"))
    watch = begin()
    up(watch)
    api.tokens = {"token-2": next(iter(api.tokens.values()))}
    api.token_file.write_text("token-2")
    api.end_watches()
    api.store.create(vmi("beta"))
    until(lambda: names(watch) == {"default/alpha", "default/beta"}, "the VMI")
    assert (api.requests[-1].authorization or "").split() == ["bearer", "token-2"]
    assert api.answered("list") == 1


@pytest.mark.parametrize("verb", ["list", "watch"])
def test_a_missing_right_is_named(api: ApiServer, begin: Begin, log: list[str], verb: str) -> None:
    """The error for 403 names the missing verb and resource. Once granted, the watch comes up."""
    api.store.create(vmi("alpha"))
    api.grants = {"get", "list", "watch"} - {verb}
    watch = begin()
    error_with(
        watch,
        f"not allowed to {verb} virtualmachineinstances.kubevirt.io",
        "403 Forbidden",
        "ClusterRole",
    )
    assert watch.status().synced == (verb == "watch")
    api.grants = {"get", "list", "watch"}
    up(watch)
    assert sum("403" in line for line in log) == 1


@pytest.mark.parametrize("code", [429, 503])
def test_retry_after_is_honoured(api: ApiServer, begin: Begin, code: int) -> None:
    """The next request comes no sooner than the server asked for."""
    api.inject(Fault(kind=FaultKind.STATUS, verb="list", code=code, retry_after="1"))
    watch = begin()
    error_with(watch, str(code))
    up(watch)
    refused, repeated = api.requests[0], api.requests[1]
    assert refused.status == code
    assert repeated.at_s - refused.at_s >= 1.0


def test_retries_become_rarer(api: ApiServer, begin: Begin) -> None:
    """When watches end at once, the gaps between them double up to the cap."""
    api.inject(Fault(kind=FaultKind.EMPTY_WATCH, verb="watch", times=1000))
    begin()
    api.wait_for(lambda requests: len(watches(requests)) >= 6)
    at_s = [request.at_s for request in watches(api.requests)]
    gaps = [later - sooner for sooner, later in pairwise(at_s)]
    for failures, gap in enumerate(gaps[:5]):
        assert gap >= min(QUICK.backoff_cap_s, QUICK.backoff_base_s * 2**failures) / 2


def test_a_loop_of_expired_versions_is_not_a_spin(api: ApiServer, begin: Begin) -> None:
    """A server that calls every version expired is asked more and more rarely."""
    api.inject(Fault(kind=FaultKind.STATUS, verb="watch", code=410, reason="Expired", times=1000))
    begin()
    api.wait_for(lambda requests: len(watches(requests)) >= 6)
    at_s = [request.at_s for request in watches(api.requests)]
    assert at_s[5] - at_s[0] >= (0.02 + 0.04 + 0.08 + 0.16) / 2


def test_malformed_objects_are_skipped(api: ApiServer, begin: Begin, log: list[str]) -> None:
    """Objects that are no valid VMIs are counted and left out, in lists and in watches."""
    bad = vmi("bad")
    bad["status"] = "broken"
    api.store.create(vmi("good"))
    api.store.create(bad)
    watch = begin()
    up(watch)
    assert names(watch) == {"default/good"}
    assert watch.status().malformed_total == 1
    worse = vmi("worse")
    worse["status"]["activePods"] = {"no uid": 7}
    api.store.create(worse)
    api.store.create(vmi("after"))
    until(lambda: "default/after" in names(watch), "the next event")
    assert names(watch) == {"default/good", "default/after"}
    assert watch.status().malformed_total == 2
    assert watch.status().restarts == 0
    assert any(
        "VMI default/bad: Expected `object | null`, got `str` - at `$.status`" in line
        for line in log
    )


def test_a_vmi_that_becomes_malformed_is_dropped(api: ApiServer, begin: Begin) -> None:
    """A VMI whose object becomes malformed leaves the index, until the object is valid again."""
    api.store.create(vmi("alpha"))
    watch = begin()
    up(watch)

    def damage(obj: Vmi) -> None:
        obj["status"]["nodeName"] = ["node-a"]

    api.store.edit("default", "alpha", damage)
    until(lambda: names(watch) == set(), "dropped")
    api.store.update(vmi("alpha"))
    until(lambda: names(watch) == {"default/alpha"}, "valid again")


@pytest.mark.parametrize(
    "line",
    [
        b"not json\n",
        b"{}\n",
        b'{"type":"ADDED"}\n',
        b'{"type":"SOMETHING","object":{}}\n',
        b'{"type":"ERROR","object":{"kind":"Status","code":500,"message":"boom"}}\n',
        b'{"type":"ERROR","object":{"code":"what"}}\n',
        b'{"type":"ADDED","object":{"metadata":',
        b'{"type":"ADDED","object":' + b"[" * 100_000 + b"\n",
        b"\xff\n",
        json.dumps({"type": "DELETED", "object": {"metadata": {}}}).encode() + b"\n",
    ],
    ids=lambda line: line[:34].decode("latin-1"),
)
def test_a_malformed_stream_is_survived(api: ApiServer, begin: Begin, line: bytes) -> None:
    """Whatever a watch sends, the index has the server's VMIs in the end."""
    api.store.create(vmi("alpha"))
    watch = begin()
    up(watch)
    api.send_raw(line)
    api.store.create(vmi("beta"))
    until(lambda: names(watch) == {"default/alpha", "default/beta"}, "the VMIs")
    up(watch)


def test_blank_lines_are_ignored(api: ApiServer, begin: Begin) -> None:
    """Blank lines between events are neither events nor errors."""
    watch = begin()
    up(watch)
    api.send_raw(b"\n\r\n\n")
    api.store.create(vmi("alpha"))
    until(lambda: names(watch) == {"default/alpha"}, "the VMI")
    assert watch.status().malformed_total == 0


STUCK = {
    "in a quiet watch": None,
    "in a stalled list": Fault(kind=FaultKind.STALL, verb="list"),
    "in a stalled watch": Fault(kind=FaultKind.STALL, verb="watch"),
    "before the headers": Fault(kind=FaultKind.HANG),
    "between tries": Fault(kind=FaultKind.STATUS, code=503, retry_after="100"),
}


@pytest.mark.parametrize("fault", STUCK.values(), ids=STUCK.keys())
def test_stop_is_prompt(api: ApiServer, begin: Begin, fault: Fault | None) -> None:
    """``stop`` returns within two seconds, whatever the thread waits for, and the watch is down."""
    if fault is not None:
        api.inject(fault)
    watch = begin()
    verb = "list" if fault is not None and fault.verb != "watch" else "watch"
    api.wait_for(lambda requests: any(r.verb == verb for r in requests))
    began_s = time.monotonic()
    watch.stop()
    assert time.monotonic() - began_s < 2.0
    assert not watch.status().up
    assert watch.status().error is None


def test_stop_ends_the_thread_and_leaves_the_vmis(api: ApiServer, begin: Begin) -> None:
    """After ``stop`` the thread has ended and the VMIs stay. A second ``stop`` does nothing."""
    api.store.create(vmi("alpha"))
    watch = begin()
    up(watch)
    watch.stop()
    assert "vmi-watch" not in {thread.name for thread in threading.enumerate()}
    assert names(watch) == {"default/alpha"}
    assert not watch.status().up
    watch.stop()


def test_a_watch_that_never_began_can_be_stopped(service_account: InCluster) -> None:
    """``stop`` before ``start`` is no error."""
    watch = VmiWatch(service_account, "node-a")
    watch.stop()
    assert not watch.status().up


KUBECONFIGS = {
    "missing": None,
    "empty": "",
    "no YAML": "a: [",
    "no mapping": "[1, 2]",
    "no clusters": '{"current-context": "x", "contexts": []}',
    "text where a list belongs": '{"current-context": "x", "contexts": "y", "clusters": 3}',
    "bad base64": json.dumps(
        {
            "current-context": "t",
            "contexts": [{"name": "t", "context": {"cluster": "t", "user": "t"}}],
            "clusters": [
                {
                    "name": "t",
                    "cluster": {"server": "https://127.0.0.1:1", "certificate-authority-data": "a"},
                }
            ],
            "users": [{"name": "t", "user": {"token": "x"}}],
        }
    ),
}


@pytest.mark.parametrize("content", KUBECONFIGS.values(), ids=KUBECONFIGS.keys())
def test_a_malformed_kubeconfig_is_reported(
    begin: Begin, tmp_path: Path, content: str | None
) -> None:
    """The error for an unusable kubeconfig is one line, which names the file."""
    file = tmp_path / "kubeconfig"
    if content is not None:
        file.write_text(content)
    watch = begin(Kubeconfig(file=file))
    error_with(watch, str(file))


def test_a_missing_service_account_is_reported(begin: Begin, tmp_path: Path) -> None:
    """Without a mounted service account the error says so and names the flags to use instead."""
    config = InCluster(token_file=tmp_path / "token", ca_file=tmp_path / "ca.crt", environ={})
    assert not config.mounted()
    watch = begin(config)
    error_with(watch, "no service account", "--kubeconfig", "--standalone")


@pytest.mark.parametrize("seed", range(4))
def test_after_any_churn_the_index_is_the_servers(api: ApiServer, begin: Begin, seed: int) -> None:
    """After any order of writes, cuts, ends, expiries and faults, the index equals the server's."""
    chance = random.Random(seed)
    api.bookmark_interval_s = 0.05
    watch = begin(timing=WatchTiming(backoff_base_s=0.005, backoff_cap_s=0.05, page_limit=5))
    model: dict[str, str] = {}
    steps = ["write"] * 12 + ["delete"] * 4 + ["end", "cut", "compact", "fault", "wait"]
    for step in chance.choices(steps, k=250):
        name = f"vm-{chance.randrange(20)}"
        if step == "write":
            node = chance.choice(["node-a", "node-a", "node-b"])
            (api.store.update if name in model else api.store.create)(vmi(name, node=node))
            model[name] = node
        elif step == "delete" and model.pop(name, None) is not None:
            api.store.delete("default", name)
        elif step == "end":
            api.end_watches()
        elif step == "cut":
            api.cut_watches()
        elif step == "compact":
            api.store.compact()
        elif step == "fault":
            api.inject(Fault(kind=chance.choice([FaultKind.CLOSE, FaultKind.STATUS]), code=503))
        elif step == "wait":
            up(watch)
    expected = {f"default/{name}" for name, node in model.items() if node == "node-a"}
    until(lambda: watch.status().up and names(watch) == expected, f"the VMIs {expected}")
