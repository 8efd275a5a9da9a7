# SPDX-License-Identifier: Apache-2.0
"""Where members of structures are, from descriptions of types that are made here."""

import ctypes
import struct
from pathlib import Path
from types import SimpleNamespace

import pytest

from ebpf import loader
from ebpf.errors import BpfUnavailableError
from ebpf.kernel_types import KernelTypes
from ebpf.loader_protocol import KernelFunction, KernelParts, Member
from tests.support import kernel_types as made

REAL = Path("/sys/kernel/btf/vmlinux")


def kernel() -> made.Types:
    """A kernel with one type of each kind, and structures behind them."""
    types = made.Types()
    word = types.add(made.INT, "long", word=8, behind=bytes(4))
    types.add(made.ARRAY, behind=bytes(12))
    types.add(made.ENUM, "colour", count=3, behind=bytes(24))
    types.add(made.ENUM64, "wide", count=2, behind=bytes(24))
    types.add(made.VAR, "variable", word=word, behind=bytes(4))
    types.add(made.DATASEC, ".data", count=2, behind=bytes(24))
    types.add(made.DECL_TAG, "tag", word=word, behind=bytes(4))
    prototype = types.add(made.FUNC_PROTO, count=2, behind=bytes(16))
    types.add(made.FUNC, "file", word=prototype)
    place = types.compound(made.STRUCT, "place", ("mount", word, 0), ("entry", word, 64))
    named = types.add(made.TYPEDEF, "place_t", word=types.add(made.CONST, word=place))
    either = types.compound(made.UNION, "", ("f_place", named, 0), ("raw", word, 0))
    types.compound(made.STRUCT, "file", ("f_op", word, 0), ("", either, 128), ("tail", word, 256))
    bits = (4 << 24) | 192
    types.compound(made.STRUCT, "flags", ("some", word, bits), bitfields=True)
    return types


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A /sys with that kernel."""
    (tmp_path / "kernel/btf").mkdir(parents=True)
    (tmp_path / "kernel/btf/vmlinux").write_bytes(kernel().written())
    return tmp_path


@pytest.mark.parametrize(
    ("structure", "path", "offset"),
    [
        ("place", "mount", 0),
        ("place", "entry", 8),
        ("file", "f_op", 0),
        ("file", "f_place", 16),
        ("file", "f_place.entry", 24),
        ("file", "raw", 16),
        ("file", "tail", 32),
        ("flags", "some", 24),
    ],
)
def test_offsets_of_members(root: Path, structure: str, path: str, offset: int) -> None:
    """Also of members of members, of unnamed ones, behind other names, and of bit fields."""
    assert KernelTypes(root).offset_of(structure, path) == offset


def test_a_function_is_no_structure_of_the_same_name(root: Path) -> None:
    """A type is found by its kind and its name; its number counts from 1."""
    assert KernelTypes(root).function("file") == 9


def test_a_module_continues_the_types_of_the_kernel(root: Path) -> None:
    """Its structures may have members of the kernel's types; without it they are missing."""
    module = made.Types(kernel())
    place = 10
    module.compound(made.STRUCT, "kvm_vcpu", ("mount", 1, 0), ("stat", place, 192))
    (root / "kernel/btf/kvm").write_bytes(module.written())
    types = KernelTypes(root, module="kvm")
    assert types.offset_of("kvm_vcpu", "stat.entry") == 32
    assert types.offset_of("file", "tail") == 32
    assert KernelTypes(root, module="other").offset_of("file", "tail") == 32
    with pytest.raises(LookupError, match="no struct kvm_vcpu"):
        KernelTypes(root).offset_of("kvm_vcpu", "stat")


@pytest.mark.parametrize(
    ("structure", "path", "words"),
    [
        ("inode", "f_op", "no struct inode$"),
        ("file", "f_ops", "no struct file with f_ops"),
        ("file", "f_op.name", "no struct file with f_op.name"),
        ("file", "f_place.tail", "no struct file with f_place.tail"),
    ],
)
def test_what_is_missing_is_named(root: Path, structure: str, path: str, words: str) -> None:
    with pytest.raises(LookupError, match=words):
        KernelTypes(root).offset_of(structure, path)


def test_a_missing_function_is_named(root: Path) -> None:
    with pytest.raises(LookupError, match="no function place"):
        KernelTypes(root).function("place")


@pytest.mark.parametrize(
    "content",
    [None, b"", b"x" * 100, kernel().written()[:100]],
    ids=["missing", "empty", "something else", "cut off"],
)
def test_without_a_description_nothing_is_known(root: Path, content: bytes | None) -> None:
    """The error says so in one line, whether it is missing or malformed."""
    file = root / "kernel/btf/vmlinux"
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    with pytest.raises(LookupError, match=r"^the kernel does not describe its types \(BTF\): .+$"):
        KernelTypes(root)


@pytest.mark.skipif(not REAL.exists(), reason="this kernel does not describe its types")
def test_the_types_of_this_kernel() -> None:
    """A list's second pointer is behind its first one, and a known function is there."""
    types = KernelTypes()
    assert types.offset_of("list_head", "prev") == ctypes.sizeof(ctypes.c_void_p)
    assert types.function("vfs_read") > 0


def test_calls_of_numbers_become_calls_of_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only calls of exactly these numbers change; a helper's number and a constant stay."""
    numbers = {"A": 0x7FFF0000, "B": 0x7FFF0001}
    calls = [(0x85, 0, 0, 14), (0x85, 0, 0, numbers["B"]), (0xB7, 1, 0, numbers["A"])]
    calls += [(0x85, 0, 0, numbers["A"]), (0x95, 0, 0, 0)]
    code = b"".join(struct.pack("<BBhi", *each) for each in calls)
    memory = ctypes.create_string_buffer(code, len(code))
    lib = SimpleNamespace(
        bpf_function_size=lambda *_: len(code),
        bpf_function_start=lambda *_: ctypes.cast(memory, ctypes.c_void_p),
    )
    loader._put_kernel_calls(lib, None, b"program", {numbers["A"]: 111, numbers["B"]: 222})
    changed = [*struct.iter_unpack("<BBhi", memory.raw)]
    assert changed == [
        calls[0],
        (0x85, 0x20, 0, 222),
        calls[2],
        (0x85, 0x20, 0, 111),
        calls[4],
    ]


def test_what_a_text_needs_becomes_flags(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offsets, numbers that stand for functions, and the functions' types by these numbers."""
    monkeypatch.setattr(loader, "KernelTypes", lambda *, module: KernelTypes(root, module=module))
    needed = KernelParts(
        members=[Member("ENTRY", "file", "f_place.entry")],
        functions=[KernelFunction("FILE", "file")],
    )
    flags, calls = loader._kernel_flags(needed)
    ((number, function),) = calls.items()
    assert flags == ["-DENTRY=24", f"-DFILE={number}"]
    assert function == 9
    assert loader._kernel_flags(KernelParts()) == ([], {})
    with pytest.raises(BpfUnavailableError, match=r"^the kernel's types have no function task$"):
        loader._kernel_flags(KernelParts(functions=[KernelFunction("TASK", "task")]))
