"""From the JSON of a VirtualMachineInstance to a Vmi, and the index of many."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.cgroup import PodUid
from probes.vmi import (
    EMPTY_INDEX,
    IndexState,
    MalformedVmi,
    Migration,
    MigrationMode,
    Vmi,
    VmiIndex,
    VmiPhase,
    parse_vmi,
    vmi_key,
)

POD = PodUid("7b4c2f1e-93d5-4a60-8e17-c0ffee12ab34")
TARGET = PodUid("0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0")


def running() -> dict[str, Any]:
    """A running VMI with the fields that count."""
    return {
        "metadata": {"namespace": "lab", "name": "beta", "uid": "5a5a", "labels": {"any": "thing"}},
        "spec": {"architecture": "amd64"},
        "status": {"phase": "Running", "nodeName": "node-a", "activePods": {POD: "node-a"}},
    }


def changed(path: str, value: object) -> dict[str, Any]:
    """The running VMI with one field set, or removed when the value is `...`."""
    obj: dict[str, Any] = running()
    *parents, last = path.split(".")
    place = obj
    for parent in parents:
        place = place.setdefault(parent, {})
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return obj


def test_a_running_vmi() -> None:
    """Every field that counts, from where KubeVirt writes it."""
    assert parse_vmi(running()) == Vmi(
        namespace="lab",
        name="beta",
        uid="5a5a",
        phase=VmiPhase.RUNNING,
        node_name="node-a",
        active_pods=((POD, "node-a"),),
        migration=None,
        architecture="amd64",
        deletion=False,
    )


def test_a_vmi_just_created() -> None:
    """An object without status has no phase, no node, no pods: not known, not malformed."""
    obj = {"metadata": {"namespace": "lab", "name": "beta", "uid": "5a5a"}}
    found = parse_vmi(obj)
    assert found.phase is VmiPhase.UNSET
    assert found.node_name is None
    assert found.active_pods == ()
    assert found.architecture is None


def test_phases_and_modes_are_kubevirts_words() -> None:
    """VirtualMachineInstancePhase and MigrationMode of its API (types.go)."""
    words = "Pending Scheduling Scheduled Running Succeeded Failed WaitingForSync Unknown"
    assert [it.value for it in VmiPhase] == ["", *words.split()]
    assert [it.value for it in MigrationMode] == ["PreCopy", "PostCopy", "Paused"]


@pytest.mark.parametrize("phase", list(VmiPhase))
def test_phases(phase: VmiPhase) -> None:
    """Each of KubeVirt's phases is told apart."""
    assert parse_vmi(changed("status.phase", phase.value)).phase is phase


@pytest.mark.parametrize("text", ["running", "Crashed", "Running "])
def test_an_unknown_phase_is_not_running(text: str) -> None:
    """A phase of a later KubeVirt is UNKNOWN and thus never makes series."""
    assert parse_vmi(changed("status.phase", text)).phase is VmiPhase.UNKNOWN


def test_a_deletion_is_seen() -> None:
    """A deletionTimestamp means deletion was asked for."""
    assert parse_vmi(changed("metadata.deletionTimestamp", "2025-03-02T11:30:00Z")).deletion


MIGRATIONS = [
    (
        {"sourceNode": "a", "targetNode": "b", "targetPod": "virt-launcher-x", "mode": "PreCopy"},
        Migration(
            source_node="a",
            target_node="b",
            target_pod="virt-launcher-x",
            mode=MigrationMode.PRE_COPY,
            completed=False,
            failed=False,
            ended=False,
        ),
        True,
    ),
    (
        {"mode": "PostCopy", "completed": True, "endTimestamp": "2025-03-02T10:00:09Z"},
        Migration(
            source_node=None,
            target_node=None,
            target_pod=None,
            mode=MigrationMode.POST_COPY,
            completed=True,
            failed=False,
            ended=True,
        ),
        False,
    ),
    (
        {"mode": "Teleport", "failed": True, "sourceNode": None},
        Migration(
            source_node=None,
            target_node=None,
            target_pod=None,
            mode=None,
            completed=False,
            failed=True,
            ended=False,
        ),
        False,
    ),
]


@pytest.mark.parametrize(("state", "expected", "in_flight"), MIGRATIONS)
def test_migrations(state: dict[str, object], expected: Migration, in_flight: bool) -> None:
    """Source, target, mode and outcome; a mode of a later KubeVirt is not known."""
    found = parse_vmi(changed("status.migrationState", state)).migration
    assert found == expected
    assert found is not None
    assert found.in_flight is in_flight


def test_pods_are_sorted_and_canonical() -> None:
    """Both pods of a migration, in an order that does not depend on the server's."""
    pods = {POD.upper(): "node-a", TARGET: "node-b"}
    expected = ((TARGET, "node-b"), (POD, "node-a"))
    assert parse_vmi(changed("status.activePods", pods)).active_pods == expected


MALFORMED = [
    ("metadata", ..., "metadata.namespace is missing"),
    ("metadata", "text", "metadata is a str, not an object"),
    ("metadata.namespace", ..., "metadata.namespace is missing"),
    ("metadata.name", "", "metadata.name is missing"),
    ("metadata.name", 7, "name is a int, not a string"),
    ("metadata.name", "two\nlines", "no Kubernetes name"),
    ("metadata.uid", ..., "VMI lab/beta: metadata.uid is missing"),
    ("spec", [], "VMI lab/beta: spec is a list, not an object"),
    ("spec.architecture", {}, "architecture is a dict"),
    ("status", "Running", "status is a str, not an object"),
    ("status.phase", 1, "phase is a int"),
    ("status.nodeName", ["node-a"], "nodeName is a list"),
    ("status.activePods", [POD], "activePods is a list"),
    ("status.activePods", {"pod-1": "node-a"}, "activePods has 'pod-1', which is no pod uid"),
    ("status.activePods", {POD: None}, "is a NoneType, not a node's name"),
    ("status.migrationState", True, "migrationState is a bool"),
    ("status.migrationState", {"failed": "yes"}, "failed is a str, not true or false"),
]


@pytest.mark.parametrize(("path", "value", "message"), MALFORMED)
def test_malformed_objects_are_told(path: str, value: object, message: str) -> None:
    """What cannot be a VMI is refused with one line: which object, which field, what is there."""
    with pytest.raises(MalformedVmi) as raised:
        parse_vmi(changed(path, value))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
_PATHS = sorted(
    {path for path, _, _ in MALFORMED}
    | {"metadata.deletionTimestamp", "status.migrationState.mode", "metadata.labels", "kind"}
)


@given(st.sampled_from(_PATHS), _JSON)
def test_any_json_is_a_vmi_or_malformed(path: str, value: object) -> None:
    """Whatever stands in a field, the object is read or refused by MalformedVmi, in one line."""
    obj = changed(path, value)
    line = ""
    try:
        assert parse_vmi(obj).key == vmi_key(obj)
    except MalformedVmi as error:
        line = str(error)
    assert line == "" or line.isprintable()


@given(st.dictionaries(st.text(), _JSON))
def test_any_object_is_a_vmi_or_malformed(obj: dict[str, object]) -> None:
    """Objects of any shape never raise anything else."""
    with pytest.raises(MalformedVmi):
        parse_vmi(obj)


def test_labels_and_annotations_change_nothing() -> None:
    """What a tenant may write on a VMI has no influence on what is kept."""
    obj = copy.deepcopy(running())
    obj["metadata"]["labels"] = {"kubevirt.io/nodeName": "elsewhere", "kubevirt.io/domain": "x"}
    obj["metadata"]["annotations"] = {"kubevirt.io/domain": "other"}
    assert parse_vmi(obj) == parse_vmi(running())


def sample(name: str, *pods: PodUid) -> Vmi:
    return dataclasses.replace(
        parse_vmi(running()), name=name, active_pods=tuple((pod, "node-a") for pod in pods)
    )


def test_an_index_finds_by_name_and_by_pod() -> None:
    """Both look-ups lead to the same value."""
    alpha, beta = sample("alpha", POD), sample("beta", TARGET)
    index = VmiIndex.of([alpha, beta], state=IndexState.CURRENT, synced_at_unix_s=100.0)
    assert index.vmis["lab", "alpha"] is index.pods[POD] is alpha
    assert index.pods[TARGET] is beta
    assert index.contested_pods == frozenset()


def test_a_pod_claimed_twice_names_nobody() -> None:
    """When two VMIs claim one pod, neither gets it, whatever the order."""
    vmis = [sample("alpha", POD), sample("beta", POD, TARGET), sample("gamma", POD)]
    for order in (vmis, vmis[::-1]):
        index = VmiIndex.of(order, state=IndexState.CURRENT, synced_at_unix_s=100.0)
        assert set(index.pods) == {TARGET}
        assert index.contested_pods == {POD}


def test_the_age_of_an_index() -> None:
    """Age is counted from the last word of the server; a clock set back makes none negative."""
    index = VmiIndex.of([], state=IndexState.STALE, synced_at_unix_s=100.0)
    assert index.age_s(160.0) == 60.0
    assert index.age_s(90.0) == 0.0
    assert EMPTY_INDEX.age_s(160.0) is None
    assert EMPTY_INDEX.state is IndexState.NOT_SYNCED


def test_an_index_cannot_be_changed() -> None:
    """Neither its fields nor its mappings."""
    index = VmiIndex.of([sample("alpha", POD)], state=IndexState.CURRENT, synced_at_unix_s=1.0)
    with pytest.raises(TypeError):
        index.vmis["lab", "x"] = sample("x")  # type: ignore[index]
    with pytest.raises(TypeError):
        del index.pods[POD]  # type: ignore[attr-defined]
    with pytest.raises(dataclasses.FrozenInstanceError):
        index.state = IndexState.STALE  # type: ignore[misc]
