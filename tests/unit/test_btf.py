# SPDX-License-Identifier: Apache-2.0
"""What the kernel's description of its types says, from descriptions made for the test."""

from pathlib import Path

import pytest

from ebpf.btf import counts_skipped_runs, raw_tracepoints_are_exact
from tests.support.kernel_types import btf

BEFORE = ("addrs", "count", "flags")
"""Members of kprobe_multi in bpf_link_info before v6.7."""
SINCE = (*BEFORE, "missed")
LATER = (*SINCE, "cookies")
"""The same since v6.9."""
PER_CPU = "bpf_prog_active"
TRACEPOINT_SRCU = "tracepoint_srcu_srcu_data"
OTHER = ("flags", "missed")
"""A type that has a member of that name for another reason."""


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


@pytest.mark.parametrize(
    ("names", "exact"),
    [
        ((PER_CPU, TRACEPOINT_SRCU), True),
        ((PER_CPU, "srcu_ctr"), True),
        ((PER_CPU,), True),
        ((PER_CPU, TRACEPOINT_SRCU, "srcu_ctr"), False),
        ((PER_CPU, "srcu_ctr_of_mine", TRACEPOINT_SRCU), True),
        (("srcu_ctr",), False),
        ((), False),
    ],
    ids=["6.12", "6.18", "between", "7.0", "other names", "no variables listed", "nothing"],
)
def test_raw_tracepoints_are_exact_unless_srcu_fast_guards_them(
    tmp_path: Path, names: tuple[str, ...], *, exact: bool
) -> None:
    """They are not if tracepoints have an SRCU domain and SRCU has fast readers.

    A kernel that lists no variable of each CPU cannot show that domain, so nothing is known of it.
    """
    file = tmp_path / "kernel/btf/vmlinux"
    file.parent.mkdir(parents=True)
    file.write_bytes(btf(*((name,) for name in names)))
    assert raw_tracepoints_are_exact(tmp_path) is exact


@pytest.mark.parametrize("content", [None, b"", b"\x9f\xeb\1", btf(SINCE, magic=0x9FEB)])
def test_without_a_description_nothing_is_assumed(tmp_path: Path, content: bytes | None) -> None:
    """A kernel without BTF, or with a description that cannot be read, is not believed to count.

    Nor are its raw tracepoints believed to be exact.
    """
    if content is not None:
        (tmp_path / "kernel/btf").mkdir(parents=True)
        (tmp_path / "kernel/btf/vmlinux").write_bytes(content)
    assert not counts_skipped_runs(tmp_path)
    assert not raw_tracepoints_are_exact(tmp_path)
