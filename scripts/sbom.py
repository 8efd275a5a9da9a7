# SPDX-License-Identifier: Apache-2.0
"""Writes a software bill of materials (CycloneDX 1.6, JSON) of an image's root file system.

    python scripts/sbom.py ROOT > sbom.json

Two kinds of components are in the image, and both keep books of their own: Debian's packages in
dpkg's status file, Python's in their metadata. Nothing is fetched and nothing of ROOT is run.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any
from urllib.parse import quote

Json = dict[str, Any]


def main() -> int:
    """Print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("root", type=Path, help="the image's root directory")
    print(json.dumps(bill(parser.parse_args().root), indent=1, sort_keys=True))
    return 0


def bill(root: Path) -> Json:
    """The document."""
    python = {found.name.lower(): found for found in installed(root)}
    itself = python.pop("hvprobe")
    components = [*map(python_component, python.values()), *debian_components(root)]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {**python_component(itself), "type": "application"}},
        "components": sorted(components, key=lambda found: str(found["purl"])),
    }


def installed(root: Path) -> Iterator[Distribution]:
    """Python distributions of hvprobe's environment."""
    for site in (root / "opt/hvprobe/lib").glob("python3*/site-packages"):
        yield from distributions(path=[str(site)])


def python_component(found: Distribution) -> Json:
    """One distribution; its licence as its metadata words it."""
    purl = f"pkg:pypi/{re.sub(r'[-_.]+', '-', found.name).lower()}@{quote(found.version)}"
    component = component_of(found.name, found.version, purl)
    expression, *_ = found.metadata.get_all("License-Expression") or [None]
    if expression:
        component["licenses"] = [{"expression": expression}]
    return component


def debian_components(root: Path) -> Iterator[Json]:
    """Installed packages of dpkg's status file."""
    distribution, version_id = release_of(root)
    fields: dict[str, str] = {}
    for line in [*(root / "var/lib/dpkg/status").read_text().splitlines(), ""]:
        name, colon, value = line.partition(": ")
        if colon and not line.startswith(" "):
            fields[name] = value
        if line or not fields:
            continue
        if fields["Status"].endswith(" installed"):
            package, version = fields["Package"], fields["Version"]
            where = f"arch={fields['Architecture']}&distro={distribution}-{version_id}"
            purl = f"pkg:deb/{distribution}/{quote(package)}@{quote(version, safe='')}?{where}"
            yield component_of(package, version, purl)
        fields = {}


def release_of(root: Path) -> tuple[str, str]:
    """Name and version of the base image's distribution (os-release(5))."""
    text = (root / "usr/lib/os-release").read_text()
    found = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', text, re.MULTILINE))
    return found["ID"], found["VERSION_ID"]


def component_of(name: str, version: str, purl: str) -> Json:
    """A library; its package URL is its reference in the document, too."""
    return {"type": "library", "name": name, "version": version, "purl": purl, "bom-ref": purl}


if __name__ == "__main__":
    sys.exit(main())
