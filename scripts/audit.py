# SPDX-License-Identifier: Apache-2.0
"""Looks up known vulnerabilities of the packages that requirements-dev.lock names.

    python scripts/audit.py

requirements.lock is a part of that lock, so this covers what is shipped and what is tested with.
An index that knows nothing of vulnerabilities (a mirror, no network) is one line and no failure.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import TypedDict

ROOT = Path(__file__).resolve().parents[1]
LOCK = "requirements-dev.lock"
TIMEOUT_S = 120.0


class Vulnerability(TypedDict):
    """One entry of pip-audit's ``vulns``."""

    id: str
    fix_versions: list[str]


class Package(TypedDict, total=False):
    """One entry of pip-audit's ``dependencies``: skipped with a reason, or looked up."""

    name: str
    version: str
    skip_reason: str
    vulns: list[Vulnerability]


def main() -> int:
    """The exit status: 1 when a package has a known vulnerability."""
    printed, trouble = answer()
    if not printed:
        print(f"audit: skipped: pip-audit got no answer: {trouble}")
        return 0
    packages: list[Package] = json.loads(printed)["dependencies"]
    found = findings(packages)
    for line in found:
        print(f"audit: {line}", file=sys.stderr)
    unknown = sum("skip_reason" in package for package in packages)
    if unknown == len(packages):
        print("audit: skipped: the package index answers nothing about vulnerabilities")
    elif unknown:
        print(f"audit: {unknown} of {len(packages)} packages are unknown to the package index")
    return 1 if found else 0


def findings(packages: list[Package]) -> list[str]:
    """A line for each known vulnerability."""
    return [
        f"{package['name']} {package['version']} has {vulnerability['id']}: {remedy(vulnerability)}"
        for package in packages
        for vulnerability in package.get("vulns", [])
    ]


def remedy(vulnerability: Vulnerability) -> str:
    """What to do about it."""
    fixed = vulnerability["fix_versions"]
    if not fixed:
        return "no version without it exists yet"
    return f"fixed in {', '.join(fixed)}, run make lock ARGS=--upgrade"


def answer() -> tuple[str, str]:
    """What pip-audit prints, as JSON, and the last line of its messages.

    The first is empty when it got no answer, which is then what the second says.
    """
    command = [sys.executable, "-m", "pip_audit", "--format=json", "--progress-spinner=off"]
    command += ["--disable-pip", "--require-hashes", f"--requirement={LOCK}"]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, check=False, text=True, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return "", f"it took longer than {TIMEOUT_S:.0f} s"
    return done.stdout, done.stderr.strip().rpartition("\n")[2]


if __name__ == "__main__":
    sys.exit(main())
