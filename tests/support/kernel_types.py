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


INT, ARRAY, STRUCT, UNION, ENUM, TYPEDEF, CONST = 1, 3, 4, 5, 6, 8, 10
FUNC, FUNC_PROTO, VAR, DATASEC, DECL_TAG, ENUM64 = 12, 13, 14, 15, 17, 19
"""Kinds of types (include/uapi/linux/btf.h)."""


class Types:
    """A description that is made type by type, of a kernel or of a module that has it as base."""

    def __init__(self, base: "Types | None" = None) -> None:
        self._names_before = base.names if base else b""
        self.names: bytes = base.names if base else b"\0"
        self.count: int = base.count if base else 0
        self._described = b""

    def add(
        self, kind: int, name: str = "", *, word: int = 0, count: int = 0, behind: bytes = b""
    ) -> int:
        """Add a type; return its number."""
        self._described += struct.pack("<III", self._place(name), kind << 24 | count, word) + behind
        self.count += 1
        return self.count

    def compound(
        self, kind: int, name: str, *members: tuple[str, int, int], bitfields: bool = False
    ) -> int:
        """Add a structure or union of members, each with name, type and offset in bits."""
        behind = b"".join(
            struct.pack("<III", self._place(each), number, bits) for each, number, bits in members
        )
        return self.add(kind | bitfields << 7, name, count=len(members), behind=behind)

    def written(self) -> bytes:
        """Return the file."""
        names = self.names[len(self._names_before) :]
        length = len(self._described)
        header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, length, length, len(names))
        return header + self._described + names

    def _place(self, name: str) -> int:
        if not name:
            return 0
        if f"\0{name}\0".encode() not in self.names:
            self.names += f"{name}\0".encode()
        return self.names.index(f"\0{name}\0".encode()) + 1
