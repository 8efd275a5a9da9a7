# SPDX-License-Identifier: Apache-2.0
"""Archives whose bytes follow from their content alone: sorted, without owners, with one time.

Names, contents, whether a file may be run, and the time decide; the machine's umask, time zone,
users and the order of its folders do not. What remains is the compressor: another zlib may write
other bytes for the same content.
"""

import gzip
import hashlib
import io
import shutil
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath

COMPRESSION = 6
CHUNK_BYTES = 1 << 20


class ArchiveError(Exception):
    """An archive holds what it may not. The message says what, in one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A file of an archive."""

    name: str
    """Relative, with slashes."""
    content: bytes | Path
    """The bytes, or the file that has them."""
    executable: bool = False

    @property
    def mode(self) -> int:
        """The permissions, of which every file has one of two."""
        return 0o755 if self.executable else 0o644


def write_tar(target: Path, entries: Iterable[Entry], epoch_s: int) -> None:
    """Write an uncompressed tar, by names. Raises ArchiveError when a name occurs twice."""
    # PAX, because it has no limit for sizes; without fractions of seconds it adds no headers.
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
        for entry in ordered(entries):
            member = tarfile.TarInfo(entry.name)
            member.mode, member.mtime = entry.mode, epoch_s
            if isinstance(entry.content, bytes):
                member.size = len(entry.content)
                archive.addfile(member, io.BytesIO(entry.content))
                continue
            member.size = entry.content.stat().st_size
            with entry.content.open("rb") as source:
                archive.addfile(member, source)


def write_tar_gz(target: Path, entries: Iterable[Entry], epoch_s: int) -> None:
    """The same, compressed."""
    plain = target.with_name(f"{target.name}.plain")
    write_tar(plain, entries, epoch_s)
    compress(plain, target)
    plain.unlink()


def compress(source: Path, target: Path) -> None:
    """Write a gzip without name and time."""
    with (
        source.open("rb") as plain,
        target.open("wb") as raw,
        gzip.GzipFile("", "wb", compresslevel=COMPRESSION, fileobj=raw, mtime=0) as compressed,
    ):
        shutil.copyfileobj(plain, compressed, CHUNK_BYTES)


def read_tar_gz(source: Path) -> list[Entry]:
    """The files of a compressed tar, in memory.

    Raises ArchiveError when it holds anything else than files and folders, or a
    name that leads out of it.
    """
    entries = []
    with tarfile.open(source, "r:gz") as archive:
        for member in archive:
            name = PurePosixPath(member.name)
            if name.is_absolute() or ".." in name.parts or not (member.isfile() or member.isdir()):
                raise ArchiveError(f"{source.name} holds {member.name}, which is no file in it")
            content = archive.extractfile(member)
            if content is not None:
                executable = bool(member.mode & 0o100)
                entries.append(Entry(name=str(name), content=content.read(), executable=executable))
    return entries


def write_folder(folder: Path, entries: Iterable[Entry]) -> None:
    """Write the files below a folder, with the modes of the entries whatever the umask."""
    for entry in ordered(entries):
        file = folder / entry.name
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(entry.content, bytes):
            file.write_bytes(entry.content)
        else:
            shutil.copyfile(entry.content, file)
        file.chmod(entry.mode)


def ordered(entries: Iterable[Entry]) -> list[Entry]:
    """By names. Raises ArchiveError when a name occurs twice."""
    by_name = sorted(entries, key=lambda entry: entry.name)
    for entry, following in pairwise(by_name):
        if entry.name == following.name:
            raise ArchiveError(f"{entry.name} occurs twice")
    return by_name


def sha256(file: Path) -> str:
    """The checksum of a file's content, in hex."""
    with file.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def checksums(folder: Path) -> str:
    """Checksums of a folder's files as ``sha256sum --check`` reads them, by names."""
    return "".join(f"{sha256(file)}  {file.name}\n" for file in sorted(folder.iterdir()))
