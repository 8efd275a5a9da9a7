# SPDX-License-Identifier: Apache-2.0
"""The VMI watch with a strict API server over TLS: what it learns when nothing fails."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from probes.host.cgroup import PodUid
from probes.vmi.kube.credentials import Kubeconfig
from probes.vmi.kube.watch import VmiWatch
from probes.vmi.model import VmiPhase
from tests.support.apiserver import ApiServer, Request
from tests.support.cluster_watch import NODE, QUICK, Begin, knows, names, until
from tests.support.vmi_objects import (
    Vmi,
    deleting,
    migrated,
    migrating,
    migration_failed,
    pod_uid,
    vmi,
)

PATH = "/apis/kubevirt.io/v1/virtualmachineinstances"


def lists(api: ApiServer) -> int:
    return api.answered("list")


def has_watched(times: int, requests: list[Request]) -> bool:
    """Whether exactly ``times`` of the requests are watches."""
    return sum(request.verb == "watch" for request in requests) == times


def pods(watch: VmiWatch) -> set[PodUid]:
    """The uids of the active pods of all VMIs that the watch knows."""
    return {uid for found in watch.index().vmis.values() for uid, _node in found.active_pods}


def test_only_the_vmis_of_this_node_are_read(api: ApiServer, begin: Begin) -> None:
    """The watch reads all pages of the node's VMIs, and requests no other resource."""
    for number in range(10):
        api.store.create(vmi(f"vm-{number}"))
        api.store.create(vmi(f"other-{number}", node="node-b"))
    api.store.create(vmi("pending", node=None, phase="Pending"))
    watch = begin()
    until(lambda: watch.status().up, "watch up")
    assert names(watch) == {f"default/vm-{number}" for number in range(10)}
    assert {request.path for request in api.requests} == {PATH}
    assert {request.params["labelSelector"] for request in api.requests} == {
        "kubevirt.io/nodeName=node-a"
    }
    assert lists(api) == 4
    assert watch.status().synced
    assert watch.status().restarts == 0
    assert watch.status().error is None
    assert watch.status().up


def test_an_empty_node_is_known_to_be_empty(api: ApiServer, begin: Begin) -> None:
    """A node without VMIs is synced with an empty index, unlike one that was never read."""
    watch = begin()
    until(lambda: watch.status().synced, "synced")
    assert watch.index().vmis == {}


def test_the_fields_that_attribution_needs_are_kept(api: ApiServer, begin: Begin) -> None:
    """Phase, node, pods and architecture come through as KubeVirt wrote them."""
    api.store.create(vmi("alpha", namespace="lab", architecture="arm64"))
    watch = begin()
    until(lambda: watch.status().synced, "synced")
    found = watch.index().vmis["lab", "alpha"]
    assert found.phase is VmiPhase.RUNNING
    assert found.node_name == NODE
    assert found.architecture == "arm64"
    assert found.active_pods == ((PodUid(pod_uid("lab", "alpha")), NODE),)


def test_changes_arrive(api: ApiServer, begin: Begin) -> None:
    """The index follows VMIs that are created, changed and deleted after the list."""
    api.store.create(vmi("first", phase="Scheduled"))
    watch = begin()
    until(lambda: watch.status().up, "watch up")
    api.store.create(vmi("second"))
    until(lambda: names(watch) == {"default/first", "default/second"}, "second")
    api.store.update(vmi("first", phase="Running"))
    until(lambda: watch.index().vmis["default", "first"].phase is VmiPhase.RUNNING, "first runs")
    api.store.update(deleting(vmi("second")))
    api.store.delete("default", "second")
    until(lambda: names(watch) == {"default/first"}, "second gone")
    assert lists(api) == 1
    assert watch.status().restarts == 0


def test_a_restarted_vm_has_its_new_pod(api: ApiServer, begin: Begin) -> None:
    """After a restart under the same name the VMI has its new pod only."""
    api.store.create(vmi("alpha"))
    watch = begin()
    until(lambda: watch.status().up, "watch up")
    api.store.delete("default", "alpha")
    api.store.create(vmi("alpha", generation=2))
    new = PodUid(pod_uid("default", "alpha", 2))
    until(lambda: pods(watch) == {new}, "the new pod alone")


def test_a_vmi_leaves_and_comes_with_its_node_label(api: ApiServer, begin: Begin) -> None:
    """When its nodeName label changes, a VMI leaves the one node and appears on the other."""
    api.store.create(vmi("alpha"))
    here, there = begin(), begin(node="node-b")
    until(lambda: here.status().up and there.status().up, "both up")

    def move(obj: Vmi) -> None:
        obj["metadata"]["labels"]["kubevirt.io/nodeName"] = "node-b"
        obj["status"]["nodeName"] = "node-b"

    api.store.edit("default", "alpha", move)
    until(lambda: names(here) == set() and names(there) == {"default/alpha"}, "moved")


def test_a_migration_seen_from_both_ends(api: ApiServer, begin: Begin) -> None:
    """The source has the VMI with both pods until the migration ends; then the target has it."""
    moving = migrating(vmi("alpha"), "node-b")
    api.store.create(vmi("alpha"))
    source, target = begin(), begin(node="node-b")
    until(lambda: source.status().up and target.status().up, "both up")
    api.store.update(moving)
    until(lambda: len(pods(source)) == 2, "both pods at the source")
    assert names(target) == set()
    api.store.update(migrated(moving))
    until(
        lambda: names(source) == set() and names(target) == {"default/alpha"}, "the VMI has moved"
    )
    after = target.index().vmis["default", "alpha"]
    assert [node for _, node in after.active_pods] == ["node-b"]


def test_a_failed_migration_leaves_the_vmi(api: ApiServer, begin: Begin) -> None:
    """After a failed migration the source has the VMI with its one pod."""
    moving = migrating(vmi("alpha"), "node-b", mode="PostCopy")
    api.store.create(moving)
    watch = begin()
    until(lambda: watch.status().up, "watch up")
    api.store.update(migration_failed(moving))
    until(lambda: pods(watch) == {PodUid(pod_uid("default", "alpha"))}, "target pod gone")
    assert names(watch) == {"default/alpha"}


def test_the_index_is_a_snapshot(api: ApiServer, begin: Begin) -> None:
    """A returned index never changes, and is the same object until something happens."""
    api.store.create(vmi("alpha"))
    watch = begin()
    until(lambda: watch.status().up, "watch up")
    before = watch.index()
    assert watch.index() is before
    api.store.create(vmi("beta"))
    until(lambda: watch.index() is not before, "a new index")
    assert set(before.vmis) == {("default", "alpha")}
    alpha = before.vmis["default", "alpha"]
    with pytest.raises(TypeError):
        before.vmis["default", "mine"] = alpha  # type: ignore[index] # must be refused


def test_bookmarks_carry_the_version_on(api: ApiServer, begin: Begin) -> None:
    """On a quiet node the next watch starts at the bookmark's version, although older ones expired.

    It needs no new list.
    """
    api.bookmark_interval_s = 0.05
    watch = begin()
    until(lambda: watch.status().up, "watch up")
    api.store.compact()
    synced = watch.status().last_sync_unix_s
    reached = api.store.resource_version
    until(lambda: watch.status().last_sync_unix_s != synced, "a bookmark after the compaction")
    later = watch.status().last_sync_unix_s
    until(lambda: watch.status().last_sync_unix_s != later, "one more")
    api.end_watches()
    api.wait_for(lambda requests: sum(r.verb == "watch" for r in requests) == 2)
    assert int(api.requests[-1].params["resourceVersion"]) >= reached
    assert lists(api) == 1
    assert watch.status().restarts == 0


def test_bookmarks_keep_a_quiet_watch_alive(api: ApiServer, begin: Begin) -> None:
    """With bookmarks a watch stays up when nothing happens for longer than the idle deadline."""
    api.bookmark_interval_s = 0.05
    watch = begin(timing=replace(QUICK, idle_deadline_s=0.4))
    until(lambda: watch.status().up, "watch up")
    first = watch.status().last_sync_unix_s or 0.0
    until(lambda: (watch.status().last_sync_unix_s or 0.0) > first + 1.0, "a second of quiet")
    assert watch.status().restarts == 0
    assert api.answered("watch") == 1


def test_the_server_ends_watches_in_order(api: ApiServer, begin: Begin) -> None:
    """When the server ends a watch in order, the next one continues it without list or restart."""
    api.store.create(vmi("alpha"))
    watch = begin()
    until(lambda: watch.status().up, "watch up")
    for number in range(3):
        api.store.create(vmi(f"more-{number}"))
        until(partial(knows, watch, f"default/more-{number}"), "the event")
        api.end_watches()
        api.wait_for(partial(has_watched, number + 2))
    assert lists(api) == 1
    assert watch.status().restarts == 0


def test_the_server_is_asked_to_end_watches(api: ApiServer, begin: Begin) -> None:
    """Each watch asks for bookmarks and for a timeout between 60 and 120 s."""
    watch = begin()
    until(lambda: watch.status().up, "watch up")
    params = api.requests[-1].params
    assert params["allowWatchBookmarks"] == "true"
    assert 60 <= int(params["timeoutSeconds"]) < 120


def test_a_kubeconfig_serves_as_well(api: ApiServer, begin: Begin) -> None:
    """Outside a pod, the watch reads the same VMIs with a kubeconfig with inline CA and token."""
    api.store.create(vmi("alpha"))
    watch = begin(Kubeconfig(file=api.kubeconfig()))
    until(lambda: names(watch) == {"default/alpha"}, "the VMI")


def test_a_thousand_vmis_in_pages(api: ApiServer, begin: Begin) -> None:
    """All VMIs of a node with a thousand of them are read with the page size of production."""
    for number in range(1000):
        api.store.create(vmi(f"vm-{number}"))
    watch = begin(timing=replace(QUICK, page_limit=100))
    until(lambda: watch.status().synced, "synced", 30.0)
    assert len(watch.index().vmis) == len(pods(watch)) == 1000
    assert lists(api) == 10
