# SPDX-License-Identifier: Apache-2.0
"""EDGE: reads from the kernel's description of its own types (BTF) what the kernel can do.

Owns the layout of BTF, as far as hvprobe needs it (include/uapi/linux/btf.h). Must not know any
program or hook.
"""

import re
import struct
from pathlib import Path

HEADER = struct.Struct("<HBBIIIII")
"""``struct btf_header``: magic, version, flags, its size, then offset and size of types and of
strings, counted from its end. Both machines that hvprobe knows are little-endian."""
MAGIC = 0xEB9F
_MISSED = (b"addrs", b"count", b"flags", b"missed")
"""The first members of ``kprobe_multi`` in ``struct bpf_link_info``, in order.

The last one exists since Linux e2b2cd592adb ("bpf: Add missed value to kprobe_multi link info")
(v6.7).
"""
_PER_CPU = b"bpf_prog_active"
"""A variable of each CPU (kernel/bpf/syscall.c), listed where such variables are listed at all."""
_TRACEPOINT_SRCU = b"tracepoint_srcu_srcu_data"
"""The variable of each CPU that DEFINE_SRCU(tracepoint_srcu) makes (kernel/tracepoint.c)."""
_SRCU_FAST = b"srcu_ctr"
"""``struct srcu_ctr``, the counters of SRCU-fast readers (include/linux/srcutree.h)."""


def counts_skipped_runs(sys_root: Path) -> bool:
    """Return whether the kernel counts every run of a program that it skips.

    All kernels since v5.12 show such a count (recursion_misses), but for kprobes and classic
    tracepoints it stays 0 before Linux dd8657894c11 ("bpf: Count missed stats in trace_call_bpf")
    (v6.7). That commit leaves no trace in the kernel's types. Another commit of the same series
    does, and this relies on a kernel having both or neither. False where there is no BTF: a 0 is
    not believed there.
    """
    try:
        return _has_consecutive_members((sys_root / "kernel/btf/vmlinux").read_bytes(), _MISSED)
    except (OSError, struct.error):
        return False


def raw_tracepoints_are_exact(sys_root: Path) -> bool:
    """Return whether no thread can be preempted inside a program at a raw tracepoint.

    The kernel skips such a program for all other threads of a CPU while one is preempted in it.
    Before Linux a46023d5616e ("tracing: Guard __DECLARE_TRACE() use of __DO_TRACE_CALL() with
    SRCU-fast") (v7.0) every tracepoint disables preemption, also with PREEMPT_RT. A kernel with
    that commit has both SRCU-fast (v6.15) and the SRCU domain of tracepoints, which v6.13 removed
    and that commit brought back. False where the kernel's types do not tell.
    """
    try:
        strings = _strings((sys_root / "kernel/btf/vmlinux").read_bytes())
    except (OSError, struct.error):
        return False
    if not _lists(strings, _PER_CPU):
        return False
    return not (_lists(strings, _TRACEPOINT_SRCU) and _lists(strings, _SRCU_FAST))


def _strings(btf: bytes) -> bytes:
    """Return the names that a kernel's types use; nothing if this is no BTF."""
    magic, _, _, header_bytes, _, _, at, length = HEADER.unpack_from(btf)
    return btf[header_bytes + at :][:length] if magic == MAGIC else b""


def _lists(strings: bytes, name: bytes) -> bool:
    return b"\0" + name + b"\0" in strings


def _has_consecutive_members(btf: bytes, names: tuple[bytes, ...]) -> bool:
    """Return whether any type has members with these names, one directly after the other.

    A member (``struct btf_member``) is the offset of its name among the strings, and 8 more bytes.
    To search for them takes milliseconds; to visit all 120,000 types would take Python a tenth of a
    second.
    """
    magic, _, _, header_bytes, types_at, types_bytes, strings_at, strings_bytes = (
        HEADER.unpack_from(btf)
    )
    if magic != MAGIC:
        return False
    types, strings = header_bytes + types_at, header_bytes + strings_at
    members = []
    for name in names:
        at = btf.find(b"\0" + name + b"\0", strings, strings + strings_bytes)
        if at < 0:
            return False
        members.append(re.escape(struct.pack("<I", at + 1 - strings)))
    found = re.compile(b".{8}".join(members), re.DOTALL).search(btf, types, types + types_bytes)
    return found is not None
