# SPDX-License-Identifier: Apache-2.0
"""EDGE: the commit that is released, and a copy of its files that no other file can get into.

Owns git and the conditions for a release. A snapshot takes the work tree as it is, under a version
that says so: 0.1.0+snapshot.gCOMMIT, with .dirty where files differ from the commit.
"""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import version
from archives import Entry, write_folder

_DIGITS = 12


class TreeError(Exception):
    """Nothing can be released from this tree. The message says why, and what to do, in one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What is released."""

    version: str
    """Of the release: that of pyproject.toml, with a local part for a snapshot."""
    base: str
    """That of pyproject.toml."""
    commit: str
    epoch_s: int
    """When the commit was made (SOURCE_DATE_EPOCH)."""


def source_of(root: Path, *, snapshot: bool) -> Source:
    """The source of a release.

    Raises TreeError when git fails, or when it may not be released and no snapshot is wanted.
    """
    try:
        base = version.read(root)
        commit = _git(root, "rev-parse", "HEAD").strip()
        epoch_s = int(_git(root, "log", "-1", "--format=%ct").strip())
        changed = _git(root, "status", "--porcelain", "--untracked-files=normal").splitlines()
        if not snapshot:
            _check(root, base, commit, changed)
            return Source(version=base, base=base, commit=commit, epoch_s=epoch_s)
    except version.VersionError as err:
        raise TreeError(str(err)) from err
    local = f"snapshot.g{commit[:_DIGITS]}{'.dirty' if changed else ''}"
    return Source(version=f"{base}+{local}", base=base, commit=commit, epoch_s=epoch_s)


def _check(root: Path, base: str, commit: str, changed: list[str]) -> None:
    """Raises TreeError unless the clean commit with the version's tag is checked out."""
    short = commit[:_DIGITS]
    anyway = "or make a snapshot (ARGS=--snapshot)"
    if changed:
        raise TreeError(
            f"{len(changed)} files differ from the commit {short}, first {changed[0][3:]}: "
            f"commit or remove them, {anyway}"
        )
    wrong = version.disagreeing(root)
    if wrong:
        raise TreeError(wrong[0])
    _, date = version.changelog(root)
    if date == version.UNRELEASED:
        raise TreeError(
            f"CHANGELOG.md says that {base} is unreleased: date it with make version "
            f"DATE=YYYY-MM-DD and commit that, {anyway}"
        )
    tags = _git(root, "tag", "--points-at", "HEAD").split()
    if f"v{base}" not in tags:
        found = f"has the tags {', '.join(tags)}" if tags else "has no tag"
        raise TreeError(
            f"the commit {short} {found}, and pyproject.toml has the version {base}: "
            f"tag it v{base}, set the version (make version SET=), {anyway}"
        )


def export(root: Path, target: Path, source: Source) -> None:
    """Copy the tree's files, with modes that no umask changes, and write the version into them."""
    listed = _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    entries = []
    for name in sorted(set(listed.split("\0")) - {""}):
        file = root / name
        if file.is_symlink():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).symlink_to(file.readlink())
        elif file.is_file():  # a snapshot may lack a file that was removed
            executable = bool(file.stat().st_mode & 0o100)
            entries.append(Entry(name=name, content=file, executable=executable))
    write_folder(target, entries)
    if source.version != source.base:
        version.set_version(target, source.version)


def _git(root: Path, *words: str) -> str:
    """What git prints. Raises TreeError when it fails."""
    try:
        done = subprocess.run(
            ["git", "-C", root, *words],
            check=False,
            capture_output=True,
            text=True,
            env={**_without_git(os.environ), "LC_ALL": "C.UTF-8"},
        )
    except OSError as err:
        raise TreeError(f"git: {err.strerror}: install git") from err
    if done.returncode != 0:
        reason = " ".join(done.stderr.split()) or "no reason given"
        raise TreeError(f"git {words[0]}: {reason}: make releases in a clone of the repository")
    return done.stdout


def _without_git(environment: Mapping[str, str]) -> dict[str, str]:
    """A hook of git sets variables that would lead to another repository."""
    return {name: value for name, value in environment.items() if not name.startswith("GIT_")}
