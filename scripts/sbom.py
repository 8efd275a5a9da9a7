# SPDX-License-Identifier: Apache-2.0
"""Writes a software bill of materials (CycloneDX 1.6, JSON) of an image's root file system.

    .venv/bin/python scripts/sbom.py ROOT [--image sha256:ID] > sbom.json

debsbom reads dpkg's database, cyclonedx-py reads the metadata of hvprobe's environment, and this
script merges what they report. Nothing is fetched and nothing of ROOT is run. The
image's ID, if given, is a property of the document, by which a release finds the bill of its image.
"""

import argparse
import json
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

Json = dict[str, Any]
PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
IMAGE_PROPERTY = "hvprobe:image"


def main() -> int:
    """The exit status: 1 when one of the two tools fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("root", type=Path, help="the image's root directory")
    parser.add_argument("--image", help="the image's ID, sha256:…")
    given = parser.parse_args()
    try:
        print(json.dumps(bill(given.root, given.image), indent=1, sort_keys=True))
    except subprocess.CalledProcessError as err:
        *_, reason = err.stderr.strip().splitlines() or ["no reason given"]
        print(f"sbom: {Path(err.cmd[0]).name}: {reason}", file=sys.stderr)
        return 1
    return 0


def bill(root: Path, image: str | None = None) -> Json:
    """The document. hvprobe is what it describes, and depends on the distribution as well."""
    identifier, version = release_of(root)
    document = python_bill(root)
    debian = debian_bill(root, identifier, version)
    system = debian["metadata"]["component"]
    for component in debian["components"]:
        # Scanners for vulnerabilities choose the distribution's advisories by this qualifier.
        component["purl"] += f"&distro={identifier}-{version}"
    document["components"] += [system, *debian["components"]]
    for dependency in document["dependencies"]:
        if dependency["ref"] == document["metadata"]["component"]["bom-ref"]:
            dependency.setdefault("dependsOn", []).append(system["bom-ref"])
    document["dependencies"] += debian["dependencies"]
    document["metadata"]["tools"]["components"] += debian["metadata"]["tools"]["components"]
    if image is not None:
        properties = document["metadata"].setdefault("properties", [])
        properties.append({"name": IMAGE_PROPERTY, "value": image})
    return document


def python_bill(root: Path) -> Json:
    """hvprobe and the packages of its environment, with licences and dependencies."""
    (site,) = (root.resolve() / "opt/hvprobe/lib").glob("python3*/site-packages")
    with tempfile.TemporaryDirectory() as directory:
        # cyclonedx-py asks an environment's interpreter for sys.path. The image's may be of another
        # architecture, so this one answers for it.
        interpreter = Path(directory) / "python"
        interpreter.write_text(f"#!/bin/sh\necho {shlex.quote(json.dumps([str(site)]))}\n")
        interpreter.chmod(0o755)
        return output_of(
            *("cyclonedx-py", "environment", "--pyproject", str(PROJECT), "--spec-version=1.6"),
            *("--output-reproducible", str(interpreter)),
        )


def debian_bill(root: Path, identifier: str, version: str) -> Json:
    """Packages of the distribution and their sources, with suppliers and dependencies."""
    return output_of(
        *("debsbom", "generate", "--sbom-type=cdx", "--cdx-schema-version=1.6", "--out=-"),
        *(f"--root={root}", f"--distro-name={identifier}", f"--distro-version={version}"),
        "--no-recommends-deps",
    )


def release_of(root: Path) -> tuple[str, str]:
    """Name and version of the base image's distribution (os-release(5))."""
    text = (root / "usr/lib/os-release").read_text()
    found = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', text, re.MULTILINE))
    return found["ID"], found["VERSION_ID"]


def output_of(program: str, *arguments: str) -> Json:
    """The document that a program of .venv prints. Raises CalledProcessError when it fails."""
    command = [str(Path(sys.executable).with_name(program)), *arguments]
    done = subprocess.run(
        command, check=True, capture_output=True, stdin=subprocess.DEVNULL, text=True
    )
    document: Json = json.loads(done.stdout)
    return document


if __name__ == "__main__":
    sys.exit(main())
