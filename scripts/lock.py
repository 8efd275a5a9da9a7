# SPDX-License-Identifier: Apache-2.0
"""Writes the locks with uv: every package of the Python index that is shipped or tested with.

    python scripts/lock.py             # a locked version stays while it answers pyproject.toml
    python scripts/lock.py --upgrade   # the newest versions
    python scripts/lock.py --check     # do the locks answer pyproject.toml? Needs no network

requirements.lock is what hvprobe needs, in the image as in .venv; requirements-dev.lock adds the
dependency group dev. Both have the same versions of what they share, so what is tested is shipped.
They are requirements files, because uv.lock would name the index of the machine that wrote it.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tomllib
from pathlib import Path

from pip_config import effective, listed, uv_environment

ROOT = Path(__file__).resolve().parents[1]
PRODUCT, DEV = "requirements.lock", "requirements-dev.lock"
COMPILE = (
    # One version for all interpreters and machines; with wheels, because what has to be compiled
    # needs a compiler and runs code of its own. Indexes are equal, as they are for pip.
    *("compile", "--universal", "--python-version=3.11", "--fork-strategy=fewest"),
    *("--only-binary=:all:", "--index-strategy=unsafe-best-match", "--generate-hashes"),
    *("--no-header", "--no-annotate", "pyproject.toml"),
)
IMAGE = ("compile", "--python-version=3.13", "--only-binary=:all:", "--no-deps", PRODUCT)
"""Fails where a package has no wheel for the image, which has the interpreter of Debian 13."""


def main() -> int:
    """The exit status: 1 when uv fails or a lock does not answer pyproject.toml."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions")
    arguments = parser.parse_args()
    first = header()
    if arguments.check:
        stale = [name for name in (PRODUCT, DEV) if not answers(ROOT / name, first)]
        for name in stale:
            print(f"lock: {name} does not answer pyproject.toml: run make lock", file=sys.stderr)
        return 1 if stale else 0
    upgrade = ["--upgrade"] if arguments.upgrade else []
    try:
        uv(*COMPILE, "--group=dev", f"--output-file={DEV}", *upgrade)
        uv(*COMPILE, f"--constraints={DEV}", f"--output-file={PRODUCT}")
        for machine in ("x86_64", "aarch64"):
            uv(*IMAGE, f"--python-platform={machine}-manylinux_2_40")
    except subprocess.CalledProcessError:
        return 1  # uv has said why
    for name in (PRODUCT, DEV):
        lock = ROOT / name
        # Written last: without this line the lock answers nothing.
        lock.write_text(first + lock.read_text())
        print(f"lock: wrote {name}")
    return 0


def header() -> str:
    """The first lines of both locks, with a checksum of the requirements that they answer."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = document["project"]
    wanted = [
        *(project["requires-python"], project["dependencies"]),
        document["dependency-groups"]["dev"],
    ]
    digest = hashlib.sha256(json.dumps(wanted).encode()).hexdigest()
    return (
        "# Packages of the Python index with the hashes of their files. Written by: make lock\n"
        f"# SHA-256 of the requirements in pyproject.toml: {digest}\n"
    )


def answers(lock: Path, first: str) -> bool:
    """Whether the lock was written from these requirements."""
    return lock.exists() and lock.read_text().startswith(first)


def uv(*arguments: str) -> None:
    """Run ``uv pip``. Raises CalledProcessError when it fails."""
    subprocess.run(
        [sys.executable, "-m", "uv", "pip", *arguments, "--quiet", "--no-python-downloads"],
        check=True,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        # The locks are for every machine: constraints and wheels of this one have no say in them.
        env=uv_environment(effective(listed())),
    )


if __name__ == "__main__":
    sys.exit(main())
