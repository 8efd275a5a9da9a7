# SPDX-License-Identifier: Apache-2.0
"""What the watch has learnt: a new index only where something kept has changed."""

import copy
import json

import pytest

from probes.vmi.kube.cache import VmiCache
from probes.vmi.model import parse_vmi
from tests.support.vmi_objects import Vmi, vmi


class Clock:
    """Goes on by a second whenever it is asked."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 1.0
        return self.now_s


@pytest.fixture
def cache() -> VmiCache:
    """Two VMIs, listed, and a watch that is open."""
    made = VmiCache(lambda _line: None, Clock())
    made.replace_all([parse_vmi(vmi("alpha")), parse_vmi(vmi("beta"))])
    made.opened()
    return made


def told(obj: Vmi) -> Vmi:
    """The object as it comes over the wire once more: equal, and another one."""
    again: Vmi = json.loads(json.dumps(obj))
    return again


def test_what_is_not_kept_changes_no_index(cache: VmiCache) -> None:
    """A condition, an interface, a label: the VMIs stay the same objects, newly confirmed."""
    before, synced_unix_s = cache.index(), cache.status().last_sync_unix_s
    changed = told(vmi("alpha"))
    changed["status"]["conditions"] = [{"type": "AgentConnected", "status": "True"}]
    changed["metadata"]["resourceVersion"] = "4711"
    changed["metadata"]["labels"]["colour"] = "blue"
    cache.put(changed)
    assert cache.index() is before
    assert (cache.status().last_sync_unix_s or 0) > (synced_unix_s or 0)


@pytest.mark.parametrize(
    ("room", "field", "value"),
    [
        ("metadata", "uid", "00000000-0000-4000-8000-00000000000f"),
        ("metadata", "deletionTimestamp", "2026-01-01T00:00:00Z"),
        ("status", "migrationState", {"mode": "PreCopy", "targetNode": "node-b"}),
        ("status", "migrationState", {"completed": True, "endTimestamp": "2026-01-01T00:00:00Z"}),
    ],
)
def test_progress_events_change_no_index(
    cache: VmiCache, room: str, field: str, value: object
) -> None:
    """A migration in progress or ended, and a deletion request, leave the index as it is."""
    before = cache.index()
    changed = told(vmi("alpha"))
    changed[room][field] = value
    cache.put(changed)
    assert cache.index() is before


def test_the_same_list_changes_no_index(cache: VmiCache) -> None:
    """A watch that was lost and found, with nothing missed meanwhile."""
    before = cache.index()
    cache.lost("connection refused")
    assert cache.index() is before
    assert not cache.status().up
    cache.replace_all([parse_vmi(told(vmi(name))) for name in ("beta", "alpha")])
    cache.opened()
    assert cache.status().up
    assert cache.index() is before


def test_a_list_alone_is_not_current(cache: VmiCache) -> None:
    """After a loss the VMIs are confirmed by the list, and followed from the watch's word on."""
    cache.lost("connection refused")
    cache.replace_all([parse_vmi(vmi("beta"))])
    assert not cache.status().up
    assert set(cache.index().vmis) == {("default", "beta")}
    assert cache.status().restarts == 0
    cache.opened()
    cache.opened()
    assert cache.status().up
    assert cache.status().restarts == 1


def test_an_empty_list_is_one(cache: VmiCache) -> None:
    """Nothing known yet and nothing there are not the same."""
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
def test_what_is_kept_makes_a_new_index(cache: VmiCache, path: tuple[str, str, object]) -> None:
    """By an event as by a list."""
    room, field, value = path
    changed = copy.deepcopy(vmi("alpha"))
    changed[room][field] = value
    before = cache.index()
    cache.put(told(changed))
    assert cache.index().vmis is not before.vmis
    assert cache.index().vmis["default", "alpha"] == parse_vmi(changed)
    cache.replace_all([parse_vmi(vmi("alpha")), parse_vmi(vmi("beta"))])
    assert cache.index().vmis == before.vmis


def test_one_more_and_one_less(cache: VmiCache) -> None:
    """What comes and what goes."""
    cache.put(vmi("gamma"))
    assert ("default", "gamma") in cache.index().vmis
    cache.drop(vmi("gamma"))
    assert ("default", "gamma") not in cache.index().vmis
    cache.replace_all([parse_vmi(vmi("beta"))])
    assert set(cache.index().vmis) == {("default", "beta")}
