# SPDX-License-Identifier: Apache-2.0
"""EDGE: the images that ``make image`` built, as OCI archives with the same bytes each time.

    python scripts/image_archive.py DIST LAYOUT   # join a release's archives, to push them

An archive holds exactly the configuration and the layers that were built and tested, so its image
has the ID of the image in storage. Only what surrounds them is written here. The configuration may
have fields of Docker's (Healthcheck), which OCI readers ignore and engines obey.

The index names the images of all architectures. Its digest is the one under which a registry has
the release, once the layout is pushed: skopeo copy --all oci:LAYOUT:VERSION docker://NAME:VERSION
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archives import CHUNK_BYTES, Entry, compress, sha256, write_folder, write_tar

Json = dict[str, Any]
TAGS = ("localhost/hvprobe:latest", "localhost/hvprobe:latest-{architecture}")
"""What ``make image`` names an image: the second with ARCH."""
ARCHITECTURES = ("amd64", "arm64")
SUFFIX = ".oci.tar"
INDEX_SUFFIX = "-image-index.json"
_OCI = "application/vnd.oci.image"
_LABELS = "org.opencontainers.image."
_GZIP = b"\x1f\x8b"


class ImageError(Exception):
    """An image cannot be archived. The message says why, and what to do, in one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image in the storage of scripts/build-image.sh."""

    tag: str
    id: str
    """sha256:…, the digest of its configuration."""
    architecture: str
    version: str
    """As its labels say, so is the revision."""
    revision: str


def main() -> int:
    """The exit status: 1 when the release has no images, or the layout exists."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("dist", type=Path, help="the folder of a release")
    parser.add_argument("layout", type=Path, help="the folder to make")
    given = parser.parse_args()
    try:
        print(write_layout(given.dist, given.layout))
    except (ImageError, OSError) as err:
        print(f"image_archive: {err}", file=sys.stderr)
        return 1
    return 0


def store() -> Path:
    """Where scripts/build-image.sh keeps images."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("HVPROBE_CACHE") or Path(cache) / "hvprobe") / "image"


def built() -> list[Image]:
    """The images that are there, by architectures and then in the order of `TAGS`."""
    if shutil.which("buildah") is None or not (store() / "storage").is_dir():
        return []
    found = {}
    for architecture in ARCHITECTURES:
        for pattern in TAGS:
            tag = pattern.format(architecture=architecture)
            inspected = _buildah("inspect", "--type", "image", tag)
            if inspected.returncode == 0:
                image = described(tag, json.loads(inspected.stdout))
                found[image.architecture, tag] = image
    return [found[key] for key in sorted(found)]


def described(tag: str, inspected: Json) -> Image:
    """The image from what ``buildah inspect`` prints."""
    docker = inspected["Docker"]
    labels = docker["config"].get("Labels") or {}
    return Image(
        tag=tag,
        id=f"sha256:{inspected['FromImageID'].removeprefix('sha256:')}",
        architecture=docker["architecture"],
        version=labels.get(f"{_LABELS}version", "unknown"),
        revision=labels.get(f"{_LABELS}revision", "unknown"),
    )


def export(image: Image, target: Path, work: Path, names: tuple[str, str], epoch_s: int) -> Json:
    """Write the image as an archive and return its descriptor. work: an empty folder for scratch.

    Raises ImageError when buildah fails, or what it writes is not the image.
    """
    copied = work / "copied"
    done = _buildah("push", "--quiet", "--disable-compression", image.tag, f"dir:{copied}")
    if done.returncode != 0:
        *_, reason = done.stderr.strip().splitlines() or ["no reason given"]
        raise ImageError(f"buildah push {image.tag}: {reason}")
    (work / "blobs").mkdir()
    descriptor = write_archive(copied, target, work / "blobs", names, epoch_s)
    if _config_digest(copied) != image.id:
        raise ImageError(f"{image.tag} changed while it was copied: run make release again")
    shutil.rmtree(work)
    return descriptor


def write_archive(
    copied: Path, target: Path, blobs: Path, names: tuple[str, str], epoch_s: int
) -> Json:
    """Turn what ``buildah push dir:`` wrote into an archive, and return its descriptor.

    names: of the image with its tag, and of the tag alone. Raises ImageError when a layer or the
    configuration is not what its digest says.
    """
    source = json.loads((copied / "manifest.json").read_text())
    config_file = copied / _config_digest(copied).partition(":")[2]
    config = json.loads(config_file.read_text())
    _require(config_file, _config_digest(copied))
    entries = [_blob(config_file)]
    layers = []
    for layer, diff_id in zip(source["layers"], config["rootfs"]["diff_ids"], strict=True):
        plain = copied / layer["digest"].partition(":")[2]
        with plain.open("rb") as opened:
            if opened.read(2) == _GZIP:
                raise ImageError(f"buildah compressed the layer {layer['digest']}: update buildah")
        _require(plain, diff_id)
        compressed = blobs / diff_id.partition(":")[2]
        compress(plain, compressed)
        plain.unlink()
        entries.append(_blob(compressed))
        layers.append(_descriptor(f"{_OCI}.layer.v1.tar+gzip", compressed))
    manifest = blobs / "manifest"
    manifest.write_bytes(
        _json(
            {
                "schemaVersion": 2,
                "mediaType": f"{_OCI}.manifest.v1+json",
                "config": _descriptor(f"{_OCI}.config.v1+json", config_file),
                "layers": layers,
            }
        )
    )
    descriptor = _descriptor(f"{_OCI}.manifest.v1+json", manifest)
    descriptor["platform"] = {
        name: config[name] for name in ("architecture", "os", "variant") if config.get(name)
    }
    write_tar(target, [*entries, _blob(manifest), *_frame(descriptor, names)], epoch_s)
    return descriptor


def index(descriptors: Sequence[Json]) -> bytes:
    """The index of the images of all architectures."""
    listed = sorted(descriptors, key=lambda each: str(each["platform"]))
    return _json({"schemaVersion": 2, "mediaType": f"{_OCI}.index.v1+json", "manifests": listed})


def write_layout(dist: Path, layout: Path) -> str:
    """Write an OCI layout with the index and all images of a release, and return its reference.

    Raises ImageError when the release has none, or a blob is not what its digest says.
    """
    try:
        (found,) = dist.glob(f"*{INDEX_SUFFIX}")
    except ValueError as err:
        raise ImageError(f"{dist} has no index of images: make a release with images") from err
    version = found.name.removeprefix("hvprobe-").removesuffix(INDEX_SUFFIX)
    layout.mkdir(parents=True)
    for archive in sorted(dist.glob(f"*{SUFFIX}")):
        with tarfile.open(archive) as opened:
            for member in opened:
                source = opened.extractfile(member)
                if source is not None and member.name.startswith("blobs/sha256/"):
                    blob = layout / "blobs/sha256" / Path(member.name).name
                    blob.parent.mkdir(parents=True, exist_ok=True)
                    with blob.open("wb") as target:
                        shutil.copyfileobj(source, target, CHUNK_BYTES)
                    _require(blob, f"sha256:{blob.name}")
    for descriptor in json.loads(found.read_text())["manifests"]:
        _require(
            layout / "blobs/sha256" / descriptor["digest"].partition(":")[2], descriptor["digest"]
        )
    whole = _descriptor(f"{_OCI}.index.v1+json", found)
    write_folder(layout, [_blob(found), *_frame(whole, ("", version))])
    return f"oci:{layout}:{version}"


def _frame(descriptor: Json, names: tuple[str, str]) -> list[Entry]:
    """The two files by which a reader finds its way in an OCI layout."""
    full, tag = names
    annotations = {"org.opencontainers.image.ref.name": tag}
    if full:
        # By this name containerd and podman know the image after an import.
        annotations["io.containerd.image.name"] = full
    listed = {
        "schemaVersion": 2,
        "mediaType": f"{_OCI}.index.v1+json",
        "manifests": [{**descriptor, "annotations": annotations}],
    }
    return [
        Entry(name="index.json", content=_json(listed)),
        Entry(name="oci-layout", content=_json({"imageLayoutVersion": "1.0.0"})),
    ]


def _config_digest(copied: Path) -> str:
    digest: str = json.loads((copied / "manifest.json").read_text())["config"]["digest"]
    return digest


def _descriptor(media_type: str, file: Path) -> Json:
    return {
        "mediaType": media_type,
        "digest": f"sha256:{sha256(file)}",
        "size": file.stat().st_size,
    }


def _blob(file: Path) -> Entry:
    return Entry(name=f"blobs/sha256/{sha256(file)}", content=file)


def _require(file: Path, digest: str) -> None:
    """Raises ImageError unless the file's content has the digest."""
    if not file.is_file() or f"sha256:{sha256(file)}" != digest:
        raise ImageError(f"the content of {digest} is missing or is another: build the image again")


def _json(document: Json) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _buildah(*words: str) -> subprocess.CompletedProcess[str]:
    folders = ["--root", str(store() / "storage"), "--runroot", str(store() / "run")]
    return subprocess.run(
        ["buildah", *folders, *words],
        check=False,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
    )


if __name__ == "__main__":
    sys.exit(main())
