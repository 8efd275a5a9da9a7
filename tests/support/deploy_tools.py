# SPDX-License-Identifier: Apache-2.0
"""EDGE: tools that Debian 12 has not or has too old, taken from registries without installing them.

Owns where they lie (the cache of vmtest). Must not know what they are used for.
"""

import subprocess
import sys
import venv
from pathlib import Path

from vmtest.apt import apt_tree, download_only, forget, unpack
from vmtest.cache import made_once
from vmtest.kernels import Architecture, Suite

_REQUIREMENTS = Path(__file__).with_name("tools.txt")


def from_trixie(package: str) -> Path:
    """The unpacked files of one package of Debian 13, amd64, without what it depends on."""

    def make(directory: Path) -> None:
        with apt_tree(Suite.TRIXIE, Architecture.AMD64) as tree:
            archives = download_only(tree, [package])
            unpack(archives, directory)
            forget(archives)

    return made_once(f"tool-{package}", [package], make)


def kustomize() -> Path:
    """The program of that name, version 5.6 or later."""
    return from_trixie("kustomize") / "usr/bin/kustomize"


def python_tools() -> Path:
    """An interpreter that has what tools.txt names and nothing else of this machine."""

    def make(directory: Path) -> None:
        venv.create(directory / "venv", with_pip=True)
        install: list[str | Path] = [directory / "venv/bin/python", "-m", "pip", "install"]
        done = subprocess.run(
            [*install, "--quiet", "--requirement", _REQUIREMENTS],
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr

    recipe = ["interpreter", _REQUIREMENTS.read_text(), sys.version]
    return made_once("tools-python", recipe, make) / "venv/bin/python"


def source_distribution(requirement: str) -> Path:
    """The unpacked source distribution NAME==VERSION of the Python index; nothing of it is run."""

    def make(directory: Path) -> None:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        done = subprocess.run(
            [*command, "--no-binary", ":all:", "--dest", directory, requirement],
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        (archive,) = directory.glob("*.tar.gz")
        subprocess.run(
            ["tar", "-x", "--strip-components=1", "-C", directory, "-f", archive], check=True
        )
        archive.unlink()

    return made_once(f"source-{requirement.partition('==')[0]}", [requirement], make)
