# SPDX-License-Identifier: Apache-2.0
"""The pure parts of a release: archives, the archive of an image, and what is accepted."""

import gzip
import hashlib
import io
import json
import os
import random
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.scripts import SCRIPTS, script

archives = script("archives")
image_archive = script("image_archive")
release = script("release")
release_images = script("release_images")
source_tree = script("source_tree")
EPOCH_S = 1_700_000_000
NAMES = ("registry.example/hvprobe:1.2.3", "1.2.3")
LAYER = b"the bytes of a layer" * 1000


def entry(name: str, content: bytes | Path = b"x", *, executable: bool = False) -> Any:  # noqa: ANN401
    return archives.Entry(name=name, content=content, executable=executable)


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def copied(folder: Path, architecture: str = "amd64") -> Path:
    """What ``buildah push dir:`` writes."""
    config = json.dumps(
        {
            "architecture": architecture,
            "os": "linux",
            "config": {"Healthcheck": {"Test": ["CMD", "true"]}},
            "rootfs": {"type": "layers", "diff_ids": [digest(LAYER)]},
        }
    ).encode()
    folder.mkdir()
    for content in (config, LAYER):
        (folder / digest(content).removeprefix("sha256:")).write_bytes(content)
    manifest = {
        "schemaVersion": 2,
        "config": {"digest": digest(config), "size": len(config)},
        "layers": [{"digest": digest(LAYER), "size": len(LAYER)}],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def archived(folder: Path, target: Path, architecture: str = "amd64") -> Any:  # noqa: ANN401
    folder.mkdir(parents=True)
    (folder / "blobs").mkdir()
    source = copied(folder / "copied", architecture)
    return image_archive.write_archive(source, target, folder / "blobs", NAMES, EPOCH_S)


def members(file: Path) -> dict[str, bytes]:
    with tarfile.open(file) as archive:
        return {
            member.name: opened.read()
            for member in archive
            if (opened := archive.extractfile(member)) is not None
        }


def test_a_tar_depends_on_content_alone(tmp_path: Path) -> None:
    """The order of entries, mode and time of their files, and the archive's name do not count."""
    file = tmp_path / "script"
    file.write_bytes(b"run")
    entries = [entry(f"folder/{number}") for number in range(20)]
    entries.append(entry("script", file, executable=True))
    archives.write_tar_gz(tmp_path / "one.tar.gz", entries, EPOCH_S)
    file.chmod(0o600)
    os.utime(file, (0, 0))
    random.shuffle(entries)
    archives.write_tar_gz(tmp_path / "two.tgz", entries, EPOCH_S)
    assert (tmp_path / "one.tar.gz").read_bytes() == (tmp_path / "two.tgz").read_bytes()
    with tarfile.open(tmp_path / "two.tgz") as archive:
        assert {member.mtime for member in archive} == {EPOCH_S}
        assert archive.getmember("script").mode == 0o755
        assert archive.getmember("folder/7").mode == 0o644
    assert {file.name for file in tmp_path.iterdir()} == {"script", "one.tar.gz", "two.tgz"}


def test_a_tar_survives_being_read_and_written(tmp_path: Path) -> None:
    """Names, contents and whether a file may be run are kept; owners and times are not."""
    raw = tmp_path / "raw.tar.gz"
    with tarfile.open(raw, "w:gz") as archive:
        for name, mode in (("b/run", 0o775), ("b/plain", 0o664)):
            member = tarfile.TarInfo(name)
            member.mode, member.mtime, member.uid, member.uname, member.size = mode, 7, 7, "u", 1
            archive.addfile(member, io.BytesIO(b"x"))
    entries = archives.read_tar_gz(raw)
    assert [(found.name, found.mode) for found in entries] == [("b/run", 0o755), ("b/plain", 0o644)]
    archives.write_tar_gz(tmp_path / "made.tar.gz", entries, EPOCH_S)
    with tarfile.open(tmp_path / "made.tar.gz") as archive:
        (first, _) = archive
        assert (first.name, first.uid, first.uname, first.mtime) == ("b/plain", 0, "", EPOCH_S)


@pytest.mark.parametrize("name", ["/etc/passwd", "../up", "a/../../up"])
def test_a_name_that_leads_out_is_refused(name: str, tmp_path: Path) -> None:
    """The message names the archive and the member."""
    raw = tmp_path / "raw.tar.gz"
    with tarfile.open(raw, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo(name))
    with pytest.raises(archives.ArchiveError, match=r"raw\.tar\.gz holds .*no file in it"):
        archives.read_tar_gz(raw)


def test_a_link_is_refused(tmp_path: Path) -> None:
    """A link could be written through."""
    raw = tmp_path / "raw.tar.gz"
    with tarfile.open(raw, "w:gz") as archive:
        member = tarfile.TarInfo("link")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(member)
    with pytest.raises(archives.ArchiveError, match="link"):
        archives.read_tar_gz(raw)


def test_a_name_may_occur_once(tmp_path: Path) -> None:
    """Two files of one name would depend on the order."""
    with pytest.raises(archives.ArchiveError, match="a occurs twice"):
        archives.write_tar(tmp_path / "x.tar", [entry("a"), entry("b"), entry("a")], EPOCH_S)


def test_a_folder_has_the_modes_of_the_entries(tmp_path: Path) -> None:
    """The umask changes nothing."""
    before = os.umask(0o077)
    try:
        archives.write_folder(tmp_path, [entry("d/run", executable=True), entry("d/plain")])
    finally:
        os.umask(before)
    assert (tmp_path / "d/run").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "d/plain").stat().st_mode & 0o777 == 0o644


def test_an_image_is_archived_as_it_is(tmp_path: Path) -> None:
    """Configuration and layers are those that were built, and every digest leads to its blob."""
    descriptor = archived(tmp_path / "work", tmp_path / "image.oci.tar")
    found = members(tmp_path / "image.oci.tar")
    listed = json.loads(found["index.json"])["manifests"]
    assert json.loads(found["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    (only,) = listed
    assert only["annotations"] == {
        "io.containerd.image.name": NAMES[0],
        "org.opencontainers.image.ref.name": NAMES[1],
    }
    assert {**descriptor, "annotations": only["annotations"]} == only
    assert descriptor["platform"] == {"architecture": "amd64", "os": "linux"}
    blobs = {
        f"sha256:{name[13:]}": content for name, content in found.items() if name[:5] == "blobs"
    }
    assert len(blobs) == 3
    assert all(digest(content) == name for name, content in blobs.items())
    manifest = json.loads(blobs[descriptor["digest"]])
    assert descriptor["size"] == len(blobs[descriptor["digest"]])
    config = json.loads(blobs[manifest["config"]["digest"]])
    assert config["config"]["Healthcheck"] == {"Test": ["CMD", "true"]}
    (layer,) = manifest["layers"]
    assert gzip.decompress(blobs[layer["digest"]]) == LAYER
    assert layer["size"] == len(blobs[layer["digest"]])


def test_an_image_is_archived_the_same_again(tmp_path: Path) -> None:
    """Two archives of one image have the same bytes."""
    assert archived(tmp_path / "one", tmp_path / "1.tar") == archived(
        tmp_path / "two", tmp_path / "2.tar"
    )
    assert (tmp_path / "1.tar").read_bytes() == (tmp_path / "2.tar").read_bytes()


def test_a_damaged_layer_is_refused(tmp_path: Path) -> None:
    """A layer that is not what the image says is never released."""
    folder = copied(tmp_path / "copied")
    (folder / digest(LAYER).removeprefix("sha256:")).write_bytes(LAYER + b"!")
    with pytest.raises(image_archive.ImageError, match=digest(LAYER)):
        image_archive.write_archive(folder, tmp_path / "x.tar", tmp_path, NAMES, EPOCH_S)


def dist_of(tmp_path: Path, *architectures: str) -> Path:
    dist = tmp_path / "dist"
    dist.mkdir()
    found = [
        archived(tmp_path / name, dist / f"hvprobe-1.2.3-image-{name}.oci.tar", name)
        for name in architectures
    ]
    index = image_archive.index(found)
    assert index == image_archive.index(found[::-1])
    (dist / "hvprobe-1.2.3-image-index.json").write_bytes(index)
    return dist


def test_archives_become_one_layout(tmp_path: Path) -> None:
    """The layout to push leads from the index of the release to the images of all architectures."""
    dist = dist_of(tmp_path, "amd64", "arm64")
    layout = tmp_path / "layout"
    assert image_archive.write_layout(dist, layout) == f"oci:{layout}:1.2.3"
    (top,) = json.loads((layout / "index.json").read_text())["manifests"]
    index = (dist / "hvprobe-1.2.3-image-index.json").read_bytes()
    assert top["digest"] == digest(index)
    assert top["annotations"] == {"org.opencontainers.image.ref.name": "1.2.3"}
    blobs = {f"sha256:{file.name}": file for file in (layout / "blobs/sha256").iterdir()}
    assert blobs[top["digest"]].read_bytes() == index
    platforms = set()
    for descriptor in json.loads(index)["manifests"]:
        platforms.add(descriptor["platform"]["architecture"])
        manifest = json.loads(blobs[descriptor["digest"]].read_text())
        assert {each["digest"] for each in (manifest["config"], *manifest["layers"])} <= set(blobs)
    assert platforms == {"amd64", "arm64"}


@pytest.mark.parametrize(
    "lost", ["hvprobe-1.2.3-image-arm64.oci.tar", "hvprobe-1.2.3-image-index.json"]
)
def test_a_layout_lacks_nothing(lost: str, tmp_path: Path) -> None:
    """Without one of the files, one line says what is missing."""
    dist = dist_of(tmp_path, "amd64", "arm64")
    (dist / lost).unlink()
    done = subprocess.run(
        [sys.executable, SCRIPTS / "image_archive.py", dist, tmp_path / "layout"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert "missing" in line or "no index" in line


def image(**changes: str) -> Any:  # noqa: ANN401
    given = {
        "tag": "localhost/hvprobe:latest",
        "id": digest(b"config"),
        "architecture": "amd64",
        "version": "1.2.3",
        "revision": "c" * 40,
    }
    return image_archive.Image(**{**given, **changes})


def source(version: str = "1.2.3") -> Any:  # noqa: ANN401
    return source_tree.Source(version=version, base="1.2.3", commit="c" * 40, epoch_s=EPOCH_S)


@pytest.mark.parametrize("name", ["old", "new"])
def test_an_image_of_another_commit_is_no_part(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A release refuses it, and so an image of a changed tree; a snapshot notes it."""
    stale = {
        "old": image(revision="b" * 40),
        "new": image(revision=f"{'c' * 40}-dirty"),
    }[name]
    monkeypatch.setattr(image_archive, "built", lambda: [stale])
    with pytest.raises(
        image_archive.ImageError, match=r"was built from the commit .*run make image"
    ):
        release_images.chosen("any", source(), snapshot=False)
    assert release_images.chosen("any", source(), snapshot=True) == [stale]
    assert capsys.readouterr().err.startswith("release: note: localhost/hvprobe:latest was built")


def test_images_are_chosen_by_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that fits is taken, and a wanted architecture without image is an error."""
    stale, fitting = image(revision="b" * 40), image(tag="localhost/hvprobe:latest-amd64")
    monkeypatch.setattr(image_archive, "built", lambda: [stale, fitting])
    assert release_images.chosen("any", source(), snapshot=False) == [fitting]
    assert release_images.chosen("amd64", source(), snapshot=False) == [fitting]
    assert release_images.chosen("none", source(), snapshot=False) == []
    with pytest.raises(
        image_archive.ImageError, match="no image for arm64: run make image ARCH=arm64"
    ):
        release_images.chosen("amd64,arm64", source(), snapshot=False)
    with pytest.raises(release_images.ChoiceError, match="no images for s390x"):
        release_images.chosen("s390x", source(), snapshot=False)
    monkeypatch.setattr(image_archive, "built", lambda: [image(version="1.2.2")])
    with pytest.raises(image_archive.ImageError, match=r"of the version 1\.2\.2"):
        release_images.chosen("any", source(), snapshot=False)


def test_a_bill_belongs_to_one_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bill is found by the image's ID, and that of an earlier image is not taken."""
    monkeypatch.setattr(release_images, "ROOT", tmp_path)
    folder = tmp_path / "build/image"
    folder.mkdir(parents=True)
    named = {"metadata": {"properties": [{"name": "hvprobe:image", "value": image().id}]}}
    (folder / "sbom.cdx.json").write_text(json.dumps({"metadata": {}}))
    with pytest.raises(image_archive.ImageError, match="no bill of materials of localhost/hvprobe"):
        release_images.bill_of(image())
    (folder / "sbom-arm64.cdx.json").write_text(json.dumps(named))
    assert release_images.bill_of(image()) == folder / "sbom-arm64.cdx.json"


def test_a_name_gets_the_digest_of_the_archives() -> None:
    """A name with a port is no tag; a tag is never accepted."""
    accepted = release.image_given
    assert accepted("reg.example:5000/a/b", with_images=True) == ("reg.example:5000/a/b", None)
    assert accepted(f"a/b@{digest(b'')}", with_images=False) == ("a/b", digest(b""))
    for refused in ("", "a b", "reg.example/a:1.0", "reg.example:5000/a:1.0", "a@sha256:12", 'a"b'):
        with pytest.raises(release.UsageError):
            accepted(refused, with_images=True)


def test_the_values_of_the_chart_must_be_known() -> None:
    """Values in another form are an error, not a chart with another image."""
    text = 'image:\n  repository: hvprobe\n  digest: ""\n'
    made = release.values_with_image(text, "reg.example:5000/a", "sha256:12")
    assert made == 'image:\n  repository: "reg.example:5000/a"\n  digest: sha256:12\n'
    with pytest.raises(release.ReleaseError, match="repository: hvprobe"):
        release.values_with_image(made, "b", "sha256:34")


def test_an_image_of_a_changed_tree_says_so(tmp_path: Path) -> None:
    """The label of the image's revision ends with -dirty where any file differs from the commit."""

    def labelled() -> str:
        command = 'source "$1"; root=$2; revision'
        return subprocess.run(
            ["bash", "-c", command, "test", SCRIPTS / "build-image.sh", tmp_path],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "HVPROBE_DEBIAN_MIRROR": "", "GIT_CEILING_DIRECTORIES": "/"},
        ).stdout

    assert labelled() == "unknown"
    git = ["git", "-C", str(tmp_path), "-c", "user.name=A", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message", "one"], check=True)
    commit = labelled()
    assert len(commit) == 40
    (tmp_path / "added").write_text("")
    assert labelled() == f"{commit}-dirty"
