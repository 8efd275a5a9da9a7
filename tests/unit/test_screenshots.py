# SPDX-License-Identifier: Apache-2.0
"""The pictures of the live view in the documentation are those that the command draws now."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("live.svg", "live-vm.svg", "live-vcpus.svg", "live-help.svg")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures that the command has just drawn."""
    folder = tmp_path_factory.mktemp("pictures")
    variables = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    command = [sys.executable, str(ROOT / "scripts/screenshots.py"), str(folder)]
    subprocess.run(command, check=True, env=variables, timeout=100)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_the_picture_is_current(drawn: Path, name: str) -> None:
    """Drawn again, a picture has the same bytes: after a change, run scripts/screenshots.py."""
    assert (drawn / name).read_bytes() == (ROOT / "docs/images" / name).read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_the_picture_loads_nothing(name: str) -> None:
    """A picture needs no font, script or image from elsewhere."""
    text = (ROOT / "docs/images" / name).read_text()
    assert "@font-face" not in text
    assert "url(http" not in text
    assert "<script" not in text
