# SPDX-License-Identifier: Apache-2.0
"""A kernel's description of its types (BTF), made for a test."""

import struct


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
