# SPDX-License-Identifier: Apache-2.0
"""EDGE: an image of one file in a storage of its own, with the labels of scripts/build-image.sh.

Owns buildah on that storage. A release can be made of it in seconds, where the real image takes
minutes. Must not know what a release is.
"""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

HEALTHCHECK = ["CMD", "/hello", "health"]


def missing() -> str | None:
    """Why this machine cannot make one; None: it can."""
    if os.geteuid() != 0:
        return "needs root, for buildah's storage"
    if shutil.which("buildah") is None:
        return "needs buildah: make test-image installs it"
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """The folder that HVPROBE_CACHE names."""

    cache: Path

    def buildah(self, *words: str | Path) -> str:
        """What buildah prints of this storage. Raises AssertionError when it fails."""
        command: list[str | Path] = ["buildah", "--root", self.cache / "image/storage"]
        command += ["--runroot", self.cache / "image/run", *words]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def build(self, tag: str, architecture: str, *, version: str, revision: str) -> str:
        """Build an image and return its ID."""
        context = self.cache / "context"
        context.mkdir(parents=True, exist_ok=True)
        (context / "hello").write_text(f"hello from {architecture}\n")
        labels = {"version": version, "revision": revision}
        (context / "Dockerfile").write_text(
            "FROM scratch\nCOPY hello /hello\n"
            f"HEALTHCHECK CMD {json.dumps(HEALTHCHECK[1:])}\n"
            + "".join(
                f'LABEL org.opencontainers.image.{name}="{value}"\n'
                for name, value in labels.items()
            )
        )
        words = ("build", "--quiet", "--format", "docker", "--isolation", "chroot")
        self.buildah(*words, "--arch", architecture, "--tag", tag, context)
        inspected = ("inspect", "--type", "image", "--format", "{{.FromImageID}}", tag)
        return f"sha256:{self.buildah(*inspected)}"
