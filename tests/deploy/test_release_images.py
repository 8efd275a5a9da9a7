# SPDX-License-Identifier: Apache-2.0
"""``make release`` with images in buildah's storage, which the real buildah reads again."""

import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import helm_tools, small_image
from tests.support.release_clone import DATE, ROOT, Clone, cloned, without_tags
from tests.support.required import require
from tests.support.small_image import HEALTHCHECK, Storage

pytestmark = pytest.mark.timeout(600)
NAME = "registry.example:5000/team/hvprobe"
TAGS = {"amd64": "localhost/hvprobe:latest", "arm64": "localhost/hvprobe:latest-arm64"}


@pytest.fixture(scope="module", autouse=True)
def programs() -> None:
    require("helm", helm_tools.missing())
    require("image", small_image.missing())


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A tagged commit and the images that were built from it."""

    clone: Clone
    storage: Storage
    ids: dict[str, str]
    """By architecture."""

    @property
    def version(self) -> str:
        return self.clone.version()

    def release(
        self, output: Path, *words: str, image: str = NAME, images: str = "amd64,arm64"
    ) -> subprocess.CompletedProcess[str]:
        environment = {"HVPROBE_CACHE": str(self.storage.cache)}
        return self.clone.release(
            output, *words, image=image, images=images, environment=environment
        )

    def build(self, architecture: str, revision: str) -> str:
        """Build the image of that architecture, with its bill."""
        made = self.storage.build(
            TAGS[architecture], architecture, version=self.version, revision=revision
        )
        bill = self.clone.folder / f"build/image/sbom-{architecture}.cdx.json"
        bill.parent.mkdir(parents=True, exist_ok=True)
        named = {"name": "hvprobe:image", "value": made}
        bill.write_text(json.dumps({"metadata": {"properties": [named]}}))
        return made


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("built")
    clone = without_tags(cloned(ROOT, folder / "hvprobe"))
    clone.version("--date", DATE)
    clone.git("commit", "--quiet", "--allow-empty", "--all", "--message", "release: it")
    clone.git("tag", f"v{clone.version()}")
    made = Built(clone=clone, storage=Storage(cache=folder / "cache"), ids={})
    for architecture in TAGS:
        made.ids[architecture] = made.build(architecture, clone.git("rev-parse", "HEAD"))
    return made


@pytest.fixture(scope="module")
def dist(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("released") / "dist"
    done = built.release(output)
    assert (done.returncode, done.stderr) == (0, "")
    return output


def index_of(dist: Path) -> tuple[str, Any]:
    """The index of the images, with its digest."""
    (file,) = dist.glob("*-image-index.json")
    content = file.read_bytes()
    return f"sha256:{hashlib.sha256(content).hexdigest()}", json.loads(content)


def test_each_architecture_has_an_archive_and_a_bill(built: Built, dist: Path) -> None:
    """The files are named by version and architecture, and the checksums hold."""
    named = {file.name for file in dist.glob("hvprobe-*-image-*")}
    stem = f"hvprobe-{built.version}-image"
    assert named == {
        f"{stem}-index.json",
        *(f"{stem}-{name}{more}" for name in TAGS for more in (".oci.tar", ".cdx.json")),
    }
    command = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    assert subprocess.run(command, check=False, cwd=dist).returncode == 0
    assert named < {line.split()[1] for line in (dist / "SHA256SUMS").read_text().splitlines()}


def test_the_same_images_make_the_same_bytes(built: Built, dist: Path, tmp_path: Path) -> None:
    """A second release of the same images differs in nothing."""
    done = built.release(tmp_path / "again")
    assert done.stdout == (dist / "SHA256SUMS").read_text()


@pytest.mark.parametrize("architecture", TAGS)
def test_the_archive_is_the_image_that_was_built(
    architecture: str, built: Built, dist: Path, tmp_path: Path
) -> None:
    """buildah reads the archive as an image of the same ID, content and health check."""
    other = Storage(cache=tmp_path)
    (archive,) = dist.glob(f"*-image-{architecture}.oci.tar")
    pulled = other.buildah("pull", "--quiet", "--arch", architecture, f"oci-archive:{archive}")
    assert f"sha256:{pulled}" == built.ids[architecture]
    inspected = json.loads(other.buildah("inspect", "--type", "image", pulled))
    assert inspected["Docker"]["architecture"] == architecture
    container = other.buildah("from", "--arch", architecture, "--pull-never", pulled)
    root = Path(other.buildah("mount", container))
    assert (root / "hello").read_text() == f"hello from {architecture}\n"
    other.buildah("rm", container)
    config = json.loads(inspected["Config"])
    assert config["config"]["Healthcheck"]["Test"] == HEALTHCHECK


def test_a_name_is_pinned_to_the_archives(dist: Path) -> None:
    """Chart and manifests name the digest of the index, which is that of the file."""
    digest, index = index_of(dist)
    assert {each["platform"]["architecture"] for each in index["manifests"]} == set(TAGS)
    for file in dist.glob("install-*.yaml"):
        (daemonset,) = [
            found for found in yaml.safe_load_all(file.read_text()) if found["kind"] == "DaemonSet"
        ]
        (container,) = daemonset["spec"]["template"]["spec"]["containers"]
        assert container["image"] == f"{NAME}@{digest}"


def test_the_layout_to_push_has_the_released_digest(
    built: Built, dist: Path, tmp_path: Path
) -> None:
    """buildah takes each architecture out of the layout, and the index keeps its digest."""
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/image_archive.py", dist, tmp_path / "layout"],
        check=True,
        capture_output=True,
        text=True,
    )
    reference = done.stdout.strip()
    assert reference == f"oci:{tmp_path}/layout:{built.version}"
    (top,) = json.loads((tmp_path / "layout/index.json").read_text())["manifests"]
    assert top["digest"] == index_of(dist)[0]
    other = Storage(cache=tmp_path / "cache")
    for architecture, wanted in built.ids.items():
        pulled = other.buildah("pull", "--quiet", "--arch", architecture, reference)
        assert f"sha256:{pulled}" == wanted


def test_another_digest_is_taken_and_noted(built: Built, dist: Path, tmp_path: Path) -> None:
    """A registry may hold the image in another compression; one line says that digests differ."""
    given = f"{NAME}@sha256:{'ab' * 32}"
    done = built.release(tmp_path / "dist", image=given)
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert line == (
        f"release: note: the archives have the digest {index_of(dist)[0]}, the manifests name "
        f"sha256:{'ab' * 32}"
    )
    assert f"image: {given}\n" in (tmp_path / "dist/install-privileged.yaml").read_text()
    known = built.release(tmp_path / "dist", image=f"{NAME}@{index_of(dist)[0]}")
    assert (known.returncode, known.stderr) == (0, "")


def test_an_image_of_another_tree_is_refused(built: Built, tmp_path: Path) -> None:
    """The image's labels must name the commit; a snapshot takes it and says so."""
    commit = built.clone.git("rev-parse", "HEAD")
    built.build("amd64", f"{commit}-dirty")
    try:
        done = built.release(tmp_path / "dist")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == (
            f"release: localhost/hvprobe:latest was built from the commit {commit}-dirty, not "
            f"{commit}: run make image ARCH=amd64, or choose others with --images\n"
        )
        assert built.release(tmp_path / "arm", images="arm64").returncode == 0
        assert {file.name for file in (tmp_path / "arm").glob("*.oci.tar")} == {
            f"hvprobe-{built.version}-image-arm64.oci.tar"
        }
        taken = built.release(tmp_path / "snapshot", "--snapshot")
        assert taken.returncode == 0
        assert taken.stderr.startswith("release: note: localhost/hvprobe:latest was built from")
        assert len(list((tmp_path / "snapshot").glob("*+snapshot.*.oci.tar"))) == 2
    finally:
        built.build("amd64", commit)


def test_an_image_needs_its_bill(built: Built, tmp_path: Path) -> None:
    """An archive is never released with the bill of another image."""
    bill = built.clone.folder / "build/image/sbom-arm64.cdx.json"
    text = bill.read_text()
    bill.write_text(text.replace(built.ids["arm64"], "sha256:12"))
    try:
        done = built.release(tmp_path / "dist")
    finally:
        bill.write_text(text)
    assert (done.returncode, done.stdout) == (1, "")
    assert "has no bill of materials of localhost/hvprobe:latest-arm64" in done.stderr
    assert not (tmp_path / "dist").exists()
