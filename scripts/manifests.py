# SPDX-License-Identifier: Apache-2.0
"""Writes one file for each way to install hvprobe by ``kubectl apply -f``.

    python scripts/manifests.py registry.example/hvprobe@sha256:DIGEST

    dist/install-VARIANT.yaml             without objects of prometheus-operator
    dist/install-VARIANT-monitoring.yaml  with PodMonitor and PrometheusRule

Each is what ``kubectl kustomize`` makes of the overlay of that name, with the image. The Namespace
comes first. The same kubectl writes the same bytes again.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VARIANTS = ("privileged", "capabilities", "openshift")
SEPARATOR = "---\n"
_DIGEST = re.compile(r"(?P<name>[^@\s]+)@(?P<digest>sha256:[0-9a-f]{64})")
_TAG = re.compile(r"(?P<name>[^@\s]+):(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})")
_MONITORING = re.compile(r"^apiVersion: monitoring\.coreos\.com/", re.MULTILINE)


class ManifestError(Exception):
    """The files cannot be made. The message says why, and what to do, in one line."""


def main() -> int:
    """The exit status: 1 when kubectl fails, 2 when the image is not named by its digest."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("image", help="NAME@sha256:DIGEST")
    parser.add_argument("--allow-tag", action="store_true", help="accept NAME:TAG as well")
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="folder to write to")
    parser.add_argument("--kubectl", default="kubectl", help="kubectl 1.31 or later")
    given = parser.parse_args()
    try:
        image = image_entry(given.image, allow_tag=given.allow_tag)
    except ManifestError as err:
        print(f"manifests: {err}", file=sys.stderr)
        return 2
    try:
        for file in write_all(given.image, image, given.output, given.kubectl):
            print(file)
    except ManifestError as err:
        print(f"manifests: {err}", file=sys.stderr)
        return 1
    return 0


def image_entry(image: str, *, allow_tag: bool) -> str:
    """The image as kustomize's ``images`` takes it.

    Raises ManifestError when the image has no digest, unless a tag is allowed and given.
    """
    found = _DIGEST.fullmatch(image)
    if found:
        return f'  - {{name: hvprobe, newName: "{found["name"]}", digest: "{found["digest"]}"}}\n'
    tagged = _TAG.fullmatch(image)
    if tagged and allow_tag:
        return f'  - {{name: hvprobe, newName: "{tagged["name"]}", newTag: "{tagged["tag"]}"}}\n'
    wanted = "NAME@sha256:DIGEST or NAME:TAG" if allow_tag else "NAME@sha256:DIGEST"
    hint = "; --allow-tag accepts a tag, which may point to another image later" if tagged else ""
    raise ManifestError(f"the image {image!r} is not {wanted}{'' if allow_tag else hint}")


def write_all(image: str, entry: str, output: Path, kubectl: str) -> list[Path]:
    """Write all files and return their paths. Raises ManifestError when kubectl fails."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    output.mkdir(parents=True, exist_ok=True)
    written = []
    for variant in VARIANTS:
        documents = rendered(variant, entry, kubectl)
        without = [text for text in documents if not _MONITORING.search(text)]
        for suffix, chosen in (("", without), ("-monitoring", documents)):
            file = output / f"install-{variant}{suffix}.yaml"
            header = f"# hvprobe {version}, {variant}{suffix}, {image}\n"
            file.write_text(header + SEPARATOR.join(chosen))
            written.append(file)
    return written


def rendered(variant: str, entry: str, kubectl: str) -> list[str]:
    """The documents of an overlay with the image, the Namespace first.

    Raises ManifestError when kubectl is missing, or fails, or renders no Namespace first.
    """
    with tempfile.TemporaryDirectory() as work:
        # kustomize takes no absolute path, and resolves a relative one from the real folder.
        folder = Path(work).resolve()
        overlay = os.path.relpath(ROOT / "deploy/overlays" / variant, folder)
        (folder / "kustomization.yaml").write_text(
            "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"
            f'resources: ["{overlay}"]\nimages:\n{entry}'
        )
        try:
            done = subprocess.run(
                [kubectl, "kustomize", folder], check=False, capture_output=True, text=True
            )
        except OSError as err:
            raise ManifestError(f"{kubectl}: {err.strerror}: name one with --kubectl") from err
    if done.returncode != 0:
        raise ManifestError(f"{kubectl} kustomize: {' '.join(done.stderr.split())}")
    documents = re.split(rf"^{SEPARATOR}", done.stdout, flags=re.MULTILINE)
    if "\nkind: Namespace\n" not in documents[0]:
        raise ManifestError(f"the Namespace is not the first object of the overlay {variant}")
    return documents


if __name__ == "__main__":
    sys.exit(main())
