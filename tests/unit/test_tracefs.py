# SPDX-License-Identifier: Apache-2.0
"""Reading tracepoints in tracefs, with descriptions from several kernels."""

from pathlib import Path

import pytest

from ebpf.tracefs import Tracefs, offsets_from

COMMON = """\
name: {name}
ID: 42
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;
\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

"""
FORK_5_10 = (
    COMMON.format(name="sched_process_fork")
    + """\
\tfield:char parent_comm[16];\toffset:8;\tsize:16;\tsigned:1;
\tfield:pid_t parent_pid;\toffset:24;\tsize:4;\tsigned:1;
\tfield:char child_comm[16];\toffset:28;\tsize:16;\tsigned:1;
\tfield:pid_t child_pid;\toffset:44;\tsize:4;\tsigned:1;
"""
)
FORK_6_18 = (
    COMMON.format(name="sched_process_fork")
    + """\
\tfield:__data_loc char[] parent_comm;\toffset:8;\tsize:4;\tsigned:0;
\tfield:pid_t parent_pid;\toffset:12;\tsize:4;\tsigned:1;
\tfield:__data_loc char[] child_comm;\toffset:16;\tsize:4;\tsigned:0;
\tfield:pid_t child_pid;\toffset:20;\tsize:4;\tsigned:1;
"""
)
RETURNS = (
    COMMON.format(name="kvm_userspace_exit")
    + """\
\tfield:__u32 reason;\toffset:8;\tsize:4;\tsigned:0;
\tfield:int errno;\toffset:12;\tsize:4;\tsigned:1;
"""
)


@pytest.mark.parametrize(
    ("description", "fields", "offsets"),
    [
        (FORK_5_10, ("child_pid",), (44,)),
        (FORK_6_18, ("child_pid",), (20,)),
        (RETURNS, ("reason", "errno"), (8, 12)),
        (RETURNS, ("errno", "reason"), (12, 8)),
        (RETURNS, (), ()),
    ],
)
def test_fields_of_known_kernels(
    description: str, fields: tuple[str, ...], offsets: tuple[int, ...]
) -> None:
    """The offsets of fields are found on old and new kernels, in any order of the fields."""
    found = offsets_from(description)
    assert tuple(found[field] for field in fields) == offsets


@pytest.mark.parametrize("field", ["pid", "child", "common_type", "child_comm"])
def test_a_missing_field_or_one_of_another_size(field: str) -> None:
    """A part of a name, and a field of another size than programs read, have no offset."""
    assert field not in offsets_from(FORK_5_10)


def event(root: Path, mount: str, text: str) -> None:
    directory = root / mount / "events/sched/sched_process_fork"
    directory.mkdir(parents=True)
    (directory / "format").write_text(text)
    (directory / "id").write_text("366\n")


@pytest.mark.parametrize("mount", ["kernel/tracing", "kernel/debug/tracing"])
def test_either_mount_is_read(tmp_path: Path, mount: str) -> None:
    """Tracefs is read from its own mount or, on older systems, below debugfs."""
    event(tmp_path, mount, FORK_6_18)
    tracefs = Tracefs(tmp_path)
    assert tracefs.mounted
    assert tracefs.event_id("sched:sched_process_fork") == 366
    assert tracefs.offsets("sched:sched_process_fork", ("child_pid",)) == (20,)
    assert tracefs.offsets("sched:sched_process_fork", ("child_pid", "child_comm")) == (20, 16)
    assert tracefs.offsets("sched:sched_process_fork", ("child_pid", "pid")) is None
    assert tracefs.offsets("sched:sched_process_exec", ("pid",)) is None
    description = tracefs.description("sched:sched_process_fork")
    assert description is not None
    assert description.file.is_relative_to(tmp_path / mount)
    assert description.offsets["parent_pid"] == 12
    assert tracefs.description("sched:sched_process_exec") is None
    with pytest.raises(FileNotFoundError):
        tracefs.event_id("sched:sched_process_exec")


def test_without_a_tracefs(tmp_path: Path) -> None:
    """Without tracefs the offsets are unknown, which is no error."""
    assert not Tracefs(tmp_path).mounted
    assert Tracefs(tmp_path).offsets("sched:sched_process_fork", ("child_pid",)) is None
