# SPDX-License-Identifier: Apache-2.0
"""Clones of this repository's HEAD, and releases made in them.

Owns git in the clones and the running of scripts/release.py there. Must not know what a release
holds.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.support import helm_tools

ROOT = Path(__file__).resolve().parents[2]
IMAGE = f"registry.example:5000/team/hvprobe@sha256:{'0123456789abcdef' * 4}"
DATE = "2026-01-02"


@dataclass(frozen=True, slots=True, kw_only=True)
class Clone:
    """A clone in a folder of its own."""

    folder: Path

    def git(self, *words: str) -> str:
        author = ("-c", "user.name=A Maintainer", "-c", "user.email=maintainer@example.org")
        return checked(["git", "-C", self.folder, *author, *words]).strip()

    def commit(self, subject: str) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", subject)

    def version(self, *words: str) -> str:
        return checked([sys.executable, self.folder / "scripts/version.py", *words]).strip()

    def release(
        self,
        output: Path,
        *words: str,
        image: str = IMAGE,
        images: str = "none",
        umask: int = 0o022,
        environment: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        command: list[str | Path] = [
            sys.executable,
            self.folder / "scripts/release.py",
            image,
            *words,
        ]
        command += ["--images", images, "--output", output, "--kubectl", helm_tools.kubectl()]
        return subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            umask=umask,
            env={**os.environ, **(environment or {})},
        )


def checked(command: list[str | Path]) -> str:
    """What a program prints. Raises AssertionError when it fails."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def cloned(source: Path, folder: Path) -> Clone:
    """A clone of the commit that is checked out there, with its tags."""
    checked(["git", "clone", "--quiet", "--no-hardlinks", source, folder])
    return Clone(folder=folder)


def without_tags(clone: Clone) -> Clone:
    """The same clone, whose tags are those of the test alone."""
    for tag in clone.git("tag").split():
        clone.git("tag", "--delete", tag)
    return clone
