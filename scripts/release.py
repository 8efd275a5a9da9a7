# SPDX-License-Identifier: Apache-2.0
"""Writes everything a release consists of into one folder, with the same bytes each time.

    python scripts/release.py registry.example/hvprobe@sha256:DIGEST

    hvprobe-VERSION-py3-none-any.whl     and hvprobe-VERSION.tar.gz, from which it is built
    hvprobe-VERSION-python.cdx.json      bill of materials of the wheel with its locked packages
    hvprobe-VERSION-image-ARCH.oci.tar   the image that make image built
    hvprobe-VERSION-image-ARCH.cdx.json  its bill of materials
    hvprobe-VERSION-image-index.json     names these images; its digest is theirs in a registry
    hvprobe-chart-VERSION.tgz            the chart, which installs the image that was given
    install-VARIANT[-monitoring].yaml    one file for each variant, with that image
    SHA256SUMS                           checksums of all

The image may be given as a name alone: its digest is then that of the index. Everything comes from
a copy of the checked out commit, which must be clean and have the tag vVERSION.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import release_images
from archives import ArchiveError, Entry, checksums, read_tar_gz, write_folder, write_tar_gz
from image_archive import ImageError
from release_images import ChoiceError
from source_tree import Source, TreeError, export, source_of

ROOT = Path(__file__).resolve().parents[1]
SUMS = "SHA256SUMS"
OURS = ("hvprobe-*", "install-*.yaml", SUMS)
"""The files of a release, which the next one replaces."""
NAMED = re.compile(r"(?P<name>[^@\s\"]+)@(?P<digest>sha256:[0-9a-f]{64})")
BARE = re.compile(r"(?:[a-z0-9.-]+(?::\d+)?/)?[a-z0-9._/-]+")


class ReleaseError(Exception):
    """The release cannot be made. The message says why, and what to do, in one line."""


class UsageError(ReleaseError):
    """The arguments do not say what to release."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Where a release is made: a folder of scratch, the copy of the tree, and what is finished."""

    source: Source
    scratch: Path
    tree: Path
    finished: Path

    @property
    def stem(self) -> str:
        """How names of files begin."""
        return f"hvprobe-{self.source.version}"


def main() -> int:
    """The exit status: 1 when the release cannot be made, 2 when the arguments are refused."""
    given = parsed()
    try:
        check_output(given.output)
        source = source_of(ROOT, snapshot=given.snapshot)
        images = release_images.chosen(given.images, source, snapshot=given.snapshot)
        name, digest = image_given(given.image, with_images=bool(images))
        (ROOT / "build").mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=ROOT / "build", prefix="release-") as scratch:
            work = prepared(source, Path(scratch))
            write_python(work)
            if images:
                made = release_images.write(images, name, source, work.finished, work.scratch)
                if digest is not None and digest not in made:
                    say(
                        f"note: the archives have the digest {made[0]}, the manifests name {digest}"
                    )
                digest = digest or made[0]
            write_deployment(work, name, str(digest), given.kubectl)
            (work.finished / SUMS).write_text(checksums(work.finished))
            publish(work.finished, given.output)
    except (UsageError, ChoiceError) as err:
        say(str(err))
        return 2
    except (ReleaseError, TreeError, ImageError, ArchiveError, OSError) as err:
        say(str(err))
        return 1
    print((given.output / SUMS).read_text(), end="")
    return 0


def parsed() -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("image", help="NAME@sha256:DIGEST, or NAME for the digest of the archives")
    parser.add_argument(
        "--images",
        default=release_images.ANY,
        metavar="any|none|ARCH,…",
        help="architectures of which there must be an image; any: at least one (default)",
    )
    parser.add_argument(
        "--snapshot",
        action="store_true",
        help="release a tree that is not clean or not tagged, as VERSION+snapshot.gCOMMIT[.dirty]",
    )
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="folder to write to")
    parser.add_argument("--kubectl", default="kubectl", help="kubectl 1.31 or later")
    return parser.parse_args()


def say(line: str) -> None:
    """Print one line on stderr."""
    print(f"release: {line}", file=sys.stderr)


def check_output(output: Path) -> None:
    """Raises ReleaseError when the folder has what no release wrote: it is replaced."""
    if not output.exists():
        return
    ours = {file for pattern in OURS for file in output.glob(pattern) if file.is_file()}
    for file in sorted(output.iterdir()):
        if file not in ours:
            raise ReleaseError(
                f"{file} is no file of a release: remove it, or name another --output"
            )


def image_given(image: str, *, with_images: bool) -> tuple[str, str | None]:
    """Name and digest, which may be that of the archives. Raises UsageError when it is neither."""
    named = NAMED.fullmatch(image)
    if named:
        return named["name"], named["digest"]
    if not BARE.fullmatch(image):
        raise UsageError(f"the image {image!r} is neither NAME@sha256:DIGEST nor NAME: set IMAGE")
    if not with_images:
        raise UsageError(
            f"the image {image!r} has no digest, and there is no archive to take it from"
        )
    return image, None


def prepared(source: Source, scratch: Path) -> Work:
    """The folders, with the copy of the tree in them."""
    work = Work(
        source=source, scratch=scratch, tree=scratch / "tree", finished=scratch / "finished"
    )
    work.tree.mkdir()
    work.finished.mkdir()
    export(ROOT, work.tree, source)
    return work


def write_python(work: Work) -> None:
    """The sdist, the wheel built from it, and their bill of materials."""
    raw = work.scratch / "raw"
    _run(work, [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", raw])
    (made,) = raw.iterdir()
    entries = read_tar_gz(made)
    write_tar_gz(work.finished / made.name, entries, work.source.epoch_s)
    write_folder(work.scratch, entries)
    unpacked = work.scratch / made.name.removesuffix(".tar.gz")
    command: list[str | Path] = [sys.executable, "-m", "build", "--wheel", "--no-isolation"]
    _run(work, [*command, "--outdir", work.finished, unpacked])
    bill = work.finished / f"{work.stem}-python.cdx.json"
    tool = Path(sys.executable).with_name("cyclonedx-py")
    words = ["requirements", "--pyproject", "pyproject.toml", "--spec-version=1.6"]
    words += ["--output-reproducible", "--output-file", str(bill), "requirements.lock"]
    _run(work, [tool, *words])


def write_deployment(work: Work, name: str, digest: str, kubectl: str) -> None:
    """The chart and the files for ``kubectl apply -f``, all with the image."""
    chart = work.tree / "deploy/helm/hvprobe"
    values = chart / "values.yaml"
    values.write_text(values_with_image(values.read_text(), name, digest))
    entries = [
        Entry(name=file.relative_to(chart.parent).as_posix(), content=file)
        for file in chart.rglob("*")
        if file.is_file()
    ]
    package = work.finished / f"hvprobe-chart-{work.source.version}.tgz"
    write_tar_gz(package, entries, work.source.epoch_s)
    script = work.tree / "scripts/manifests.py"
    command: list[str | Path] = [sys.executable, script, f"{name}@{digest}"]
    _run(work, [*command, "--output", work.finished, "--kubectl", kubectl])


def values_with_image(text: str, name: str, digest: str) -> str:
    """The chart's values with another default image. Raises ReleaseError when they name none."""
    for old, new in (
        ("  repository: hvprobe\n", f"  repository: {json.dumps(name)}\n"),
        ('  digest: ""\n', f"  digest: {digest}\n"),
    ):
        if text.count(old) != 1:
            raise ReleaseError(f"values.yaml of the chart has no single line {old.strip()!r}")
        text = text.replace(old, new)
    return text


def publish(finished: Path, output: Path) -> None:
    """Replace what an earlier release left in the folder. The checksums come last."""
    output.mkdir(parents=True, exist_ok=True)
    for file in output.iterdir():
        file.unlink()
    for file in sorted(finished.iterdir(), key=lambda file: (file.name == SUMS, file.name)):
        file.chmod(0o644)
        shutil.move(file, output / file.name)


def _run(work: Work, command: list[str | Path]) -> None:
    """Run a program in the copy of the tree. Raises ReleaseError with its last line."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    fixed = {
        "SOURCE_DATE_EPOCH": str(work.source.epoch_s),
        "TZ": "UTC",
        "LC_ALL": "C.UTF-8",
        "PYTHONHASHSEED": "0",
    }
    try:
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            cwd=work.tree,
            env={**inherited, **fixed},
            umask=0o022,
        )
    except OSError as err:
        raise ReleaseError(f"{command[0]}: {err.strerror}: run make install-python") from err
    if done.returncode != 0:
        *_, reason = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
        raise ReleaseError(f"{' '.join(Path(word).name for word in command[:4])}: {reason}")


if __name__ == "__main__":
    sys.exit(main())
