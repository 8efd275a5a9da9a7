# SPDX-License-Identifier: Apache-2.0
"""What the kernel's description of its types says, from descriptions made for the test."""

import struct
from pathlib import Path

import pytest

from ebpf.btf import counts_skipped_runs

BEFORE = ("addrs", "count", "flags")
"""Members of kprobe_multi in bpf_link_info before v6.7."""
SINCE = (*BEFORE, "missed")
LATER = (*SINCE, "cookies")
"""The same since v6.9."""
OTHER = ("flags", "missed")
"""A type that has a member of that name for another reason."""


def btf(*types: tuple[str, ...], magic: int = 0xEB9F) -> bytes:
    """Return a description of structures with these members."""
    strings, described = b"\0", b""
    for members in types:
        described += struct.pack("<III", 0, 4 << 24 | len(members), 8 * len(members))
        for place, name in enumerate(members):
            if f"\0{name}\0".encode() not in strings:
                strings += f"{name}\0".encode()
            at = strings.index(f"\0{name}\0".encode()) + 1
            described += struct.pack("<III", at, 1, 64 * place)
    header = struct.pack("<HBBIIIII", magic, 1, 0, 24, 0, len(described), len(described), 0)
    return header[:-4] + struct.pack("<I", len(strings)) + described + strings


@pytest.mark.parametrize(
    ("types", "counts"),
    [
        ((BEFORE,), False),
        ((SINCE,), True),
        ((OTHER, BEFORE, ("name",), LATER), True),
        ((BEFORE, OTHER), False),
        ((("addrs", "count", "missed", "flags"),), False),
        ((("addrs", "count", "flags", "missed_total"),), False),
        ((), False),
    ],
)
def test_skipped_runs_are_counted_where_links_say_so(
    tmp_path: Path, types: tuple[tuple[str, ...], ...], *, counts: bool
) -> None:
    """The kernel counts skipped runs if bpf_link_info shows how many a kprobe_multi link missed."""
    file = tmp_path / "kernel/btf/vmlinux"
    file.parent.mkdir(parents=True)
    file.write_bytes(btf(*types))
    assert counts_skipped_runs(tmp_path) is counts


@pytest.mark.parametrize("content", [None, b"", b"\x9f\xeb\1", btf(SINCE, magic=0x9FEB)])
def test_without_a_description_nothing_is_assumed(tmp_path: Path, content: bytes | None) -> None:
    """A kernel without BTF, or with a description that cannot be read, is not believed to count."""
    if content is not None:
        (tmp_path / "kernel/btf").mkdir(parents=True)
        (tmp_path / "kernel/btf/vmlinux").write_bytes(content)
    assert not counts_skipped_runs(tmp_path)
