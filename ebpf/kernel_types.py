# SPDX-License-Identifier: Apache-2.0
"""EDGE: finds members of structures and functions in the kernel's description of its types (BTF).

Owns how BTF records are visited (include/uapi/linux/btf.h; Documentation/bpf/btf.rst). Must not
know what a structure is for. The process that compiles the programs uses this, because an index of
all types takes more memory than the agent should hold.

A loaded module has a description of its own, whose types and names continue those of vmlinux.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

from ebpf.btf import HEADER, MAGIC

_TYPE = struct.Struct("<III")
"""``struct btf_type``: offset of the name, info, and size or another type."""
_STRUCT, _UNION, _FUNC = 4, 5, 12
_ALIASES = frozenset((8, 9, 10, 11, 18))
"""Typedef, volatile, const, restrict and type tag: the type is that of the word behind them."""
_FIXED_BYTES = {1: 4, 3: 12, 14: 4, 17: 4}
"""What follows a record of some kinds: integer, array, variable, declaration tag."""
_BYTES_EACH = {_STRUCT: 12, _UNION: 12, 6: 8, 13: 8, 15: 12, 19: 12}
"""What follows it for each of its members: structure, union, enum, parameters, section, enum64."""
_BITFIELDS = 1 << 31
"""KIND_FLAG: the offset of a member has its size in bits in the highest byte."""


class KernelTypes:
    """The types of vmlinux and, if it has a description, of one module."""

    def __init__(self, sys_root: Path = Path("/sys"), *, module: str | None = None) -> None:
        """Read the descriptions. Raises LookupError when there is none, or it is malformed."""
        folder = sys_root / "kernel/btf"
        self._records: list[tuple[bytes, int]] = [(b"", 0)]
        """The bytes that each type is in, and where it begins. Type 0 is void."""
        self._names = b""
        try:
            self._add((folder / "vmlinux").read_bytes())
            if module is not None and (folder / module).exists():
                self._add((folder / module).read_bytes())
        except (OSError, struct.error) as err:
            raise LookupError(f"the kernel does not describe its types (BTF): {err}") from err

    def offset_of(self, structure: str, path: str) -> int:
        """Return the offset in bytes of a member, or of a member of a member (``a.b``).

        Raises LookupError when there is no such structure or member.
        """
        place, number = 0, self._number(structure, _STRUCT)
        for name in path.split("."):
            found = self._member(number, name)
            if found is None:
                raise LookupError(f"the kernel's types have no struct {structure} with {path}")
            place += found[0]
            number = found[1]
        return place

    def function(self, name: str) -> int:
        """Return the number of a function's type. Raises LookupError when there is none."""
        return self._number(name, _FUNC)

    def _add(self, description: bytes) -> None:
        magic, _, _, header_bytes, types_at, types_bytes, names_at, names_bytes = (
            HEADER.unpack_from(description)
        )
        if magic != MAGIC:
            raise struct.error(f"{magic:#x} instead of {MAGIC:#x}")
        if len(description) < header_bytes + max(types_at + types_bytes, names_at + names_bytes):
            raise struct.error("it is cut off")
        begin = header_bytes + types_at
        types = description[begin : begin + types_bytes]
        begin = header_bytes + names_at
        self._names += description[begin : begin + names_bytes]
        records, unpack, at = self._records, _TYPE.unpack_from, 0
        while at < len(types):
            records.append((types, at))
            _, info, _ = unpack(types, at)
            kind = info >> 24 & 0x1F
            at += (
                _TYPE.size + _FIXED_BYTES.get(kind, 0) + _BYTES_EACH.get(kind, 0) * (info & 0xFFFF)
            )

    def _number(self, name: str, kind: int) -> int:
        place = self._names.find(b"\0" + name.encode() + b"\0") + 1
        if place:
            for number, (types, at) in enumerate(self._records[1:], 1):
                of, info, _ = _TYPE.unpack_from(types, at)
                if of == place and info >> 24 & 0x1F == kind:
                    return number
        what = "function" if kind == _FUNC else "struct"
        raise LookupError(f"the kernel's types have no {what} {name}")

    def _member(self, number: int, name: str) -> tuple[int, int] | None:
        """Return offset and type of a member, which may be one of an unnamed member."""
        for place, of, member in self._members(number):
            if self._name(of) == name:
                return place, member
            inner = None if of else self._member(member, name)
            if inner is not None:
                return place + inner[0], inner[1]
        return None

    def _members(self, number: int) -> Iterator[tuple[int, int, int]]:
        """Iterate over offset, place of the name and type of the members of a structure."""
        types, at = self._records[number]
        _, info, other = _TYPE.unpack_from(types, at) if types else (0, 0, 0)
        kind = info >> 24 & 0x1F
        if kind in _ALIASES:
            yield from self._members(other)
        elif kind in (_STRUCT, _UNION):
            for index in range(info & 0xFFFF):
                of, member, bits = _TYPE.unpack_from(types, at + _TYPE.size * (1 + index))
                yield (bits & 0xFFFFFF if info & _BITFIELDS else bits) // 8, of, member

    def _name(self, place: int) -> str:
        return self._names[place : self._names.index(b"\0", place)].decode()
