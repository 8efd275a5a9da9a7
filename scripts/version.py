# SPDX-License-Identifier: Apache-2.0
"""The version: pyproject.toml defines it, and this script knows every copy of it.

    python scripts/version.py                     # print it
    python scripts/version.py 0.2.0               # set it in pyproject.toml and in every copy
    python scripts/version.py --date 2026-12-31   # give its section of CHANGELOG.md that date
    python scripts/version.py --check             # compare the copies with pyproject.toml

Only numbers, MAJOR.MINOR.PATCH: the Python index and Helm spell pre-releases differently.
Measurements and captured output of tests keep the version that made them, so they are no copies.
"""

import argparse
import datetime
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLAIN = re.compile(r"(?:0|[1-9]\d*)(?:\.(?:0|[1-9]\d*)){2}")
_SOURCE = re.compile(r'^version = "([^"\n]+)"$', re.MULTILINE)
_HEADING = re.compile(r"^## (?P<version>\S+), (?P<date>unreleased|\d{4}-\d\d-\d\d)$", re.MULTILINE)
UNRELEASED = "unreleased"


class VersionError(Exception):
    """The version cannot be read, set or dated. The message says why, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """Where a version is repeated. Group 1 of the pattern is the version."""

    files: str
    """A pattern of paths below the root."""
    pattern: re.Pattern[str]
    tag: bool = True
    """Whether it is spelled as in a tag of an image, which may not contain ``+``."""

    def spelled(self, version: str) -> str:
        """The version as this copy has it."""
        return version.replace("+", "_") if self.tag else version


COPIES = (
    Copy(files="deploy/base/daemonset.yaml", pattern=re.compile(r"image: hvprobe:(\S+)")),
    Copy(
        files="deploy/helm/hvprobe/Chart.yaml",
        pattern=re.compile(r"^(?:version|appVersion): (\S+)", re.MULTILINE),
        tag=False,
    ),
    Copy(files="docs/operators.md", pattern=re.compile(r"/hvprobe:(\d\S*)")),
    Copy(files="tests/golden/deploy/*.yaml", pattern=re.compile(r"image: hvprobe:(\S+)")),
    Copy(
        files="tests/golden/helm/*.yaml",
        pattern=re.compile(r'(?:image: "hvprobe:|helm\.sh/chart: hvprobe-)([^\s"]+)'),
    ),
)


def main() -> int:
    """The exit status: 1 when a copy disagrees, 2 when the version or the date is refused."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("version", nargs="?", help="MAJOR.MINOR.PATCH to set")
    parser.add_argument("--date", help="YYYY-MM-DD, the day of the release")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    given = parser.parse_args()
    try:
        if given.version is not None:
            if not PLAIN.fullmatch(given.version):
                raise VersionError(
                    f"{given.version!r} is not MAJOR.MINOR.PATCH: give three numbers"
                )
            set_version(ROOT, given.version)
        if given.date is not None:
            set_date(ROOT, given.date)
        print(read(ROOT))
    except VersionError as err:
        print(f"version: {err}", file=sys.stderr)
        return 2
    wrong = disagreeing(ROOT) if given.check else []
    for line in wrong:
        print(f"version: {line}", file=sys.stderr)
    return 1 if wrong else 0


def read(root: Path) -> str:
    """The version that pyproject.toml defines.

    Raises VersionError when it defines none or several.
    """
    found = _SOURCE.findall((root / "pyproject.toml").read_text())
    if len(found) != 1:
        raise VersionError(f"pyproject.toml has {len(found)} lines 'version = ': leave one")
    return str(found[0])


def disagreeing(root: Path) -> list[str]:
    """One line for each file whose copy is missing or is not the version, with what to do."""
    version = read(root)
    remedy = f"set it with make version SET={version}"
    lines = []
    for copy, file in _copied(root):
        found = set(copy.pattern.findall(file.read_text()))
        if found != {copy.spelled(version)}:
            lines.append(f"{_named(root, file, found)}, pyproject.toml has {version}: {remedy}")
    heading, _ = changelog(root)
    if heading != version:
        lines.append(f"CHANGELOG.md begins with {heading}, pyproject.toml has {version}: {remedy}")
    return lines


def changelog(root: Path) -> tuple[str, str]:
    """Version and date of the newest section of CHANGELOG.md; the date may be `UNRELEASED`.

    Raises VersionError when no heading has that form.
    """
    found = _HEADING.search((root / "CHANGELOG.md").read_text())
    if found is None:
        raise VersionError("CHANGELOG.md has no heading '## VERSION, DATE': write one")
    return found["version"], found["date"]


def set_version(root: Path, version: str) -> None:
    """Write the version to pyproject.toml and every copy.

    A section of CHANGELOG.md without a date is renamed; above one with a date begins another.
    """
    read(root)
    _, date = changelog(root)
    _rewrite(root / "pyproject.toml", _SOURCE, version)
    for copy, file in _copied(root):
        _rewrite(file, copy.pattern, copy.spelled(version))
    heading = f"## {version}, {UNRELEASED}"
    file = root / "CHANGELOG.md"
    text = file.read_text()
    if date == UNRELEASED:
        text = _HEADING.sub(heading, text, count=1)
    elif changelog(root)[0] != version:
        text = _HEADING.sub(lambda old: f"{heading}\n\n{old[0]}", text, count=1)
    file.write_text(text)


def set_date(root: Path, date: str) -> None:
    """Date the newest section of CHANGELOG.md.

    Raises VersionError when it is no date, or the section is of another version or has a date.
    """
    try:
        day = datetime.date.fromisoformat(date).isoformat()
    except ValueError as err:
        raise VersionError(f"{date!r} is not a date: give YYYY-MM-DD") from err
    version, before = changelog(root)
    if version != read(root) or before not in (UNRELEASED, day):
        raise VersionError(f"CHANGELOG.md begins with '{version}, {before}': set the version first")
    file = root / "CHANGELOG.md"
    file.write_text(_HEADING.sub(f"## {version}, {day}", file.read_text(), count=1))


def _copied(root: Path) -> Iterator[tuple[Copy, Path]]:
    """Each copy with each of its files."""
    for copy in COPIES:
        for file in sorted(root.glob(copy.files)):
            yield copy, file


def _named(root: Path, file: Path, found: set[str]) -> str:
    return f"{file.relative_to(root)} has {' and '.join(sorted(found)) or 'no version'}"


def _rewrite(file: Path, pattern: re.Pattern[str], version: str) -> None:
    """Replace group 1 of every match."""

    def replaced(found: re.Match[str]) -> str:
        start, end = found.start(1) - found.start(), found.end(1) - found.start()
        return f"{found[0][:start]}{version}{found[0][end:]}"

    file.write_text(pattern.sub(replaced, file.read_text()))


if __name__ == "__main__":
    sys.exit(main())
