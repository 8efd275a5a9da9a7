# SPDX-License-Identifier: Apache-2.0
"""The test API server itself: as strict as the real one, and good enough for the real client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import urllib3

from tests.support.apiserver import ApiServer
from tests.support.vmi_objects import vmi

BASE = "/apis/kubevirt.io/v1/virtualmachineinstances"
NAMESPACED = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances"


class Asker:
    """Plain HTTPS requests with the good token."""

    def __init__(self, api: ApiServer) -> None:
        self._api = api
        self.pool = urllib3.PoolManager(ca_certs=str(api.authority.cert), retries=False)

    def __call__(
        self, path: str = BASE, method: str = "GET", token: str | None = "token-1", **query: str
    ) -> tuple[int, dict[str, Any]]:
        query = {name.replace("_", ""): value for name, value in query.items()}
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        answer = self.pool.request(method, self._api.url + path, fields=query, headers=headers)
        return answer.status, json.loads(answer.data)

    def events(self, **query: str) -> list[dict[str, Any]]:
        """A watch that ends by itself, as its events."""
        answer = self.pool.request(
            "GET",
            self._api.url + BASE,
            fields={"watch": "1", "timeoutSeconds": "1", **query},
            headers={"Authorization": "Bearer token-1"},
        )
        return [json.loads(line) for line in answer.data.splitlines()]


@pytest.fixture
def ask(api: ApiServer) -> Iterator[Asker]:
    asker = Asker(api)
    yield asker
    asker.pool.clear()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ({"path": "/api/v1/secrets"}, 404, "could not find the requested resource"),
        ({"path": "/apis/kubevirt.io/v2/virtualmachineinstances"}, 404, "could not find"),
        ({"path": BASE + "/"}, 404, "could not find"),
        ({"path": NAMESPACED + "/absent"}, 404, '"absent" not found'),
        ({"method": "POST"}, 405, "does not allow this method"),
        ({"method": "PATCH", "path": NAMESPACED + "/a"}, 405, "does not allow this method"),
        ({"token": "wrong"}, 401, "Unauthorized"),
        ({"token": None}, 403, 'User "system:anonymous" cannot list resource'),
        ({"limit": "many"}, 400, 'parsing "many"'),
        ({"timeoutSeconds": "x", "watch": "1"}, 400, 'parsing "x"'),
        ({"resourceVersion": "old"}, 400, 'parsing "old"'),
        ({"labelSelector": "a=b c"}, 400, "unable to parse requirement"),
        ({"labelSelector": "kubevirt.io/nodeName=" + "a" * 64}, 400, "unable to parse"),
        ({"labelSelector": "x in (a,b"}, 400, "unable to parse requirement"),
        ({"fieldSelector": "spec.nodeName=a"}, 400, "field label not supported"),
        ({"fieldSelector": "what"}, 400, "invalid selector"),
        ({"continue": "no-token"}, 400, "continue key is not valid"),
        ({"continue": "e30=", "resourceVersion": "1"}, 400, "not allowed when using continue"),
        ({"resourceVersion": "99999999"}, 504, "Too large resource version"),
        ({"resourceVersion": "99999999", "watch": "1"}, 504, "Too large resource version"),
        ({"selector": "a"}, 400, "unknown query parameters"),
    ],
)
def test_it_refuses(ask: Asker, arguments: dict[str, Any], code: int, message: str) -> None:
    """Bad paths, verbs, credentials and parameters get the real server's Status objects."""
    status, body = ask(**arguments)
    assert status == body["code"] == code
    assert body["kind"] == "Status"
    assert message in body["message"]


def test_it_words_forbidden_as_the_real_one(api: ApiServer, ask: Asker) -> None:
    """403 names user, verb, resource and scope."""
    api.grants = {"list"}
    assert ask(watch="true")[1]["message"] == (
        "virtualmachineinstances.kubevirt.io is forbidden: User "
        '"system:serviceaccount:hvprobe:hvprobe" cannot watch resource "virtualmachineinstances" '
        'in API group "kubevirt.io" at the cluster scope'
    )
    assert 'in the namespace "default"' in ask(NAMESPACED + "/a")[1]["message"]


def test_pages_are_one_consistent_list(api: ApiServer, ask: Asker) -> None:
    """Pages show one version, whatever is written between them, until the store is compacted."""
    for number in range(5):
        api.store.create(vmi(f"vm-{number}"))
    _, first = ask(limit="2")
    api.store.delete("default", "vm-4")
    api.store.create(vmi("vm-2b"))
    token = first["metadata"]["continue"]
    _, second = ask(**{"limit": "2", "continue": token})
    _, third = ask(**{"limit": "2", "continue": second["metadata"]["continue"]})
    listed = [item["metadata"]["name"] for page in (first, second, third) for item in page["items"]]
    assert listed == [f"vm-{number}" for number in range(5)]
    versions = {page["metadata"]["resourceVersion"] for page in (first, second, third)}
    assert len(versions) == 1
    assert "continue" not in third["metadata"]
    api.store.compact()
    status, gone = ask(**{"limit": "2", "continue": token})
    assert (status, gone["reason"]) == (410, "Expired")
    assert gone["metadata"]["continue"]


SELECTIONS = [
    ({"labelSelector": "kubevirt.io/nodeName=node-a"}, {"a", "c"}),
    ({"labelSelector": "kubevirt.io/nodeName==node-b"}, {"b"}),
    ({"labelSelector": "kubevirt.io/nodeName!=node-a"}, {"b", "d"}),
    ({"labelSelector": "kubevirt.io/nodeName"}, {"a", "b", "c"}),
    ({"labelSelector": "!kubevirt.io/nodeName"}, {"d"}),
    ({"labelSelector": "kubevirt.io/nodeName in (node-a, node-b)"}, {"a", "b", "c"}),
    ({"labelSelector": "kubevirt.io/nodeName notin (node-a)"}, {"b", "d"}),
    ({"labelSelector": "kubevirt.io/nodeName,kubevirt.io/domain=c"}, {"c"}),
    ({"fieldSelector": "metadata.name=b"}, {"b"}),
    ({"fieldSelector": "metadata.name!=b,metadata.namespace=default"}, {"a", "d"}),
    ({"path": NAMESPACED}, {"a", "b", "d"}),
]


@pytest.mark.parametrize(("query", "expected"), SELECTIONS)
def test_it_selects(api: ApiServer, ask: Asker, query: dict[str, str], expected: set[str]) -> None:
    """Label and field selectors and the namespace mean what they mean to the real server."""
    api.store.create(vmi("a"))
    api.store.create(vmi("b", node="node-b"))
    api.store.create(vmi("c", namespace="lab"))
    api.store.create(vmi("d", node=None))
    _, body = ask(**query)
    assert {item["metadata"]["name"] for item in body["items"]} == expected


def test_a_watch_replays_and_expires(api: ApiServer, ask: Asker) -> None:
    """Events after a version in the window are replayed; an older version is 410 Expired."""
    start = str(api.store.resource_version)
    api.store.create(vmi("a"))
    api.store.update(vmi("a", node="node-b"))
    api.store.delete("default", "a")
    events = ask.events(resourceVersion=start, labelSelector="kubevirt.io/nodeName=node-a")
    assert [event["type"] for event in events] == ["ADDED", "DELETED"]
    versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in events]
    assert versions == sorted(set(versions))
    api.store.compact()
    expired = ask.events(resourceVersion=start)
    assert [event["type"] for event in expired] == ["ERROR"]
    assert expired[0]["object"]["code"] == 410
    api.expire_over_http = True
    assert ask(watch="1", resourceVersion=start)[0] == 410


def test_a_watch_from_nothing_begins_with_what_is(api: ApiServer, ask: Asker) -> None:
    """Without a version, a watch sends the present objects as ADDED first, and then bookmarks."""
    api.bookmark_interval_s = 0.1
    api.store.create(vmi("a"))
    events = ask.events(allowWatchBookmarks="true")
    assert events[0]["type"] == "ADDED"
    assert {event["type"] for event in events[1:]} == {"BOOKMARK"}
    assert "BOOKMARK" not in {event["type"] for event in ask.events()}


def test_the_official_client_lists_and_watches(api: ApiServer) -> None:
    """The kubernetes package's own API classes and Watch work with this server."""
    from kubernetes import client, watch

    api.store.create(vmi("a"))
    configuration = client.Configuration(host=api.url)
    configuration.ssl_ca_cert = str(api.authority.cert)
    configuration.api_key["authorization"] = "Bearer token-1"
    with client.ApiClient(configuration) as connection:
        objects = client.CustomObjectsApi(connection)
        listed = objects.list_cluster_custom_object("kubevirt.io", "v1", "virtualmachineinstances")
        assert isinstance(listed, dict)
        assert [item["metadata"]["name"] for item in listed["items"]] == ["a"]
        api.store.create(vmi("b"))
        seen = watch.Watch().stream(
            objects.list_cluster_custom_object,
            "kubevirt.io",
            "v1",
            "virtualmachineinstances",
            resource_version=listed["metadata"]["resourceVersion"],
            timeout_seconds=5,
        )
        event = next(seen)
        assert (event["type"], event["object"]["metadata"]["name"]) == ("ADDED", "b")
