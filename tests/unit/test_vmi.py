# SPDX-License-Identifier: Apache-2.0
"""Parsing a VirtualMachineInstance's JSON into a Vmi, and the index of VMIs."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.host.cgroup import PodUid
from probes.vmi.kube.vmi_object import MalformedVmi, parse_vmi, vmi_key
from probes.vmi.model import Vmi, VmiIndex, VmiPhase
from tests.support.vmi_objects import encoded

POD = PodUid("7b4c2f1e-93d5-4a60-8e17-c0ffee12ab34")
TARGET = PodUid("0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0")


def running() -> dict[str, Any]:
    """A running VMI with the fields that are read."""
    return {
        "metadata": {"namespace": "lab", "name": "beta", "uid": "5a5a", "labels": {"any": "thing"}},
        "spec": {"architecture": "amd64"},
        "status": {"phase": "Running", "nodeName": "node-a", "activePods": {POD: "node-a"}},
    }


def changed(path: str, value: object) -> dict[str, Any]:
    """The running VMI with one field set, or removed when the value is ``...``."""
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
    """Every field is read from the place where KubeVirt writes it."""
    assert parse_vmi(encoded(running())) == Vmi(
        namespace="lab",
        name="beta",
        phase=VmiPhase.RUNNING,
        node_name="node-a",
        active_pods=((POD, "node-a"),),
        architecture="amd64",
        uid="5a5a",
    )


def test_a_vmi_just_created() -> None:
    """In an object without status the phase, node and pods are unknown; it is not malformed."""
    obj = {"metadata": {"namespace": "lab", "name": "beta", "uid": "5a5a"}}
    found = parse_vmi(encoded(obj))
    assert found.phase is VmiPhase.UNSET
    assert found.node_name is None
    assert found.active_pods == ()
    assert found.architecture is None


def test_phases_are_kubevirts_words() -> None:
    """The phases are those of ``VirtualMachineInstancePhase`` in KubeVirt's types.go."""
    words = "Pending Scheduling Scheduled Running Succeeded Failed WaitingForSync Unknown"
    assert [phase.value for phase in VmiPhase] == ["", *words.split()]


@pytest.mark.parametrize("phase", list(VmiPhase))
def test_phases(phase: VmiPhase) -> None:
    """Each of KubeVirt's phases is parsed as itself."""
    assert parse_vmi(encoded(changed("status.phase", phase.value))).phase is phase


@pytest.mark.parametrize("text", ["running", "Crashed", "Running "])
def test_an_unknown_phase_is_not_running(text: str) -> None:
    """A phase of a later KubeVirt is UNKNOWN, so it never makes a series."""
    assert parse_vmi(encoded(changed("status.phase", text))).phase is VmiPhase.UNKNOWN


def test_pods_are_sorted_and_canonical() -> None:
    """The pods of a migration have lower-case uids and do not depend on the server's order."""
    pods = {POD.upper(): "node-a", TARGET: "node-b"}
    expected = ((TARGET, "node-b"), (POD, "node-a"))
    assert parse_vmi(encoded(changed("status.activePods", pods))).active_pods == expected


MALFORMED = [
    ("metadata", ..., "metadata.namespace is missing"),
    ("metadata", "text", "VMI: Expected `object | null`, got `str` - at `$.metadata`"),
    ("metadata.namespace", ..., "metadata.namespace is missing"),
    ("metadata.name", "", "metadata.name is missing"),
    ("metadata.name", 7, "VMI: Expected `str | null`, got `int` - at `$.metadata.name`"),
    ("metadata.uid", 7, "Expected `str | null`, got `int` - at `$.metadata.uid`"),
    ("metadata.name", "two\nlines", "is not a Kubernetes name"),
    ("spec", [], "VMI lab/beta: Expected `object | null`, got `array` - at `$.spec`"),
    ("spec.architecture", {}, "got `object` - at `$.spec.architecture`"),
    ("status", "Running", "VMI lab/beta: Expected `object | null`, got `str` - at `$.status`"),
    ("status.phase", 1, "got `int` - at `$.status.phase`"),
    ("status.nodeName", ["node-a"], "got `array` - at `$.status.nodeName`"),
    ("status.activePods", [POD], "got `array` - at `$.status.activePods`"),
    ("status.activePods", {"pod-1": "node-a"}, "activePods has 'pod-1', which is not a pod uid"),
    ("status.activePods", {POD: None}, "got `null` - at `$.status.activePods[...]`"),
]


@pytest.mark.parametrize(("path", "value", "message"), MALFORMED)
def test_malformed_objects_are_refused(path: str, value: object, message: str) -> None:
    """A malformed object is refused with one line that names the object, field and value."""
    with pytest.raises(MalformedVmi) as raised:
        parse_vmi(encoded(changed(path, value)))
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
    """With any value in a field the object is read or raises ``MalformedVmi`` with one line."""
    obj = changed(path, value)
    line = ""
    try:
        assert parse_vmi(encoded(obj)).key == vmi_key(encoded(obj))
    except MalformedVmi as err:
        line = str(err)
    assert line == "" or line.isprintable()


@given(st.dictionaries(st.text(), _JSON))
def test_any_object_is_a_vmi_or_malformed(obj: dict[str, object]) -> None:
    """An object of any other shape raises ``MalformedVmi`` and no other exception."""
    with pytest.raises(MalformedVmi):
        parse_vmi(encoded(obj))


def test_labels_and_annotations_change_nothing() -> None:
    """Labels and annotations, which a tenant may set, do not influence the parsed VMI."""
    obj = copy.deepcopy(running())
    obj["metadata"]["labels"] = {"kubevirt.io/nodeName": "elsewhere", "kubevirt.io/domain": "x"}
    obj["metadata"]["annotations"] = {"kubevirt.io/domain": "other"}
    assert parse_vmi(encoded(obj)) == parse_vmi(encoded(running()))


def sample(name: str, *pods: PodUid) -> Vmi:
    return dataclasses.replace(
        parse_vmi(encoded(running())), name=name, active_pods=tuple((pod, "node-a") for pod in pods)
    )


def test_an_index_finds_by_name() -> None:
    """The index finds a VMI by its name, and a pod of only one VMI is not contested."""
    alpha, beta = sample("alpha", POD), sample("beta", TARGET)
    index = VmiIndex.of([alpha, beta])
    assert index.vmis["lab", "alpha"] is alpha
    assert index.vmis["lab", "beta"] is beta
    assert index.contested_pods == frozenset()


def test_a_pod_claimed_twice_is_contested() -> None:
    """A pod that several VMIs claim is contested, in any order of the VMIs; other pods are not."""
    vmis = [sample("alpha", POD), sample("beta", POD, TARGET), sample("gamma", POD)]
    for order in (vmis, vmis[::-1]):
        assert VmiIndex.of(order).contested_pods == {POD}


def test_an_index_cannot_be_changed() -> None:
    """Neither the fields nor the mappings of an index can be changed."""
    index = VmiIndex.of([sample("alpha", POD)])
    with pytest.raises(TypeError):
        index.vmis["lab", "x"] = sample("x")  # type: ignore[index] # must be refused
    with pytest.raises(dataclasses.FrozenInstanceError):
        index.contested_pods = frozenset()  # type: ignore[misc] # must be refused
