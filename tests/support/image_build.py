# SPDX-License-Identifier: Apache-2.0
"""EDGE: the image, built by scripts/build-image.sh, and its root file system.

Owns building once a session and the mounted copy. Must not know how it is run.
"""

import contextlib
import json
import os
import platform
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmtest.cache import cache_directory

ROOT = Path(__file__).resolve().parents[2]
NATIVE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
"""This machine's architecture as Debian calls it."""
STORE = cache_directory().parent / "image"
"""Where scripts/build-image.sh keeps its storage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A built image."""

    root: Path
    """Its root file system; read-only, please."""
    architecture: str
    """As registries show it: amd64, arm64."""
    config: dict[str, Any]
    """As engines show it: Entrypoint, Env, Labels, Healthcheck."""
    size_bytes: int
    """As it lies in storage, uncompressed: what a node's disk holds."""


def store(*arguments: str) -> str:
    """What buildah prints of the storage that the image is in."""
    command = ["buildah", "--root", str(STORE / "storage"), "--runroot", str(STORE / "run")]
    done = subprocess.run([*command, *arguments], check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"buildah {arguments[0]}: {done.stderr}"
    return done.stdout.strip()


def tag(architecture: str) -> str:
    """Apart from what `make image` names."""
    return f"localhost/hvprobe:test-{architecture}"


def build(architecture: str = NATIVE) -> None:
    """Build it, which takes seconds where nothing has changed."""
    environment = {**os.environ, "HVPROBE_CACHE": str(STORE.parent), "ARCH": architecture}
    done = subprocess.run(
        [str(ROOT / "scripts/build-image.sh"), tag(architecture)],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def mounted(architecture: str = NATIVE) -> Iterator[Image]:
    """The image with its root mounted until the block ends."""
    name = tag(architecture)
    described = json.loads(store("inspect", "--type", "image", name))["Docker"]
    listed = json.loads(store("images", "--json"))
    container = store("from", "--arch", architecture, "--pull-never", name)
    try:
        yield Image(
            root=Path(store("mount", container)),
            architecture=described["architecture"],
            config=described["config"],
            size_bytes=size_of(name, listed),
        )
    finally:
        store("rm", container)


def size_of(name: str, listed: list[dict[str, Any]]) -> int:
    """Sum of the image's layers, from `buildah images --json`, which rounds to three digits."""
    (shown,) = [image["size"] for image in listed if name in (image["names"] or ())]
    number, unit = shown.split()
    return int(float(number) * {"KB": 10**3, "MB": 10**6, "GB": 10**9}[unit])
