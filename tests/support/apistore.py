# SPDX-License-Identifier: Apache-2.0
"""What the test API server stores: VMI objects, resourceVersions, and the window watches replay.

Semantics of k8s.io/apiserver: every write takes the next resourceVersion of one counter; a list is
consistent at one of them, also over its pages; a watch replays what the window still holds.
"""

from __future__ import annotations

import copy
import re
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass

JsonObject = dict[str, object]
Key = tuple[str, str]
Matcher = Callable[[JsonObject], bool]

_NAME = r"[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?"
_LABEL_KEY = re.compile(rf"(?:[a-z0-9](?:[-a-z0-9.]*[a-z0-9])?/)?{_NAME}")
_LABEL_VALUE = re.compile(rf"(?:{_NAME})?")
_SET = re.compile(r"(\S+)\s+(in|notin)\s+\(([^()]*)\)")
_EQUALITY = re.compile(r"([^\s=!]+)\s*(==|=|!=)\s*(.*)")


class ExpiredError(Exception):
    """A resourceVersion or continue token that the store no longer has."""


class SelectorError(Exception):
    """A selector the real server answers with 400."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One write."""

    resource_version: int
    old: JsonObject | None
    new: JsonObject | None


class ApiStore:
    """The objects of one resource. Thread-safe; `changed` is notified of every write."""

    def __init__(self, window: int = 20_000) -> None:
        self._window_size = window
        self.changed = threading.Condition(threading.RLock())
        self.resource_version = 1000
        self._objects: dict[Key, JsonObject] = {}
        self._window: list[Change] = []
        self._floor = self.resource_version
        self._snapshots: dict[int, list[JsonObject]] = {}

    def create(self, obj: JsonObject) -> JsonObject:
        """Store a new object; returns it with uid and resourceVersion."""
        with self.changed:
            assert key_of(obj) not in self._objects, f"{key_of(obj)} already exists"
            return self._write(key_of(obj), copy.deepcopy(obj))

    def update(self, obj: JsonObject) -> JsonObject:
        """Replace an object; its uid stays."""
        with self.changed:
            fresh = copy.deepcopy(obj)
            _metadata(fresh)["uid"] = _metadata(self._objects[key_of(obj)])["uid"]
            return self._write(key_of(obj), fresh)

    def edit(self, namespace: str, name: str, change: Callable[[JsonObject], None]) -> JsonObject:
        """Replace an object by what `change` makes of a copy of it."""
        with self.changed:
            obj = copy.deepcopy(self._objects[(namespace, name)])
            change(obj)
            return self.update(obj)

    def delete(self, namespace: str, name: str) -> None:
        """Remove an object."""
        with self.changed:
            self._write((namespace, name), None)

    def get(self, namespace: str, name: str) -> JsonObject | None:
        with self.changed:
            return self._objects.get((namespace, name))

    def bump(self) -> int:
        """Let the resourceVersion grow, as writes to other resources do."""
        with self.changed:
            self.resource_version += 1
            self.changed.notify_all()
            return self.resource_version

    def compact(self) -> None:
        """Forget everything but the present: older versions and continue tokens expire."""
        with self.changed:
            self.bump()
            self._snapshots.clear()
            self._floor = self.resource_version

    def restore(self, resource_version: int) -> None:
        """Go back to an earlier version counter, as a cluster restored from a backup does."""
        with self.changed:
            self.resource_version = self._floor = resource_version
            self._window.clear()
            self._snapshots.clear()

    def snapshot(self, resource_version: int | None) -> tuple[int, list[JsonObject]]:
        """All objects, by key: now, or as a page of an earlier list needs them."""
        with self.changed:
            if resource_version is None:
                items = [self._objects[key] for key in sorted(self._objects)]
                self._snapshots[self.resource_version] = items
                return self.resource_version, items
            if resource_version not in self._snapshots:
                raise ExpiredError
            return resource_version, self._snapshots[resource_version]

    def admit(self, resource_version: int) -> None:
        """Let a new watch begin after this version, or raise ExpiredError."""
        with self.changed:
            if resource_version < self._floor:
                raise ExpiredError

    def changes_after(self, resource_version: int) -> list[Change]:
        """Everything written later. An open watch gets it even if new ones would be refused."""
        with self.changed:
            return [c for c in self._window if c.resource_version > resource_version]

    def _write(self, key: Key, obj: JsonObject | None) -> JsonObject:
        self.resource_version += 1
        old = self._objects.pop(key, None)
        if obj is None:
            assert old is not None, f"{key} does not exist"
        else:
            metadata = _metadata(obj)
            metadata.setdefault("uid", str(uuid.uuid4()))
            metadata["resourceVersion"] = str(self.resource_version)
            self._objects[key] = obj
        self._window.append(Change(resource_version=self.resource_version, old=old, new=obj))
        while len(self._window) > self._window_size:
            self._floor = self._window.pop(0).resource_version
        self.changed.notify_all()
        return copy.deepcopy(obj or old or {})


def event_of(change: Change, matches: Matcher) -> JsonObject | None:
    """The watch event a client with this selector gets for a change, if any.

    An object that stops to match is DELETED for that client, and comes in its last matching form
    under the new resourceVersion (cacher's watch cache does it so).
    """
    was = change.old is not None and matches(change.old)
    now = change.new is not None and matches(change.new)
    if now:
        return {"type": "MODIFIED" if was else "ADDED", "object": change.new}
    if not was or change.old is None:
        return None
    gone = copy.deepcopy(change.old)
    _metadata(gone)["resourceVersion"] = str(change.resource_version)
    return {"type": "DELETED", "object": gone}


def key_of(obj: JsonObject) -> Key:
    metadata = _metadata(obj)
    return (str(metadata["namespace"]), str(metadata["name"]))


def matcher(label_selector: str, field_selector: str, namespace: str | None) -> Matcher:
    """A predicate of both selectors; SelectorError with the real server's words."""
    tests = [_label_test(term) for term in _terms(label_selector)]
    tests += [_field_test(term) for term in field_selector.split(",") if term]
    if namespace is not None:
        tests.append(lambda obj: key_of(obj)[0] == namespace)
    return lambda obj: all(test(obj) for test in tests)


def _terms(selector: str) -> list[str]:
    """Split at commas outside parentheses."""
    return [t.strip() for t in re.split(r",(?![^(]*\))", selector)] if selector else []


def _label_test(term: str) -> Matcher:
    if found := _SET.fullmatch(term):
        key, operator, listed = found.groups()
        values = {_checked(value.strip(), _LABEL_VALUE) for value in listed.split(",")}
    elif found := _EQUALITY.fullmatch(term):
        key, operator, value = found.groups()
        values = {_checked(value, _LABEL_VALUE)}
    else:
        key, operator, values = term.removeprefix("!"), "!" if term[:1] == "!" else "has", set()
    _checked(key, _LABEL_KEY)

    def test(obj: JsonObject) -> bool:
        labels = _metadata(obj).get("labels") or {}
        assert isinstance(labels, dict)
        match operator:
            case "has" | "!":
                return (key in labels) == (operator == "has")
            case "!=" | "notin":
                return labels.get(key) not in values
        return key in labels and labels[key] in values

    return test


def _checked(text: str, form: re.Pattern[str]) -> str:
    if form.fullmatch(text) is None or len(text.rpartition("/")[2]) > 63:
        raise SelectorError(f'unable to parse requirement: Invalid value: "{text}"')
    return text


def _field_test(term: str) -> Matcher:
    found = _EQUALITY.fullmatch(term)
    if found is None:
        raise SelectorError(f"invalid selector: '{term}'; can't understand '{term}'")
    field, operator, value = found.groups()
    if field not in {"metadata.name", "metadata.namespace"}:
        raise SelectorError(f"field label not supported: {field}")
    wanted = operator != "!="
    place = 0 if field == "metadata.namespace" else 1
    return lambda obj: (key_of(obj)[place] == value) == wanted


def _metadata(obj: JsonObject) -> dict[str, object]:
    metadata = obj["metadata"]
    assert isinstance(metadata, dict)
    return metadata
