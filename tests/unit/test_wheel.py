# SPDX-License-Identifier: Apache-2.0
"""The wheel: its files, its command, its dependencies and its licences."""

import configparser
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("pyproject.toml", "LICENSE", "LICENSES", "ebpf", "probes", "scripts", "tests/unit")
"""Copied into a folder for the build, because setuptools writes into the folder that it builds.

The tests and scripts are copied to show that the wheel does not contain them.
"""
OPTIONAL_SOURCES = ("README.md",)
PACKAGES = ("ebpf", "probes")
IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc")


def copy_sources(target: Path) -> None:
    for source in (*SOURCES, *OPTIONAL_SOURCES):
        original = ROOT / source
        if original.is_dir():
            shutil.copytree(original, target / source, ignore=IGNORED)
        elif original.exists() or source not in OPTIONAL_SOURCES:
            shutil.copy(original, target / source)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    checkout = tmp_path_factory.mktemp("checkout")
    copy_sources(checkout)
    # An isolated environment would download its packages from the network.
    built = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist", "."],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = (checkout / "dist").iterdir()
    with zipfile.ZipFile(path) as archive:
        yield archive


def shipped(wheel: zipfile.ZipFile) -> set[PurePosixPath]:
    """The wheel's files outside the folder of its metadata."""
    paths = {PurePosixPath(name) for name in wheel.namelist()}
    return {path for path in paths if not path.parts[0].endswith(".dist-info")}


def on_disk(*patterns: str) -> set[PurePosixPath]:
    """The checkout's files that match the patterns, relative to the checkout."""
    return {
        PurePosixPath(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern)
    }


def metadata(wheel: zipfile.ZipFile, name: str) -> str:
    (path,) = (path for path in wheel.namelist() if path.endswith(f".dist-info/{name}"))
    return wheel.read(path).decode()


def test_every_c_file_and_header_is_shipped(wheel: zipfile.ZipFile) -> None:
    """The wheel contains all BPF programs and headers, because a node compiles them."""
    sources = on_disk("ebpf/**/*.bpf.c", "ebpf/*.h", "ebpf/include/**/*.h")

    assert PurePosixPath("ebpf/ledger.h") in sources
    assert PurePosixPath("ebpf/include/linux/types.h") in sources
    assert sources <= shipped(wheel)


def test_every_module_is_shipped(wheel: zipfile.ZipFile) -> None:
    """The wheel contains all modules of both packages."""
    modules = on_disk("ebpf/**/*.py", "probes/**/*.py")

    assert {PurePosixPath("ebpf/__init__.py"), PurePosixPath("probes/__init__.py")} <= modules
    assert modules <= shipped(wheel)


def test_every_template_is_shipped(wheel: zipfile.ZipFile) -> None:
    """The wheel contains the templates of the pages and their style."""
    templates = on_disk("probes/render/templates/*")

    assert PurePosixPath("probes/render/templates/style.css") in templates
    assert templates <= shipped(wheel)


def test_nothing_else_is_shipped(wheel: zipfile.ZipFile) -> None:
    """The wheel contains only the two packages, without tests, scripts or docs."""
    assert {path.parts[0] for path in shipped(wheel)} == set(PACKAGES)
    templates = {".html", ".css"}
    suffixes = {".py", ".c", ".h", ".typed", ".json", *templates}
    assert {path.suffix for path in shipped(wheel)} <= suffixes


def test_commands_are_hvprobe_and_kubectls_plugin(wheel: zipfile.ZipFile) -> None:
    """The wheel installs ``hvprobe``, the same as a plugin of kubectl, and its completion."""
    entry_points = configparser.ConfigParser()
    entry_points.read_string(metadata(wheel, "entry_points.txt"))

    assert dict(entry_points["console_scripts"]) == {
        "hvprobe": "probes.__main__:main",
        "kubectl-hvprobe": "probes.__main__:kubectl",
        "kubectl_complete-hvprobe": "probes.__main__:complete",
    }


def test_bcc_is_not_a_dependency(wheel: zipfile.ZipFile) -> None:
    """The wheel does not require bcc, which on the Python index is an unrelated package."""
    lines = metadata(wheel, "METADATA").splitlines()
    required = [line.removeprefix("Requires-Dist: ") for line in lines if "Requires-Dist" in line]

    assert any(requirement.startswith("kubernetes") for requirement in required)
    assert [requirement for requirement in required if requirement.startswith("bcc")] == []


def test_licences_are_shipped(wheel: zipfile.ZipFile) -> None:
    """The wheel contains both licences, because the C files are available under either."""
    assert "Apache License" in metadata(wheel, "licenses/LICENSE")
    assert "GNU GENERAL PUBLIC LICENSE" in metadata(wheel, "licenses/LICENSES/GPL-2.0-only.txt")


def test_each_dependency_has_a_bound_and_a_reason() -> None:
    """The line above each runtime dependency says why it is there, and none may grow by itself."""
    text = (ROOT / "pyproject.toml").read_text()
    required = tomllib.loads(text)["project"]["dependencies"]
    lines = [line.strip() for line in text.splitlines()]
    for requirement in required:
        assert ",<" in requirement, requirement
        assert lines[lines.index(f'"{requirement}",') - 1].startswith("# "), requirement
