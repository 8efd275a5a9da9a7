# SPDX-License-Identifier: Apache-2.0
"""Files of the node, read from a tree that stands for its root directory."""

import os
import socket
from pathlib import Path

import pytest

from probes.host.host_files import (
    MAX_LINKS,
    MAX_NAMES,
    FileMissingError,
    FileUnreadableError,
    HostFiles,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root directory with a file and a folder, beside a file that is not in it."""
    (tmp_path / "secret").write_text("outside")
    folder = tmp_path / "root"
    (folder / "etc/real").mkdir(parents=True)
    (folder / "etc/real/file").write_text("inside")
    return folder


def read(root: Path, path: str, limit: int = 100) -> str:
    return HostFiles(root).read(path, limit=limit).decode()


def test_a_file(root: Path) -> None:
    """A file within the limit is read, also one that is exactly as large."""
    assert read(root, "/etc/real/file") == "inside"
    assert read(root, "/etc/real/file", 6) == "inside"
    assert HostFiles(root).names("/etc") == ["real"]


@pytest.mark.parametrize(
    ("link", "to", "path"),
    [
        ("lib", "etc/real", "/lib/file"),
        ("lib", "/etc/real", "/lib/file"),
        ("etc/file", "real/file", "/etc/file"),
        ("etc/file", "/etc/real/file", "/etc/file"),
        ("etc/file", "../etc/./real/../real/file", "/etc/file"),
        ("etc/file", "../../../../etc/real/file", "/etc/file"),
    ],
)
def test_links_lead_within_the_root(root: Path, link: str, to: str, path: str) -> None:
    """A link is followed as on the node, where the root directory is that root."""
    (root / link).symlink_to(to)
    assert read(root, path) == "inside"


@pytest.mark.parametrize("to", ["../secret", "/secret", "../../secret"])
def test_no_link_leads_out(root: Path, to: str) -> None:
    """What is outside of the root does not exist."""
    (root / "link").symlink_to(to)
    with pytest.raises(FileMissingError, match="there is no /link"):
        read(root, "/link")


def test_links_in_a_circle(root: Path) -> None:
    """Links that never end are an error, and so are more than the kernel follows."""
    (root / "one").symlink_to("two")
    (root / "two").symlink_to("one")
    with pytest.raises(FileUnreadableError, match="/one: Too many levels"):
        read(root, "/one")
    (root / "link0").symlink_to("etc/real/file")
    for number in range(MAX_LINKS):
        (root / f"link{number + 1}").symlink_to(f"link{number}")
    assert read(root, f"/link{MAX_LINKS - 1}") == "inside"
    with pytest.raises(FileUnreadableError, match="Too many levels"):
        read(root, f"/link{MAX_LINKS}")


@pytest.mark.parametrize("kind", ["fifo", "folder", "socket", "device", "link to a fifo"])
@pytest.mark.timeout(10)
def test_what_is_no_file_is_not_opened(
    root: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but a regular file is opened, and nothing waits for a writer."""
    odd = root / "odd"
    match kind:
        case "fifo":
            os.mkfifo(odd)
        case "folder":
            odd.mkdir()
        case "socket":
            with socket.socket(socket.AF_UNIX) as listening:
                monkeypatch.chdir(root)  # the path of a socket must be short
                listening.bind("odd")
        case "device":
            root, odd = Path("/"), Path("/dev/null")
        case _:
            os.mkfifo(root / "pipe")
            odd.symlink_to("pipe")
    path = "/dev/null" if kind == "device" else "/odd"
    with pytest.raises(FileUnreadableError, match=f"{path} is not a regular file"):
        read(root, path)


def test_a_large_file_is_bounded(root: Path) -> None:
    """A file beyond the limit is refused, or its beginning is read, whatever its size."""
    large = root / "large"
    with large.open("wb") as file:
        file.write(b"begin")
        file.truncate(1 << 40)
    with pytest.raises(FileUnreadableError, match="/large has more than 64 KiB"):
        read(root, "/large", 64 << 10)
    begin = HostFiles(root).read("/large", limit=8, begin_only=True)
    assert begin == b"begin\0\0\0"


def test_many_names(root: Path) -> None:
    """A folder with more names than are read is refused."""
    for number in range(MAX_NAMES + 1):
        (root / "etc/real" / str(number)).touch()
    with pytest.raises(FileUnreadableError, match=f"more than {MAX_NAMES} names"):
        HostFiles(root).names("/etc/real")


def test_errors_name_the_file_as_the_node_does(root: Path) -> None:
    """An error has the path below the root, with the name that the root has for people."""
    proc = HostFiles(root, shown="/proc")
    with pytest.raises(FileMissingError, match="there is no /proc/cpuinfo"):
        proc.read("/cpuinfo", limit=1)
    with pytest.raises(FileMissingError, match="there is no /proc/nowhere"):
        proc.names("/nowhere")
    with pytest.raises(FileUnreadableError, match="/proc/etc/real/file: Not a directory"):
        proc.names("/etc/real/file")
