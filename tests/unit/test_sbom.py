# SPDX-License-Identifier: Apache-2.0
"""scripts/sbom.py on a small root file system."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
STATUS = """\
Package: python3-bpfcc
Status: install ok installed
Architecture: all
Source: bpfcc
Version: 0.31.0+ds-7
Maintainer: A Maintainer <maintainer@example.org>
Depends: libbpfcc, purged-from-the-image
Description: tools

Package: libbpfcc
Status: install ok installed
Architecture: arm64
Source: bpfcc
Version: 0.31.0+ds-7
Maintainer: A Maintainer <maintainer@example.org>
Description: library

Package: gone
Status: deinstall ok config-files
Architecture: arm64
Version: 1
Maintainer: A Maintainer <maintainer@example.org>
Description: removed
"""
HVPROBE = "Metadata-Version: 2.4\nName: hvprobe\nVersion: 0.1.0\nRequires-Dist: psutil\n"
PSUTIL = "Metadata-Version: 2.4\nName: psutil\nVersion: 7.2.2\nLicense-Expression: BSD-3-Clause\n"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    site = "opt/hvprobe/lib/python3.13/site-packages"
    for name, text in (
        ("var/lib/dpkg/status", STATUS),
        ("var/lib/dpkg/arch-native", "arm64\n"),
        ("usr/lib/os-release", 'ID=debian\nVERSION_ID="13"\n'),
        (f"{site}/hvprobe-0.1.0.dist-info/METADATA", HVPROBE),
        (f"{site}/psutil-7.2.2.dist-info/METADATA", PSUTIL),
    ):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path


def sbom(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts/sbom.py"), str(root), *words],
        capture_output=True,
        check=False,
        text=True,
    )


def test_both_parts_hang_together(image: Path) -> None:
    """hvprobe needs its Python packages and the distribution, whose packages have sources."""
    done = sbom(image)
    assert (done.returncode, done.stderr) == (0, "")
    document: dict[str, Any] = json.loads(done.stdout)
    purls = {found["bom-ref"]: found.get("purl") for found in document["components"]}
    needs = {found["ref"]: found.get("dependsOn", []) for found in document["dependencies"]}
    itself = document["metadata"]["component"]
    assert (itself["name"], itself["type"]) == ("hvprobe", "application")
    (python,) = [ref for ref in needs[itself["bom-ref"]] if purls[ref]]
    (system,) = [ref for ref in needs[itself["bom-ref"]] if not purls[ref]]
    assert purls[python] == "pkg:pypi/psutil@7.2.2"
    debian = "pkg:deb/debian"
    of = "&distro=debian-13"
    bcc = f"{debian}/python3-bpfcc@0.31.0%2Bds-7?arch=all"
    library = f"{debian}/libbpfcc@0.31.0%2Bds-7?arch=arm64"
    source = f"{debian}/bpfcc@0.31.0%2Bds-7?arch=source"
    assert {purl for purl in purls.values() if purl and "deb/" in purl} == {
        f"{bcc}{of}",
        f"{library}{of}",
        f"{source}{of}",
    }
    assert {bcc, library} <= set(needs[system])
    assert set(needs[bcc]) == {library, source}


def test_names_the_image(image: Path) -> None:
    """The ID of the image is a property of the document, and nothing else changes by it."""
    document = json.loads(sbom(image, "--image", "sha256:12ab").stdout)
    named = {"name": "hvprobe:image", "value": "sha256:12ab"}
    assert named in document["metadata"]["properties"]
    document["metadata"]["properties"].remove(named)
    without = json.loads(sbom(image).stdout)
    without["metadata"].setdefault("properties", [])
    assert document == without


def test_a_failed_tool_is_one_line(image: Path) -> None:
    """When a tool cannot read the root, one line names it, and nothing is printed."""
    (image / "var/lib/dpkg/status").unlink()
    done = sbom(image)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("sbom: debsbom: ")
