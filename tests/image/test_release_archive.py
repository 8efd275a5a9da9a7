# SPDX-License-Identifier: Apache-2.0
"""The image as a release archives it: the one that was built, and the same bytes each time."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.image_build import NATIVE, ROOT, Image, store, tag
from tests.support.scripts import script
from tests.support.small_image import Storage

pytestmark = pytest.mark.timeout(900)
image_archive = script("image_archive")
release_images = script("release_images")
source_tree = script("source_tree")
NAME = "registry.example/hvprobe"


@pytest.fixture(scope="module")
def stored(image: Image) -> Any:  # noqa: ANN401 - a class of a script
    """What the script knows of the image in storage."""
    inspected = json.loads(store("inspect", "--type", "image", tag(NATIVE)))
    return image_archive.described(tag(NATIVE), inspected)


def written(stored: Any, folder: Path) -> tuple[list[str], dict[str, Path]]:  # noqa: ANN401
    """The digests and files that a release writes for the image."""
    source = source_tree.source_of(ROOT, snapshot=True)
    finished, scratch = folder / "finished", folder / "scratch"
    finished.mkdir(parents=True)
    scratch.mkdir()
    digests = release_images.write([stored], NAME, source, finished, scratch)
    assert list(scratch.iterdir()) == []
    return digests, {file.suffixes[-2] + file.suffixes[-1]: file for file in finished.iterdir()}


def test_the_labels_name_commit_and_version(stored: Any) -> None:  # noqa: ANN401
    """By these a release knows whether the image belongs to it."""
    source = source_tree.source_of(ROOT, snapshot=True)
    marked = source.commit + ("-dirty" if source.version.endswith(".dirty") else "")
    assert (stored.version, stored.revision) == (source.base, marked)


def test_the_archive_is_the_image(stored: Any, image: Image, tmp_path: Path) -> None:  # noqa: ANN401
    """Two archives are equal, and what buildah reads from one has the ID of the built image."""
    _, first = written(stored, tmp_path / "first")
    digests, again = written(stored, tmp_path / "again")
    for suffix, file in first.items():
        assert file.read_bytes() == again[suffix].read_bytes(), file.name
    assert len(digests) == 2
    other = Storage(cache=tmp_path / "cache")
    pulled = other.buildah("pull", "--quiet", f"oci-archive:{first['.oci.tar']}")
    assert f"sha256:{pulled}" == stored.id
    described = json.loads(other.buildah("inspect", "--type", "image", pulled))
    config = json.loads(described["Config"])["config"]
    assert config["Healthcheck"]["Test"] == image.config["Healthcheck"]["Test"]


def test_the_bill_is_of_this_image(stored: Any, tmp_path: Path) -> None:  # noqa: ANN401
    """make image writes the ID of the image into its bill, and a release takes that one."""
    _, files = written(stored, tmp_path)
    bill = json.loads(files[".cdx.json"].read_text())
    named = {"name": "hvprobe:image", "value": stored.id}
    assert named in bill["metadata"]["properties"]
    assert {found["name"] for found in bill["components"]} > {"python3-bpfcc", "kubernetes"}
