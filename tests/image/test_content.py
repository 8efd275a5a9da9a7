# SPDX-License-Identifier: Apache-2.0
"""What the image contains, and what it must not contain."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.image_build import NATIVE, ROOT, Image
from tests.support.locks import pinned_in_image

pytestmark = pytest.mark.timeout(900)
MAX_BYTES = 600 * 10**6


def in_image(image: Image, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a program in the image's root, without a network."""
    entered = ["unshare", "--net", "--", "chroot", str(image.root), "/usr/bin/env", "-i"]
    path = "PATH=/opt/hvprobe/bin:/usr/sbin:/usr/bin"
    return subprocess.run([*entered, path, *command], check=False, capture_output=True, text=True)


def test_is_small(image: Image) -> None:
    """The image takes less than 600 MB of a node's disk."""
    assert image.size_bytes < MAX_BYTES


def test_has_the_requested_architecture(image: Image) -> None:
    """The image declares the architecture of its packages to registries."""
    done = in_image(image, "dpkg", "--print-architecture")
    assert image.architecture == done.stdout.strip() == NATIVE


def test_starts_the_agent(image: Image) -> None:
    """Without arguments the image runs the agent as root, and it declares a health check."""
    assert image.config["Entrypoint"] == ["hvprobe"]
    assert image.config["Cmd"] == ["agent"]
    assert image.config["User"] == "0:0"
    assert "/healthz" in image.config["Healthcheck"]["Test"][-1]


def test_says_what_it_is(image: Image) -> None:
    """The OCI labels name the project, its version, its licences and its commit."""
    labels = {
        name.removeprefix("org.opencontainers.image."): value
        for name, value in image.config["Labels"].items()
    }
    version = in_image(image, "hvprobe", "--version").stdout.split()[1]
    assert (labels["title"], labels["version"]) == ("hvprobe", version)
    assert re.fullmatch(r"([0-9a-f]{40}|unknown)(-dirty)?", labels["revision"])
    assert labels["licenses"] == "Apache-2.0 AND (GPL-2.0-only OR Apache-2.0)"


def test_has_what_it_needs(image: Image) -> None:
    """BCC 0.31 and every Python module are installed and load without a network."""
    program = (
        "import bcc, probes.command.agent, probes.command.cli, ebpf.session; "
        "from kubernetes import client, config; print(bcc.__version__, hasattr(bcc, 'BPF'))"
    )
    done = in_image(image, "/opt/hvprobe/bin/python", "-c", program)
    assert done.stdout == "0.31.0 True\n", done.stderr


def test_has_no_tools_to_build_or_install(image: Image) -> None:
    """The image has no compiler, pip, apt or caches, so nothing in it can build or install."""
    programs = "apt apt-get apk as cc curl dpkg-buildpackage gcc git ld make pip pip3 wget"
    found = [
        name
        for name in programs.split()
        if in_image(image, "sh", "-c", f"command -v {name}").returncode == 0
    ]
    assert found == []
    assert in_image(image, "/opt/hvprobe/bin/python", "-m", "pip").returncode != 0
    for directory in ("var/lib/apt", "var/cache", "var/log", "tmp"):
        assert not (image.root / directory).exists() or not any((image.root / directory).iterdir())


def test_has_no_setuid_program(image: Image) -> None:
    """No program in the image runs with the rights of another user or group."""
    done = subprocess.run(
        ["find", str(image.root), "-xdev", "-perm", "/6000", "-type", "f"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == ""


def test_has_every_pinned_version(image: Image) -> None:
    """The Python packages are exactly those of requirements.lock, and hvprobe."""
    pinned = {f"{name}=={version}" for name, version in pinned_in_image().items()}
    (site,) = (image.root / "opt/hvprobe/lib").glob("python3*/site-packages")
    found = {installed(path) for path in site.glob("*.dist-info")}
    assert {line for line in found if not line.startswith("hvprobe==")} == pinned
    assert any(line.startswith("hvprobe==") for line in found)


def installed(dist_info: Path) -> str:
    """`markdown_it_py-4.3.0.dist-info` → `markdown-it-py==4.3.0`."""
    name, _, version = dist_info.name.removesuffix(".dist-info").partition("-")
    return f"{name.replace('_', '-').replace('.', '-').lower()}=={version}"


def test_lock_answers_the_project() -> None:
    """The locks were written from the requirements that pyproject.toml has now."""
    done = subprocess.run(
        [str(ROOT / ".venv/bin/python"), str(ROOT / "scripts/lock.py"), "--check"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
