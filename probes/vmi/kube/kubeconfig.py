# SPDX-License-Identifier: Apache-2.0
"""Chooses the context of a kubeconfig, which may be several files, as kubectl does. Pure.

Owns which context counts, and that what it names is there. The ``kubernetes`` package takes the
last file's current context, where kubectl takes the first one's, and goes on as an anonymous user
if the context's user is missing. Must not know how files are read (pool.py).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_MAX_NAMES = 10

Entries = Mapping[str, Mapping[str, object]]


class KubeconfigError(ValueError):
    """A kubeconfig cannot be used.

    The message is one line: why.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The context that is used."""

    name: str
    plugin: str | None
    """The program that makes its user's credentials; None: the file has them."""


def context_of(files: Iterable[object], asked: str | None) -> Context:
    """Return the context that counts: the one asked for, else the first that a file calls current.

    files: the content of each. Raises KubeconfigError when there is no such context, user or
    cluster.
    """
    known = [file for file in files if isinstance(file, dict)]
    contexts = _entries(known, "contexts", "context")
    has = f"it has {_listed(contexts)}"
    current = (file.get("current-context") for file in known)
    name = asked or next((word for word in current if isinstance(word, str) and word), None)
    if name is None:
        raise KubeconfigError(f"it names no current context; {has}")
    if name not in contexts:
        raise KubeconfigError(f"it has no context {name!a}; {has}")
    parts: dict[str, Mapping[str, object]] = {}
    for part in ("cluster", "user"):
        entries, wanted = _entries(known, f"{part}s", part), contexts[name].get(part)
        if wanted and str(wanted) not in entries:
            raise KubeconfigError(f"its context {name!a} names a {part} {wanted!a} that it has not")
        parts[part] = entries.get(str(wanted), {})
    plugin = parts["user"].get("exec")
    command = plugin.get("command") if isinstance(plugin, dict) else None
    return Context(name=name, plugin=str(command) if command else None)


def _entries(files: Iterable[Mapping[str, object]], kind: str, part: str) -> Entries:
    """Return the named entries of a kind; of two with one name the first counts."""
    found: dict[str, Mapping[str, object]] = {}
    for file in files:
        listed = file.get(kind)
        for entry in listed if isinstance(listed, list) else ():
            if isinstance(entry, dict) and "name" in entry:
                content = entry.get(part)
                found.setdefault(str(entry["name"]), content if isinstance(content, dict) else {})
    return found


def _listed(contexts: Entries) -> str:
    names = [ascii(name) for name in contexts]
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more if names else "none"
