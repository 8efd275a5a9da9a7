# SPDX-License-Identifier: Apache-2.0
"""``make release``: the same bytes in every clone, what they hold, and what is refused."""

import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from datetime import datetime
from pathlib import Path

import pytest
import yaml

from tests.support import helm_tools
from tests.support.helm_render import CHART, run_helm
from tests.support.release_clone import (
    DATE,
    IMAGE,
    ROOT,
    Clone,
    checked,
    cloned,
    without_tags,
)
from tests.support.required import require

pytestmark = pytest.mark.timeout(600)
VARIANTS = ("privileged", "capabilities", "openshift")


@pytest.fixture(scope="module", autouse=True)
def programs() -> None:
    require("helm", helm_tools.missing())


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """HEAD with the commit that a maintainer makes for a release, and the tag."""
    clone = without_tags(cloned(ROOT, tmp_path_factory.mktemp("upstream") / "hvprobe"))
    version = clone.version("--date", DATE)
    clone.git("commit", "--quiet", "--allow-empty", "--all", "--message", f"release: {version}")
    clone.git("tag", f"v{version}")
    return clone


@pytest.fixture
def clone(upstream: Clone, tmp_path: Path) -> Clone:
    return cloned(upstream.folder, tmp_path / "clone")


@pytest.fixture(scope="module")
def dist(upstream: Clone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release from a clean clone."""
    folder = tmp_path_factory.mktemp("first")
    done = cloned(upstream.folder, folder / "one").release(folder / "dist")
    assert done.returncode == 0, done.stderr
    assert done.stdout == (folder / "dist/SHA256SUMS").read_text()
    return folder / "dist"


@pytest.fixture(scope="module")
def version(upstream: Clone) -> str:
    return upstream.version()


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def refused(
    clone: Clone, tmp_path: Path, *, image: str = IMAGE, images: str = "none", status: int = 1
) -> str:
    """The one line of a release that is refused and leaves nothing."""
    output = tmp_path / "refused"
    environment = {"HVPROBE_CACHE": str(tmp_path / "empty")}
    done = clone.release(output, image=image, images=images, environment=environment)
    assert (done.returncode, done.stdout) == (status, "")
    assert not output.exists()
    (line,) = done.stderr.splitlines()
    return line


def test_another_clone_makes_the_same_bytes(
    upstream: Clone, dist: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Folder, time, umask, time zone, language and order of sets are in no file."""
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "a folder with spaces"
    other = cloned(upstream.folder, elsewhere)
    for file in other.folder.rglob("*"):
        if ".git" not in file.parts and not file.is_symlink():
            os.utime(file, (1_000_000_000, 1_000_000_000))
            file.chmod(file.stat().st_mode & 0o700)
    environment = {
        "TZ": "Pacific/Kiritimati",
        "LC_ALL": "C",
        "PYTHONHASHSEED": "77",
        "SOURCE_DATE_EPOCH": "12345",
    }
    done = other.release(elsewhere / "build/dist", umask=0o077, environment=environment)
    assert done.returncode == 0, done.stderr
    first, again = contents(dist), contents(elsewhere / "build/dist")
    assert first.keys() == again.keys()
    assert [name for name, content in first.items() if again[name] != content] == []


def test_holds_these_files_and_no_others(dist: Path, version: str) -> None:
    """Without images there are the Python packages, the chart, the manifests and the checksums."""
    assert {file.name for file in dist.iterdir()} == {
        f"hvprobe-{version}-py3-none-any.whl",
        f"hvprobe-{version}.tar.gz",
        f"hvprobe-{version}-python.cdx.json",
        f"hvprobe-chart-{version}.tgz",
        *(f"install-{variant}{more}.yaml" for variant in VARIANTS for more in ("", "-monitoring")),
        "SHA256SUMS",
    }


def test_the_checksums_hold(dist: Path) -> None:
    """sha256sum accepts every file and misses none."""
    lines = (dist / "SHA256SUMS").read_text().splitlines()
    assert {line.split("  ")[1] for line in lines} == set(contents(dist)) - {"SHA256SUMS"}
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"],
        check=False,
        cwd=dist,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": OK\n") == len(lines)


@pytest.mark.parametrize("name", ["hvprobe-{}.tar.gz", "hvprobe-chart-{}.tgz"])
def test_archives_name_no_machine(name: str, dist: Path, version: str, upstream: Clone) -> None:
    """Members are sorted files of root with plain modes and the commit's time."""
    file = dist / name.format(version)
    committed = int(upstream.git("log", "-1", "--format=%ct"))
    with tarfile.open(file) as archive:
        members = archive.getmembers()
    names = [member.name for member in members]
    assert names == sorted(names)
    assert len(names) > 10
    for member in members:
        assert (member.uid, member.gid, member.uname, member.gname) == (0, 0, "", "")
        assert (member.isfile(), member.mtime) == (True, committed)
        assert member.mode in (0o644, 0o755)
    # No name and no time in the header of gzip (RFC 1952).
    assert file.read_bytes()[:9] == b"\x1f\x8b\x08\0\0\0\0\0\0"


def test_the_wheel_runs(dist: Path, version: str, tmp_path: Path) -> None:
    """What pip installs is of the version, and its files are those of the commit."""
    wheel = dist / f"hvprobe-{version}-py3-none-any.whl"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    checked([*pip, "--target", tmp_path / "site", wheel])
    done = subprocess.run(
        [tmp_path / "site/bin/hvprobe", "--version"],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
    )
    assert done.stdout.split()[-1] == version
    with zipfile.ZipFile(wheel) as archive:
        shipped = set(archive.namelist())
    for pattern in ("ebpf/**/*.py", "ebpf/**/*.h", "probes/**/*.py", "probes/render/templates/*"):
        tracked = checked(["git", "-C", ROOT, "ls-files", f":(glob){pattern}"]).split()
        assert tracked
        assert set(tracked) <= shipped


def test_the_python_bill_names_every_locked_package(
    dist: Path, version: str, upstream: Clone
) -> None:
    """It describes hvprobe of this version, with the versions of requirements.lock."""
    bill = json.loads((dist / f"hvprobe-{version}-python.cdx.json").read_text())
    itself = bill["metadata"]["component"]
    assert (itself["name"], itself["version"]) == ("hvprobe", version)
    locked = set(
        re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    )
    assert locked
    assert {(found["name"], found["version"]) for found in bill["components"]} == locked
    committed = datetime.fromisoformat(bill["metadata"]["timestamp"])
    assert int(committed.timestamp()) == int(upstream.git("log", "-1", "--format=%ct"))
    assert "serialNumber" not in bill


def test_the_chart_installs_the_image(dist: Path, version: str) -> None:
    """The real helm accepts the package, which renders what the chart does with that image."""
    package = dist / f"hvprobe-chart-{version}.tgz"
    linted = run_helm("lint", "--strict", package)
    assert linted.returncode == 0, linted.stdout
    shown = yaml.safe_load(run_helm("show", "chart", package).stdout)
    assert (shown["version"], shown["appVersion"]) == (version, version)
    name, digest = IMAGE.split("@")
    image = ("--set", f"image.repository={name}", "--set", f"image.digest={digest}")
    by_hand = run_helm("template", "hvprobe", CHART, *image)
    rendered = run_helm("template", "hvprobe", package)
    assert rendered.stdout == by_hand.stdout
    assert f'image: "{IMAGE}"' in rendered.stdout


def test_the_manifests_are_those_of_make_manifests(dist: Path, tmp_path: Path) -> None:
    """The files for kubectl apply are the same as without a release."""
    script = [sys.executable, str(ROOT / "scripts/manifests.py"), IMAGE]
    checked([*script, "--output", tmp_path, "--kubectl", helm_tools.kubectl()])
    for file in tmp_path.iterdir():
        assert (dist / file.name).read_bytes() == file.read_bytes()


def test_a_release_replaces_the_one_before(clone: Clone, tmp_path: Path) -> None:
    """Files of an earlier version go, and a file that no release wrote stops everything."""
    output = tmp_path / "dist"
    output.mkdir()
    foreign = output / "letter.txt"
    foreign.write_text("mine")
    done = clone.release(output)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"release: {foreign} is no file of a release: remove it, or name another --output\n"
    )
    assert contents(output) == {"letter.txt": b"mine"}
    foreign.rename(output / "hvprobe-0.0.1.tar.gz")
    assert clone.release(output).returncode == 0
    assert "hvprobe-0.0.1.tar.gz" not in contents(output)


def test_refuses_a_tree_that_is_not_the_commit(clone: Clone, tmp_path: Path) -> None:
    """A changed file and a file that git does not know are named, with the way out."""
    added = clone.folder / "probes/added.py"
    added.write_text("")
    line = refused(clone, tmp_path)
    assert "1 files differ from the commit" in line
    assert "first probes/added.py: commit or remove them, or make a snapshot" in line
    added.unlink()
    (clone.folder / "README.md").write_text("changed")
    assert "first README.md" in refused(clone, tmp_path)


def test_refuses_another_tag(clone: Clone, version: str, tmp_path: Path) -> None:
    """Without the version's tag on the commit there is no release, whatever other tags it has."""
    clone.git("tag", "v9.9.9")
    clone.git("tag", "--delete", f"v{version}")
    line = refused(clone, tmp_path)
    assert f"has the tags v9.9.9, and pyproject.toml has the version {version}: tag it" in line
    clone.git("tag", "--delete", "v9.9.9")
    assert "has no tag, and" in refused(clone, tmp_path)


def test_refuses_a_version_that_is_not_everywhere(
    clone: Clone, version: str, tmp_path: Path
) -> None:
    """A copy with another version is named, and so is a changelog that says unreleased."""
    chart = clone.folder / "deploy/helm/hvprobe/Chart.yaml"
    chart.write_text(chart.read_text().replace(f"appVersion: {version}", "appVersion: 7.7.7"))
    clone.commit("chart: another version")
    clone.git("tag", "--force", f"v{version}")
    line = refused(clone, tmp_path)
    assert line.startswith(f"release: deploy/helm/hvprobe/Chart.yaml has {version} and 7.7.7, ")
    assert line.endswith(f"set it with make version SET={version}")
    clone.version("7.7.7")
    clone.commit("release: 7.7.7")
    clone.git("tag", "v7.7.7")
    assert "CHANGELOG.md says that 7.7.7 is unreleased" in refused(clone, tmp_path)


def test_refuses_a_release_without_images(clone: Clone, tmp_path: Path) -> None:
    """Where make image built nothing, one line says so and how to do without."""
    line = refused(clone, tmp_path, images="any")
    assert line == (
        f"release: no image in {tmp_path}/empty/image: run make image as root, or release without "
        "images (ARGS='--images none')"
    )


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("", "is neither NAME@sha256:DIGEST nor NAME: set IMAGE"),
        ("registry.example/hvprobe:1.0.0", "is neither"),
        ("registry.example/hvprobe@sha256:12", "is neither"),
        ("registry.example/hvprobe", "has no digest, and there is no archive to take it from"),
    ],
)
def test_refuses_an_image_without_digest(
    image: str, reason: str, clone: Clone, tmp_path: Path
) -> None:
    """Only an image that no registry can change is released."""
    assert reason in refused(clone, tmp_path, image=image, status=2)


def test_a_snapshot_says_that_it_is_one(clone: Clone, version: str, tmp_path: Path) -> None:
    """A changed tree without tag is released with its changes, and names and versions show it."""
    clone.git("tag", "--delete", f"v{version}")
    (clone.folder / "probes/added.py").write_text("ADDED = 1\n")
    (clone.folder / "probes/ignored.pyc").write_bytes(b"")
    done = clone.release(tmp_path / "dist", "--snapshot")
    assert done.returncode == 0, done.stderr
    marked = f"{version}+snapshot.g{clone.git('rev-parse', 'HEAD')[:12]}.dirty"
    of_hvprobe = [name for name in contents(tmp_path / "dist") if name.startswith("hvprobe-")]
    assert len(of_hvprobe) == 4
    assert all(marked in name for name in of_hvprobe)
    with zipfile.ZipFile(tmp_path / f"dist/hvprobe-{marked}-py3-none-any.whl") as wheel:
        assert "probes/added.py" in wheel.namelist()
        assert "probes/ignored.pyc" not in wheel.namelist()
        metadata = wheel.read(f"hvprobe-{marked}.dist-info/METADATA").decode()
    assert f"\nVersion: {marked}\n" in metadata
    package = tmp_path / f"dist/hvprobe-chart-{marked}.tgz"
    assert yaml.safe_load(run_helm("show", "chart", package).stdout)["appVersion"] == marked
    manifest = (tmp_path / "dist/install-privileged.yaml").read_text()
    assert manifest.startswith(f"# hvprobe {marked}, privileged, {IMAGE}\n")
    assert f"image: {IMAGE}\n" in manifest
