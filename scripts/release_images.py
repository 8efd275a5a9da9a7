# SPDX-License-Identifier: Apache-2.0
"""The images of a release: which of those that were built belong to it, and their files.

An image belongs to a release when its labels name the commit and the version, and its bill of
materials when it names the image's ID. Must not know how an archive is made.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import image_archive
from archives import sha256
from image_archive import Image, ImageError
from sbom import IMAGE_PROPERTY
from source_tree import Source

ROOT = Path(__file__).resolve().parents[1]
ANY, NONE = "any", "none"


class ChoiceError(ImageError):
    """What was asked for is no choice of images."""


def chosen(wanted: str, source: Source, *, snapshot: bool) -> list[Image]:
    """The images to release, one for each architecture.

    Raises ImageError when one is missing or was not built from this commit, which a snapshot only
    notes, and ChoiceError when the choice is not one.
    """
    if wanted == NONE:
        return []
    architectures = image_archive.ARCHITECTURES if wanted == ANY else wanted.split(",")
    unknown = set(architectures) - set(image_archive.ARCHITECTURES)
    if unknown:
        known = ",".join(image_archive.ARCHITECTURES)
        raise ChoiceError(f"no images for {', '.join(sorted(unknown))}: --images takes {known}")
    built = image_archive.built()
    found: list[Image] = []
    for architecture in sorted(set(architectures)):
        candidates = [image for image in built if image.architecture == architecture]
        fitting = [image for image in candidates if objection(image, source) is None]
        if not candidates and wanted != ANY:
            raise ImageError(f"no image for {architecture}: run make image ARCH={architecture}")
        if candidates and not fitting:
            reason = str(objection(candidates[0], source))
            if not snapshot:
                remedy = f"run make image ARCH={architecture}, or choose others with --images"
                raise ImageError(f"{reason}: {remedy}")
            print(f"release: note: {reason}", file=sys.stderr)
        found += (fitting or candidates)[:1]
    if not found:
        raise ImageError(
            f"no image in {image_archive.store()}: run make image as root, or release without "
            "images (ARGS='--images none')"
        )
    return found


def objection(image: Image, source: Source) -> str | None:
    """Why the image is not of this release; None: it is."""
    if image.revision != source.commit:
        return f"{image.tag} was built from the commit {image.revision}, not {source.commit}"
    if image.version != source.base:
        return f"{image.tag} is of the version {image.version}, not {source.base}"
    return None


def bill_of(image: Image) -> Path:
    """The bill that make image wrote for exactly this image. Raises ImageError without one."""
    folder = ROOT / "build/image"
    for file in sorted(folder.glob("sbom*.cdx.json")):
        document: dict[str, Any] = json.loads(file.read_text())
        properties = document["metadata"].get("properties", [])
        if {"name": IMAGE_PROPERTY, "value": image.id} in properties:
            return file
    raise ImageError(
        f"{folder} has no bill of materials of {image.tag}: run make image "
        f"ARCH={image.architecture} in this folder"
    )


def write(
    images: list[Image], name: str, source: Source, finished: Path, scratch: Path
) -> list[str]:
    """The archives, bills and the index. Returns the digests: of the index, then of each image."""
    tag = source.version.replace("+", "_")
    stem = finished / f"hvprobe-{source.version}-image"
    descriptors = []
    for image in images:
        work = scratch / image.architecture
        work.mkdir()
        target = stem.with_name(f"{stem.name}-{image.architecture}{image_archive.SUFFIX}")
        names = (f"{name}:{tag}", tag)
        descriptors.append(image_archive.export(image, target, work, names, source.epoch_s))
        bill = stem.with_name(f"{stem.name}-{image.architecture}.cdx.json")
        shutil.copyfile(bill_of(image), bill)
    index = finished / f"hvprobe-{source.version}{image_archive.INDEX_SUFFIX}"
    index.write_bytes(image_archive.index(descriptors))
    return [f"sha256:{sha256(index)}", *(each["digest"] for each in descriptors)]
