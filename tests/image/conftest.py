# SPDX-License-Identifier: Apache-2.0
"""The image built from this checkout, and what running it needs."""

import json
import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.deploy_tools import from_trixie
from tests.support.image_build import NATIVE, Image, build, mounted
from tests.support.required import require


def missing() -> str | None:
    """Why the image cannot be built and run on this machine; None: it can."""
    if os.geteuid() != 0:
        return "needs root to build and run containers"
    for program in ("buildah", "debootstrap", "runc"):
        if shutil.which(program) is None:
            return f"needs {program}: make test-image installs it"
    return None


@pytest.fixture(scope="session")
def image() -> Iterator[Image]:
    """Built and mounted. Skip where the machine cannot do it, fail where it was promised."""
    require("image", missing())
    build()
    with mounted() as built:
        yield built


@pytest.fixture(scope="session")
def arm64_image() -> Iterator[Image]:
    """The same for arm64. On another machine its programs are run by qemu-user-static."""
    require("image", missing())
    if NATIVE != "arm64" and shutil.which("qemu-aarch64-static") is None:
        require("image", "needs qemu-aarch64-static: install the package qemu-user-static")
    build("arm64")
    with mounted("arm64") as built:
        yield built


@pytest.fixture(scope="session")
def crio_seccomp() -> dict[str, Any]:
    """The default profile of CRI-O and podman, as Debian 13 ships it."""
    profile = from_trixie("golang-github-containers-common") / "usr/share/containers/seccomp.json"
    found: dict[str, Any] = json.loads(profile.read_text())
    return found
