# SPDX-License-Identifier: Apache-2.0
"""EDGE: what a container's cgroup says of its memory, in either version of cgroups."""

import re
from collections.abc import Mapping
from pathlib import Path

HIERARCHY = Path("/sys/fs/cgroup")
FILES = {
    # By version: what is used, the most that ever was, the limit, and where OOM kills are counted.
    1: ("memory.usage_in_bytes", "memory.max_usage_in_bytes", "memory.limit_in_bytes"),
    2: ("memory.current", "memory.peak", "memory.max"),
}
OOM = {1: "memory.oom_control", 2: "memory.events"}
INACTIVE_FILE = {1: "total_inactive_file", 2: "inactive_file"}


def memory_of(tgid: int) -> dict[str, int]:
    """Bytes by what they are: used, peak, limit, working_set; and the number of OOM kills."""
    version, directory = cgroup_of(tgid)
    used, peak, limit = (int((directory / name).read_text()) for name in FILES[version])
    statistics = table(directory / "memory.stat")
    return {
        "used": used,
        "peak": peak,
        "limit": limit,
        "working_set": used - statistics[INACTIVE_FILE[version]],
        "oom_kills": table(directory / OOM[version])["oom_kill"],
    }


def cgroup_of(tgid: int) -> tuple[int, Path]:
    """Version and directory of the cgroup that counts this process's memory."""
    text = Path(f"/proc/{tgid}/cgroup").read_text()
    first = re.search(r"^\d+:(?:\w+,)*memory(?:,\w+)*:(.+)$", text, re.MULTILINE)
    if first:
        return 1, HIERARCHY / "memory" / first[1].lstrip("/")
    second = re.search(r"^0::(.+)$", text, re.MULTILINE)
    assert second, text
    return 2, HIERARCHY / second[1].lstrip("/")


def table(file: Path) -> Mapping[str, int]:
    """Lines of a name and a number."""
    pairs = (line.split() for line in file.read_text().splitlines())
    return {name: int(value) for name, value in pairs}
