# SPDX-License-Identifier: Apache-2.0
"""Which context of a kubeconfig counts, with one file and with several."""

from __future__ import annotations

from typing import Any

import pytest

from probes.vmi.kube.kubeconfig import Context, KubeconfigError, context_of


def file(*names: str, current: str | None = None, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - YAML
    """A kubeconfig that has these contexts, each with a cluster and a user of its name."""
    made: dict[str, Any] = {
        "contexts": [{"name": n, "context": {"cluster": n, "user": n}} for n in names],
        "clusters": [{"name": n, "cluster": {"server": f"https://{n}"}} for n in names],
        "users": [{"name": n, "user": {}} for n in names],
    }
    if current is not None:
        made["current-context"] = current
    return made | more


def name_of(*files: object, asked: str | None = None) -> str:
    return context_of(files, asked).name


def test_the_first_current_context_counts() -> None:
    """Of several files the first that names one decides, as kubectl does; an empty one is none."""
    assert name_of(file("a", current="a"), file("b", current="b")) == "a"
    assert name_of(file("a"), file("b", current="b")) == "b"
    assert name_of(file("a", current=""), file("b", current="b"), file("c", current="c")) == "b"
    assert name_of(file("a", current="b"), file("b", current="c"), file("c")) == "b"
    assert name_of(file("a", current="a"), file("b"), asked="b") == "b"


def test_parts_may_be_in_other_files() -> None:
    """A context names what other files have; of two entries with one name the first counts."""
    exec_user = {"users": [{"name": "a", "user": {"exec": {"command": "login"}}}]}
    alone = file("a", current="a", users=[], clusters=[])
    assert context_of([alone, exec_user, file("a")], None) == Context(name="a", plugin="login")
    assert context_of([alone, file("a"), exec_user], None) == Context(name="a", plugin=None)


@pytest.mark.parametrize(
    ("files", "asked", "words"),
    [
        ([file("a", "b")], None, "it names no current context; it has 'a', 'b'"),
        ([file("a", current="x")], None, "it has no context 'x'; it has 'a'"),
        ([file("a", current="a")], "\x1b[2J", "it has no context '\\x1b[2J'; it has 'a'"),
        ([file(*map(str, range(12)))], "x", "'8', '9' and 2 more"),
        ([file("a", current="a", users=[])], None, "names a user 'a' that it has not"),
        ([file("a", current="a", clusters=[])], None, "names a cluster 'a' that it has not"),
        ([{}], None, "it names no current context; it has none"),
        ([["a"], None, "text", 7], None, "it names no current context; it has none"),
        ([{"contexts": {"a": 1}, "current-context": "a"}], None, "it has no context 'a'"),
        ([{"contexts": ["a", {"name": 1}], "current-context": 7}], None, "no current context"),
    ],
)
def test_what_is_not_there(files: list[object], asked: str | None, words: str) -> None:
    """The line says what is missing and what there is, whatever the files contain."""
    with pytest.raises(KubeconfigError) as caught:
        context_of(files, asked)
    assert words in str(caught.value)
    assert str(caught.value).isprintable()
