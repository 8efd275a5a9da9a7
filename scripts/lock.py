# SPDX-License-Identifier: Apache-2.0
"""Writes requirements.lock: what the image takes from the Python index, pinned with hashes.

    python scripts/lock.py            # the versions the index has now
    python scripts/lock.py --check    # does the lock still answer pyproject.toml? Needs no network

Wheels only, for the image's interpreter and each of its architectures: what has to be compiled
would need a compiler, and runs code of its own at build time.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version
from pip_config import effective, environment, listed

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
PYTHON = "3.13"
"""Of Debian 13."""
MACHINES = ("x86_64", "aarch64")
GLIBC_MINOR = 41
"""Of Debian 13: wheels for it and for any glibc 2.x before it will do."""
OLDEST_GLIBC_MINOR = 17
HEADER = f"""\
# What the image takes from the Python index, for CPython {PYTHON} on {" and ".join(MACHINES)}:
# wheels only, each with its hash. Written by scripts/lock.py from pyproject.toml; not by hand.
"""

Wheels = Mapping[tuple[str, Version], set[str]]
"""SHA-256 of the files by name and version."""


def main() -> int:
    """The exit status: 1 when the lock does not answer pyproject.toml."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--check", action="store_true", help="compare, write nothing")
    wanted = requirements()
    if arguments.parse_args().check:
        wrong = list(unanswered(wanted, LOCK.read_text()))
        for line in wrong:
            print(f"lock: {line}: run scripts/lock.py", file=sys.stderr)
        return 1 if wrong else 0
    found: dict[tuple[str, Version], set[str]] = defaultdict(set)
    for machine in MACHINES:
        with tempfile.TemporaryDirectory() as directory:
            download(wanted, machine, Path(directory))
            for wheel in Path(directory).iterdir():
                name, version, _, _ = parse_wheel_filename(wheel.name)
                found[name, version].add(hashlib.sha256(wheel.read_bytes()).hexdigest())
    check_one_version_each(found)
    LOCK.write_text(HEADER + "".join(lines(found)))
    print(f"lock: {len(found)} packages in {LOCK.name}")
    return 0


def requirements() -> list[Requirement]:
    """What pyproject.toml says hvprobe needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [Requirement(line) for line in project["dependencies"]]


def unanswered(wanted: Iterable[Requirement], lock: str) -> Iterable[str]:
    """What is wanted and not in the lock in a version that will do."""
    pinned: dict[str, Version] = {}
    for line in lock.splitlines():
        name, equals, text = line.removesuffix(" \\").partition("==")
        if equals:
            pinned[canonicalize_name(name)] = Version(text)
    for requirement in wanted:
        version = pinned.get(canonicalize_name(requirement.name))
        if version is None or version not in requirement.specifier:
            yield f"{requirement} is wanted, {LOCK.name} has {version}"


def download(wanted: Iterable[Requirement], machine: str, directory: Path) -> None:
    """Let pip choose versions and fetch the wheels for a machine that this one need not be."""
    platforms = [
        f"--platform=manylinux_2_{minor}_{machine}"
        for minor in range(GLIBC_MINOR, OLDEST_GLIBC_MINOR - 1, -1)
    ]
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(directory)),
        *("--only-binary=:all:", f"--python-version={PYTHON}", "--implementation=cp"),
        *(*platforms, f"--platform=manylinux2014_{machine}"),
        *map(str, wanted),
    ]
    # The lock is for every machine: constraints and wheels of this one have no say in it.
    subprocess.run(
        command, check=True, stdin=subprocess.DEVNULL, env=environment(effective(listed()))
    )


def check_one_version_each(found: Wheels) -> None:
    """Both architectures must get the same versions."""
    versions: dict[str, list[Version]] = defaultdict(list)
    for name, version in found:
        versions[name].append(version)
    torn = {name: several for name, several in versions.items() if len(several) > 1}
    if torn:
        sys.exit(f"lock: the architectures differ, no lock for both: {torn}")


def lines(found: Wheels) -> Sequence[str]:
    """As pip's --require-hashes reads it, in the order of names."""
    return [
        f"{name}=={version}"
        + "".join(f" \\\n    --hash=sha256:{digest}" for digest in sorted(found[name, version]))
        + "\n"
        for name, version in sorted(found)
    ]


if __name__ == "__main__":
    sys.exit(main())
