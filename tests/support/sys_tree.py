# SPDX-License-Identifier: Apache-2.0
"""A /sys that is this machine's but for some files, such as the list of its CPUs."""

from collections.abc import Mapping
from pathlib import Path

CPUS_POSSIBLE = "devices/system/cpu/possible"
CPUS_ONLINE = "devices/system/cpu/online"


def sysfs_with(root: Path, files: Mapping[str, str], real: Path = Path("/sys")) -> Path:
    """Make a tree of links to /sys in which files, named by their paths, have other contents."""
    root.mkdir()
    below: dict[str, dict[str, str]] = {}
    for path, text in files.items():
        name, _, rest = path.partition("/")
        below.setdefault(name, {})[rest] = text
    for entry in real.iterdir():
        if entry.name not in below:
            (root / entry.name).symlink_to(entry)
    for name, inside in below.items():
        if "" in inside:
            (root / name).write_text(inside[""])
        else:
            sysfs_with(root / name, inside, real / name)
    return root
