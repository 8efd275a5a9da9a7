# SPDX-License-Identifier: Apache-2.0
"""The cache of VMIs: it makes a new index only when a field that it keeps has changed."""

import copy
import json

import pytest

from probes.vmi.kube.cache import VmiCache
from probes.vmi.kube.vmi_object import parse_vmi
from tests.support.vmi_objects import Vmi, encoded, vmi


class Clock:
    """A clock that advances by a second on each call."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 1.0
        return self.now_s


@pytest.fixture
def cache() -> VmiCache:
    """A cache with two listed VMIs and an open watch."""
    made = VmiCache(lambda _line: None, Clock())
    made.replace_all([parse_vmi(encoded(vmi("alpha"))), parse_vmi(encoded(vmi("beta")))])
    made.opened()
    return made


def received(obj: Vmi) -> Vmi:
    """An equal copy of the object, as the API server sends it again."""
    copied: Vmi = json.loads(json.dumps(obj))
    return copied


def test_a_field_that_is_not_kept_changes_no_index(cache: VmiCache) -> None:
    """An event that changes a condition or a label keeps the index and updates the sync time."""
    before, synced_unix_s = cache.index(), cache.status().last_sync_unix_s
    changed = received(vmi("alpha"))
    changed["status"]["conditions"] = [{"type": "AgentConnected", "status": "True"}]
    changed["metadata"]["resourceVersion"] = "4711"
    changed["metadata"]["labels"]["colour"] = "blue"
    cache.put(encoded(changed))
    assert cache.index() is before
    assert (cache.status().last_sync_unix_s or 0) > (synced_unix_s or 0)


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("metadata", "generation", 4711),
        ("metadata", "deletionTimestamp", "2026-01-01T00:00:00Z"),
        ("status", "migrationState", {"mode": "PreCopy", "targetNode": "node-b"}),
        ("status", "migrationState", {"completed": True, "endTimestamp": "2026-01-01T00:00:00Z"}),
    ],
)
def test_progress_events_change_no_index(
    cache: VmiCache, section: str, field: str, value: object
) -> None:
    """The progress or end of a migration and a deletion request leave the index unchanged."""
    before = cache.index()
    changed = received(vmi("alpha"))
    changed[section][field] = value
    cache.put(encoded(changed))
    assert cache.index() is before


def test_another_object_of_the_same_name_changes_the_index(cache: VmiCache) -> None:
    """A VMI that was made again under its name is another one, also if all else is the same."""
    changed = received(vmi("alpha"))
    changed["metadata"]["uid"] = "00000000-0000-4000-8000-00000000000f"
    cache.put(encoded(changed))
    found = cache.index().vmis["default", "alpha"]
    assert found.uid == "00000000-0000-4000-8000-00000000000f"


def test_the_same_list_changes_no_index(cache: VmiCache) -> None:
    """A watch that is lost and opened again, with no event missed, keeps the index."""
    before = cache.index()
    cache.lost("connection refused")
    assert cache.index() is before
    assert not cache.status().up
    cache.replace_all([parse_vmi(encoded(received(vmi(name)))) for name in ("beta", "alpha")])
    cache.opened()
    assert cache.status().up
    assert cache.index() is before


def test_a_list_alone_is_not_current(cache: VmiCache) -> None:
    """After a loss the list updates the VMIs, but the watch is up only once it is open again."""
    cache.lost("connection refused")
    cache.replace_all([parse_vmi(encoded(vmi("beta")))])
    assert not cache.status().up
    assert set(cache.index().vmis) == {("default", "beta")}
    assert cache.status().restarts == 0
    cache.opened()
    cache.opened()
    assert cache.status().up
    assert cache.status().restarts == 1


def test_an_empty_list_counts_as_a_list(cache: VmiCache) -> None:
    """An empty list makes the cache synced. Before any list it is not."""
    fresh = VmiCache(lambda _line: None, Clock())
    assert not fresh.status().synced
    fresh.replace_all([])
    fresh.opened()
    assert (fresh.status().synced, fresh.status().up) == (True, True)
    assert len(fresh.index().vmis) == 0
    cache.replace_all([])
    assert len(cache.index().vmis) == 0


@pytest.mark.parametrize(
    "path",
    [
        ("status", "phase", "Succeeded"),
        ("status", "nodeName", "node-z"),
        ("status", "activePods", {}),
        ("spec", "architecture", "s390x"),
    ],
    ids=lambda path: path[1],
)
def test_a_changed_field_makes_a_new_index(cache: VmiCache, path: tuple[str, str, object]) -> None:
    """A field that is kept makes a new index when an event or a list changes it."""
    section, field, value = path
    changed = copy.deepcopy(vmi("alpha"))
    changed[section][field] = value
    before = cache.index()
    cache.put(encoded(received(changed)))
    assert cache.index().vmis is not before.vmis
    assert cache.index().vmis["default", "alpha"] == parse_vmi(encoded(changed))
    cache.replace_all([parse_vmi(encoded(vmi("alpha"))), parse_vmi(encoded(vmi("beta")))])
    assert cache.index().vmis == before.vmis


def test_vmis_are_added_and_removed(cache: VmiCache) -> None:
    """Events add and remove VMIs, and a list removes those that it does not contain."""
    cache.put(encoded(vmi("gamma")))
    assert ("default", "gamma") in cache.index().vmis
    cache.drop(encoded(vmi("gamma")))
    assert ("default", "gamma") not in cache.index().vmis
    cache.replace_all([parse_vmi(encoded(vmi("beta")))])
    assert set(cache.index().vmis) == {("default", "beta")}
