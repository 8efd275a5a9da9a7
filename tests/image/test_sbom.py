# SPDX-License-Identifier: Apache-2.0
"""The image's software bill of materials."""

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.support.deploy_tools import python_tools
from tests.support.image_build import ROOT, Image
from tests.support.locks import pinned_in_image

pytestmark = pytest.mark.timeout(900)
VALIDATE = """
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
found = JsonStrictValidator(SchemaVersion.V1_6).validate_str(sys.stdin.read())
sys.exit(str(found) if found else 0)
"""


@pytest.fixture(scope="module")
def bill(image: Image) -> str:
    """What scripts/sbom.py writes of the image."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/sbom.py"), str(image.root)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_is_valid(bill: str) -> None:
    """It is CycloneDX 1.6 by the strict schema."""
    done = subprocess.run(
        [python_tools(), "-c", VALIDATE],
        check=False,
        capture_output=True,
        text=True,
        input=bill,
    )
    assert done.returncode == 0, done.stderr


def test_names_everything(bill: str, image: Image) -> None:
    """It has each Debian package dpkg knows of, and each Python package of the lock."""
    document: dict[str, Any] = json.loads(bill)
    found = {
        (component["purl"].split("/")[0], component["name"].lower())
        for component in document["components"]
        if "purl" in component and "arch=source" not in component["purl"]
    }
    asked = subprocess.run(
        ["dpkg-query", "--root", str(image.root), "-W", "-f", "${Package} ${db:Status-Status}\n"],
        check=True,
        capture_output=True,
        text=True,
    )
    debian = {line.split()[0] for line in asked.stdout.splitlines() if line.endswith(" installed")}
    assert {name for kind, name in found if kind == "pkg:deb"} == debian
    assert {"python3-bpfcc", "libllvm19"} <= debian
    python = {name.replace("_", "-") for kind, name in found if kind == "pkg:pypi"}
    assert python == pinned_in_image().keys()
    assert document["metadata"]["component"]["name"] == "hvprobe"


def test_says_where_each_package_comes_from(bill: str) -> None:
    """Debian's BCC has a supplier, its source, and what it needs; hvprobe leads to it."""
    document: dict[str, Any] = json.loads(bill)
    named = {component["bom-ref"]: component for component in document["components"]}
    needs = {found["ref"]: found.get("dependsOn", []) for found in document["dependencies"]}
    (bcc,) = [ref for ref, found in named.items() if found["name"] == "python3-bpfcc"]
    assert named[bcc]["supplier"]["name"]
    assert {"bpfcc", "libbpfcc"} <= {named[ref]["name"] for ref in needs[bcc]}
    (system,) = (
        set(needs[document["metadata"]["component"]["bom-ref"]])
        & needs.keys()
        & {ref for ref, found in named.items() if found["type"] == "operating-system"}
    )
    assert bcc in needs[system]
